"""
The WebSocket consumer: one ASGI application for both subprotocols.

It is mounted like a Channels consumer (``as_asgi``) and reads what Channels' middleware puts into the scope.  It is
not built on one: that would open a channel of the layer for every socket, and hop to a thread for every frame.  The
hub has one channel for the whole process.

On failure of the socket everything that ran for it is ended; on failure of anything here the socket is closed, with a
code that tells the client whether to come back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from .. import metrics
from ..conf import Settings, get_settings, shows_errors
from ..errors import ConfigurationError
from ..hub import open_hub
from ..hub.hub import Hub
from ..hub.payloads import Frames
from .close_codes import PRIVATE_CODES, CloseCode, reason
from .context import OperationRequest
from .draining import Visit, visits
from .engine import GraphqlEngine
from .graphql_transport_ws import GraphqlTransportWs
from .graphql_ws import GraphqlWs
from .masking import masking
from .mounting import GraphqlApplication, Receive, Scope, Send, client_outbox
from .presence import Presence
from .protocol import Connection, Limits
from .wire import wire_under

logger = logging.getLogger("pgnotify_gql.transport")

PROTOCOLS: tuple[type[Connection], ...] = (GraphqlTransportWs, GraphqlWs)
"""In the order of our preference: a client may offer both."""

CLOSE_TIMEOUT = 5.0
"""Seconds that a client which did not read has to make room for its close, and then again to read it."""


class GraphqlSubscriptionConsumer(GraphqlApplication):
    """
    Serves a graphene schema over WebSockets.

    Mount it with ``GraphqlSubscriptionConsumer.as_asgi(schema=schema)``, inside Channels' ``AuthMiddlewareStack`` and
    ``AllowedHostsOriginValidator``.  `scope` is the handshake's.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one socket, as ASGI has it."""
        if scope["type"] != "websocket":
            raise ValueError(
                f"{type(self).__name__} serves WebSockets: mount it under 'websocket', not {scope['type']}"
            )
        self.scope = dict(scope)
        await receive()  # websocket.connect
        protocol = _choose(scope.get("subprotocols", ()))
        await send({"type": "websocket.accept", "subprotocol": protocol.subprotocol if protocol else None})
        if protocol is None:
            # Accepted first: a browser shows the code of a close, not of a refused handshake.
            await _close(send, CloseCode.SUBPROTOCOL_NOT_ACCEPTABLE, "Subprotocol not acceptable")
            return
        metrics.SOCKETS.inc()
        try:
            with visits().begun() as visit:
                async with open_hub() as hub:
                    await self._serve(protocol, hub, visit, receive, send)
        except ConfigurationError as error:
            logger.error("sockets cannot be served: %s", error)
            await _close(send, CloseCode.INTERNAL_SERVER_ERROR, "Internal server error")
        finally:
            metrics.SOCKETS.dec()

    async def _serve(self, protocol: type[Connection], hub: Hub, visit: Visit, receive: Receive, send: Send) -> None:
        settings = get_settings()
        socket = _Socket(send, settings, protocol.ping)
        hooks = _Hooks(self, hub)
        engine = GraphqlEngine(
            self._schema,
            self._documents,
            hub,
            hooks.context,
            masking(shows_errors()),
            self._operation_hook,
            self._middleware,
        )
        limits = _limits(settings.INIT_TIMEOUT, settings.KEEPALIVE, settings.MAX_OPERATIONS, settings.MESSAGE_RATE)
        connection = protocol(socket, engine, hooks, limits)
        hooks.connection = connection
        try:
            socket.open(connection)
            connection.opened()
            visit.attach(connection)
            while (event := await receive())["type"] == "websocket.receive":
                _pass_on(event, connection, settings.MAX_MESSAGE_BYTES)
        finally:
            # Each also when an impatient server cancels the one before.
            try:
                await connection.closed()
            finally:
                try:
                    await hooks.end()
                finally:
                    await socket.stop()


@lru_cache(maxsize=4)
def _limits(init_timeout: float, keepalive: float, operations: int, messages: float) -> Limits:
    return Limits(init_timeout, keepalive, operations, messages)


