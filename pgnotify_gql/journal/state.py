"""
The state of the feed, one row: up to where the leader has relayed, and in which epoch.

Storing is fenced: a leader of an older epoch changes nothing and is told so.
"""

from __future__ import annotations

from ..errors import PgnotifyGqlError
from .reader import Connection
from .snapshot import Snapshot


class LeadershipLostError(PgnotifyGqlError):
    """Another listener leads by now; this one relays nothing more."""


async def begin_epoch(connection: Connection) -> tuple[int, Snapshot]:
    """Begin a term of leadership; return its epoch and the cursor up to which earlier leaders relayed."""
    result = await connection.execute(
        "update pgnotify_gql.journal_state set epoch = nextval('pgnotify_gql.epoch') returning epoch, relayed::text"
    )
    found = await result.fetchone()
    assert found is not None, "the migration inserts the row"
    return int(found[0]), Snapshot.parse(found[1])


async def begin_epoch_after(connection: Connection, seconds: float) -> tuple[int, Snapshot] | None:
    """Begin a term of leadership, unless a leader has stored its cursor within so many seconds: then return None."""
    result = await connection.execute(
        "update pgnotify_gql.journal_state set epoch = nextval('pgnotify_gql.epoch'), relayed_at = clock_timestamp() "
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
