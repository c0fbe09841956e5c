"""
What the rest of the instance does to a feed: a queue of notifications that fills up, and writers that stay open.

A queue that is full makes every commit that notifies fail, on the whole instance; a writer that stays open keeps slots
of the journal from being emptied, and vacuum from its work.  What is asked reads shared memory, and no table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import LiteralString

from .reader import Connection

# As in ``inspection``: who writes holds a lock on the id of its transaction. Oldest by that id, which everybody may
# see; since when it is open only members of pg_read_all_stats see of other roles.
PRESSURE: LiteralString = """
    with writer as (
        select coalesce(a.xact_start, p.prepared) as since
        from pg_locks l
        left join pg_stat_activity a on a.pid = l.pid
        left join pg_prepared_xacts p on l.pid is null and p.transaction = l.transactionid
        where l.locktype = 'transactionid' and l.mode = 'ExclusiveLock' and l.granted
            and (l.pid <> pg_backend_pid() or p.gid is not null)
        order by age(l.transactionid) desc
        limit 1
    )
    select pg_notification_queue_usage(), exists (select from writer),
           (select date_part('epoch', clock_timestamp() - since) from writer)
"""


@dataclass(frozen=True)
class Pressure:
    """
    How full the queue of notifications is, from 0 to 1, and for how many seconds the oldest writer has been open.

    The second is 0 where nobody writes, and NaN where the role may not see it.
    """

    queue_usage: float
    oldest_writer: float


async def measure_pressure(connection: Connection) -> Pressure:
    """Ask the instance; the connection is in autocommit.  Raises psycopg.Error."""
    result = await connection.execute(PRESSURE)
    found = await result.fetchone()
    assert found is not None
    usage, somebody_writes, seconds = found
    if not somebody_writes:
        return Pressure(usage, 0.0)
    return Pressure(usage, math.nan if seconds is None else max(0.0, seconds))
