"""
The state of the feed, one row: up to where the leader has relayed, and in which epoch.

Storing is fenced: a leader of an older epoch changes nothing and is told so.

Cursors are positions in the transaction ids of one cluster of databases.  A journal that was dumped and restored into
another cluster comes with a cursor, and with rows, of ids that mean nothing there, or will only be given out in future.
The state knows the cluster it was made in; in another one, the first leader begins a new journal.

A database may forget what it has committed: in a crash under ``synchronous_commit = off``, and in a failover to a
replica that lagged.  Then it gives out ids of transactions a second time, and whoever has taken the first ones must not
take the second for seen.  So there is an era, kept in an unlogged table: PostgreSQL empties it in both cases, and not
in a clean restart.  While the era is the same, what was seen is still there.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, LiteralString

from ..errors import PgnotifyGqlError
from .reader import Connection
from .snapshot import Snapshot

logger = logging.getLogger("pgnotify_gql.journal")

# By the clock, and not by a sequence or by the last one alone: an epoch that a database has lost, after an unclean
# failover, must not be given out again, or hubs would take the new leader's messages for the old one's.
NEXT_EPOCH: LiteralString = "greatest(epoch + 1, (extract(epoch from clock_timestamp()) * 1000)::bigint)"

# A replica that is promoted, and a cluster that was restored from a physical backup, keep their identifier.
CLUSTER: LiteralString = """
    select coalesce(s.cluster, ''), c.system_identifier::text
    from pgnotify_gql.journal_state s, pg_control_system() c
"""

# Rows that a snapshot sees, though the ids of their transactions are not given out yet by it, are restored ones.
# Who waits for changes reads them from a cursor of its own, so nothing that was written since is missed.
BEGIN_JOURNAL: LiteralString = """
    with restored as (
        delete from pgnotify_gql.journal where xid >= pg_snapshot_xmax(pg_current_snapshot())
    )
    update pgnotify_gql.journal_state
    set cluster = %s, journal_id = gen_random_uuid(), relayed = pg_current_snapshot(), relayed_at = '-infinity',
        emptied_xid = '0', emptied = pg_current_snapshot()
"""

ERA: LiteralString = """
    with begun as (
        insert into pgnotify_gql.journal_era (began)
        select relayed from pgnotify_gql.journal_state
        on conflict do nothing
        returning era, began
    )
    select era::text, began::text from begun union all select era::text, began::text from pgnotify_gql.journal_era
"""


JOIN: LiteralString = """
    select pg_current_snapshot()::text, epoch, clock_timestamp(), coalesce(era::text, ''), began::text, journal_id::text
    from pgnotify_gql.journal_state left join pgnotify_gql.journal_era on true
"""


class LeadershipLostError(PgnotifyGqlError):
    """Another listener leads by now; this one relays nothing more."""


async def require_own_cluster(connection: Connection, database: str = "default") -> None:
    """Begin a new journal if this one was restored into another cluster.  Called by a leader, before its term."""
    result = await connection.execute(CLUSTER)
    found = await result.fetchone()
    assert found is not None, "the migration inserts the row"
    known, cluster = found
    if not known:
        await connection.execute("update pgnotify_gql.journal_state set cluster = %s", [cluster])
    elif known != cluster:
        logger.warning(
            "the journal of database %s was made in another cluster of databases (restored from a dump?): it begins "
            "anew, and cursors from before are too old",
            database,
        )
        await connection.execute(BEGIN_JOURNAL, [cluster])
        await connection.execute("delete from pgnotify_gql.journal_era")


@dataclass(frozen=True)
class Era:
    """A time in which the database forgets nothing; what was relayed before it is seen by `began`."""

    id: str
    began: Snapshot


async def begin_era(connection: Connection) -> Era:
    """Return the era, which begins now if the database may have forgotten the last one.  Called by a leader."""
    result = await connection.execute(ERA)
    found = await result.fetchone()
    assert found is not None
    return Era(found[0], Snapshot.parse(found[1]))


@dataclass(frozen=True)
class Joined:
    """
    A cursor from which only later changes are new, in which epoch and when it was taken, and of which journal.

    `era` is empty where no leader has begun one yet, and `began` where it began.
    """

    cursor: Snapshot
    epoch: int
    at: datetime
    era: str = ""
    began: Snapshot = field(default=Snapshot(0, 0))
    journal: str = ""

    @classmethod
    def of(cls, columns: Sequence[Any]) -> Joined:
        """Return what JOIN has found."""
        cursor, epoch, at, era, began, journal = columns
        return cls(Snapshot.parse(cursor), epoch, at, era, Snapshot.parse(began or "0:0:"), journal)


async def join(connection: Connection) -> Joined:
    """Return where a reader begins that wants what commits from now on."""
    result = await connection.execute(JOIN)
    found = await result.fetchone()
    assert found is not None, "the migration inserts the row"
    return Joined.of(found)


async def begin_epoch(connection: Connection) -> tuple[int, Snapshot]:
    """Begin a term of leadership; return its epoch and the cursor up to which earlier leaders relayed."""
    result = await connection.execute(
        f"update pgnotify_gql.journal_state set epoch = {NEXT_EPOCH}, relayed_at = clock_timestamp() "
        "returning epoch, relayed::text"
    )
    found = await result.fetchone()
    assert found is not None, "the migration inserts the row"
    return int(found[0]), Snapshot.parse(found[1])


async def begin_epoch_after(connection: Connection, seconds: float) -> tuple[int, Snapshot] | None:
    """Begin a term of leadership, unless a leader has stored its cursor within so many seconds: then return None."""
    result = await connection.execute(
        f"update pgnotify_gql.journal_state set epoch = {NEXT_EPOCH}, relayed_at = clock_timestamp() "
        "where relayed_at < clock_timestamp() - make_interval(secs => %s) returning epoch, relayed::text",
        [seconds],
    )
    found = await result.fetchone()
    return None if found is None else (int(found[0]), Snapshot.parse(found[1]))


async def resign(connection: Connection, epoch: int) -> None:
    """Let the next leader begin at once; nothing if there is one already."""
    await connection.execute("update pgnotify_gql.journal_state set relayed_at = '-infinity' where epoch = %s", [epoch])


async def store_relayed(connection: Connection, epoch: int, cursor: Snapshot) -> None:
    """Store up to where this epoch's leader has relayed.  Raises LeadershipLostError."""
    result = await connection.execute(
        "update pgnotify_gql.journal_state set relayed = %s::pg_snapshot, relayed_at = clock_timestamp() "
        "where epoch = %s",
        [str(cursor), epoch],
    )
    if result.rowcount != 1:
        raise LeadershipLostError(f"epoch {epoch} is over: another listener leads")
