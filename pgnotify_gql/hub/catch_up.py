"""
Catching up: an operation is given from the journal what it missed, and then the live stream again.

For operations that come back with a cursor, and for those whose client did not read for a while.  What is read is what
the feed has taken already, from the operation's cursor on; what the feed has not taken yet comes live.  So nothing
comes twice and nothing is left out, whoever is faster.

It goes in rounds, while the feed goes on; a round ends where the feed stood when it began.  When little is left the
feed stands still for the last round, behind which the operation takes what is dispatched, in a cohort of its own.  As
soon as that has nothing left to do, the operation shares executions with others again.

Memory is bounded: no more is read than is executed, and no more is executed than the client has room for.  A client
that reads slowly does not keep a connection, and a transaction, from others: it is served for a while, and goes on from
where it is when its turn comes again.  A database that is lost is waited for.  What has left the journal is answered
with a resync, and the live stream.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING

import psycopg
from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from ..capture.registry import registry
from ..errors import CursorTooOldError
from ..journal.change import Change, JournalRow
from .cursor import Cursor, Model
from .operations import Due, Live, Operation, Resync
from .reader import RETRY_FIRST, RETRY_MAX
from .stretch import Stretch
from .topics import TopicIndex

if TYPE_CHECKING:
    from .feed import Feed
    from .hub import Hub

logger = logging.getLogger("pgnotify_gql.hub")

LITTLE = 200
"""Changes of a round, at most, for the next one to be the last: so many hold up the feed for milliseconds."""

PATIENCE = 1.0
"""Seconds that a connection waits for a client without room, where nobody else waits for the connection."""

LITTLE_PATIENCE = 0.05
"""The same where somebody does: a hundred clients that do not read hold up one that does for seconds, not a minute."""

TURN = 10.0
"""Seconds for which a connection serves one operation: others may wait, and its transaction keeps vacuum from its work.
No shorter, because the database may have to sort all that is left when the operation goes on."""

FOREIGN = "the cursor is of another subscription, or of a journal, or a part of it, that is no longer there"


async def catch_up(hub: Hub, operation: Operation) -> None:
    """
    Give an operation, from its cursor on, what the feeds have taken; and the live stream behind it.

    Returns early when its outlet has no room for a result: it has fallen behind again.
    """
    await _CatchUp(hub, operation).run()


class _CatchUp:
    """One operation that catches up, in a cohort of its own."""

    def __init__(self, hub: Hub, operation: Operation) -> None:
        assert operation.cursor is not None, "it says where to begin"
        self._hub = hub
        self._operation = operation
        hub.detach(operation)
        self._journals = operation.cursor.journals
        self._foreign = operation.cursor.subject != operation.interest.subject
        self._models = operation.interest.models
        self._positions = dict(operation.cursor.positions)
        self._cohort = hub.cohort_of(operation, operation.cursor)
        self._cohort.add(operation)
        self._index: TopicIndex[None] = TopicIndex()
        for topic in operation.interest.topics:
            self._index.add(topic, None)

    async def run(self) -> None:
        try:
            await self._retrying(self._rounds)
        except CursorTooOldError as error:
            self._resync(str(error))
            self._hub.go_live_alone(self._cohort)
        # Asked again: between its being set and our turn of the loop something may have been dispatched to it. Then
        # there is no turn in between, so that nothing is dispatched to the one and not to the other.
        while not self._cohort.settled.is_open:
            await self._cohort.settled.passed()
        if self._operation.behind.is_open:
            # To begin anew means to read anew: with less under way, what is executed finds room.
            self._operation.ahead = max(1, self._operation.ahead // 2)
        else:
            self._hub.go_live_with_others(self._operation)

    async def _rounds(self) -> None:
        # Another process may have been further than this one, which would bring again what it has not taken yet.
        if self._positions.keys() == set(self._models):
            for database in {database for database, _ in self._models}:
                await self._hub.feed(database).know(self._journals[database])
        self._require_fitting()
        for database, label in self._models:
            feed, position = self._hub.feed(database), self._positions[database, label]
            # Asked again when all is read. Here it spares whoever is too late what would not be all of it anyway.
            await feed.require_complete(position)
            await feed.reach(label, position)
        while not self._operation.behind.is_open:
            if await self._round() > LITTLE or self._operation.behind.is_open:
                continue
            async with self._hub.standing_still(self._operation.interest):
                self._require_fitting()
                if await self._last_round():
                    if self._operation.state is not None:
                        self._hub.executor.submit(self._cohort, Live(self._cursor()))
                    self._hub.go_live_alone(self._cohort)
                    return

    async def _round(self) -> int:
        """Queue what the feeds have taken by now; return how many changes that were."""
        self._require_fitting()
        return sum([await self._replay(model) for model in self._models])

    async def _replay(self, model: Model) -> int:
        database, label = model
        feed, count = self._hub.feed(database), 0
        end = await feed.standing(label)
        while self._positions[model] != end:
            until = asyncio.get_running_loop().time() + TURN
            async with self._changes(model, feed.replay(label, self._positions[model], end)) as changes:
                async for change in changes:
                    count += 1
                    self._queue(change)
                    if self._operation.behind.is_open:
                        return 0
                    if not await self._keeps_pace(feed, until):
                        break
                else:
                    self._positions[model] = end
                    break
            # Without the connection: it may take as long as the outlet has patience.
            await self._operation.outlet.room()
        return count

    async def _last_round(self) -> bool:
        """Queue what is left, if it is little, while the feed stands still; return whether it was."""
        count = 0
        for model in self._models:
            database, label = model
            feed = self._hub.feed(database)
            end = feed.position(label)
            if end == self._positions[model]:
                continue
            async with self._changes(model, feed.replay(label, self._positions[model], end, still=True)) as changes:
                async for change in changes:
                    count += 1
                    self._queue(change)
                    if count > LITTLE:
                        return False
            self._positions[model] = end
        return True

    @asynccontextmanager
    async def _changes(
        self, model: Model, replay: AsyncGenerator[Stretch, None]
    ) -> AsyncIterator[AsyncIterator[Change]]:
        async with aclosing(replay) as stretches, aclosing(self._advance(model, stretches)) as changes:
            yield changes

    async def _advance(self, model: Model, stretches: AsyncIterator[Stretch]) -> AsyncGenerator[Change, None]:
        """Yield each change, when the position is behind it."""
        async for stretch in stretches:
            for row in stretch.rows:
                for change in self._decoded(row)[self._positions[model].begun(row.xid, row.id) :]:
                    self._positions[model] = stretch.position(row, change.index + 1)
                    yield change
                self._positions[model] = stretch.behind(row)

    def _decoded(self, row: JournalRow) -> Sequence[Change]:
        source = registry.get(row.label)
        if source is None:
            return []
        try:
            return row.changes(source)
        except Exception:
            logger.exception("journal row %d of %s cannot be decoded", row.id, row.label)
            self._resync("a change could not be decoded")
            return []

    def _require_fitting(self) -> None:
        """Raise CursorTooOldError where the feeds are in journals, or eras of them, that do not know the positions."""
        interest = self._operation.interest
        journals = self._hub.journals(interest)
        if self._foreign or not self._cursor().fits(interest.models, journals):
            raise CursorTooOldError(FOREIGN)
        self._journals = journals

    def _queue(self, change: Change) -> None:
        if self._index.find(change):
            self._hub.executor.submit(self._cohort, Due(change, self._cursor()))

    async def _keeps_pace(self, feed: Feed, until: float) -> bool:
        """Wait for executions and for the client; return whether there is time, and room, for more."""
        if len(self._cohort.pending) < self._operation.ahead:
            return True
        await self._hub.executor.room()
        await self._cohort.settled.passed()
        try:
            async with asyncio.timeout(LITTLE_PATIENCE if feed.is_waited_for else PATIENCE):
                await self._operation.outlet.room()
        except TimeoutError:
            return False
        return asyncio.get_running_loop().time() < until

    def _resync(self, reason: str) -> None:
        cursor, anew = self._hub.standing(self._operation.interest), self._operation.state is not None
        self._hub.executor.submit(self._cohort, Resync(cursor, reason, anew))
        for model in self._models[:1]:
            self._hub.count_resyncs(model, 1)

    def _cursor(self) -> Cursor:
        return Cursor(dict(self._positions), self._journals, self._operation.interest.subject)

    async def _retrying(self, step: Callable[[], Awaitable[None]]) -> None:
        """Wait for a database that is lost, and go on from where it was."""
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(psycopg.Error),
            wait=wait_random_exponential(multiplier=RETRY_FIRST, max=RETRY_MAX),
            before_sleep=lambda state: logger.warning("catching up waits for the database"),
        )
        await retrying(step)
