"""
Gates: events that cost next to nothing until somebody waits for them.

An ``asyncio.Event`` takes 800 bytes, and a process holds several for each of thousands of idle sockets.
"""

from __future__ import annotations

import asyncio


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

    async def passed(self) -> None:
        """Wait until it is opened, also if it is closed again at once."""
        if self._open:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._waiting is None:
            self._waiting = [future]
        else:
            self._waiting.append(future)
        try:
            await future
        finally:
            if self._waiting is not None and future in self._waiting:
                self._waiting.remove(future)
