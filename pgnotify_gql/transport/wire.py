"""
The wire: the server's end of a socket, for what ASGI has no word for.

Two things about a client that does not read.  Daphne's ``send`` does not wait for it, but keeps all that is sent in
memory, without a limit.  And no server cuts it off when a socket is closed: the close waits behind what is not read,
for as long as the client likes (Daphne gives it a second; with Uvicorn connection and buffer stay for good).

The transport under ``send`` knows how much waits in it, and can be cut off.  Both Daphne's and Uvicorn's ``send`` lead
to it, also through the middleware that wrapped them.  Where none is found (another server, or a wrapper that hides it)
sockets are served without: that is safe with servers whose ``send`` waits.
"""

from __future__ import annotations

import logging
import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from functools import cache, partial
from types import CellType, FunctionType, MethodType
from typing import Any

from ..hub.gate import Gate

logger = logging.getLogger("pgnotify_gql.transport")

MOST_LOOKED_AT = 100
"""Objects behind a ``send``; through Channels' authentication there are five."""


class Wire(ABC):
    """The connection of one socket; `is_writable` says whether the server's buffer has room."""

    is_writable = True

    @abstractmethod
    async def writable(self) -> None:
        """Wait until the server's buffer has room."""

    @abstractmethod
    def cut(self) -> None:
        """End the connection, if it has not ended, whatever still waits in it."""


class UnknownWire(Wire):
    """Nothing is known of the connection."""

    async def writable(self) -> None:
        return

    def cut(self) -> None:
        return


class AsyncioWire(Wire):
    """An asyncio transport, of a server whose ``send`` waits by itself."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport

    async def writable(self) -> None:
        return

    def cut(self) -> None:
        self._transport.abort()


class TwistedWire(Wire):
    """A Twisted transport.  The wire is the ``IPushProducer`` that it pauses while its buffer, of 64 KiB, is full."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        # While it is paused; an idle socket takes as little as it can.
        self._paused: Gate | None = None
        # Left from the handshake is the producer of a request that is over.
        transport.unregisterProducer()
        transport.registerProducer(self, True)

    @property
    def is_writable(self) -> bool:  # type: ignore[override]  # what others are for ever
        """Return whether it is not paused."""
        return self._paused is None

    async def writable(self) -> None:
        if self._paused is not None:
            await self._paused.passed()

    def cut(self) -> None:
        # With TLS it fails when it comes too late.
        if self._transport.connected:
            self._transport.abortConnection()

    def pauseProducing(self) -> None:  # noqa: N802  (Twisted's name)
        self._paused = self._paused or Gate()

    def resumeProducing(self) -> None:  # noqa: N802
        paused, self._paused = self._paused, None
        if paused is not None:
            paused.open()

    def stopProducing(self) -> None:  # noqa: N802
        self.resumeProducing()


def wire_under(send: Callable[[dict[str, Any]], Awaitable[None]]) -> Wire:
    """Return the wire of an accepted socket, given its ``send``."""
    for found in _behind(send):
        transport = _attributes(found).get("transport")
        if _has(transport, "abortConnection", "registerProducer", "unregisterProducer"):
            return TwistedWire(transport)
        if _has(transport, "abort", "get_write_buffer_size"):
            return AsyncioWire(transport)
    if _is_on_twisted():
        _warn()
    return UnknownWire()


def _behind(send: Any) -> Iterator[Any]:
    """Yield what `send` is made of, the nearest first."""
    waiting, seen = deque([send]), set[int]()
    while waiting and len(seen) < MOST_LOOKED_AT:
        found = waiting.popleft()
        if id(found) not in seen:
            seen.add(id(found))
            yield found
            waiting.extend(_parts(found))


def _parts(found: Any) -> Iterable[Any]:
    # The type is asked, and not isinstance(): that makes Django's lazy objects load what they stand for.
    kind = type(found)
    if kind is partial:
        return [*found.args, *found.keywords.values(), found.func]
    if kind is MethodType:
        return [found.__self__]
    if kind is FunctionType:
        return [cell.cell_contents for cell in found.__closure__ or () if _is_filled(cell)]
    return filter(callable, _attributes(found).values())


def _attributes(found: Any) -> Mapping[str, Any]:
    attributes: Mapping[str, Any] = getattr(found, "__dict__", {})
    return attributes


def _is_filled(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018  (raises where there is nothing yet)
    except ValueError:
        return False
    return True


def _has(transport: Any, *methods: str) -> bool:
    return all(callable(getattr(transport, method, None)) for method in methods)


def _is_on_twisted() -> bool:
    reactor = sys.modules.get("twisted.internet.reactor")
    return reactor is not None and bool(reactor.running)


@cache
def _warn() -> None:
    """Say once for each process what cannot be done here."""
    logger.warning(
        "the connection of a socket cannot be found behind the send that middleware has wrapped, and Daphne's does not "
        "wait: what clients of graphql-ws leave unread is not bounded; leave that middleware out, or use Uvicorn"
    )
