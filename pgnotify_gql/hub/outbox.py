"""
The outbox: what waits to be written to one socket, bounded in messages and in bytes.

Whoever puts something in never waits.  One task writes, and sends all that is there in one turn.  Uvicorn's ``send``
waits for the client and so fills the outbox of a slow one; an outbox that overflows says so once and takes nothing
more.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable


class Outbox:
    """`send` writes one frame; `overflowed` is called once, when a limit is passed."""

    def __init__(
        self,
        send: Callable[[str], Awaitable[None]],
        *,
        messages: int,
        size: int,
        overflowed: Callable[[], None],
    ) -> None:
        self._send = send
        self._messages = messages
        self._size = size
        self._overflowed = overflowed
        self._frames: deque[str] = deque()
        self._bytes = 0
        self._filled = asyncio.Event()
        self._closed = False

    def put(self, frame: str) -> None:
        """Queue a frame; dropped once the outbox has overflowed or is closed."""
        if self._closed:
            return
        # A single frame above the limit is sent when nothing else waits: it could not be sent otherwise at all.
        if len(self._frames) >= self._messages or (self._frames and self._bytes + len(frame) > self._size):
            self.close()
            self._frames.clear()
            self._overflowed()
            return
        self._frames.append(frame)
        self._bytes += len(frame)
        self._filled.set()

    def close(self) -> None:
        """Take nothing more; what is queued is still written."""
        self._closed = True
        self._filled.set()

    async def run(self) -> None:
        """Write until closed and empty.  What `send` raises ends it."""
        while self._frames or not self._closed:
            await self._filled.wait()
            self._filled.clear()
            while self._frames:
                frame = self._frames.popleft()
                self._bytes -= len(frame)
                await self._send(frame)
            if self._closed:
                return
