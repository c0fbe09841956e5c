"""A client of graphql-transport-ws that does one thing at a time, and says nothing of its own accord."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import count
from types import TracebackType
from typing import Any, Self

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.typing import Origin, Subprotocol

from tests.support.processes import ProjectServer

WAIT = 20.0
"""Seconds until what must come is missed."""

PROBE = 0.3
"""Seconds until the next probe."""

Result = dict[str, Any]


class Client:
    """One socket; the operations on it are numbered from 1 on."""

    def __init__(
        self,
        server: ProjectServer,
        payload: dict[str, Any] | None = None,
        *,
        cookie: str = "",
        path: str = "/graphql/",
    ) -> None:
        headers = {"Cookie": cookie} if cookie else {}
        self._socket = connect(
            server.ws_url + path,
            origin=Origin(server.http_url),
            additional_headers=headers,
            subprotocols=[Subprotocol("graphql-transport-ws")],
            open_timeout=WAIT,
        )
        self._numbers = count(1)
        self._waiting: dict[int, list[Result]] = defaultdict(list)
        self._send(type="connection_init", payload=payload or {})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._socket.close()

    def acknowledged(self) -> Self:
        """Wait for the acknowledgement."""
        message = self._receive(WAIT)
        assert message is not None
        assert message["type"] == "connection_ack", message
        return self

    def subscribe(self, query: str, *, cursor: str | None = None, **variables: Any) -> int:
        """Ask for something; return the number of the operation."""
        number = next(self._numbers)
        extensions = {"cursor": cursor} if cursor else {}
        self._send(
            id=str(number), type="subscribe", payload={"query": query, "variables": variables, "extensions": extensions}
        )
        return number

    def execute(self, query: str) -> Result:
        """Ask a query; return its result."""
        return self.result(self.subscribe(query))

    def live(self, number: int, write: Callable[[str], Any], has: Callable[[Result, str], bool] | None = None) -> None:
        """
        Write probes until one has arrived, and all that were written since: whatever comes next is news.

        `write` writes a row with a text; `has` tells whether a result is of it: by default, whether the text is in it.
        """
        is_of = has or (lambda result, text: text in json.dumps(result))
        deadline = time.monotonic() + WAIT
        for probe in count():
            assert time.monotonic() < deadline, "no probe has arrived"
            text = f"probe {probe}"
            write(text)
            while result := self._within(number, PROBE):
                if is_of(result, text):
                    return

    def result(self, number: int) -> Result:
        """The next result of an operation, or the error that ends it."""
        result = self._within(number, WAIT)
        assert result is not None, f"operation {number} was sent nothing"
        return result

    def data(self, number: int) -> Any:
        """The value of the one field of the next result."""
        result = self.result(number)
        assert result.get("data"), result
        return next(iter(result["data"].values()))

    def code(self) -> int:
        """Wait until the server closes the socket; return the code."""
        try:
            while self._receive(WAIT) is not None:
                pass
        except ConnectionClosed as closed:
            return int(closed.rcvd.code) if closed.rcvd else 1006
        raise AssertionError("the socket was not closed")

    def _within(self, number: int, seconds: float) -> Result | None:
        deadline = time.monotonic() + seconds
        while not self._waiting[number]:
            message = self._receive(max(deadline - time.monotonic(), 0))
            if message is None:
                return None
            if message["type"] == "error":
                self._waiting[int(message["id"])].append({"data": None, "errors": message["payload"]})
            elif message["type"] == "next":
                self._waiting[int(message["id"])].append(message["payload"])
        return self._waiting[number].pop(0)

    def _receive(self, seconds: float) -> dict[str, Any] | None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                message: dict[str, Any] = json.loads(self._socket.recv(max(deadline - time.monotonic(), 0)))
            except TimeoutError:
                return None
            if message["type"] != "ping":
                return message
            self._send(type="pong")

    def _send(self, **message: Any) -> None:
        self._socket.send(json.dumps(message))
