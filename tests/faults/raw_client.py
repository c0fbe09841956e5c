"""
A client that reads when it is told to, and not a byte before.

It has no buffer of its own and a small one in the kernel, so what it does not read stays with the server.  The library
websockets, which does no I/O here, makes frames of what was read.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self
from urllib.parse import urlsplit

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.typing import Origin, Subprotocol
from websockets.uri import parse_uri

TRANSPORT, LEGACY = "graphql-transport-ws", "graphql-ws"

SUBSCRIBE = {TRANSPORT: "subscribe", LEGACY: "start"}

RESULTS = ("next", "data")

SMALL = 4096
"""Bytes that the kernel is asked to keep of what was not read; it takes twice as many."""

CHUNK = 65_536
"""Bytes that are read at a time, at most."""

QUERY = "subscription { texts }"

TIMEOUT = 60
"""Seconds after which what should have come counts as missing."""


class RawClient:
    """
    One socket of a site's (``slow_site``), in one of the subprotocols.

    `texts` has what was received, by operation, and `cursors` the last cursor of each; `received` is called with every
    text.  The connection has `ended` with a `close_code`, or without one when it was cut.
    """

    def __init__(self, url: str, subprotocol: str = TRANSPORT, *, receive_buffer: int | None = SMALL) -> None:
        self.subprotocol = subprotocol
        self.texts: dict[str, list[str]] = {}
        self.cursors: dict[str, str] = {}
        self.resyncs: list[Any] = []
        self.received: Callable[[str], None] = lambda text: None
        self.ended = False
        self._url = f"{url}/graphql/"
        self._acknowledged = False
        self._answers: list[str] = []
        self._socket = socket.socket()
        self._socket.setblocking(False)
        if receive_buffer is not None:
            # Before the connection is made, which tells the server how much that is.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._protocol = ClientProtocol(
            parse_uri(self._url),
            origin=Origin(url.replace("ws:", "http:")),
            subprotocols=[Subprotocol(subprotocol)],
            max_size=None,
        )

    async def open(self) -> Self:
        """Connect, and initialise the subprotocol."""
        address = urlsplit(self._url)
        await asyncio.get_running_loop().sock_connect(self._socket, (str(address.hostname), address.port))
        self._protocol.send_request(self._protocol.connect())
        await self._flush()
        await self.until(lambda: self._protocol.state is State.OPEN)
        await self._send("connection_init")
        await self.until(lambda: self._acknowledged)
        return self

    async def subscribe(self, operation: str = "1", cursor: str | None = None) -> None:
        extensions = {} if cursor is None else {"extensions": {"cursor": cursor}}
        self.texts[operation] = []
        await self._send(SUBSCRIBE[self.subprotocol], id=operation, payload={"query": QUERY} | extensions)

    def has_received(self) -> bool:
        """Whether something was received for every operation."""
        return all(self.texts.values())

    async def until(self, condition: Callable[[], bool]) -> None:
        """Read for as long as it takes."""
        async with asyncio.timeout(TIMEOUT):
            while not condition():
                assert not self.ended, f"the connection has ended, {self.close_code}"
                await self.read()

    async def read_on(self) -> None:
        """Read to the end of the connection."""
        while not self.ended:
            await self.read()

    async def read(self) -> None:
        """Read once; the answers to what was read are sent."""
        try:
            self._take(await asyncio.get_running_loop().sock_recv(self._socket, CHUNK))
            await self._flush()
        except OSError:
            self.ended = True

    async def drain(self) -> None:
        """Read to the end of the connection, as fast as can be and without an answer to anything."""
        self.widen()
        data: list[bytes] = []
        with suppress(OSError):
            while not data or data[-1]:
                data.append(await asyncio.get_running_loop().sock_recv(self._socket, CHUNK))
        self._take(b"".join(data))
        self.ended = True

    def widen(self) -> None:
        """
        Let the kernel keep more, for a client that begins to read again.

        With a window below the size of a packet, as a loopback has it, TCP waits for its timers now and then.
        """
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, CHUNK)

    @property
    def close_code(self) -> int | None:
        """The code of the close that was received."""
        received = self._protocol.close_rcvd
        return None if received is None else int(received.code)

    def leave(self) -> None:
        self._socket.close()

    def _take(self, data: bytes) -> None:
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()
            self.ended = True
        for event in self._protocol.events_received():
            if isinstance(event, Response):
                assert event.status_code == 101, event
            elif isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                self._handle(json.loads(bytes(event.data)))

    def _handle(self, message: dict[str, Any]) -> None:
        if message["type"] in RESULTS:
            self._handle_result(message["id"], message["payload"])
        elif message["type"] == "connection_ack":
            self._acknowledged = True
        elif message["type"] == "ping":
            self._answers.append("pong")
        else:
            assert message["type"] == "ka", message

    def _handle_result(self, operation: str, payload: dict[str, Any]) -> None:
        assert "errors" not in payload, payload
        self.cursors[operation] = payload["extensions"]["cursor"]
        if "resync" in payload["extensions"]:
            self.resyncs.append(payload["extensions"]["resync"])
            return
        self.texts[operation].append(payload["data"]["texts"])
        self.received(payload["data"]["texts"])

    async def _send(self, kind: str, **fields: Any) -> None:
        self._protocol.send_text(json.dumps({"type": kind, **fields}).encode())
        await self._flush()

    async def _flush(self) -> None:
        answers, self._answers = self._answers, []
        if self._protocol.state is State.OPEN:
            for kind in answers:
                self._protocol.send_text(json.dumps({"type": kind}).encode())
        for data in self._protocol.data_to_send():
            if data:
                await asyncio.get_running_loop().sock_sendall(self._socket, data)
