"""
Gates: events that cost next to nothing until somebody waits for them.

An ``asyncio.Event`` takes 800 bytes, and a process holds several for each of thousands of idle sockets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Generator


class _Passed:
    """Is awaited without waiting."""

    def __await__(self) -> Generator[None, None, None]:
        yield from ()


PASSED = _Passed()


class Gate:
    """What ``asyncio.Event`` is; to be used on one event loop."""

    __slots__ = ("_open", "_waiting")

    def __init__(self, *, is_open: bool = False) -> None:
        self._open = is_open
        self._waiting: list[asyncio.Future[None]] | None = None

    @property
    def is_open(self) -> bool:
        return self._open

    def open(self) -> None:
        """Let everybody pass who waits, or comes later."""
        self._open = True
        waiting, self._waiting = self._waiting, None
        for future in waiting or ():
            if not future.done():
                future.set_result(None)

    def close(self) -> None:
        """Let whoever comes from now on wait."""
        self._open = False

    def passed(self) -> Awaitable[None]:
        """Return what is to be awaited, at once, until it is opened, also if it is closed again at once."""
        if self._open:
            return PASSED
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Without those who were cancelled meanwhile.
        self._waiting = [*(other for other in self._waiting or () if not other.done()), future]
        return future
