"""
The hub of this process: put together from the settings when the first socket opens, closed after the last.

With INLINE_LISTENER the listeners, one for each database, run beside it, in the same event loop.  They are started with
the first socket, since Daphne tells an application nothing of its own start and end.  What they relay reaches this hub
directly, and others through the channel layer.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast
from weakref import WeakKeyDictionary

import psycopg
from channels.layers import InMemoryChannelLayer

from ..conf import Settings, database_conninfo, get_settings
from ..errors import PgnotifyGqlError
from ..listener import connect
from ..relay.relay import Layer as RelayLayer
from ..relay.worker import build_listener, channel_layer, timing
from .executor import Executor
from .feed import Feed
from .hub import Hub
from .loops import of_loop
from .reader import HubReader
from .receiver import Layer
from .trace import Trace

logger = logging.getLogger("pgnotify_gql.hub")

MISSED_HEARTBEATS = 3
"""Heartbeats of a sleeping listener that may fail to come before a hub does without the channel layer."""

YOUNG_OBJECTS = 10_000
"""
Objects that a process makes before the youngest of them are looked at, and a hundred times as many, at least, before
all are.

A socket has about 130 that live as long as it does.  With Python's own 700 all objects of a process are looked at again
and again while sockets are opened, for 0.4 s at a time with 5,000 of them, in which nothing reaches anybody.  Daphne
opened half as many again in a second with these, Uvicorn a tenth more; 50,000 brought no more.
"""

INLINE_RETRY = 5.0
"""Seconds before an inline listener that cannot start (no journal yet) is tried again."""


class _Process:
    """The hub of one event loop, and how many sockets hold it open."""

    def __init__(self) -> None:
        self.sockets = 0
        self.lock = asyncio.Lock()
        self.hub: Hub | None = None
        self.listeners: list[asyncio.Task[None]] = []


_processes: WeakKeyDictionary[asyncio.AbstractEventLoop, _Process] = WeakKeyDictionary()


class Held:
    """Holds the hub of this process open; a context manager.  Raises ConfigurationError."""

    __slots__ = ("_process",)

    async def __aenter__(self) -> Hub:
        self._process = process = of_loop(_processes, _Process)
        process.sockets += 1
        try:
            if process.hub is None or process.lock.locked():
                async with process.lock:
                    if process.hub is None:
                        await _start(process, get_settings())
        except BaseException:
            await self.__aexit__()
            raise
        assert process.hub is not None
        return process.hub

    async def __aexit__(self, *exception: object) -> None:
        process = self._process
        process.sockets -= 1
        if not process.sockets:
            # Shielded: a socket that is cancelled must not leave half a hub behind.
            await asyncio.shield(_close_unused(process))


def open_hub() -> Held:
    """Hold the hub of this process open, see ``Held``."""
    return Held()


def current_hub() -> Hub:
    """Return the hub that is held open on this event loop."""
    process = _processes.get(asyncio.get_running_loop())
    if process is None or process.hub is None:
        raise RuntimeError(
            "no hub is open: subscriptions are served by GraphqlSubscriptionConsumer and GraphqlSseConsumer"
        )
    return process.hub


@contextmanager
def served_by(hub: Hub) -> Iterator[None]:
    """Let a hub that somebody else has made, and closes, be the one of this event loop meanwhile."""
    process = of_loop(_processes, _Process)
    assert process.hub is None, "an event loop has one hub"
    # Held, so that the last socket does not close it.
    process.hub, process.sockets = hub, process.sockets + 1
    try:
        yield
    finally:
        process.hub, process.sockets = None, process.sockets - 1


async def _start(process: _Process, settings: Settings) -> None:
    readers = [_reader(settings, alias) for alias in settings.DATABASES]
    # Both Protocols describe the same channel layer, each the part it needs.
    layer = cast(Layer, channel_layer(settings))
    silence = MISSED_HEARTBEATS * timing(settings).longest_sleep
    if isinstance(layer, InMemoryChannelLayer) and not settings.INLINE_LISTENER:
        logger.warning(
            "the channel layer is in-memory and no listener runs in this process, so nothing comes through it: "
            "set INLINE_LISTENER in PGNOTIFY_GQL, or use channels_redis and run_listener"
        )
    hub = Hub(
        layer,
        readers,
        Executor(settings.WORKERS),
        silence=silence,
        trace=Trace(settings.TRACE_SECONDS),
        sockets=lambda: process.sockets,
    )
    await hub.start()
    process.hub = hub
    if settings.TUNE_GC:
        _collect_less_often()
    if settings.INLINE_LISTENER:
        process.listeners = [
            asyncio.create_task(_listen(settings, alias, hub.feed(alias)), name=f"pgnotify_gql inline listener {alias}")
            for alias in settings.DATABASES
        ]


def _collect_less_often() -> None:
    youngest, *older = gc.get_threshold()
    # 0 is never; and what an application has set higher was meant.
    if 0 < youngest < YOUNG_OBJECTS:
        gc.set_threshold(YOUNG_OBJECTS, *older)


def _reader(settings: Settings, alias: str) -> HubReader:
    dsn = database_conninfo(settings, alias)
    return HubReader(partial(connect, dsn, session_timeout=0, application_name="pgnotify_gql hub"), alias)


async def _close_unused(process: _Process) -> None:
    async with process.lock:
        if process.sockets or process.hub is None:
            return
        hub, process.hub = process.hub, None
        listeners, process.listeners = process.listeners, []
    # Outside the lock: a thread may be in the middle of a long query, for which no new socket is to wait.
    for listener in listeners:
        listener.cancel()
    await asyncio.gather(*listeners, return_exceptions=True)
    await hub.close()


class _Beside:
    """
    The channel layer, for a listener beside a hub, whose feed is handed what it waits for without the layer.

    The in-memory one copies a message, and starts a task, for each who receives it: a tenth of the time that a single
    change takes on its way behind the commit.  While the relay leaves a layer that hung alone, for a second, it hands
    over nothing either.
    """

    def __init__(self, feed: Feed, layer: RelayLayer) -> None:
        self._feed = feed
        self._layer = layer

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        others = self._has_others(group)
        self._feed.hand(group, message, alone=not others)
        if others:
            await self._layer.group_send(group, message)

    def _has_others(self, group: str) -> bool:
        # It alone can be asked; and reaches nobody outside this process.
        if not isinstance(self._layer, InMemoryChannelLayer):
            return True
        return any(channel != self._feed.channel for channel in self._layer.groups.get(group, ()))


async def _listen(settings: Settings, alias: str, feed: Feed) -> None:
    while True:
        try:
            await build_listener(alias, settings, _Beside(feed, channel_layer(settings))).run()
        except (PgnotifyGqlError, psycopg.Error) as error:
            logger.error("the inline listener of database %s cannot run: %s", alias, error)
        await asyncio.sleep(INLINE_RETRY)
