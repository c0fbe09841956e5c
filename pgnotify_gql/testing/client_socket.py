"""The client's end of one WebSocket, on the event loop of the server: what was sent, by operation."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from typing import Any

from django.core.serializers.json import DjangoJSONEncoder

from .errors import SocketClosedError, SubscriptionTestError

Application = Callable[[Any, Any, Any], Awaitable[None]]

Message = Mapping[str, Any]

CLOSED = "closed"
"""In place of a message, when the socket is."""

TAKEN: Mapping[str, str] = {"data": "next", "connection_error": "error"}
"""Messages of the older subprotocol, by the names that the newer one has for them."""


class ClientSocket:
    """
    Runs an ASGI application for one socket.

    `accepted` and `acknowledged` are done when the server has come that far, or with why it does not.
    """

    def __init__(self, application: Application, scope: Mapping[str, Any]) -> None:
        self._application = application
        self._scope = dict(scope)
        self._events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._listeners: dict[str, Callable[[str, Any], None]] = {}
        self.accepted: Future[str | None] = Future()
        self.acknowledged: Future[Any] = Future()
        self.closed: SocketClosedError | None = None

    async def run(self) -> None:
        """Serve until the application has ended."""
        self._events.put_nowait({"type": "websocket.connect"})
        try:
            await self._application(self._scope, self._events.get, self._take)
        except Exception as error:
            self._fail(error)
            raise
        else:
            self._fail(self.closed or SubscriptionTestError("the application has ended"))

    def listen(self, operation_id: str, listener: Callable[[str, Any], None]) -> None:
        """Have somebody told of each message of an operation: its type, and its payload; and of CLOSED."""
        self._listeners[operation_id] = listener

    async def send(self, kind: str, **fields: Any) -> None:
        """Send a message."""
        frame = {"type": kind, **{key: value for key, value in fields.items() if value is not None}}
        self._events.put_nowait({"type": "websocket.receive", "text": json.dumps(frame, cls=DjangoJSONEncoder)})

    async def leave(self) -> None:
        """Close it, as a client does."""
        self._events.put_nowait({"type": "websocket.disconnect", "code": 1000})

    async def _take(self, event: dict[str, Any]) -> None:
        if event["type"] == "websocket.accept":
            self.accepted.set_result(event.get("subprotocol"))
        elif event["type"] == "websocket.close":
            self.closed = SocketClosedError(event.get("code", 1000), event.get("reason") or "")
            self._fail(self.closed)
            await self.leave()
        else:
            await self._handle(json.loads(event["text"]))

    async def _handle(self, message: Message) -> None:
        kind = message["type"]
        if kind == "ping":
            await self.send("pong")
        elif kind == "connection_ack":
            if not self.acknowledged.done():
                self.acknowledged.set_result(message.get("payload"))
        elif (listener := self._listeners.get(message.get("id", ""))) is not None:
            listener(TAKEN.get(kind, kind), message.get("payload"))

    def _fail(self, error: Exception) -> None:
        for future in (self.accepted, self.acknowledged):
            if not future.done():
                future.set_exception(error)
        for listener in self._listeners.values():
            listener(CLOSED, None)
