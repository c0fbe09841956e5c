"""A client that comes back: with its last cursor, to whichever server is ready, for as long as it is wanted."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

from tenacity import AsyncRetrying, retry_if_exception_type, wait_random
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.typing import Subprotocol

from tests.support.feed import Notebook
from tests.support.processes import ProjectServer

PAUSE = 0.1
"""Seconds before the next try to connect, at most."""


class ReturningClient(Notebook):
    """
    One subscription; `pick` returns the server that a load balancer would send it to.

    `received` are the values of its field, in order; `closes` counts the codes that sockets were closed with, and
    `closed_at` has their times.
    """

    def __init__(self, field: str, pick: Callable[[], ProjectServer]) -> None:
        super().__init__()
        self._field = field
        self._pick = pick
        self.received: list[Any] = []
        self.resyncs: list[str] = []
        self.errors: list[Any] = []
        self.closes: Counter[int | None] = Counter()
        self.closed_at: list[float] = []
        self.cursor: str | None = None
        self.at: ProjectServer | None = None

    def __str__(self) -> str:
        return f"{len(self.received)} received, the last {self.received[-3:]}, {self.resyncs}, closes {self.closes}"

    async def run(self) -> None:
        """Receive until cancelled."""
        while True:
            retrying = AsyncRetrying(
                retry=retry_if_exception_type((OSError, InvalidHandshake)), wait=wait_random(0, PAUSE)
            )
            await retrying(self._connected)

    async def _connected(self) -> None:
        server = self._pick()
        async with connect(f"{server.ws_url}/", subprotocols=[Subprotocol("graphql-transport-ws")]) as socket:
            try:
                await socket.send(json.dumps({"type": "connection_init"}))
                async for text in socket:
                    message = json.loads(text)
                    if message["type"] == "connection_ack":
                        extensions = {} if self.cursor is None else {"cursor": self.cursor}
                        payload = {"query": f"subscription {{ {self._field} }}", "extensions": extensions}
                        await socket.send(json.dumps({"type": "subscribe", "id": "1", "payload": payload}))
                        self.at = server
                    elif message["type"] == "ping":
                        await socket.send(json.dumps({"type": "pong"}))
                    else:
                        self._take(message)
            except ConnectionClosed:
                pass
            finally:
                self.at = None
            self.closes[socket.close_code] += 1
            self.closed_at.append(asyncio.get_running_loop().time())
            self.noted()

    def _take(self, message: dict[str, Any]) -> None:
        result = message["payload"]
        if message["type"] != "next" or "errors" in result:
            self.errors.append(message)
        else:
            self.cursor = result["extensions"]["cursor"]
            if result["data"] is None:
                self.resyncs.append(result["extensions"])
            else:
                self.received.append(result["data"][self._field])
        self.noted()
