"""
A server process within the test: a hub, a relay for each database, and a channel layer in memory, all of them real.

Two things differ from production.  Rows come from the test's journal and not from a listener; and what runs in worker
threads runs in the thread of the test, while that waits here.

On failure of something that a test should have cared for (no triggers, no journal) whoever waits is told; all else
fails as it does in production.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar, cast

from asgiref.sync import AsyncToSync
from channels.layers import channel_layers

from ..capture.registry import registry
from ..conf import get_settings
from ..hub.hub import Hub
from ..hub.process import served_by
from ..hub.receiver import Layer
from ..journal import Change
from ..journal.reader import Batch
from ..relay.relay import Relay
from .calling_thread import CallingThread
from .errors import NotCapturedError, NotSettledError
from .executor import CallingThreadExecutor
from .journal import EPOCH, JournalReader
from .journals import Journals
from .kept import open_transactions_kept
from .layer import AnyLoopLayer
from .loop_thread import LoopThread

R = TypeVar("R")

PATIENCE = 30.0
"""Seconds for which is waited for what does not only wait for its turn, as a resolver that asks another service."""

CAPACITY = 10_000
"""Messages that a channel of the layer holds; what it dropped would be read from the journal."""

NEVER = 86_400.0
"""Seconds after which a hub would do without the channel layer: a debugger may keep it silent."""


class InProcessServer:
    """One server; every method is called in the thread of the test, unless it says otherwise."""

    def __init__(self, journals: Journals) -> None:
        settings = get_settings()
        self.journals = journals
        self.held = 0
        self._calls = CallingThread(open_transactions_kept, lambda: self._thread.wake())
        self._executor = CallingThreadExecutor(self._calls, PATIENCE)
        self._thread = LoopThread(self._is_busy)
        self._layer = AnyLoopLayer(self._thread.loop, capacity=CAPACITY)
        self._layer_alias = settings.CHANNEL_LAYER
        # So that what an application sends by itself arrives, as disconnect_user() does.
        self._before = channel_layers.set(self._layer_alias, self._layer)
        self._relays = {journal.database: Relay(self._layer, database=journal.database) for journal in self.journals}
        self._hub: Hub | None = None
        self._missing: list[NotCapturedError] = []
        # What the next pump will return.
        self._delivered: list[Change] = []
        self._ending: Future[None] | None = None
        self._left: asyncio.Event | None = None

    def open(self) -> None:
        """Begin to serve."""
        # Asynchronous queries of resolvers: in the thread of the test too, where its transaction is.
        executors = cast(dict[asyncio.AbstractEventLoop, Any], AsyncToSync.loop_thread_executors)
        executors[self._thread.loop] = self._calls
        started: Future[None] = Future()
        self._ending = self._thread.start(lambda: self._serve(started))
        self.wait(started)

    def close(self) -> None:
        """End everything."""
        try:
            if self._left is not None and self._ending is not None:
                self._thread.loop.call_soon_threadsafe(self._left.set)
                self.wait(self._ending)
        finally:
            self._calls.close()
            self._thread.stop()
            AsyncToSync.loop_thread_executors.pop(self._thread.loop, None)
            if self._before is None:
                channel_layers.backends.pop(self._layer_alias, None)
            else:
                channel_layers.set(self._layer_alias, self._before)

    def run(self, make: Callable[[], Coroutine[Any, Any, R]]) -> R:
        """Run a coroutine on the server's event loop, and wait for it."""
        return self.wait(self._thread.start(make))

    def start(self, make: Callable[[], Coroutine[Any, Any, R]]) -> Future[R]:
        """Run a coroutine on the server's event loop."""
        return self._thread.start(make)

    def wait(self, future: Future[R]) -> R:
        """Work off what the server has for this thread until something is done.  Raises NotSettledError."""
        require_no_loop()
        try:
            return self._calls.wait(future, PATIENCE)
        except TimeoutError as error:
            if future.done():
                raise
            raise NotSettledError(
                f"something still was under way after {PATIENCE:g} seconds: {self._under_way()}"
            ) from error

    def settle(self) -> None:
        """Wait until everything has happened that can.  Raises NotCapturedError, NotSettledError."""
        self.wait(self._thread.settled())
        if self._missing:
            missing, self._missing = self._missing, []
            raise missing[0]

    def pump(self) -> list[Change]:
        """Deliver what has been changed; see ``pump``."""
        self._deliver()
        delivered, self._delivered = self._delivered, []
        return delivered

    def prepare(self) -> None:
        """
        Look what has been changed before somebody subscribes.

        Those who have subscribed already are delivered it now: a feed that goes on for them would tell the newcomer.
        """
        if self.journals.refresh() and self._hub is not None and self._hub.operations:
            self._deliver()

    def _deliver(self) -> None:
        require_no_loop()
        delivered = self.journals.deliver()
        self._delivered += changes_of(delivered)
        self.run(lambda: self._relay(delivered))
        self.settle()

    async def _serve(self, started: Future[None]) -> None:
        self._left = asyncio.Event()
        readers = [JournalReader(journal, self._call, self._missing.append) for journal in self.journals]
        for journal in self.journals:
            self._relays[journal.database].begin(EPOCH, journal.era)
        self._hub = hub = Hub(cast(Layer, self._layer), readers, self._executor, silence=NEVER)
        try:
            await hub.start()
        except BaseException as error:
            started.set_exception(error)
            raise
        try:
            with served_by(hub):
                started.set_result(None)
                await self._left.wait()
        finally:
            await hub.close()

    async def _relay(self, delivered: Mapping[str, Sequence[Batch]]) -> None:
        for database, batches in delivered.items():
            relay = self._relays[database]
            for batch in batches:
                await relay.relay(batch)
            if batches:
                # As in production, it tells of a last message that was lost.
                await relay.heartbeat(batches[-1].after)

    async def _call(self, function: Callable[[], object]) -> object:
        return await asyncio.wrap_future(self._calls.submit(function))

    def _is_busy(self) -> bool:
        """Return whether something is under way; called on the event loop."""
        return bool(self._calls.outstanding or self._executor.pending or self._executor.calls or self._joining())

    def _joining(self) -> int:
        """Return how many operations are not fed what is dispatched, or will be told something before it."""
        operations = self._hub.operations if self._hub is not None else ()
        return sum(
            operation.behind.is_open or operation.cohort is None or operation not in operation.cohort.members
            for operation in operations
        )

    def _under_way(self) -> str:
        counts = {
            "calls that nobody worked off": self._calls.outstanding,
            "changes in execution": self._executor.pending,
            "calls of subscribe() and the like": self._executor.calls,
            "operations that begin": self._joining(),
        }
        return ", ".join(f"{count} {what}" for what, count in counts.items() if count) or "the application"


def changes_of(delivered: Mapping[str, Sequence[Batch]]) -> list[Change]:
    """Return the changes of batches, by database."""
    rows = [row for batches in delivered.values() for batch in batches for row in batch.rows]
    sources = [(row, registry.get(row.label)) for row in rows]
    return [change for row, source in sources if source is not None for change in row.changes(source)]


def require_no_loop() -> None:
    """Raise RuntimeError where waiting would block an event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError("this would block the event loop: in asynchronous tests use apump(), asubscribe(), anext() ...")
