"""
The hub: one for each server process and event loop, between the channel layer and the operations.

It owns one channel of the layer, whatever the number of sockets, and joins a model's group while some operation waits
for the model: the group first, then the cursor, so that no change falls between.  Messages are taken in order by the
model's intake; a gap is healed from the journal before anything later is dispatched.  A change goes to the cohorts
the topic index finds, and from there to the executor.

On failure: a layer that fails is tried again and its groups are joined again; what was missed shows as a gap.  When
nothing at all comes through it (no listener, a flushed Redis) the journal is read now and then instead.  While the
database is away healing waits, and with it the intake.  Changes that have left the journal are answered with a
resync to every operation on the model.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Hashable, Sequence
from contextlib import aclosing, suppress
from typing import Any, Protocol

import psycopg
from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from .. import names
from ..capture.registry import registry
from ..errors import CursorTooOldError
from ..journal.change import JournalRow
from ..relay.messages import CHANGES, HEARTBEAT, ChangesMessage, HeartbeatMessage
from .executor import Executor
from .intake import Intake
from .operations import Cohort, Operation, cohort_key
from .reader import RETRY_FIRST, RETRY_MAX, HubReader
from .topics import TopicIndex

logger = logging.getLogger("pgnotify_gql.hub")

SILENCE = 15.0
"""Seconds without any message after which the layer is no longer trusted: a sleeping listener's heartbeat comes every
5, by default."""

RENEW_INTERVAL = 600.0
"""Seconds after which the groups are joined again: channels_redis forgets members after a day."""

LAYER_RETRY = 0.5
"""Seconds before a layer that failed is tried again."""


class Layer(Protocol):
    """What a hub needs of a channel layer."""

    async def new_channel(self, prefix: str = ...) -> str: ...

    async def receive(self, channel: str) -> dict[str, Any]: ...

    async def group_add(self, group: str, channel: str) -> None: ...

    async def group_discard(self, group: str, channel: str) -> None: ...


class Hub:
    """Feeds the operations of one process; used on one event loop only."""

    def __init__(self, layer: Layer, reader: HubReader, executor: Executor, *, silence: float = SILENCE) -> None:
        self.executor = executor
        self._layer = layer
        self._reader = reader
        self._index: TopicIndex[Cohort] = TopicIndex()
        self._cohorts: dict[Hashable, Cohort] = {}
        self._intakes: dict[str, Intake] = {}
        self._waiting: Counter[str] = Counter()
        self._joining = asyncio.Lock()
        self._taking = asyncio.Lock()
        self._early: dict[str, ChangesMessage] = {}
        self._silence = silence
        self._heard_at = self._renewed_at = 0.0
        self._channel = ""
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Open the channel and begin to receive."""
        self._channel = await self._layer.new_channel()
        await self._layer.group_add(names.heartbeat_group(), self._channel)
        self._tasks = [
            asyncio.create_task(self._receive(), name="pgnotify_gql hub"),
            asyncio.create_task(self._watch(), name="pgnotify_gql hub watch"),
        ]

    async def close(self) -> None:
        """Leave every group, end the tasks and the worker threads."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for group in self._groups():
            with suppress(Exception):
                await self._layer.group_discard(group, self._channel)
        await self.executor.close()
        await self._reader.close()

    async def join(self, operation: Operation) -> None:
        """Feed an operation: it is given every change that commits after this has returned."""
        topics = operation.interest.topics
        labels = operation.interest.labels
        self._waiting.update(labels)
        try:
            for label in labels:
                await self._join_model(label)
        except BaseException:
            await asyncio.shield(self._stop_waiting(labels))
            raise
        key = cohort_key(operation)
        cohort = self._cohorts.get(key)
        if cohort is None:
            cohort = self._cohorts[key] = Cohort(operation.execution, topics)
            for topic in topics:
                self._index.add(topic, cohort)
        cohort.add(operation)

    async def leave(self, operation: Operation) -> None:
        """Feed an operation no longer; it is given nothing from here on, whatever is under way."""
        key = cohort_key(operation)
        cohort = self._cohorts[key]
        del cohort.members[operation]
        if not cohort.members:
            del self._cohorts[key]
            for topic in cohort.topics:
                self._index.remove(topic, cohort)
        await self._stop_waiting(operation.interest.labels)

    def _groups(self) -> list[str]:
        return [names.heartbeat_group(), *map(names.model_group, self._intakes)]

    async def _stop_waiting(self, labels: Sequence[str]) -> None:
        self._waiting.subtract(labels)
        for label in labels:
            if not self._waiting[label]:
                await self._leave_model(label)

    async def _join_model(self, label: str) -> None:
        async with self._joining:
            if label in self._intakes:
                return
            await self._layer.group_add(names.model_group(label), self._channel)
            self._early.pop(label, None)
            intake = Intake(label, await self._reader.current())
            async with self._taking:
                self._intakes[label] = intake
                if early := self._early.pop(label, None):
                    await self._heal(intake, early["epoch"], early["seq"])
            if not await self._reader.is_captured(label):
                logger.error(
                    "somebody has subscribed to %s, which has no triggers, so nothing will arrive: "
                    "run `manage.py install_triggers`",
                    label,
                )

    async def _leave_model(self, label: str) -> None:
        async with self._joining:
            if self._waiting[label] or self._intakes.pop(label, None) is None:
                return
            with suppress(Exception):
                await self._layer.group_discard(names.model_group(label), self._channel)

    async def _receive(self) -> None:
        while True:
            try:
                message = await self._layer.receive(self._channel)
            except Exception as error:
                logger.warning("the channel layer failed (%r); joining the groups again", error)
                await asyncio.sleep(LAYER_RETRY)
                await self._join_groups()
                continue
            self._heard_at = _now()
            try:
                await self._handle(message)
            except Exception:
                logger.exception("a message of the channel layer could not be handled")

    async def _handle(self, message: dict[str, Any]) -> None:
        async with self._taking:
            if message["type"] == CHANGES:
                await self._take(message)  # type: ignore[arg-type]  # the relay's own message, by its type
            elif message["type"] == HEARTBEAT:
                await self._note(message)  # type: ignore[arg-type]

    async def _take(self, message: ChangesMessage) -> None:
        intake = self._intakes.get(message["label"])
        if intake is None:
            # Came between joining the group and having the cursor: remembered, and then read from the journal.
            self._early[message["label"]] = message
            return
        if intake.is_stale(message["epoch"]):
            return
        if not intake.follows(message):
            await self._heal(intake, message["epoch"], message["seq"])
        await self._dispatch(intake.take(message))

    async def _note(self, heartbeat: HeartbeatMessage) -> None:
        for intake in list(self._intakes.values()):
            if intake.is_stale(heartbeat["epoch"]):
                continue
            if not intake.agrees(heartbeat):
                await self._heal(intake, heartbeat["epoch"], heartbeat["seqs"].get(intake.label, 0))
            intake.note(heartbeat)

    async def _heal(self, intake: Intake, epoch: int, seq: int) -> None:
        """Read what is missing up to this message from the journal, and count from it on."""
        await self._catch_up(intake)
        intake.healed(epoch, seq)

    async def _catch_up(self, intake: Intake) -> None:
        """Read what is missing, for as long as it takes."""
        logger.debug("healing %s from %s", intake.label, intake.position)
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(psycopg.Error),
            wait=wait_random_exponential(multiplier=RETRY_FIRST, max=RETRY_MAX),
            before_sleep=lambda state: logger.warning("healing %s waits for the database", intake.label),
        )
        async for attempt in retrying:
            with attempt:
                await self._read_missed(intake)

    async def _read_missed(self, intake: Intake) -> None:
        try:
            async with aclosing(self._reader.missed(intake.position, intake.label)) as batches:
                async for batch in batches:
                    await self._dispatch(intake.heal(batch))
        except CursorTooOldError as error:
            logger.error("%s: a gap could not be healed: %s", intake.label, error)
            self._resync(intake.label, str(error))

    async def _dispatch(self, rows: Sequence[JournalRow]) -> None:
        """Queue every change for those who wait for it; waits while too much is queued already."""
        for row in rows:
            source = registry.get(row.label)
            if source is None:
                continue
            try:
                for change in row.changes(source):
                    for cohort in self._index.find(change):
                        self.executor.submit(cohort, change)
                    await self.executor.room()
            except Exception:
                logger.exception("journal row %d of %s cannot be decoded", row.id, row.label)
                self._resync(row.label, "a change could not be decoded")

    def _resync(self, label: str, reason: str) -> None:
        payload = json.dumps({"data": None, "extensions": {"resync": {"reason": reason}}})
        for cohort in self._index.waiting_for(label):
            for operation in list(cohort.members):
                operation.deliver(payload)

    async def _watch(self) -> None:
        self._heard_at = self._renewed_at = _now()
        while True:
            await asyncio.sleep(self._silence / 3)
            silent = _now() - self._heard_at > self._silence
            if silent or _now() - self._renewed_at > RENEW_INTERVAL:
                self._renewed_at = _now()
                await self._join_groups()
            if silent:
                await self._do_without_layer()

    async def _do_without_layer(self) -> None:
        logger.warning(
            "nothing has come through the channel layer for %d s: is a listener running, on the same layer? "
            "The journal is read meanwhile, every %d s",
            _now() - self._heard_at,
            self._silence / 3,
        )
        async with self._taking:
            for intake in list(self._intakes.values()):
                await self._catch_up(intake)

    async def _join_groups(self) -> None:
        for group in self._groups():
            try:
                await self._layer.group_add(group, self._channel)
            except Exception as error:
                logger.warning("the channel layer did not take %s (%r); trying again later", group, error)
                return


def _now() -> float:
    return asyncio.get_running_loop().time()
