"""
Read what is new in the journal.

New is what is visible now and was not visible in the cursor.  Rows and the next cursor come from one snapshot: from
one statement, or for a large backlog from one REPEATABLE READ transaction with a server-side cursor.  So there is no
gap, nothing twice, and no waiting for transactions that are still open; what it costs does not depend on the size of
the journal, because "not visible in the cursor" is two probes of its index: behind the cursor, and of those that were
in progress in it.  What a transaction has written that stays open for long is not looked at until it has ended.

Rows are in the order of their ids, which is causal for each table row.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, LiteralString

from psycopg import AsyncConnection, AsyncCursor, AsyncServerCursor, IsolationLevel

from ..errors import CursorTooOldError, JournalMissingError
from .change import ROWS, Columns, JournalRow
from .position import Position
from .snapshot import Snapshot

Connection = AsyncConnection[tuple[Any, ...]]

Aside = Callable[[], AbstractAsyncContextManager[Connection]]
"""Lends a connection for as long as a backlog is read."""

BATCH_ROWS = 500
"""Journal rows of one read; more than that is a backlog, streamed in parts."""

PART_ROWS = 4
"""Times as many rows in each part but the first, at most: a part costs a message, and round trips to the layer."""

PART_BYTES = 500_000
"""Characters of row text in a part, about: rows of bulk writes have 100 kB."""

# The time is a number: one that Python has to make a datetime of costs more than the rest of the row. date_part gives
# a float, which is exact to the microsecond for some centuries.
COLUMNS: LiteralString = """
    id, xid::text::bigint, label, kind, rows::text, (date_part('epoch', at) * 1000000)::bigint as micros, context
"""

BEHIND: LiteralString = f"""
    select {COLUMNS} from pgnotify_gql.journal
    where xid >= %(xmax)s::xid8 and (%(label)s::text is null or label = %(label)s)
"""

NEW_ROWS: LiteralString = f"""
    {BEHIND}
    union all
    select {COLUMNS} from pgnotify_gql.journal
    where xid = any(%(xip)s::text[]::xid8[]) and (%(label)s::text is null or label = %(label)s)
"""

# The left join returns the snapshot also when there are no rows. Ordered behind the limit: where it cuts nothing off
# that is all of them, and where it does they are not used. So a backlog is recognised without being sorted.
_READ: LiteralString = """
    select pg_current_snapshot()::text, new_rows.*
    from (select 1) as one
    left join lateral (select * from ({}) as found limit %(limit)s) as new_rows on true
    order by new_rows.id
"""

READ: LiteralString = _READ.format(NEW_ROWS)

READ_BEHIND: LiteralString = _READ.format(BEHIND)
"""For a cursor in which nothing was in progress that may have ended: the other probe, of each partition, is a quarter
of what a read takes."""

STANDING = 100
"""Transactions that began since: one that was outlasted by so many is not expected to end before the next read."""

STREAM: LiteralString = f"select * from ({NEW_ROWS}) as found order by id"

EMPTIED: LiteralString = "select emptied_xid::text::bigint, emptied::text from pgnotify_gql.journal_state"


# The label is the third word of a trigger's comment, see capture.render.
CAPTURED: LiteralString = """
    select exists (
        select from pg_trigger t
        join pg_proc p on p.oid = t.tgfoid
        join pg_namespace n on n.oid = p.pronamespace
        where n.nspname = 'pgnotify_gql' and split_part(obj_description(t.oid, 'pg_trigger'), ' ', 3) = %s
    )
