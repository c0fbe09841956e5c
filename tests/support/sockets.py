"""
Sockets without a network: fakes around a protocol class, and an ASGI client for a whole application.

Everything runs in the event loop of the test. `quiet()` is how a test sees that nothing happens: it lets the
loop turn until whatever could have happened without waiting for the outside has.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from pgnotify_gql.hub.payloads import Frames
from pgnotify_gql.transport.close_codes import CloseCode
from pgnotify_gql.transport.frames import Request
from pgnotify_gql.transport.protocol import Connection, Limits, Results

WAIT = 10.0
"""Seconds until an event that must come is missed; nothing waits so long in a test that passes."""

TURNS = 20
"""Turns of the event loop; the longest chain of tasks in a protocol takes five."""


async def quiet(turns: int = TURNS) -> None:
    """Let everything happen that waits for nothing."""
    for _ in range(turns):
        await asyncio.sleep(0)


class FakeSocket:
    """Remembers what was sent, and the first close."""

    def __init__(self) -> None:
        self.frames: list[dict[str, Any]] = []
        self.texts: list[str] = []
        self.closes: list[tuple[CloseCode, str]] = []
        self.sent_after_close: list[str] = []
        self.answers = 0
        self._changed = asyncio.Event()

    def send(self, frame: str) -> None:
        if self.closes:
            self.sent_after_close.append(frame)
        else:
            self.texts.append(frame)
            self.frames.append(json.loads(frame, parse_constant=_not_json))
        self._changed.set()

    def offer(self, frames: Frames) -> int:
        for frame in frames.frames:
            self.send(frame)
        return len(frames.frames)

    async def room(self) -> None:
        pass

    def answered(self) -> None:
        self.answers += 1

    def close(self, code: CloseCode, reason: str) -> None:
        self.closes.append((code, reason))
        self._changed.set()

    @property
    def code(self) -> int | None:
        """The code of the close that counts."""
        return int(self.closes[0][0]) if self.closes else None

    async def until(self, condition: Callable[[FakeSocket], bool]) -> None:
        """Wait until something sent, or the close, makes the condition true."""
        async with asyncio.timeout(WAIT):
            while not condition(self):
                self._changed.clear()
                await self._changed.wait()

    async def until_sent(self, kind: str, times: int = 1) -> None:
        await self.until(lambda socket: [frame["type"] for frame in socket.frames].count(kind) >= times)

    async def until_closed(self) -> int:
        await self.until(lambda socket: bool(socket.closes))
        assert self.code is not None
        return self.code


class Run:
    """One request that the engine was given: the test decides what comes of it."""

    def __init__(self, request: Request, results: Results) -> None:
        self.request = request
        self.results = results
        self.emit = results.send
        self.end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.cancelled = asyncio.Event()
        self.over = False

    def finish(self) -> None:
        self.end.set_result(None)

    def fail(self, error: BaseException) -> None:
        self.end.set_exception(error)


class FakeEngine:
    """Runs nothing; `resists` keeps operations alive when they are cancelled."""

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.resists: set[str] = set()

    async def run(self, request: Request, results: Results) -> None:
        run = Run(request, results)
        self.runs.append(run)
        try:
            await run.end
        except asyncio.CancelledError:
            run.cancelled.set()
            if request.query in self.resists:
                raise RuntimeError("it does not want to end") from None
            raise
        finally:
            run.over = True

    @property
    def queries(self) -> list[str]:
        return [run.request.query for run in self.runs]


class FakeHooks:
    """Answers an initialisation with `answer`; with a `gate`, only once that is set."""

    def __init__(self) -> None:
        self.answer: Any = None
        self.gate: asyncio.Event | None = None
        self.payloads: list[Mapping[str, Any]] = []

    async def on_connect(self, payload: Mapping[str, Any]) -> Mapping[str, Any] | bool | None:
        self.payloads.append(payload)
        if self.gate is not None:
            await self.gate.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        answer: Mapping[str, Any] | bool | None = self.answer
        return answer


class Wire:
    """A protocol between fakes."""

    def __init__(
        self, protocol: type[Connection], limits: Limits | None = None, socket: FakeSocket | None = None
    ) -> None:
        self.socket = socket or FakeSocket()
        self.engine = FakeEngine()
        self.hooks = FakeHooks()
        self.connection = protocol(self.socket, self.engine, self.hooks, limits or Limits())
        self.connection.opened()

    def send(self, kind: Any, **fields: Any) -> None:
        self.text(json.dumps({"type": kind, **fields}))

    def text(self, text: str) -> None:
        self.connection.received(text)

    async def init(self, **fields: Any) -> None:
        """Initialise, and forget the frames that answered it."""
        self.send("connection_init", **fields)
        await quiet()
        assert self.frames, self.socket.closes
        self.socket.frames.clear()

    @property
    def frames(self) -> list[dict[str, Any]]:
        return self.socket.frames

    async def close(self) -> None:
        await self.connection.closed()


class ClosedError(AssertionError):
    """The socket was closed where a message was expected."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"closed with {code}: {reason}")
        self.code = code
        self.reason = reason


