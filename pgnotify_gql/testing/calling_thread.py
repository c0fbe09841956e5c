"""
A pool of one thread, which is whichever thread waits for the server.

What a hub has executed in worker threads comes here and is worked off by the thread of the test, while that waits.  So
it uses the test's own connection, in the test's open transaction, and Django finds no event loop in its thread.

On failure of a call its future has the error; what ends a whole test (Ctrl-C, a timeout) ends the wait as well.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from contextvars import Context
from functools import partial
from threading import Condition
from typing import Any, TypeVar

R = TypeVar("R")


class CallingThread:
    """
    Takes calls from any thread; `wait` works them off.

    `around` is held for each call, and `rested` called behind it, in the thread that makes it.
    """

    def __init__(self, around: Callable[[], AbstractContextManager[None]], rested: Callable[[], None]) -> None:
        self._around = around
        self._rested = rested
        self._calls: deque[_Call] = deque()
        self._changed = Condition()
        self._closed = False
        self.outstanding = 0
        """Calls that wait, or are under way.  What follows from one has begun before it ceases to be counted."""

    def submit(self, function: Callable[..., R], /, *args: Any) -> Future[R]:
        """Have a function called by who waits; see ``hub.executor.Pool``."""
        call = _Call(partial(function, *args))
        with self._changed:
            if self._closed:
                raise RuntimeError("nobody works off calls any more")
            self._calls.append(call)
            self.outstanding += 1
            self._changed.notify_all()
        return call.future

    def wait(self, future: Future[R], timeout: float) -> R:
        """Work off calls until a future is done, and return its result.  Raises TimeoutError, and what it raises."""
        until = time.monotonic() + timeout
        future.add_done_callback(self._wake)
        while not future.done():
            call = self._next(future, until - time.monotonic())
            if call is not None:
                self._make(call)
        return future.result()

    def close(self) -> None:
        """Take no more calls; those that wait are cancelled."""
        with self._changed:
            self._closed = True
            calls, self._calls = self._calls, deque()
        for call in calls:
            call.future.cancel()

    def _next(self, future: Future[Any], seconds: float) -> _Call | None:
        with self._changed:
            if not self._changed.wait_for(lambda: future.done() or self._calls, seconds):
                raise TimeoutError
            return None if future.done() else self._calls.popleft()

    def _make(self, call: _Call) -> None:
        try:
            with self._around():
                call.make()
        finally:
            with self._changed:
                self.outstanding -= 1
            self._rested()

    def _wake(self, future: Future[Any]) -> None:
        with self._changed:
            self._changed.notify_all()


class _Call:
    def __init__(self, function: Callable[[], Any]) -> None:
        self.future: Future[Any] = Future()
        self._function = function

    def make(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            # As in a thread of a pool, which knows nothing of the language, or the change context, of whoever waits.
            result = Context().run(self._function)
        except BaseException as error:
            self.future.set_exception(error)
            if not isinstance(error, Exception):
                raise
        else:
            self.future.set_result(result)
