"""
The tail of the journal: its changes as they come, for somebody who looks on.

It reads by polling, takes none of our locks, hears no bells and stores nothing, so that it shows what the journal has
whether or not a listener runs, and no listener notices it.

A tail goes on from its position, also when it loses the database: nothing is left out and nothing comes twice.  What
cannot be decoded is shown as that.  Whoever takes one sighting at a time may be slow: rows are read in parts, and a
session that the server ends meanwhile is opened again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import LiteralString, Self

import psycopg
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from ..capture.kinds import ALL_KINDS, Kind
from ..errors import CursorError, CursorTooOldError, JournalMissingError, one_line
from .change import JournalRow, Source
from .position import Position
from .reader import Batch, Connection, current_snapshot, is_captured, read_new, require_complete, require_journal
from .sighting import Sighting, decoded
from .snapshot import Snapshot

POLL_INTERVAL = 0.1
"""Seconds between two reads."""

RETRY_FIRST = 0.25
RETRY_MAX = 5.0
"""Seconds: the scale of the first pause before the database is tried again, and the longest; both with jitter."""

LOST = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError)
"""What connecting again may mend; a session that was idle in a transaction for too long hears an InternalError."""

# The oldest transaction that has rows of that time on, and whether some of that time may have been emptied. By a scan,
# since no index has the time; the settings of a listener's session would walk a whole index instead.
SINCE: LiteralString = """
    select pg_current_snapshot()::text,
           min(xid::text::bigint) filter (where at >= %(since)s),
           %(since)s < clock_timestamp() - make_interval(secs => %(retention)s)
               and coalesce(min(at) >= %(since)s, true)
               and (select emptied_xid > '0' from pgnotify_gql.journal_state)
    from pgnotify_gql.journal
