"""
The state of the journal for people: how large it is, up to where it was relayed, and what holds it up.

What is asked is bounded, however large the journal: ages are probes of the index, and rows are counted up to a limit.
Nothing is locked but for reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString

from psycopg import sql

from .. import names
from .locks import HELD
from .reader import Connection, current_snapshot, unseen_parameters
from .retention import SLOTS, current_slot, slot_table
from .snapshot import Snapshot

MOST_COUNTED = 100_000
"""Rows that are counted, at most; there may be more."""

STATE: LiteralString = """
    select epoch, relayed::text, nullif(relayed_at, '-infinity'), rotated_at, clock_timestamp(), pg_is_in_recovery()
    from pgnotify_gql.journal_state
"""

# By the id of its transaction, which is nearly the age, and a probe of the index.
SLOT: LiteralString = """
    select pg_total_relation_size({name}::regclass),
           (select at from {slot} order by xid, id limit 1),
           (select count(*) from (select from {slot} limit %s) as counted)
"""

UNRELAYED: LiteralString = """
    select count(*), min(at) from (
        (select at from pgnotify_gql.journal where xid >= %(xmax)s::xid8 order by xid, id limit %(limit)s)
        union all
        (select at from pgnotify_gql.journal where xid = any(%(xip)s::text[]::xid8[]) limit %(limit)s)
    ) as unrelayed
"""

# Who writes holds a lock on the id of its transaction, and one on that of each savepoint; of a prepared one they belong
# to no session. What other roles do is shown to members of pg_read_all_stats, that they are there, and the order in
# which they began to write, to everybody.
OF_WRITERS: LiteralString = """
    from pg_locks l
    left join pg_stat_activity a on a.pid = l.pid
    left join pg_prepared_xacts p on l.pid is null and p.transaction = l.transactionid
    where l.locktype = 'transactionid' and l.mode = 'ExclusiveLock' and l.granted
        and (l.pid <> pg_backend_pid() or p.gid is not null)
"""

WRITERS: LiteralString = f"""
    select l.pid, p.gid, coalesce(a.datname, p.database), coalesce(a.usename, p.owner),
           coalesce(a.application_name, ''), coalesce(a.state, ''), coalesce(a.xact_start, p.prepared)
    {OF_WRITERS}
    group by 1, 2, 3, 4, 5, 6, 7
    order by max(age(l.transactionid)) desc
"""

LEADER = sql.SQL("""
    select l.pid, bool_or(l.objid = %(awake)s), host(a.client_addr), a.backend_start
    from ({held}) as l
    left join pg_stat_activity a on a.pid = l.pid
    where l.mode = 'ExclusiveLock' and l.classid = %(class)s and l.objid in (%(leader)s, %(awake)s)
    group by l.pid, a.client_addr, a.backend_start
    having bool_or(l.objid = %(leader)s)
""").format(held=HELD)


@dataclass(frozen=True)
class Slot:
    """One slot of the journal; `rows` counts up to MOST_COUNTED, `oldest` is None where it is empty."""

    number: int
    current: bool
    bytes: int
    rows: int
    oldest: datetime | None


@dataclass(frozen=True)
class Leader:
    """The session that leads; `host` is None on a unix socket, and for who may not see it."""

    pid: int
    awake: bool
    host: str | None
    since: datetime | None


@dataclass(frozen=True)
class OpenWriter:
    """
    A transaction that has written and not ended, in any database of the instance.

    `pid` is None and `gid` set for a prepared one.  The rest is None or empty for who may not see it.
    """

    pid: int | None
    gid: str | None
    database: str | None
    role: str | None
    application: str
    state: str
    since: datetime | None


@dataclass(frozen=True)
class Inspection:
    """
    What stands in a journal at the server's time `at`.

    `unrelayed` counts the rows that the stored cursor does not see, up to MOST_COUNTED, `waiting_since` is when the
    oldest of them was written.  `relayed_at` is None where no leader has stored a cursor since the last one resigned.
    On a replica nobody leads: `leader` and `writers` are the primary's to tell.
    """

    at: datetime
    replica: bool
    epoch: int
    leader: Leader | None
    relayed: Snapshot
    relayed_at: datetime | None
    unrelayed: int
    waiting_since: datetime | None
    slots: Sequence[Slot]
    rotated_at: datetime
    now: Snapshot
    writers: Sequence[OpenWriter]

    @property
    def bytes(self) -> int:
        """Return the size of all slots, with their indexes."""
        return sum(slot.bytes for slot in self.slots)

    @property
    def oldest(self) -> datetime | None:
        """Return when the oldest row was written; None where there is none."""
        return min((slot.oldest for slot in self.slots if slot.oldest), default=None)

    @property
    def lag(self) -> float:
        """Return for how many seconds the oldest row that is not relayed has been waiting; 0 where there is none."""
        return max(0.0, (self.at - self.waiting_since).total_seconds()) if self.waiting_since else 0.0

    def is_leased(self, lease: float) -> bool:
        """
        Return whether somebody is believed to lead without a lock: through a pooler, or until a moment ago.

        `lease` is for how many seconds a leader may store nothing.
        """
        return self.leader is None and self.relayed_at is not None and self.silence < lease

    def is_stuck(self, lease: float) -> bool:
        """Return whether the leader has stored nothing for longer than so many seconds."""
        return self.leader is not None and self.silence > lease

    @property
    def silence(self) -> float:
        """Return for how many seconds no leader has stored anything; 0 where none ever has."""
        return (self.at - self.relayed_at).total_seconds() if self.relayed_at else 0.0


async def inspect(connection: Connection) -> Inspection:
    """Look at the journal; the connection is in autocommit.  Raises psycopg.Error."""
    result = await connection.execute(STATE)
    state = await result.fetchone()
    assert state is not None, "the migration inserts the row"
    epoch, relayed_text, relayed_at, rotated_at, at, replica = state
    relayed = Snapshot.parse(relayed_text)
    unrelayed, waiting_since = await _unrelayed(connection, relayed)
    current = await current_slot(connection)
    return Inspection(
        at=at,
        replica=replica,
        epoch=epoch,
        leader=await _leader(connection),
        relayed=relayed,
        relayed_at=relayed_at,
        unrelayed=unrelayed,
        waiting_since=waiting_since,
        slots=[await _slot(connection, number, current) for number in range(SLOTS)],
        rotated_at=rotated_at,
        now=await current_snapshot(connection),
        writers=await _writers(connection),
    )


async def _leader(connection: Connection) -> Leader | None:
    keys = {"class": names.LOCK_CLASS, "leader": names.LEADER_LOCK, "awake": names.AWAKE_LOCK}
    result = await connection.execute(LEADER, keys)
    found = await result.fetchone()
    return None if found is None else Leader(*found)


async def _unrelayed(connection: Connection, relayed: Snapshot) -> tuple[int, datetime | None]:
    result = await connection.execute(UNRELAYED, {**unseen_parameters(relayed), "limit": MOST_COUNTED})
    found = await result.fetchone()
    assert found is not None
    return min(found[0], MOST_COUNTED), found[1]


async def _slot(connection: Connection, number: int, current: int) -> Slot:
    table = slot_table(number)
    statement = sql.SQL(SLOT).format(slot=table, name=sql.Literal(table.as_string()))
    result = await connection.execute(statement, [MOST_COUNTED])
    found = await result.fetchone()
    assert found is not None
    size, oldest, rows = found
    return Slot(number, number == current, size, rows, oldest)


async def _writers(connection: Connection) -> list[OpenWriter]:
    result = await connection.execute(WRITERS)
    return [OpenWriter(*found) for found in await result.fetchall()]
