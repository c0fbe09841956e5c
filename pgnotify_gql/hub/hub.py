"""
The hub: one for each server process and event loop, between the channel layer and the operations.

It has a feed for each database that is followed, whatever the number of sockets.  A change goes to the cohorts the
topic index finds, and from there to the executor.

On failure each feed goes on from its position by itself.  Changes that have left the journal are answered with a
resync to every operation on the model.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Hashable, Iterable, Sequence

from ..capture.registry import registry
from ..journal.change import JournalRow
from .executor import Executor
from .feed import SILENCE, Feed
from .operations import Cohort, Operation, Resync, cohort_key
from .reader import HubReader
from .receiver import Layer
from .topics import TopicIndex

logger = logging.getLogger("pgnotify_gql.hub")


class Hub:
    """Feeds the operations of one process; used on one event loop only."""

    def __init__(
        self, layer: Layer, readers: Iterable[HubReader], executor: Executor, *, silence: float = SILENCE
    ) -> None:
        self.executor = executor
        self._feeds = {reader.database: Feed(layer, reader, self, silence=silence) for reader in readers}
        self._index: TopicIndex[Cohort] = TopicIndex()
        self._cohorts: dict[Hashable, Cohort] = {}

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
        for feed in self._feeds.values():
            await feed.close()
        await self.executor.close()

    async def join(self, operation: Operation) -> None:
        """Feed an operation: it is given every change that commits after this has returned."""
        topics = operation.interest.topics
        joined: list[tuple[str, str]] = []
        try:
            for database, label in operation.interest.models:
                await self._feeds[database].join(label)
                joined.append((database, label))
        except BaseException:
            await asyncio.shield(self._leave(joined))
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
        await self._leave(operation.interest.models)

    async def dispatch(self, rows: Sequence[JournalRow]) -> None:
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
                self.resync(row.label, "a change could not be decoded")

    def resync(self, label: str, reason: str) -> None:
        """Tell every operation on a model that changes are lost, behind the results of those before."""
        for cohort in self._index.waiting_for(label):
            self.executor.submit(cohort, Resync(reason))

    async def _leave(self, models: Iterable[tuple[str, str]]) -> None:
        for database, label in models:
            await self._feeds[database].leave(label)