"""


@dataclass(frozen=True)
class Batch:
    """
    New rows in order, and the cursors before and after; `last` is False for a part of a longer batch.

    `columns` are the rows as psycopg made them.  The leader takes those: of a backlog it passes on hundreds of
    thousands a second, and to make another object of each, which the garbage collector looks at, took a third of its
    time.
    """

    before: Snapshot
    after: Snapshot
    columns: Sequence[Columns]
    last: bool = True

    @cached_property
    def rows(self) -> Sequence[JournalRow]:
        """Return the rows."""
        return [JournalRow(*columns) for columns in self.columns]

    @property
    def position(self) -> Position:
        """Return where a reader stands that has taken this batch and all before it."""
        if self.last:
            return Position(self.after)
        return Position(self.before).taking(self.after, self.columns[-1][0] + 1)


async def read_new(
    connection: Connection,
    cursor: Snapshot,
    *,
    label: str | None = None,
    batch_rows: int = BATCH_ROWS,
    aside: Aside | None = None,
) -> AsyncGenerator[Batch, None]:
    """
    Yield what is new since `cursor`, of one model if a label is given: one batch, or a backlog in parts.

    The last batch has the next cursor; it is yielded also when it is empty.  The connection is in autocommit.  A
    backlog is read in a transaction, on a connection that `aside` lends, if given; then it begins with an empty part,
    since the database may sort for long before the first one.
    """
    found, after = await _read(connection, cursor, label, batch_rows + 1)
    if len(found) <= batch_rows:
        new: list[Any] = [columns[1:] for columns in found if columns[1] is not None]
        yield Batch(cursor, after, new)
        return
    if aside is not None:
        yield Batch(cursor, cursor, [], last=False)
    # A reader that stops early ends the transaction at once, not when the garbage collector finds it.
    async with (
        aside() if aside else nullcontext(connection) as streaming,
        aclosing(_stream(streaming, cursor, _parameters(cursor, label), batch_rows)) as batches,
    ):
        async for batch in batches:
            yield batch


async def read_missed(
    connection: Connection, position: Position, label: str, batch_rows: int = BATCH_ROWS
) -> AsyncGenerator[Batch, None]:
    """
    Yield what one model has after a position, as read_new does.

    Raises CursorTooOldError, at the end, when the journal no longer holds everything after the position.
    """
    async with aclosing(read_new(connection, position.before, label=label, batch_rows=batch_rows)) as batches:
        async for batch in batches:
            missed = [row for row in batch.rows if not position.includes(row.xid, row.id)]
            if missed or batch.last:
                yield Batch(batch.before, batch.after, missed, batch.last)
    # Asked last: what is emptied while we read makes the answer stricter, never wrong.
    await require_complete(connection, position.before)


async def require_complete(connection: Connection, cursor: Snapshot) -> None:
    """
    Raise CursorTooOldError unless the journal holds everything that `cursor` does not see.

    Rows up to `emptied_xid` may be gone.  A transaction that `cursor` does not see and that had not ended either when
    its slot was emptied is no worry: emptying waits for every writer of the slot.
    """
    result = await connection.execute(EMPTIED)
    found = await result.fetchone()
    assert found is not None, "the migration inserts the row"
    emptied_xid, emptied = int(found[0]), Snapshot.parse(found[1])
    if cursor.xmax <= emptied_xid or any(xid <= emptied_xid and emptied.sees(xid) for xid in cursor.xip):
        raise CursorTooOldError(
            "changes after this cursor have left the journal: raise PGNOTIFY_GQL['RETENTION'] to keep them longer"
        )


async def current_snapshot(connection: Connection) -> Snapshot:
    """Return the cursor from which only later changes are new."""
    result = await connection.execute("select pg_current_snapshot()::text")
    found = await result.fetchone()
    assert found is not None
    return Snapshot.parse(found[0])


async def is_captured(connection: Connection, label: str) -> bool:
    """Return whether some table has triggers made for a model."""
    result = await connection.execute(CAPTURED, [label])
    found = await result.fetchone()
    return found is not None and bool(found[0])


async def require_journal(connection: Connection, database: str) -> None:
    """Raise JournalMissingError unless the journal is there."""
    result = await connection.execute("select to_regclass('pgnotify_gql.journal')::text")
    found = await result.fetchone()
    if found is None or found[0] is None:
        raise JournalMissingError(database)


async def _read(
    connection: Connection, cursor: Snapshot, label: str | None, limit: int
) -> tuple[Sequence[Columns], Snapshot]:
    """
    Return what is new, and the next cursor.

    A transaction that stands open is not asked about before a snapshot says that it has ended: of a batch job with
    200,000 rows, which nobody may see yet, each read looked at every one, for 30 ms.
    """
    # Ascending, so that those who stand come first.
    standing = tuple(xid for xid in cursor.xip if cursor.xmax - xid > STANDING)
    asked = cursor.xip[len(standing) :]
    while True:
        found, after = await _read_once(connection, Snapshot(cursor.xmin, cursor.xmax, asked), label, limit)
        ended = tuple(xid for xid in standing if after.sees(xid))
        # More than the limit is a backlog, which is read in another way.
        if not ended or len(found) == limit:
            return found, after
        # What has been found is found again: rows and the next cursor must be of one snapshot, and whoever has changed
        # a row after one of those who have ended must not come before him.
        asked = (*ended, *asked)
        standing = tuple(xid for xid in standing if xid not in ended)


async def _read_once(
    connection: Connection, cursor: Snapshot, label: str | None, limit: int
) -> tuple[Sequence[Columns], Snapshot]:
    parameters = {**_parameters(cursor, label), "limit": limit}
    found = await (await connection.execute(READ if cursor.xip else READ_BEHIND, parameters)).fetchall()
    return found, Snapshot.parse(found[0][0])


async def _stream(
    connection: Connection, cursor: Snapshot, parameters: dict[str, Any], batch_rows: int
) -> AsyncGenerator[Batch, None]:
    await connection.set_isolation_level(IsolationLevel.REPEATABLE_READ)
    try:
        async with connection.transaction():
            after = await current_snapshot(connection)
            async with _backlog(connection) as backlog:
                await backlog.execute(STREAM, parameters)
                part_rows = batch_rows
                found: list[Any]
                while found := await backlog.fetchmany(part_rows):
                    yield Batch(cursor, after, found, last=False)
                    size = sum([len(columns[ROWS]) for columns in found])
                    part_rows = max(1, min(batch_rows * PART_ROWS, PART_BYTES * len(found) // size))
    finally:
        if not connection.closed:
            await connection.set_isolation_level(None)
    yield Batch(cursor, after, [])


@asynccontextmanager
async def _backlog(connection: Connection) -> AsyncGenerator[AsyncServerCursor[tuple[Any, ...]], None]:
    backlog = AsyncServerCursor(connection, "pgnotify_gql_backlog")
    try:
        yield backlog
    finally:
        try:
            await backlog.close()
        finally:
            # Where the server cannot be asked to close it (the connection is lost, the transaction has failed because
            # we were cancelled), it stays open for psycopg, which complains later. The transaction ends it.
            await AsyncCursor.close(backlog)


def unseen_parameters(cursor: Snapshot) -> dict[str, Any]:
    """Return the parameters `xmax` and `xip` of the two probes of the index for what `cursor` does not see."""
    return {"xmax": str(cursor.xmax), "xip": [str(xid) for xid in cursor.xip]}


def _parameters(cursor: Snapshot, label: str | None) -> dict[str, Any]:
    return {**unseen_parameters(cursor), "label": label}
