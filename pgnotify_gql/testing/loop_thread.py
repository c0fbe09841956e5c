"""
An event loop in a thread of its own, which tells when it has nothing left to do.

A loop that is about to sleep asks its selector to wait: that is the moment at which everything that waited for nothing
but its turn has happened.  No time is waited for, and no number of turns is guessed.
"""

from __future__ import annotations

import asyncio
import selectors
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextvars import Context
from typing import Any, TypeVar

R = TypeVar("R")

JOIN_TIMEOUT = 10.0
"""Seconds that the thread may take to end."""


class LoopThread:
    """A running event loop; `busy` says, in its thread, whether something is under way that it will be told of."""

    def __init__(self, busy: Callable[[], bool]) -> None:
        self._busy = busy
        self._settling: list[Future[None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.loop = asyncio.SelectorEventLoop(_Selector(self._settle))
        self._thread = threading.Thread(target=self.loop.run_forever, name="pgnotify_gql testing", daemon=True)
        self._thread.start()

    def start(self, make: Callable[[], Coroutine[Any, Any, R]]) -> Future[R]:
        """Run a coroutine on the loop; return the future of its result."""
        future: Future[R] = Future()

        async def run() -> None:
            try:
                result = await make()
            except BaseException as error:
                future.set_exception(error)
                if not isinstance(error, Exception):
                    raise
            else:
                future.set_result(result)

        def begin() -> None:
            task = self.loop.create_task(run(), name="pgnotify_gql testing")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        # In a context of its own: asgiref would look in that of an asynchronous test for the thread that is waiting.
        self.loop.call_soon_threadsafe(begin, context=Context())
        return future

    def settled(self) -> Future[None]:
        """Return what is done when the loop next goes to sleep, and is not busy."""
        future: Future[None] = Future()
        self.loop.call_soon_threadsafe(self._settling.append, future, context=Context())
        return future

    def wake(self) -> None:
        """Let it be looked again whether it is busy."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(_nothing, context=Context())

    def stop(self) -> None:
        """Cancel whatever still runs, and end the thread."""
        asyncio.run_coroutine_threadsafe(_cancel_others(), self.loop).result(JOIN_TIMEOUT)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(JOIN_TIMEOUT)
        if not self._thread.is_alive():
            self.loop.close()

    def _settle(self, is_asleep: Callable[[], bool]) -> None:
        # Asked in this order: what a call to another thread leads to wakes the loop before the call is over.
        if self._settling and not self._busy() and is_asleep():
            settling, self._settling = self._settling, []
            for future in settling:
                future.set_result(None)


class _Selector(selectors.DefaultSelector):
    """Calls `asleep` before it waits, with what tells whether there is still nothing to be handled."""

    def __init__(self, asleep: Callable[[Callable[[], bool]], None]) -> None:
        super().__init__()
        self._asleep = asleep

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout > 0:
            self._asleep(lambda: not super(_Selector, self).select(0))
        return super().select(timeout)


async def _cancel_others() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()


def _nothing() -> None:
    """Be a turn of the loop."""
