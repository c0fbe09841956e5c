"""
Who holds advisory locks of this database: pg_locks knows those of all databases, and locks of every type.
"""

from __future__ import annotations

from psycopg import sql

# Locks of two keys have objsubid 2; the keys are classid and objid.
HELD = sql.SQL("""
    select k.pid, k.classid, k.objid, k.mode
    from pg_locks k
    join pg_database d on d.oid = k.database
    where d.datname = current_database() and k.locktype = 'advisory' and k.objsubid = 2 and k.granted
""")
