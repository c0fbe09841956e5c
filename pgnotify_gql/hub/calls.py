"""
Calls: what an application wrote, called in worker threads, many in one hop.

When thousands of clients come back at once, each has some functions called (``subscribe``, ``on_connect``), most of
which take microseconds, while a hop to a thread and back takes more than a hundred.  So a thread makes one call after
the other for as long as some wait.  Each is answered as soon as the event loop looks, whatever comes behind it.  Those
that still wait after PATIENCE are gone on with by one more thread, and after that by another: so calls that take long,
or block, keep no other waiting for long.  And after TURN a thread leaves what is left to whichever is free next, behind
everything else that waits for one.

On failure: what a call raises is raised to whoever waits for it, and to nobody else.  One for which nobody waits any
more is not begun.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

R = TypeVar("R")

PATIENCE = 0.002
"""Seconds after which another thread goes on with what waits."""

TURN = 0.02
"""Seconds after which whatever else waits for a thread has its turn."""


@dataclass(slots=True)
class _Call:
    function: Callable[[], Any]
    answer: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None

    def make(self) -> None:
        if self.answer.cancelled():
            return
        try:
            self.result = self.function()
        except StopIteration as error:
            # As it would be in a coroutine; a future cannot have one.
            self.error = RuntimeError("a function that was called raised StopIteration")
            self.error.__cause__ = error
        except BaseException as error:
            self.error = error
        finally:
            # The error's traceback has this frame: what refers to itself would wait for the garbage collector.
            del self

    def settle(self) -> None:
        if self.answer.cancelled():
            return
        if self.error is None:
            self.answer.set_result(self.result)
        else:
            self.answer.set_exception(self.error)


class Calls:
    """Has functions called in the threads of a pool, whose `submit` this is; used on one event loop only."""

    def __init__(self, submit: Callable[..., object]) -> None:
        self._submit = submit
        self._waiting: deque[_Call] = deque()
        # What a thread has made, if anything, and whether that was its last.
        self._made: deque[tuple[_Call | None, bool]] = deque()
        # Whether the event loop has been told that there is something.
        self._told = False
        self._threads = 0
        self._unanswered = 0
        # When a thread last took a call, or was asked to.
        self._taken_at = 0.0
        self._help: asyncio.TimerHandle | None = None

    def make(self, function: Callable[[], R]) -> asyncio.Future[R]:
        """Have a function called; the future has what it returns or raises, or RuntimeError once the pool is closed."""
        loop = asyncio.get_running_loop()
        call = _Call(function, loop.create_future())
        self._waiting.append(call)
        self._unanswered += 1
        # Threads that have taken nothing for a while are busy with something that takes long.
        if not self._threads or loop.time() - self._taken_at > PATIENCE:
            self._begin(loop)
        elif self._help is None:
            self._help = loop.call_later(PATIENCE, self._send_help, loop)
        return call.answer

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        error = self._submitted(loop)
        if error is None:
            self._threads += 1
            self._taken_at = loop.time()
        elif not self._threads:
            # Threads that are still at work, if any, make what is left.
            self._refuse(error)

    def _refuse(self, error: RuntimeError) -> None:
        while self._waiting:
            call = self._waiting.popleft()
            call.error = error
            self._settle(call)

    def _send_help(self, loop: asyncio.AbstractEventLoop) -> None:
        self._help = None
        # No more threads than calls: each may be one that blocks.
        if self._waiting and self._threads < self._unanswered:
            self._begin(loop)
            self._help = loop.call_later(PATIENCE, self._send_help, loop)

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        until = loop.time() + TURN
        leaves = False
        while not leaves:
            call = self._take(loop)
            if call is not None:
                call.make()
            last = not self._waiting
            leaves = last or (loop.time() > until and self._submitted(loop) is None)
            self._made.append((call, last))
            # As in _Call.make.
            del call
            if not self._told:
                self._told = True
                with suppress(RuntimeError):  # the loop has been closed meanwhile
                    loop.call_soon_threadsafe(self._answer, loop)

    def _submitted(self, loop: asyncio.AbstractEventLoop) -> RuntimeError | None:
        """Have the thread that is free next at work, behind what waits for one; return the error of a closed pool."""
        try:
            self._submit(self._work, loop)
        except RuntimeError as error:
            return error
        return None

    def _take(self, loop: asyncio.AbstractEventLoop) -> _Call | None:
        self._taken_at = loop.time()
        try:
            return self._waiting.popleft()
        except IndexError:
            return None  # another thread was faster

    def _answer(self, loop: asyncio.AbstractEventLoop) -> None:
        # Before looking: what is made from now on is told again.
        self._told = False
        while self._made:
            call, last = self._made.popleft()
            self._threads -= last
            if call is not None:
                self._settle(call)
        # One may have come behind the last look of the last thread.
        if self._waiting and not self._threads:
            self._begin(loop)

    def _settle(self, call: _Call) -> None:
        self._unanswered -= 1
        call.settle()
