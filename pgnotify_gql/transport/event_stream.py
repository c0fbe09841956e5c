"""
Event streams: the answer to one request, as a browser's ``EventSource`` and the clients of GraphQL over SSE read it.

A stream that ends without ``complete`` asks its client to come back.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Mapping

from .. import metrics
from ..conf import Settings
from ..hub.payloads import Frames, Payloads
from .close_codes import CloseCode
from .mounting import Scope, Send, client_outbox
from .wire import wire_under

logger = logging.getLogger("pgnotify_gql.transport")

MEDIA_TYPE = "text/event-stream"

RETRY = (1_000, 3_000)
"""Milliseconds after which an EventSource whose stream was cut comes back: one time for each, so that those whose
server stopped do not all come at once."""

RETRY_SOON = 100
"""Milliseconds, when nothing is wrong with the server."""

END_TIMEOUT = 5.0
"""Seconds that a client which did not read has for the end, where the server waits for it."""

COMPLETE = "event: complete\ndata:\n\n"
"""Without the line of data an EventSource would not tell the page."""

COMMENT = ":\n\n"


class EventStream:
    """
    The answer to a request: events behind an outbox; implements ``protocol.Results``.

    `write` it, and then `end` it.

    A server whose sends do not wait for the client buffers without a limit, and unlike a socket's, this client cannot
    be asked what it has read.  So there a stream ends, and its client comes back for the rest, when it has written as
    much as may be unread on a socket: wherever that is possible, which is behind a result with a cursor.
    """

    def __init__(self, send: Send, settings: Settings, *, server_waits: bool) -> None:
        self._send = send
        self._outbox = client_outbox(self._write, settings, self._stuck)
        self._most = None if server_waits else settings.OUTBOX_BYTES
        self._begun = False
        self._written = 0

    def send(self, payload: str) -> None:
        self._outbox.put(next_event(payload))

    def offer(self, payloads: Payloads) -> int:
        return self._outbox.offer(payloads.framed(next_event))

    async def room(self) -> None:
        await self._outbox.room()

    def keep_alive(self) -> None:
        self._outbox.offer(_frames(COMMENT))

    def complete(self) -> None:
        """End behind what was sent before; the client has no reason to come back."""
        self._outbox.put(COMPLETE)
        self._outbox.close()

    def close(self, code: CloseCode, reason: str) -> None:
        """End behind what was sent before, so that the client comes back; there are no codes here to tell it why."""
        self._outbox.close()

    async def write(self) -> None:
        """Write until closed."""
        try:
            await self._begin()
            # Daphne sends the headers with the first bytes, and with the headers an EventSource is open.
            await self._write(_retry(random.randint(*RETRY)))  # noqa: S311  (no secret)
            await self._outbox.run()
        except Exception as error:
            logger.debug("a stream could not be written to: %r", error)

    async def end(self) -> None:
        """Tell the client that nothing more comes; one that does not read it is cut off."""
        try:
            async with asyncio.timeout(END_TIMEOUT):
                if not self._begun:
                    await self._begin()
                await self._send({"type": "http.response.body", "body": b""})
        except TimeoutError:
            logger.debug("a client does not read the end of its stream; its connection is cut")
            wire_under(self._send).cut()

    async def _begin(self) -> None:
        headers = {"Content-Type": MEDIA_TYPE, "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        await self._send({"type": "http.response.start", "status": 200, "headers": encoded(headers)})
        self._begun = True

    async def _write(self, event: str) -> None:
        await self._send({"type": "http.response.body", "body": event.encode(), "more_body": True})
        self._written += len(event)
        if self._most is not None and self._written > self._most and event.startswith("id:"):
            self._outbox.offer(_frames(_retry(RETRY_SOON)))
            self._outbox.close()

    def _stuck(self) -> None:
        metrics.SLOW_CLIENTS.inc()
        logger.warning("a client did not read fast enough; its stream is ended")


def next_event(payload: str) -> str:
    """Return the event of a result."""
    extensions = json.loads(payload).get("extensions") if '"cursor"' in payload else None
    cursor = (extensions or {}).get("cursor")
    event = f"event: next\ndata: {payload}\n\n"
    return event if cursor is None else f"id: {cursor}\n{event}"


def server_waits(scope: Scope) -> bool:
    """Return whether the server's sends wait for a client that does not read."""
    # Servers say which version of ASGI's specification for HTTP they follow. Daphne says none.
    return "spec_version" in scope.get("asgi", {})


def encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Return headers as ASGI has them."""
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]


def _frames(event: str) -> Frames:
    return Frames([event], len(event))


def _retry(milliseconds: int) -> str:
    return f"retry: {milliseconds}\n\n"
