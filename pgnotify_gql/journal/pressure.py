"""
What the rest of the instance does to a feed: a queue of notifications that fills up, and writers that stay open.

A queue that is full makes every commit that notifies fail, on the whole instance; a writer that stays open keeps slots
of the journal from being emptied, and vacuum from its work.  What is asked reads shared memory, and no table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import LiteralString

from .inspection import OF_WRITERS
from .reader import Connection

# Oldest by the id of its transaction, which everybody may see; since when it is open only members of pg_read_all_stats
# see of other roles.
PRESSURE: LiteralString = f"""
    with writer as (
        select coalesce(a.xact_start, p.prepared) as since
        {OF_WRITERS}
        order by age(l.transactionid) desc
        limit 1
    )
    select pg_notification_queue_usage(), exists (select from writer),
           (select date_part('epoch', clock_timestamp() - since) from writer)
"""  # noqa: S608  (made of constants)


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