class _Hooks:
    """The application's decisions, asked of the consumer; and the context that follows from them."""

    __slots__ = ("_consumer", "_hub", "_params", "_presence", "connection")

    def __init__(self, consumer: GraphqlSubscriptionConsumer, hub: Hub) -> None:
        self._consumer = consumer
        self._hub = hub
        self.connection: Connection | None = None
        self._params: Mapping[str, Any] = {}
        self._presence: Presence | None = None

    async def on_connect(self, payload: Mapping[str, Any]) -> Mapping[str, Any] | bool | None:
        self._params = payload
        decision, self._presence = await self._consumer._admitted(self._hub, payload, self._leave)
        return decision

    async def end(self) -> None:
        if self._presence is not None:
            await self._presence.end()

    def context(self) -> OperationRequest:
        return OperationRequest(self._consumer.scope, self._params)

    def _leave(self, code: CloseCode, why: str) -> None:
        assert self.connection is not None, "it asks"
        self.connection.close(code, why)


class _Socket:
    """An ASGI socket behind an outbox; implements ``protocol.Socket``."""

    __slots__ = ("_closing", "_connection", "_farewell", "_outbox", "_send", "_wire")

    def __init__(self, send: Send, settings: Settings, ping: str | None) -> None:
        self._send = send
        self._wire = wire_under(send)
        self._outbox = client_outbox(self._write, settings, self._stuck, ping)
        self._connection: Connection | None = None
        self._closing: tuple[CloseCode, str] | None = None
        self._farewell: asyncio.Task[None] | None = None

    def open(self, connection: Connection) -> None:
        """Write from now on, what the connection sends."""
        self._connection = connection
        self._outbox.start(self._ended)

    async def stop(self) -> None:
        """Write nothing more."""
        await self._outbox.stop()
        if self._farewell is not None:
            self._farewell.cancel()
            await asyncio.gather(self._farewell, return_exceptions=True)

    def send(self, frame: str) -> None:
        self._outbox.put(frame)

    def offer(self, frames: Frames) -> int:
        return self._outbox.offer(frames)

    async def room(self) -> None:
        await self._outbox.room()

    def answered(self) -> None:
        self._outbox.answered()

    def close(self, code: CloseCode, text: str) -> None:
        if self._closing is None:
            self._closing = code, text
            self._outbox.close()

    def _stuck(self) -> None:
        metrics.SLOW_CLIENTS.inc()
        logger.warning("a client did not read fast enough; its socket is closed with %d", CloseCode.TRY_AGAIN_LATER)
        assert self._connection is not None, "nothing was written before"
        self._connection.close(CloseCode.TRY_AGAIN_LATER, "Too many messages are waiting for this client")

    def _ended(self, error: Exception | None) -> None:
        # A client that is gone ends it; ASGI tells the reading side.
        if error is not None:
            logger.debug("a socket could not be written to: %r", error)
        elif self._closing is not None:
            self._farewell = asyncio.create_task(self._part(*self._closing), name="pgnotify_gql farewell")

    async def _part(self, code: CloseCode, text: str) -> None:
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await _close(self._send, code, text)
        except TimeoutError:
            logger.debug("a client does not read its close; its connection is cut")
            self._wire.cut()
        except Exception as error:
            logger.debug("a socket could not be closed: %r", error)
        else:
            if self._outbox.given_up:
                # The close may have gone no further than into the server's buffer, and would keep it for good.
                asyncio.get_running_loop().call_later(CLOSE_TIMEOUT, self._wire.cut)

    async def _write(self, frame: str) -> None:
        if not self._wire.is_writable:
            await self._wire.writable()
        await self._send({"type": "websocket.send", "text": frame})


def _choose(offered: Sequence[str]) -> type[Connection] | None:
    return next((protocol for protocol in PROTOCOLS if protocol.subprotocol in offered), None)


def _pass_on(event: Mapping[str, Any], connection: Connection, most: int) -> None:
    text = event.get("text")
    if text is None:
        connection.received_bytes()
    elif len(text) > most or (len(text) * 4 > most and len(text.encode(errors="replace")) > most):
        connection.close(CloseCode.MESSAGE_TOO_BIG, f"Messages may have {most} bytes")
    else:
        connection.received(text)


async def _close(send: Send, code: CloseCode, text: str) -> None:
    close = {"type": "websocket.close", "code": int(code), "reason": reason(text)}
    try:
        await send(close)
    except Exception:
        # Daphne sends 1000 and private codes only, and leaves the socket open after any other.
        if code not in PRIVATE_CODES:
            raise
        await send(close | {"code": PRIVATE_CODES[code]})
