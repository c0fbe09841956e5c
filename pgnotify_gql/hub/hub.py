"""
The hub: one for each server process and event loop, between the channel layer and the operations.

It has a feed for each database that is followed, whatever the number of sockets.  A change goes to the cohorts the
topic index finds, and from there to the executor.  Before that, whoever depends on it is told: what is dispatched
behind a change that takes a right away reaches nobody who has yet to be asked whether he still has it.

On failure each feed goes on from its position by itself.  Changes that have left the journal are answered with a
resync to every operation on the model.  An operation whose client does not read leaves its cohort, and comes back when
it has caught up from the journal (``catch_up.py``).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from typing import Any

from .. import metrics
from ..capture.registry import registry
from ..journal.change import JournalRow
from ..journal.position import Position
from .catch_up import catch_up
from .cursor import Cursor, Journal, Model
from .executor import Executor
from .feed import SILENCE, Feed
from .initial import send_state
from .operations import AHEAD, Cohort, Due, Interest, Operation, Resync, cohort_key
from .reader import Reader
from .receiver import Layer
from .roll_call import RollCall
from .stretch import Stretch
from .topics import Topic, TopicIndex
from .trace import Trace
from .visitors import Visitors

logger = logging.getLogger("pgnotify_gql.hub")

Changed = Callable[[], None]
"""Told of a change on which something depends; must not wait."""

QUESTIONS = 4
"""How many are asked anew at the same time whether they may go on; as many as there are threads by default."""

ANEW = 0.5
"""Seconds before a state is sent again, so that it costs little whatever keeps making it necessary."""


class Hub:
    """
    Feeds the operations of one process; used on one event loop only.

    `sockets` returns how many hold it open, as far as whoever has made it knows.
    """

    def __init__(
        self,
        layer: Layer,
        readers: Iterable[Reader],
        executor: Executor,
        *,
        silence: float = SILENCE,
        trace: Trace | None = None,
        sockets: Callable[[], int] = lambda: 0,
    ) -> None:
        self.executor = executor
        self.trace = executor.trace = trace or Trace()
        self.sockets = sockets
        self._feeds = {reader.database: Feed(layer, reader, self, silence=silence) for reader in readers}
        self._index: TopicIndex[Cohort] = TopicIndex()
        self._cohorts: dict[Hashable, Cohort] = {}
        self._dependents: TopicIndex[Changed] = TopicIndex()
        self.visitors = Visitors()
        self.questions = asyncio.Semaphore(QUESTIONS)
        """Held while it is asked anew whether somebody may go on: many at once would keep all executions waiting."""
        self.operations: dict[Operation, None] = {}
        """Those that have joined and not left, the oldest first."""
        metrics.show(metrics.OPERATIONS, self, lambda hub: len(hub.operations))
        self._resyncs = {database: metrics.ByModel(metrics.RESYNCS, database) for database in self._feeds}
        self._numbers = count(1)
        self._roll_call = RollCall(layer, self)
        # Of models that are being dispatched: where whoever has been sent the last change stands.
        self._dispatching: dict[Model, Position] = {}

    async def start(self) -> None:
        """Begin to receive."""
        try:
            for feed in self._feeds.values():
                await feed.start()
        except BaseException:
            await asyncio.shield(self.close())
            raise

    async def close(self) -> None:
        """Leave every group, end the tasks, the connections and the worker threads."""
        await self._roll_call.close()
        for feed in self._feeds.values():
            await feed.close()
        await self.executor.close()

    @asynccontextmanager
    async def depending(self, topics: Iterable[Topic], changed: Changed) -> AsyncIterator[None]:
        """
        Call `changed` for each change of the topics that commits from now on, before it is dispatched.

        Also when changes of their models are lost, of which nobody knows what they were.
        """
        topics = tuple(topics)
        models = dict.fromkeys((topic.database, topic.label) for topic in topics)
        async with AsyncExitStack() as left:
            for database, label in models:
                await self._feeds[database].join(label)
                left.push_async_callback(self._leave_shielded, (database, label))
            for topic in topics:
                self._dependents.add(topic, changed)
                left.callback(self._dependents.remove, topic, changed)
            yield

    def sent(self, operation: Operation) -> Cursor | None:
        """Return the cursor behind all that an operation has been sent; None while that is not all of the state."""
        cohort = operation.cohort
        if cohort is None or operation not in cohort.members or operation.joined_at > cohort.delivered:
            return operation.cursor
        # One that catches up has not been given all that was dispatched.
        is_live = self._cohorts.get(cohort_key(operation)) is cohort
        return self.standing(operation.interest) if is_live and cohort.settled.is_open else cohort.cursor

    def renew(self, operation: Operation) -> None:
        """Have whatever is under way for an operation executed again."""
        cohort = operation.cohort
        if cohort is not None and operation in cohort.members and not cohort.settled.is_open:
            cursor = self.sent(operation)
            self.detach(operation)
            operation.fall_behind(cursor)

    async def serve(self, operation: Operation, since: Cursor | None = None, *, carried: bool = False) -> None:
        """
        Feed an operation until cancelled: every change after a cursor, or that commits after it has joined.

        With a state, and without a cursor, that is sent first, and then every change that it has not.  A cursor that is
        `carried` over may be of other models: those that it does not know begin now.  Raises what the state raises.
        """
        await self.join(operation, since, carried=carried)
        try:
            while True:
                await operation.behind.passed()
                await operation.outlet.room()
                operation.behind.close()
                if operation.cursor is None:
                    await asyncio.sleep(ANEW)
                await self._begin(operation)
        finally:
            await asyncio.shield(self.leave(operation))

    async def join(self, operation: Operation, since: Cursor | None = None, *, carried: bool = False) -> None:
        """Feed an operation, see `serve`, until it falls behind."""
        joined: list[Model] = []
        operation.number, operation.since = next(self._numbers), time.time()
        self.operations[operation] = None
        try:
            for database, label in operation.interest.models:
                await self._feeds[database].join(label)
                joined.append((database, label))
            operation.cursor = since if since is None or not carried else self._carried(since, operation.interest)
            await self._begin(operation)
            # What was dispatched before was not for it, but for what it was given by itself.
            operation.since = time.time()
        except BaseException:
            self._forget(operation)
            await asyncio.shield(self._leave(joined))
            raise

    async def leave(self, operation: Operation) -> None:
        """Feed an operation no longer; it is given nothing from here on, whatever is under way."""
        self._forget(operation)
        await self._leave(operation.interest.models)

    def go_live(self, operation: Operation) -> None:
        """Let an operation share what is dispatched from now on."""
        key = cohort_key(operation)
        cohort = self._cohorts.get(key)
        if cohort is None:
            cohort = self._cohorts[key] = self.cohort_of(operation)
            self._add(cohort)
        cohort.add(operation)
        if not cohort.settled.is_open:
            # What is pending is not for it, and the cohort's cursor stands before that.
            operation.cursor = self.standing(operation.interest)

    def go_live_alone(self, cohort: Cohort) -> None:
        """Let a cohort that is nobody else's take what is dispatched from now on."""
        self._add(cohort)

    def go_live_with_others(self, operation: Operation) -> None:
        """Let an operation whose own cohort has nothing left to do share with others again."""
        self.detach(operation)
        operation.ahead = AHEAD
        self.go_live(operation)

    def detach(self, operation: Operation) -> None:
        """Deliver nothing more to an operation."""
        cohort, operation.cohort = operation.cohort, None
        if cohort is None:
            return
        cohort.members.pop(operation, None)
        if not cohort.members:
            key = cohort_key(operation)
            if self._cohorts.get(key) is cohort:
                del self._cohorts[key]
            for topic in cohort.interest.topics:
                self._index.remove(topic, cohort)

    def cohort_of(self, operation: Operation, cursor: Cursor | None = None) -> Cohort:
        """Return a cohort of the operation's kind, without members; with a cursor, one in which it catches up."""
        alone = operation if cursor is not None or operation.share is None else None
        standing = cursor or self.standing(operation.interest)
        replays = cursor is not None
        return Cohort(operation.interest, operation.execution, standing, alone=alone, replays=replays)

    def standing(self, interest: Interest) -> Cursor:
        """Return where one stands who has been given all that was dispatched so far."""
        positions = {
            model: self._dispatching.get(model) or self._feeds[model[0]].position(model[1]) for model in interest.models
        }
        return Cursor(positions, self.journals(interest), interest.subject)

    def journals(self, interest: Interest) -> dict[str, Journal]:
        """Return the journals of an interest's models, by database."""
        return {database: self._feeds[database].journal for database, _ in interest.models}

    @property
    def feeds(self) -> Iterable[Feed]:
        """Return those of all databases."""
        return self._feeds.values()

    def feed(self, database: str) -> Feed:
        """Return the feed of a database."""
        return self._feeds[database]

    @asynccontextmanager
    async def standing_still(self, interest: Interest) -> AsyncIterator[None]:
        """Dispatch nothing of an interest's databases meanwhile."""
        async with AsyncExitStack() as held:
            for database in sorted({database for database, _ in interest.models}):
                await held.enter_async_context(self._feeds[database].taking)
            yield

    async def dispatch(self, database: str, stretch: Stretch) -> None:
        """Queue every change for those who wait for it; waits while too much is queued already."""
        source, model = registry.get(stretch.label), (database, stretch.label)
        if source is None:
            return
        try:
            for row in stretch.rows:
                self.trace.dispatched(row)
                try:
                    for change in row.changes(source):
                        cohorts, dependents = self._index.find(change), self._dependents.find(change)
                        resting = [cohort for cohort in cohorts if cohort.settled.is_open]
                        if resting or dependents:
                            self._dispatching[model] = stretch.position(row, change.index)
                            self._awake(resting)
                            # They note where they stand, which is before this change.
                            for changed in dependents:
                                changed()
                        self._dispatching[model] = stretch.position(row, change.index + 1)
                        dues: dict[str, Due] = {}
                        # Where they stand is the same for all who wait for the same models, and thousands of them may
                        # be waiting.
                        standings: dict[tuple[Model, ...], Cursor] = {}
                        for cohort in cohorts:
                            interest = cohort.interest
                            due = dues.get(interest.question)
                            if due is None:
                                standing = standings.get(interest.models)
                                if standing is None:
                                    standing = standings[interest.models] = self.standing(interest)
                                due = dues[interest.question] = Due(change, standing.about(interest.subject))
                            self.executor.submit(cohort, due)
                        await self.executor.room()
                except Exception:
                    logger.exception("journal row %d of %s cannot be decoded", row.id, row.label)
                    self._dispatching[model] = stretch.behind(row)
                    self.resync(database, row.label, "a change could not be decoded")
        finally:
            self._dispatching.pop(model, None)

    def resync(self, database: str, label: str, reason: str) -> None:
        """Tell every operation on a model that changes are lost, behind the results of those before."""
        self.trace.lost(label, reason)
        told = 0
        for cohort in self._index.waiting_for(label):
            told += len(cohort.members)
            # Members ask the same, and so have a state all or none of them.
            anew = any(operation.state is not None for operation in cohort.members)
            self.executor.submit(cohort, Resync(self.standing(cohort.interest), reason, anew))
        self.count_resyncs((database, label), told)
        for changed in self._dependents.waiting_for(label):
            changed()

    def count_resyncs(self, model: Model, told: int) -> None:
        """Count operations that are told that changes of a model are lost."""
        database, label = model
        self._resyncs[database][label].inc(told)

    def is_depended_on(self, label: str) -> bool:
        """Return whether somebody depends on a model's changes."""
        return self._dependents.has(label)

    def foresee(self, label: str, rows: Iterable[JournalRow] | None) -> None:
        """Tell those who depend on a model of rows that will be dispatched later; None if nobody knows which."""
        source = registry.get(label)
        if source is None:
            return
        told = None
        try:
            if rows is not None:
                changes = [change for row in rows for change in row.changes(source)]
                told = [changed for change in changes for changed in self._dependents.find(change)]
        except Exception:
            logger.exception("a journal row of %s cannot be decoded", label)
        for changed in self._dependents.waiting_for(label) if told is None else dict.fromkeys(told):
            changed()

    def dismiss(self, user: str) -> None:
        """Let a user leave, in whose name somebody may be connected."""
        self.visitors.dismiss(user)

    def asked(self, database: str, message: Mapping[str, Any]) -> None:
        """Let a question be answered, which the feed of each database is asked."""
        if database == next(iter(self._feeds)):
            self._roll_call.answer(message)

    def _carried(self, cursor: Cursor, interest: Interest) -> Cursor:
        """Return a cursor in the models of an interest, and in those that it does not know where the feeds stand."""
        here = self.standing(interest)
        positions = {model: cursor.positions.get(model, position) for model, position in here.positions.items()}
        journals = {database: cursor.journals.get(database, journal) for database, journal in here.journals.items()}
        return Cursor(positions, journals, cursor.subject)

    def _awake(self, cohorts: Iterable[Cohort]) -> None:
        """Note where cohorts stand that had nothing to do: nothing since their last result was for them."""
        standing: dict[str, Cursor] = {}
        for cohort in cohorts:
            question = cohort.interest.question
            if question not in standing:
                standing[question] = self.standing(cohort.interest)
            cohort.cursor = standing[question]

    def _forget(self, operation: Operation) -> None:
        self.detach(operation)
        del self.operations[operation]
        self.trace.left(operation)

    async def _begin(self, operation: Operation) -> None:
        if operation.cursor is None and operation.state is not None:
            self.detach(operation)
            operation.cursor = await send_state(self, operation, operation.state)
        if operation.cursor is None:
            self.go_live(operation)
        else:
            await catch_up(self, operation)

    def _add(self, cohort: Cohort) -> None:
        for topic in cohort.interest.topics:
            self._index.add(topic, cohort)

    async def _leave_shielded(self, model: Model) -> None:
        await asyncio.shield(self._leave([model]))

    async def _leave(self, models: Iterable[Model]) -> None:
        for database, label in models:
            await self._feeds[database].leave(label)
