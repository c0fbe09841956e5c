"""
The outbox: what waits to be written to one socket, bounded in messages and in bytes.

Whoever puts something in never waits.  A writer, which all outboxes of an event loop share, sends all that is there in
one turn; an idle outbox has no task, since a process has thousands of them.

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

from .gate import Gate
from .payloads import Frames
from .writer import writer

KEPT = 10
"""One part in so many is kept from results."""


class Outbox:
    """
    `send` writes one frame; `stuck` is called once, when a limit is passed: `messages`, `size` in characters, or
    `patience` in seconds, for which one frame may be written.

    `ping` is the frame that asks the client for an answer; without one, what lies behind `send` is not bounded here.
    """

    __slots__ = (
        "__weakref__", "_announced", "_answered", "_asked", "_closed", "_cut", "_drained", "_ended", "_frames",
        "_heard", "_messages", "_patience", "_ping", "_rested", "_send", "_size", "_stuck", "_timer", "_waiting",
        "_writing", "_writing_since", "_written", "given_up",
    )  # fmt: skip

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
        # None as long as it is empty: a deque takes 760 bytes.
        self._frames: deque[str] | None = None
        self._waiting = 0
        self._written = self._answered = 0
        self._asked: list[int] = []
        # Where somebody waits: for a pong, for room, and for the end of what is being written.
        self._heard: Gate | None = None
        self._drained: Gate | None = None
        self._rested: Gate | None = None
        self._closed = False
        self.given_up = False
        """Whether the client was stuck."""
        self._ended: Callable[[Exception | None], None] | None = None
        # The task that writes, and whether one will.
        self._writing: asyncio.Task[None] | None = None
        self._announced = self._cut = False
        # When, by the loop's time, the frame that is being written was begun. A time-out for each would cost as much as
        # writing it.
        self._writing_since: float | None = None
        self._timer: asyncio.TimerHandle | None = None

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
        if self._count + count <= messages and self._waiting + frames.size <= size:
            self._add(frames)
            return count
        refused = (number for number, frame in enumerate(frames.frames) if not self._queue(frame, messages, size))
        return next(refused, count)

    def _queue(self, frame: str, messages: int, size: int) -> bool:
        # The first frame does not count: above the limit by itself, it could not be sent at all otherwise.
        behind_first = self._waiting - len(self._frames[0]) if self._frames else -len(frame)
        if self._count >= messages or behind_first + len(frame) > size:
            return False
        self._add(Frames((frame,), len(frame)))
        return True

    def _add(self, frames: Frames) -> None:
        if self._frames is None:
            self._frames = deque(frames.frames)
        else:
            self._frames.extend(frames.frames)
        self._waiting += frames.size
        if not self._announced:
            self._begin()

    @property
    def _count(self) -> int:
        return len(self._frames) if self._frames else 0

    async def room(self) -> None:
        """Wait until no more than half of what may wait is waiting."""
        while not self._has_room:
            self._drained = self._drained or Gate()
            await self._drained.passed()

    @property
    def _has_room(self) -> bool:
        return self._closed or (self._count <= self._messages // 2 and self._waiting <= self._size // 2)

    def answered(self) -> None:
        """Note a pong: the client has read all that was written before the oldest ping without an answer."""
        if self._asked:
            self._answered = self._asked.pop(0)
            if self._heard is not None:
                self._heard.open()

    def start(self, ended: Callable[[Exception | None], None]) -> None:
        """Write from now on; `ended` is called when closed and empty, or discarded, or with what `send` raised."""
        self._ended = ended
        self._begin()

    async def run(self) -> None:
        """Write until closed and empty, or discarded.  What `send` raises ends it."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def ended(error: Exception | None) -> None:
            if done.done():
                return
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)

        self.start(ended)
        try:
            await done
        finally:
            self.discard()

    def close(self) -> None:
        """Take nothing more; what is queued is still written."""
        if self._closed:
            return
        self._closed = True
        self._let_in()
        if not self._announced:
            self._begin()

    def discard(self) -> None:
        """Close, and write nothing more, not even what is under way."""
        self._frames, self._waiting = None, 0
        self.close()
        if self._writing is not None and not self._cut:
            self._cut = True
            self._writing.cancel()

    async def stop(self) -> None:
        """Discard, and wait for what was under way."""
        self.discard()
        if self._announced:
            self._rested = self._rested or Gate()
            await self._rested.passed()

    def _begin(self) -> None:
        if self._ended is None:
            return
        if self._frames:
            self._announced = True
            writer().ready(self)
        elif self._closed:
            self._end(None)

    async def write(self) -> None:
        """Write all that is there; see ``writer.Written``."""
        error: Exception | None = None
        self._writing = task = asyncio.current_task()
        assert task is not None
        try:
            await self._write_all()
        except Exception as raised:
            error = raised
        except asyncio.CancelledError:
            # By discard() it is meant for this outbox, and not for those that come after it.
            if not self._cut or task.uncancel():
                raise
        finally:
            self._rest(error)

    def _rest(self, error: Exception | None) -> None:
        self._writing = self._writing_since = None
        self._announced = False
        if self._rested is not None:
            self._rested.open()
        if error is not None:
            self._end(error)
        elif not self._frames:
            self._frames = None
        self._begin()

    def _end(self, error: Exception | None) -> None:
        ended, self._ended = self._ended, None
        if self._timer is not None:
            self._timer.cancel()
        self._closed = True
        if ended is not None:
            ended(error)

    def _give_up(self) -> None:
        self.given_up = True
        self.discard()
        self._stuck()

    def waits(self) -> None:
        """Watch that no frame takes too long; see ``writer.Written``."""
        if self._timer is None and self._writing_since is not None:
            self._timer = asyncio.get_running_loop().call_at(self._writing_since + self._patience, self._watch)

    def _watch(self) -> None:
        """Give up where a frame takes too long; looked at once in a while, as long as something is being written."""
        self._timer = None
        if self._writing_since is None:
            return
        if asyncio.get_running_loop().time() - self._writing_since >= self._patience:
            self._give_up()
        else:
            self.waits()

    def _let_in(self) -> None:
        drained, self._drained = self._drained, None
        if drained is not None:
            drained.open()

    async def _write_all(self) -> None:
        # In one piece: a call more costs half a microsecond for each frame of every socket.
        loop, ping, most = asyncio.get_running_loop(), self._ping, self._size
        while self._frames:
            self._writing_since = loop.time()
            if ping is not None and self._unread + len(self._frames[0]) > most:
                await self._until_read(ping)
            frame = self._frames.popleft()
            self._waiting -= len(frame)
            if self._drained is not None and self._has_room:
                self._let_in()
            self._note_written(frame)
            await self._send(frame)
            # Asked well before the limit, so that a client that does read is never waited for.
            if ping is not None and not self._asked and self._unread > most // 4:
                await self._ask(ping)

    async def _until_read(self, ping: str) -> None:
        assert self._frames
        while self._unread and self._unread + len(self._frames[0]) > self._size:
            if self._asked:
                self._heard = Gate()
                await self._heard.passed()
            else:
                # It may be answered before it has been sent, as far as ``send`` knows.
                await self._ask(ping)

    async def _ask(self, ping: str) -> None:
        self._note_written(ping)
        await self._send(ping)

    def _note_written(self, frame: str) -> None:
        self._written += len(frame)
        if frame == self._ping:
            # Every ping has its pong, in order: also those that only keep the connection alive.
            self._asked.append(self._written)

    @property
    def _unread(self) -> int:
        return self._written - self._answered