"""

Since = Position | datetime | timedelta | None
"""Where to begin: a position, a time with a zone, how long ago, or now."""


class Tail:
    """
    Reads from `since` on; used in ``async with``, which opens and closes it.

    `connect` returns a new connection in autocommit, `source` the watch of a label if there is one.  `labels` and
    `kinds` limit what is shown (no labels: every model).  `retention` is for how many seconds the journal keeps changes
    at least.  `tell` is called with a sentence when something happens
    that whoever looks on should know.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        source: Callable[[str], Source | None],
        tell: Callable[[str], None],
        *,
        database: str = "default",
        since: Since = None,
        labels: Collection[str] = (),
        kinds: Collection[Kind] = ALL_KINDS,
        follow: bool = True,
        retention: float = 0,
        interval: float = POLL_INTERVAL,
    ) -> None:
        self._connect = connect
        self._source = source
        self._tell = tell
        self._database = database
        self._since = since
        self._labels = frozenset(labels)
        self._kinds = frozenset(kinds)
        self._follow = follow
        self._retention = retention
        self._interval = interval
        self._connection: Connection | None = None
        self._batches: AsyncGenerator[Batch, None] | None = None
        self._position = Position(Snapshot(0, 0))
        self._begin = datetime.min.replace(tzinfo=UTC)
        self._begun_at = Snapshot(0, 0)
        self._told: Snapshot | None = None
        self._ahead = timedelta(0)

    async def __aenter__(self) -> Self:
        """
        Connect, and fix where to begin.

        Raises psycopg.Error when the database cannot be used, JournalMissingError, and CursorError for a position of
        another database.
        """
        connection = await self._open()
        try:
            self._position = await self._beginning(connection)
            await self._require_ours(connection)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._close()

    async def uncaptured(self, labels: Iterable[str]) -> list[str]:
        """Return those of the models for which no table of the database has triggers."""
        assert self._connection is not None, "it is open"
        return [label for label in labels if not await is_captured(self._connection, label)]

    async def sightings(self) -> AsyncGenerator[Sighting, None]:
        """
        Yield what is new, in the order of the journal.

        While it follows, a database that is lost is waited for.  Raises psycopg.Error for what waiting does not mend,
        JournalMissingError, and CursorError when the database has been replaced by an older one.
        """
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(LOST),
            wait=wait_random_exponential(multiplier=RETRY_FIRST, max=RETRY_MAX),
            before_sleep=self._tell_lost,
        )
        while True:
            batch = await (retrying(self._next) if self._follow else self._next())
            seen = datetime.now(UTC) + self._ahead
            for sighting in self._in(batch, seen):
                yield sighting
            self._note(batch)
            if batch.last:
                if not self._follow:
                    return
                await asyncio.sleep(self._interval)

    async def _next(self) -> Batch:
        """Return the next batch or part of one; begin again from the position after a failure."""
        try:
            return await self._read()
        except psycopg.errors.UndefinedTable as error:
            raise JournalMissingError(self._database) from error
        except psycopg.Error:
            await self._close()
            raise

    async def _read(self) -> Batch:
        connection = self._connection
        if connection is None:
            connection = await self._open()
            await self._require_ours(connection)
            self._tell(f"connected to database '{self._database}' again, going on where it was lost")
        first = self._batches is None
        if self._batches is None:
            # One model is asked for by name, several are picked out here.
            label = next(iter(self._labels)) if len(self._labels) == 1 else None
            self._batches = read_new(connection, self._position.before, label=label)
        batch = await anext(self._batches)
        if first or batch.last:
            # Before the first is shown. The rest of a long one is read under locks that keep it from being emptied,
            # but was that so from its snapshot on? Hence at its end again.
            await self._tell_incomplete(connection)
        if batch.last:
            await self._batches.aclose()
            self._batches = None
        return batch

    async def _open(self) -> Connection:
        connection = await self._connect()
        try:
            await require_journal(connection, self._database)
            self._ahead = await _clock_difference(connection)
        except BaseException:
            await connection.close()
            raise
        self._connection = connection
        return connection

    async def _close(self) -> None:
        connection, self._connection = self._connection, None
        batches, self._batches = self._batches, None
        # The connection first: ending a transaction would ask a server that may not answer.
        if connection is not None:
            with suppress(psycopg.Error):
                await connection.close()
        if batches is not None:
            with suppress(psycopg.Error):
                await batches.aclose()

    async def _beginning(self, connection: Connection) -> Position:
        if isinstance(self._since, Position):
            return self._since
        if self._since is None:
            return Position(await current_snapshot(connection))
        return Position(await self._cursor_of(self._time(self._since), connection))

    def _time(self, since: datetime | timedelta) -> datetime:
        if isinstance(since, datetime):
            return since
        try:
            return datetime.now(UTC) + self._ahead - since
        except OverflowError:
            return datetime.min.replace(tzinfo=UTC)

    async def _cursor_of(self, time: datetime, connection: Connection) -> Snapshot:
        """Return a cursor before every row of that time on; which of those after it are older is told by `_wanted`."""
        async with connection.transaction():
            await connection.execute("select set_config('enable_seqscan', 'on', true)")
            result = await connection.execute(SINCE, {"since": time, "retention": self._retention})
            found = await result.fetchone()
        assert found is not None
        now, oldest, emptied = Snapshot.parse(found[0]), found[1], found[2]
        self._begin, self._begun_at = time, now
        if emptied:
            self._tell(
                "the journal goes back less far: what it had before may have been emptied; showing what is left "
                "(PGNOTIFY_GQL['RETENTION'] says how long it keeps changes)"
            )
        xmin, xmax = (now.xmin, now.xmax) if oldest is None else (min(oldest, now.xmin), min(oldest, now.xmax))
        cursor = Snapshot(xmin, xmax, tuple(xid for xid in now.xip if xid < xmax))
        # What is missing of a cursor made for a time was told above, if any.
        self._told = cursor
        return cursor

    async def _require_ours(self, connection: Connection) -> None:
        now = await current_snapshot(connection)
        if not self._position.within(now):
            raise CursorError(
                f"the cursor {self._position} is not of database '{self._database}' as it is now, which stands at "
                f"{now}: it is of another database, or this one was put back; begin again without it"
            )

    async def _tell_incomplete(self, connection: Connection) -> None:
        if self._told == self._position.before:
            return
        try:
            await require_complete(connection, self._position.before)
        except CursorTooOldError as error:
            self._told = self._position.before
            self._tell(f"some are missing here, showing what is left: {error}")

    def _tell_lost(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        pause = state.next_action.sleep if state.next_action else 0
        reason = one_line(error)
        self._tell(f"database '{self._database}' cannot be used ({reason}); trying again in {pause:.1f} s")

    def _in(self, batch: Batch, seen: datetime) -> Iterable[Sighting]:
        """Yield what is to be shown of a batch; after the last of it, the next cursor is the position."""
        rows = [row for row in batch.rows if self._wanted(row)]
        for row in rows:
            source = self._source(row.label)
            found = decoded(row, source)
            begun = self._position.begun(row.xid, row.id)
            for taken, (change, problem) in enumerate(found[begun:], begun + 1):
                if batch.last and row is rows[-1] and taken == len(found):
                    position = Position(batch.after)
                else:
                    position = self._position.taking(batch.after, row.id, taken)
                yield Sighting(row, change, problem, source is not None, seen, position)

    def _note(self, batch: Batch) -> None:
        if batch.last:
            self._position = Position(batch.after)
        else:
            self._position = self._position.taking(batch.after, batch.rows[-1].id + 1)

    def _wanted(self, row: JournalRow) -> bool:
        return (
            (not self._labels or row.label in self._labels)
            and (row.kind in self._kinds or (row.kind not in ALL_KINDS and self._kinds == ALL_KINDS))
            and (row.at >= self._begin or not self._begun_at.sees(row.xid))
            and not self._position.includes(row.xid, row.id)
        )


async def _clock_difference(connection: Connection) -> timedelta:
    """Return by how much the server's clock is ahead of ours."""
    asked = datetime.now(UTC)
    result = await connection.execute("select clock_timestamp()")
    found = await result.fetchone()
    answered = datetime.now(UTC)
    assert found is not None
    server: datetime = found[0]
    return server - (asked + (answered - asked) / 2)
