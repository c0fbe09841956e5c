"""
A subscriber: a real socket, and another one when it is lost, for ever, with the cursor of what it was given last.

It speaks one of the subprotocols, is served by whichever server process answers, and notes what it is sent.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.typing import Subprotocol

from ..journal.snapshot import Snapshot
from .ledger import change_number
from .stream import Stream

CONNECT_TIMEOUT = 5.0
"""Seconds until a server must have acknowledged; one that is paused accepts connections, and answers nothing."""

PING_INTERVAL, PING_TIMEOUT = 5.0, 15.0
"""Seconds; a server that does not answer is left for another. Longer than a slow client is slow, which answers nothing
either."""

FRAMES_AHEAD = 16
"""Frames that are taken from a socket before they are read."""

RECEIVE_BUFFER = 64 * 1024
"""Bytes that the system takes from the server while a client does not read, so that the server notices it."""

FRESH_START = 0.5
"""Part of the reconnections after which a subscriber of an initial state begins anew, with the state."""


@dataclass(frozen=True)
class Protocol:
    """The names of a subprotocol's messages."""

    name: str
    subscribe: str
    result: str


PROTOCOLS = {
    "graphql-transport-ws": Protocol("graphql-transport-ws", "subscribe", "next"),
    "graphql-ws": Protocol("graphql-ws", "start", "data"),
}


@dataclass(frozen=True)
class Kind:
    """What is subscribed to; `bucket` is that of a topic."""

    name: str
    field: str
    selection: str = "key version deleted xid"
    bucket: int | None = None
    initial: bool = False

    @property
    def query(self) -> str:
        return f"subscription {{ change: {self.field} {{ {self.selection} }} }}"


class LeftError(Exception):
    """The server has ended the operation, or refused it: to be tried again on another socket."""


class Subscriber:
    """One operation; `streams` has what it received, the last one since it began anew for the last time."""

    def __init__(
        self, name: str, kind: Kind, protocol: Protocol, urls: Sequence[str], commits: Mapping[int, float],
        chance: random.Random,
    ) -> None:  # fmt: skip
        self.name = name
        self.kind = kind
        self.streams = [Stream(name, kind.bucket)]
        self.reading = asyncio.Event()
        """Clear it, and the client does not read."""
        self.reading.set()
        self.heard = asyncio.Event()
        """Set once anything has come."""
        self.url = ""
        """The server that it is connected to, or was."""
        self.reconnections = 0
        self.closes: Counter[str] = Counter()
        """How sockets were closed, by the code."""
        self.latest = 0.0
        """When the latest change that was received was committed, in monotonic seconds."""
        self._protocol = protocol
        self._urls = urls
        self._commits = commits
        self._chance = chance
        self._cursor: str | None = None
        self._socket: ClientConnection | None = None

    @property
    def connected(self) -> bool:
        """Whether there is a connection."""
        return self._socket is not None

    @property
    def received(self) -> int:
        """How many changes have come."""
        return sum(map(len, self.streams))

    def cut(self) -> None:
        """Lose the connection, without a word to the server."""
        if self._socket is not None:
            self._socket.transport.abort()

    async def run(self) -> None:
        """Receive until cancelled."""
        while True:
            self._socket = connection = await self._connected()
            try:
                await self._receive(connection)
            except ConnectionClosed as closed:
                self.closes[str(closed.rcvd.code if closed.rcvd is not None else 1006)] += 1
            except LeftError as left:
                self.closes[str(left)] += 1
            finally:
                self._socket = None
                connection.transport.abort()
            self.reconnections += 1
            if self.kind.initial and self._chance.random() < FRESH_START:
                self._cursor = None
            await asyncio.sleep(self._chance.random() * 0.2)

    async def _connected(self) -> ClientConnection:
        retrying = AsyncRetrying(
            retry=retry_if_exception_type((OSError, TimeoutError, WebSocketException)),
            wait=wait_random_exponential(multiplier=0.1, max=2),
        )
        connection: ClientConnection = await retrying(self._connect)
        return connection

    async def _connect(self) -> ClientConnection:
        self.url = url = self._chance.choice(self._urls)
        connection = await connect(
            url,
            sock=await _opened(url),
            subprotocols=[Subprotocol(self._protocol.name)],
            open_timeout=CONNECT_TIMEOUT,
            ping_interval=PING_INTERVAL,
            ping_timeout=PING_TIMEOUT,
            close_timeout=1,
            max_queue=FRAMES_AHEAD,
            max_size=None,
            compression=None,
            proxy=None,
        )
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await connection.send(json.dumps({"type": "connection_init"}))
                while json.loads(await connection.recv())["type"] != "connection_ack":
                    pass
                await connection.send(json.dumps(self._subscribe()))
        except BaseException:
            connection.transport.abort()
            raise
        return connection

    def _subscribe(self) -> dict[str, Any]:
        payload: dict[str, Any] = {"query": self.kind.query}
        if self._cursor is not None:
            payload["extensions"] = {"cursor": self._cursor}
        return {"type": self._protocol.subscribe, "id": "1", "payload": payload}

    async def _receive(self, connection: ClientConnection) -> None:
        while True:
            await self.reading.wait()
            message = json.loads(await connection.recv())
            match message["type"]:
                case self._protocol.result:
                    self._result(message["payload"])
                case "ping":
                    await connection.send('{"type": "pong"}')
                case "error" | "connection_error":
                    self.streams[-1].errors.append(json.dumps(message.get("payload")))
                    self._cursor = None
                    raise LeftError("error")
                case "complete":
                    raise LeftError("complete")

    def _result(self, payload: Mapping[str, Any]) -> None:
        extensions = payload.get("extensions") or {}
        if "resync" in extensions:
            self.streams[-1].resyncs.append(str(extensions["resync"].get("reason")))
        if "errors" in payload:
            self.streams[-1].errors.append(json.dumps(payload["errors"]))
        change = (payload.get("data") or {}).get("change")
        if extensions.get("initial"):
            self._state(change or {})
        elif change:
            self._change(change)
        if "cursor" in extensions:
            self._cursor = extensions["cursor"]
            self.streams[-1].state_is_whole = True
            self.heard.set()

    def _state(self, value: Mapping[str, Any]) -> None:
        if value.get("snapshot"):
            self.streams[-1].abandoned = True
            self.streams.append(Stream(self.name, self.kind.bucket, start=Snapshot.parse(value["snapshot"])))
        else:
            self.streams[-1].state[int(value["key"])] = int(value["version"])

    def _change(self, seen: Mapping[str, Any]) -> None:
        change = change_number(int(seen["version"]), deleted=seen["deleted"])
        self.streams[-1].add(int(seen["key"]), change, time.monotonic())
        self.latest = max(self.latest, self._commits.get(int(seen["xid"]), 0))


async def _opened(url: str) -> socket.socket:
    """Return a connected socket with a small buffer, which has to be set before."""
    address = urlsplit(url)
    opened = socket.socket()
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    opened.setblocking(False)
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            await asyncio.get_running_loop().sock_connect(opened, (address.hostname, address.port))
    except BaseException:
        opened.close()
        raise
    return opened
