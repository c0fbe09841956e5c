"""
The outbox: what waits to be written to one socket, bounded in messages and in bytes.

Whoever puts something in never waits.  One task writes, and sends all that is there in one turn.

A `send` that waits for the client makes a slow one's frames stay here.  What lies behind a `send` (a server that does
not wait, proxies) would keep more of them.  So what was written since the last answered ping is counted as well, where
a ping is known: a client that does not answer is not written to any more, and its frames stay here too.

A client is stuck when too much waits for it, or when a frame waits for it for too long: the outbox says so once, and
neither takes nor writes anything more.

Two kinds of frames differ in what becomes of them when there is no room.  A result that is offered can be had from the
journal later.  Whatever else is put in (an answer, a keep-alive) cannot, and without room for it the outbox overflows;
a tenth of the room is therefore kept from results.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from .payloads import Frames

KEPT = 10
"""One part in so many is kept from results."""


class Outbox:
    """
    `send` writes one frame; `stuck` is called once, when a limit is passed: `messages`, `size` in characters, or
    `patience` in seconds, for which one frame may be written.

    `ping` is the frame that asks the client for an answer; without one, what lies behind `send` is not bounded here.
    """

    def __init__(
        self,
        send: Callable[[str], Awaitable[None]],
        *,
        messages: int,
        size: int,
        patience: float,
        stuck: Callable[[], None],
        ping: str | None = None,
    ) -> None:
        self._send = send
        self._messages = messages
        self._size = size
        self._patience = patience
        self._stuck = stuck
        self._ping = ping
        self._frames: deque[str] = deque()
        self._waiting = 0
        self._written = self._answered = 0
        self._asked: deque[int] = deque()
        self._filled = asyncio.Event()
        self._heard = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()
        self._closed = False
        self.given_up = False
        """Whether the client was stuck."""
        self._writing: asyncio.Task[None] | None = None
        # When, by the loop's time, the frame that is being written was begun. A time-out for each would cost as much as
        # writing it.
        self._writing_since: float | None = None

    def put(self, frame: str) -> None:
        """Queue a frame; dropped once the outbox has overflowed or is closed."""
        if not self._closed and not self._queue(frame, self._messages, self._size):
            self._give_up()

    def offer(self, frames: Frames) -> int:
        """Queue as many of the first frames as there is room for; return how many.  A closed outbox drops them."""
        count = len(frames.frames)
        if self._closed:
            return count
        messages, size = self._messages - self._messages // KEPT, self._size - self._size // KEPT
        # All at once: many sockets are offered the same.
        if len(self._frames) + count <= messages and self._waiting + frames.size <= size:
            self._frames.extend(frames.frames)
            self._waiting += frames.size
            self._filled.set()
            return count
        return next(
            (taken for taken, frame in enumerate(frames.frames) if not self._queue(frame, messages, size)), count
        )

    def _queue(self, frame: str, messages: int, size: int) -> bool:
        # The first frame does not count: above the limit by itself, it could not be sent at all otherwise.
        behind_first = self._waiting - len(self._frames[0]) if self._frames else -len(frame)
        if len(self._frames) >= messages or behind_first + len(frame) > size:
            return False
        self._frames.append(frame)
        self._waiting += len(frame)
        self._filled.set()
        return True

    async def room(self) -> None:
        """Wait until no more than half of what may wait is waiting."""
        while not self._has_room:
            self._drained.clear()
            await self._drained.wait()

    @property
    def _has_room(self) -> bool:
        return self._closed or (len(self._frames) <= self._messages // 2 and self._waiting <= self._size // 2)

    def answered(self) -> None:
        """Note a pong: the client has read all that was written before the oldest ping without an answer."""
        if self._asked:
            self._answered = self._asked.popleft()
            self._heard.set()

    def close(self) -> None:
        """Take nothing more; what is queued is still written."""
        self._closed = True
        self._filled.set()
        self._drained.set()

    def discard(self) -> None:
        """Close, and write nothing more, not even what is under way."""
        self.close()
        self._frames.clear()
        self._waiting = 0
        if self._writing is not None:
            self._writing.cancel()

    async def run(self) -> None:
        """Write until closed and empty, or discarded.  What `send` raises ends it."""
        self._writing = asyncio.create_task(self._write_all(), name="pgnotify_gql outbox")
        try:
            while not (await asyncio.wait({self._writing}, timeout=self._patience_left))[0]:
                if self._patience_left <= 0:
                    self._give_up()
            if not self._writing.cancelled():
                self._writing.result()
        finally:
            self._writing.cancel()

    @property
    def _patience_left(self) -> float:
        since = self._writing_since
        return self._patience if since is None else since + self._patience - asyncio.get_running_loop().time()

    def _give_up(self) -> None:
        self.given_up = True
        self.discard()
        self._stuck()

    async def _write_all(self) -> None:
        loop = asyncio.get_running_loop()
        while self._frames or not self._closed:
            await self._filled.wait()
            self._filled.clear()
            while self._frames:
                self._writing_since = loop.time()
                await self._write_next()
            self._writing_since = None
            if self._closed:
                return

    async def _write_next(self) -> None:
        if self._ping is not None and self._unread + len(self._frames[0]) > self._size:
            await self._until_read(self._ping)
        frame = self._frames.popleft()
        self._waiting -= len(frame)
        if not self._drained.is_set() and self._has_room:
            self._drained.set()
        await self._write(frame)
        # Asked well before the limit, so that a client that does read is never waited for.
        if self._ping is not None and not self._asked and self._unread > self._size // 4:
            await self._write(self._ping)

    async def _until_read(self, ping: str) -> None:
        while self._unread and self._unread + len(self._frames[0]) > self._size:
            if not self._asked:
                await self._write(ping)
            self._heard.clear()
            await self._heard.wait()

    async def _write(self, frame: str) -> None:
        self._written += len(frame)
        if frame == self._ping:
            # Every ping has its pong, in order: also those that only keep the connection alive.
            self._asked.append(self._written)
        await self._send(frame)

    @property
    def _unread(self) -> int:
        return self._written - self._answered
