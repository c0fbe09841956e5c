"""
Listeners in processes of their own, beside what is measured: our leader, and one that only hears bells.

Ours is the listener and the relay as `manage.py run_listener` puts them together; its layer counts what it is given.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from typing import Any, TypeAlias

import psycopg

from benchmarks.support.layers import CountingLayer, redis_layer
from pgnotify_gql.listener import Listener, Timing, connect
from pgnotify_gql.relay import Relay
from tests.support.databases import Database

START_TIMEOUT = 30
"""Seconds until a listener must be ready."""

STOP_TIMEOUT = 10
"""Seconds until one that is told to must have ended."""

# A process that begins anew: it shares neither connections nor Django with this one.
_processes = multiprocessing.get_context("spawn")

Counter: TypeAlias = "Synchronized[int]"


@contextmanager
def leader(database: Database, redis_url: str = "") -> Iterator[Callable[[], int]]:
    """Run our listener, with Redis or with a layer that goes nowhere; gives how many journal rows it has relayed."""
    with _beside(_lead, database, redis_url) as count:
        yield count


@contextmanager
def hearing(database: Database, notify_channel: str) -> Iterator[Callable[[], int]]:
    """Run a process that LISTENs, as those of others do; gives how many bells it has heard."""
    with _beside(_hear, database, notify_channel) as count:
        yield count


def make_listener(dsn: str, layer: CountingLayer) -> Listener:
    """Return a listener that relays to a layer, with the settings' defaults."""
    return Listener(partial(connect, dsn, session_timeout=Timing().session_timeout), Relay(layer))


@contextmanager
def _beside(run: Callable[..., None], database: Database, argument: str) -> Iterator[Callable[[], int]]:
    counter: Counter = _processes.Value("q", 0)
    ready = _processes.Event()
    process = _processes.Process(target=run, args=(database.conninfo, argument, counter, ready), daemon=True)
    process.start()
    try:
        if not ready.wait(START_TIMEOUT):
            raise TimeoutError(f"the listener was not ready within {START_TIMEOUT} s")
        yield lambda: counter.value
    finally:
        process.terminate()
        process.join(STOP_TIMEOUT)
        process.kill()
        process.join()


def _lead(dsn: str, redis_url: str, counter: Counter, ready: Event) -> None:
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(_lead_until_told(dsn, redis_url, counter, ready))


async def _lead_until_told(dsn: str, redis_url: str, counter: Counter, ready: Event) -> None:
    def note(rows: int) -> None:
        # The only one that writes it.
        counter.value = rows

    layer = CountingLayer(await redis_layer(redis_url) if redis_url else None, note)
    listener = make_listener(dsn, layer)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, listener.stop)
    running = asyncio.create_task(listener.run(), name="listener")
    await listener.leading.wait()
    ready.set()
    await running


def _hear(dsn: str, notify_channel: str, counter: Counter, ready: Event) -> None:
    with psycopg.connect(dsn, autocommit=True) as session:
        session.execute(f"listen {notify_channel}")
        ready.set()
        for _ in _bells(session):
            counter.value += 1


def _bells(session: psycopg.Connection[Any]) -> Iterator[psycopg.Notify]:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return session.notifies()
