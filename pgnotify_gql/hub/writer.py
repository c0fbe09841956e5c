"""
The writer of one event loop: writes every outbox that has something to write, one after the other, in one task.

A change that goes to thousands of sockets would wake as many tasks, each of which costs more than a ``send`` does.  But
a ``send`` may wait for its client.  Then the task that waits is left to that outbox, and another one goes on with the
rest.  That a ``send`` waits shows in that the event loop gets its turn: it is asked for one before each pass.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol
from weakref import WeakKeyDictionary

from .loops import of_loop

TURN = 0.005
"""Seconds of writing after which everybody else on the event loop has a turn."""


class Written(Protocol):
    """What is written."""

    async def write(self) -> None:
        """Write all there is.  Raises nothing but CancelledError, where the task itself is cancelled."""

    def waits(self) -> None:
        """Note that this takes longer than a turn of the event loop."""


class Writer:
    """Goes through what is ready; used on one event loop only."""

    def __init__(self) -> None:
        self._ready: deque[Written] = deque()
        # The task that goes through what is ready, and what it is writing.
        self._task: asyncio.Task[None] | None = None
        self._writing: Written | None = None
        self._asked = False
        self._tasks: set[asyncio.Task[None]] = set()

    def ready(self, written: Written) -> None:
        """Let something be written, once, when its turn comes."""
        self._ready.append(written)
        if self._task is None:
            self._begin()

    def _begin(self) -> None:
        self._task = asyncio.create_task(self._write_all(), name="pgnotify_gql writer")
        self._tasks.add(self._task)
        self._task.add_done_callback(self._tasks.discard)

    async def _write_all(self) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        until = loop.time() + TURN
        try:
            while self._task is task and self._ready:
                if not self._asked:
                    self._asked = True
                    loop.call_soon(self._relieve)
                self._writing = written = self._ready.popleft()
                await written.write()
                if self._task is task:
                    self._writing = None
                    if loop.time() > until:
                        await asyncio.sleep(0)
                        until = loop.time() + TURN
        finally:
            if self._task is task:
                self._task = self._writing = None
                if self._ready:
                    self._begin()

    def _relieve(self) -> None:
        """Let another task go on, if the one that goes through what is ready waits in the middle."""
        self._asked = False
        if self._writing is not None:
            self._writing.waits()
            self._task = self._writing = None
            if self._ready:
                self._begin()


_writers: WeakKeyDictionary[asyncio.AbstractEventLoop, Writer] = WeakKeyDictionary()


def writer() -> Writer:
    """Return the writer of this event loop."""
    return of_loop(_writers, Writer)