Application = Callable[[Any, Any, Any], Awaitable[None]]


class AsgiSocket:
    """The client's side of one WebSocket to an ASGI application."""

    def __init__(self, application: Application, scope: MutableMapping[str, Any]) -> None:
        self._to_application: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._from_application: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.reads = asyncio.Event()
        """Cleared: the client does not read, and the application's sends wait, as they do in Uvicorn."""
        self.reads.set()
        self.waiting = asyncio.Event()
        """Set once a send of the application waits for the client."""
        self.answers_pings = True
        self._to_application.put_nowait({"type": "websocket.connect"})
        self.task = asyncio.create_task(self._run(application, scope), name="test application")
        self.subprotocol: str | None = None

    async def _run(self, application: Application, scope: MutableMapping[str, Any]) -> None:
        await application(scope, self._to_application.get, self._take)

    async def _take(self, event: dict[str, Any]) -> None:
        if event["type"] == "websocket.send" and not self.reads.is_set():
            self.waiting.set()
            await self.reads.wait()
        self._from_application.put_nowait(event)

    async def event(self) -> dict[str, Any]:
        """Return the application's next event; what the application raises is raised here."""
        async with asyncio.timeout(WAIT):
            getting = asyncio.create_task(self._from_application.get())
            try:
                await asyncio.wait({getting, self.task}, return_when=asyncio.FIRST_COMPLETED)
                if getting.done():
                    return getting.result()
                self.task.result()
                raise AssertionError("the application has ended")
            finally:
                getting.cancel()

    async def accepted(self) -> None:
        event = await self.event()
        assert event["type"] == "websocket.accept", event
        self.subprotocol = event.get("subprotocol")

    async def receive(self) -> dict[str, Any]:
        """Return the next message but for pings, which are answered.  Raises ClosedError."""
        while True:
            event = await self.event()
            if event["type"] == "websocket.close":
                raise ClosedError(event["code"], event.get("reason", ""))
            message: dict[str, Any] = json.loads(event["text"])
            if message["type"] != "ping":
                return message
            if self.answers_pings:
                self.send("pong")

    async def closed(self) -> ClosedError:
        """Read to the close, whatever comes before."""
        while True:
            try:
                await self.receive()
            except ClosedError as closed:
                return closed

    def send(self, kind: str, **fields: Any) -> None:
        self.text(json.dumps({"type": kind, **fields}))

    def text(self, text: str) -> None:
        self._to_application.put_nowait({"type": "websocket.receive", "text": text})

    def bytes(self, data: bytes) -> None:
        self._to_application.put_nowait({"type": "websocket.receive", "bytes": data})

    async def init(self, **fields: Any) -> dict[str, Any]:
        """Initialise and return the acknowledgement."""
        self.send("connection_init", **fields)
        ack = await self.receive()
        assert ack["type"] == "connection_ack", ack
        if self.subprotocol == "graphql-ws":
            assert await self.receive() == {"type": "ka"}
        return ack

    def subscribe(self, query: str, id: str = "1", **payload: Any) -> None:  # noqa: A002  (the protocol's word)
        kind = "start" if self.subprotocol == "graphql-ws" else "subscribe"
        self.send(kind, id=id, payload={"query": query, **payload})

    async def run(self, query: str, id: str = "1", **payload: Any) -> dict[str, Any]:  # noqa: A002
        """Run a query or mutation and return its result."""
        self.subscribe(query, id, **payload)
        message = await self.receive()
        assert message["type"] in {"next", "data"}, message
        assert await self.receive() == {"type": "complete", "id": id}
        result: dict[str, Any] = message["payload"]
        return result

    async def disconnect(self) -> None:
        """Leave, and wait until the application has put everything away."""
        self._to_application.put_nowait({"type": "websocket.disconnect", "code": 1001})
        async with asyncio.timeout(WAIT):
            await self.task


def socket_scope(subprotocol: str | None = "graphql-transport-ws", **more: Any) -> dict[str, Any]:
    """Return the scope of a handshake, as a server makes it."""
    return {
        "type": "websocket",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "ws",
        "path": "/graphql/",
        "raw_path": b"/graphql/",
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
        "client": ["127.0.0.1", 50_000],
        "server": ["127.0.0.1", 8_000],
        "subprotocols": [] if subprotocol is None else [subprotocol],
    } | more


@asynccontextmanager
async def open_socket(
    application: Application, subprotocol: str = "graphql-transport-ws", **scope: Any
) -> AsyncIterator[AsgiSocket]:
    """Hold a socket open that was accepted; `scope` adds to that of `socket_scope()`."""
    socket = AsgiSocket(application, socket_scope(subprotocol, **scope))
    try:
        await socket.accepted()
        yield socket
    finally:
        if not socket.task.done():
            socket.reads.set()
            with suppress(TimeoutError):
                await socket.disconnect()
        socket.task.cancel()
        await asyncio.gather(socket.task, return_exceptions=True)


def _not_json(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
