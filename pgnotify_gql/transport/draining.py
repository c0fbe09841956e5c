"""
Draining: how a server process takes leave of its clients.

On SIGTERM, which a deployment sends, Daphne cuts every socket without a word, and Uvicorn closes all of them at once:
their clients come back at the same moment, to the processes that are left.  So the signal is taken here first, for as
long as sockets are open: readiness turns red, the sockets are closed one after the other over a window, each behind
what was sent to it before, with a code that clients retry; when all have left, the server is sent the signal again.  A
socket that opens meanwhile is closed at once.  Clients go on at another process, from their cursors.

On failure: what has not left in time is the server's to cut.  A second signal goes to the server at once.  Where the
event loop is not that of the main thread (``runserver``) there are no signals, and nothing is drained.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from ..conf import get_settings
from ..hub.loops import of_loop
from .close_codes import CloseCode

logger = logging.getLogger("pgnotify_gql.transport")

Handler = Callable[[int, FrameType | None], Any] | int | None
"""As ``signal.getsignal`` returns it."""

FAREWELL = 3.0
"""Seconds in which sockets that were closed must have left."""


class Closable(Protocol):
    """What a client is connected by."""

    def close(self, code: CloseCode, reason: str) -> None:
        """Close behind what was sent before; only the first close counts."""


class Visit:
    """One client's time at this process; a context manager, left when what was opened for it has been put away."""

    __slots__ = ("_leaving", "_socket", "_visits")

    def __init__(self, visits: Visits) -> None:
        self._visits = visits
        self._leaving = visits.draining
        self._socket: Closable | None = None

    def __enter__(self) -> Visit:
        self._visits.enter(self)
        return self

    def __exit__(self, *exception: object) -> None:
        self._visits.leave(self)

    def attach(self, socket: Closable) -> None:
        """Name what is to be closed when the client has to leave."""
        self._socket = socket
        if self._leaving:
            self.end()

    def end(self) -> None:
        """Send the client to another process."""
        self._leaving = True
        if self._socket is not None:
            self._socket.close(CloseCode.SERVICE_RESTART, "This server restarts")


class Visits:
    """The clients of one event loop, and their leave; `window` is in seconds."""

    def __init__(self, window: float) -> None:
        self.draining = False
        self._window = window
        self._here: dict[Visit, None] = {}
        self._left = asyncio.Event()
        self._signal = _Signal(asyncio.get_running_loop(), self.drain)
        self._task: asyncio.Task[None] | None = None

    def begun(self) -> Visit:
        """Return a visit, to be held."""
        return Visit(self)

    def enter(self, visit: Visit) -> None:
        """Count a visit."""
        if not self._here:
            self._signal.take()
        self._here[visit] = None

    def leave(self, visit: Visit) -> None:
        """Count a visit no more."""
        del self._here[visit]
        if not self._here:
            self._left.set()
            if not self.draining:
                self._signal.give_back()

    def drain(self) -> None:
        """Let everybody leave, and then pass the signal on."""
        if self.draining:
            return
        self.draining = True
        self._task = asyncio.create_task(self._drain(), name="pgnotify_gql draining")

    async def _drain(self) -> None:
        try:
            logger.info("draining: %d sockets are closed within %g s", len(self._here), self._window)
            await self._end_all()
            with suppress(TimeoutError):
                async with asyncio.timeout(FAREWELL):
                    await self._gone()
            logger.info("drained: %d sockets are left", len(self._here))
        finally:
            self._signal.pass_on()

    async def _end_all(self) -> None:
        visits, loop = list(self._here), asyncio.get_running_loop()
        began = loop.time()
        for number, visit in enumerate(visits):
            if visit in self._here:
                await asyncio.sleep(began + self._window * number / len(visits) - loop.time())
                visit.end()

    async def _gone(self) -> None:
        while self._here:
            self._left.clear()
            await self._left.wait()


class _Signal:
    """SIGTERM, taken from the server for a while."""

    def __init__(self, loop: asyncio.AbstractEventLoop, asked: Callable[[], None]) -> None:
        self._loop = loop
        self._asked = asked
        self._received = False
        self._before: Handler = None

    def take(self) -> None:
        """Have `asked` called on the loop when the signal comes, if there are signals here."""
        if threading.current_thread() is not threading.main_thread():
            return
        before = signal.getsignal(signal.SIGTERM)
        # None: it was not set from Python, and could not be given back. Ignored: whoever wants that, wants no end.
        if before in {None, signal.SIG_IGN} or before == self._handle:
            return
        self._before = before
        signal.signal(signal.SIGTERM, self._handle)

    def give_back(self) -> None:
        """Leave the signal to whoever had it; whoever has taken it since keeps it, and calls us."""
        if signal.getsignal(signal.SIGTERM) == self._handle:
            signal.signal(signal.SIGTERM, self._before)

    def pass_on(self) -> None:
        """Let the signal have the effect that it would have had."""
        self.give_back()
        if callable(self._before):
            self._before(signal.SIGTERM, None)
        else:
            signal.raise_signal(signal.SIGTERM)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._received or self._loop.is_closed():
            self.pass_on()
        else:
            self._received = True
            self._loop.call_soon_threadsafe(self._asked)


_visits: WeakKeyDictionary[asyncio.AbstractEventLoop, Visits] = WeakKeyDictionary()


def visits() -> Visits:
    """Return the clients of this event loop."""
    return of_loop(_visits, lambda: Visits(get_settings().DRAIN_WINDOW))


def is_draining() -> bool:
    """Return whether this process takes leave; may be called in any thread."""
    # A loop may be kept by somebody after it has ended.
    return any(found.draining for loop, found in list(_visits.items()) if not loop.is_closed())
