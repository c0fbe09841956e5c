"""A client of the library websockets that subscribes at a server, and later at another one, with its last cursor."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from tests.support.processes import ProjectServer

TRANSPORT, LEGACY = "graphql-transport-ws", "graphql-ws"

WORDS = {TRANSPORT: ("subscribe", "next"), LEGACY: ("start", "data")}

TIMEOUT = 30.0
"""Seconds until a result that must come is missed."""


class RefusedError(AssertionError):
    """The operation was answered with an error."""

    def __init__(self, payload: Any) -> None:
        super().__init__(str(payload))
        self.payload = payload


class Resumer:
    """What one client has received of a field, wherever it was connected."""

    def __init__(self, field: str = "texts", subprotocol: str = TRANSPORT) -> None:
        self._field = field
        self._subprotocol = subprotocol
        self.cursor: Any = None
        self.state: list[str] = []
        self.received: list[str] = []
        self.resyncs: list[str] = []
        self.markers = 0

    @contextmanager
    def connected(self, server: ProjectServer) -> Iterator[ClientConnection]:
        """Subscribe, from the last cursor on if there is one; at the end the connection is cut, and not closed."""
        opening = connect(f"{server.ws_url}/", subprotocols=[Subprotocol(self._subprotocol)], max_size=None)
        with opening as opened:
            socket = cast(ClientConnection, opened)
            self._send(socket, "connection_init")
            while (kind := json.loads(socket.recv(TIMEOUT))["type"]) != "connection_ack":
                assert kind == "ka"
            payload: dict[str, Any] = {"query": f"subscription {{ {self._field} }}"}
            if self.cursor is not None:
                payload["extensions"] = {"cursor": self.cursor}
            self._send(socket, WORDS[self._subprotocol][0], id="1", payload=payload)
            try:
                yield socket
            finally:
                with suppress(OSError):
                    socket.socket.shutdown(2)

    def read_first(self, socket: ClientConnection, write: Callable[[], object]) -> None:
        """Read the first result: `write` is called until there is one, for nothing tells when a plain one is live."""
        while True:
            write()
            with suppress(TimeoutError):
                return self.read(socket, 0.5)

    def read(self, socket: ClientConnection, timeout: float = TIMEOUT) -> None:
        """Read one result.  Raises RefusedError, and TimeoutError after so many seconds."""
        while (message := json.loads(socket.recv(timeout)))["type"] in ("ka", "ping"):
            if message["type"] == "ping":
                self._send(socket, "pong")
        if message["type"] == "error":
            raise RefusedError(message["payload"])
        assert message["type"] == WORDS[self._subprotocol][1], message
        result = message["payload"]
        assert "errors" not in result, result
        extensions = result["extensions"]
        self.cursor = extensions.get("cursor", self.cursor)
        if result["data"] is not None:
            (self.state if extensions.get("initial") else self.received).append(result["data"][self._field])
        elif "resync" in extensions:
            self.resyncs.append(extensions["resync"]["reason"])
        else:
            self.markers += extensions["live"]

    def read_until(self, socket: ClientConnection, *texts: str) -> None:
        """Read until the last of all that was received is this."""
        while self.received[-len(texts) :] != list(texts):
            self.read(socket)

    def read_many(self, socket: ClientConnection, count: int) -> None:
        """Read so many results."""
        for _ in range(count):
            self.read(socket)

    def read_to_marker(self, socket: ClientConnection) -> None:
        """Read to the next live marker."""
        before = self.markers
        while self.markers == before:
            self.read(socket)

    def refusal(self, server: ProjectServer) -> Any:
        """Subscribe to what is refused; return the error."""
        with self.connected(server) as socket:
            try:
                self.read(socket)
            except RefusedError as refused:
                return refused.payload
            except ConnectionClosed as closed:
                raise AssertionError(f"closed with {closed}") from closed
        raise AssertionError("it was not refused")

    @staticmethod
    def _send(socket: ClientConnection, kind: str, **fields: Any) -> None:
        socket.send(json.dumps({"type": kind, **fields}))
