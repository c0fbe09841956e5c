"""
Leadership: which listener relays.

The leader holds a session advisory lock on its connection; a leader that crashes, or loses its network or its server,
loses the lock with its session.  Each term has an epoch, by which everybody tells an old leader from the new one.

Standbys try the lock a few times a second.  They do not block on it: a backend that waits inside a statement holds a
snapshot (``backend_xmin`` in pg_stat_activity), so that VACUUM could remove nothing, and keeps the notification queue
of the whole instance from being cleaned, for as long as the leader lives.
"""

from __future__ import annotations

from .. import names
from ..journal.reader import Connection

STANDBY_INTERVAL = 0.25
"""Seconds between two tries of a standby; it leads within 1 s of a crash."""


async def try_to_lead(connection: Connection) -> bool:
    """Take the leader lock for this session if it is free; return whether it was."""
    result = await connection.execute("select pg_try_advisory_lock(%s, %s)", [names.LOCK_CLASS, names.LEADER_LOCK])
    found = await result.fetchone()
    return found is not None and bool(found[0])
