"""Event streams without a network: an ASGI client for HTTP, and a reader of events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from tests.support.sockets import WAIT, Application


@dataclass(frozen=True)
class Event:
    """What stands between two empty lines, with every field as it came."""

    fields: tuple[tuple[str, str], ...]

    def get(self, name: str) -> str | None:
        """Return the one value of a field; an error if there are several."""
        values = [value for key, value in self.fields if key == name]
        assert len(values) < 2, self
        return values[0] if values else None

    @property
    def kind(self) -> str | None:
        return self.get("event")

    @property
    def id(self) -> str | None:
        return self.get("id")

    @property
    def comment(self) -> bool:
        return [name for name, _ in self.fields] == [""]

    @property
    def result(self) -> dict[str, Any]:
        assert self.kind == "next", self
        found: dict[str, Any] = json.loads(self.get("data") or "")
        return found


COMPLETE = Event((("event", "complete"), ("data", "")))


@dataclass
class EventReader:
    """Takes bytes as they come, and gives the events that are complete."""

    _text: str = field(default="", init=False)

    def read(self, data: bytes) -> list[Event]:
        *whole, self._text = (self._text + data.decode()).split("\n\n")
        return [_event(text) for text in whole]


def _event(text: str) -> Event:
    lines = [line.partition(":") for line in text.split("\n")]
    return Event(tuple((name, value.removeprefix(" ")) for name, _, value in lines))


class AsgiStream:
    """The client's side of one HTTP request to an ASGI application."""

    def __init__(self, application: Application, scope: Mapping[str, Any], *chunks: bytes) -> None:
        self._to_application: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._from_application: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._reader = EventReader()
        self._events: list[Event] = []
        self.reads = asyncio.Event()
        """Cleared: the client does not read, and the application's sends wait, as they do in Uvicorn."""
        self.reads.set()
        self.waiting = asyncio.Event()
        """Set once a send of the application waits for the client."""
        self.begun = self.ended = False
        """The application has begun to answer, and said that nothing more comes."""
        self.written = 0
        """Bytes of the answer that the application has handed over."""
        self.body(*chunks)
        self.task = asyncio.create_task(self._run(application, scope), name="test application")

    def body(self, *chunks: bytes, more: bool = False) -> None:
        """Send chunks of the request; `more` are to come."""
        for number, chunk in enumerate(chunks, 1):
            more_body = more or number < len(chunks)
            self._to_application.put_nowait({"type": "http.request", "body": chunk, "more_body": more_body})

    async def _run(self, application: Application, scope: Mapping[str, Any]) -> None:
        await application(dict(scope), self._to_application.get, self._take)

    async def _take(self, event: dict[str, Any]) -> None:
        assert not self.ended, f"sent after the end: {event}"
        if not self.reads.is_set():
            self.waiting.set()
            await self.reads.wait()
        self.begun = True
        self.ended = event["type"] == "http.response.body" and not event.get("more_body", False)
        self.written += len(event.get("body", b""))
        self._from_application.put_nowait(event)

    async def _message(self) -> dict[str, Any]:
        """Return the application's next message; what the application raises is raised here."""
        async with asyncio.timeout(WAIT):
            getting = asyncio.create_task(self._from_application.get())
            try:
                await asyncio.wait({getting, self.task}, return_when=asyncio.FIRST_COMPLETED)
                if getting.done() or not self._from_application.empty():
                    return await getting
                self.task.result()
                raise AssertionError("the application has ended")
            finally:
                getting.cancel()

    async def start(self) -> tuple[int, dict[str, str]]:
        """Return status and headers of the answer."""
        message = await self._message()
        assert message["type"] == "http.response.start", message
        return message["status"], {name.decode(): value.decode() for name, value in message["headers"]}

    async def raw(self) -> Event | None:
        """Return what comes next between two empty lines, or None at the end of the stream."""
        while not self._events:
            message = await self._message()
            assert message["type"] == "http.response.body", message
            self._events += self._reader.read(message.get("body", b""))
            if not message.get("more_body", False) and not self._events:
                return None
        return self._events.pop(0)

    async def event(self) -> Event | None:
        """Return the next event that a page would be told, or None at the end of the stream."""
        while (event := await self.raw()) is not None:
            if event.kind is not None:
                return event
        return None

    async def result(self) -> dict[str, Any]:
        """Return the next result."""
        event = await self.event()
        assert event is not None, "the stream has ended"
        return event.result

    async def rest(self) -> list[Event]:
        """Read to the end of the stream."""
        events = []
        while (event := await self.event()) is not None:
            events.append(event)
        return events

    async def refusal(self) -> tuple[int, dict[str, str], str]:
        """Return status, headers and the message of an answer that is no stream."""
        status, headers = await self.start()
        message = await self._message()
        assert self.ended
        [error] = json.loads(message["body"])["errors"]
        assert headers["content-type"] == "application/json"
        assert headers["content-length"] == str(len(message["body"]))
        async with asyncio.timeout(WAIT):
            await self.task
        return status, headers, error["message"]

    async def disconnect(self) -> None:
        """Leave, and wait until the application has put everything away."""
        self._to_application.put_nowait({"type": "http.disconnect"})
        async with asyncio.timeout(WAIT):
            await self.task


def request_scope(*headers: tuple[str, str | None], **more: Any) -> dict[str, Any]:
    """Return the scope of a request, as Uvicorn makes it; headers replace those of their name, None leaves it out."""
    given: dict[str, str | None] = {"host": "localhost", "accept": "text/event-stream"}
    given.update(headers)
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/graphql/stream/",
        "raw_path": b"/graphql/stream/",
        "root_path": "",
        "query_string": b"",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in given.items() if value is not None],
        "client": ["127.0.0.1", 50_000],
        "server": ["127.0.0.1", 8_000],
    } | more


def get(
    application: Application, query: str, *headers: tuple[str, str | None], scope: Any = None, **parameters: Any
) -> AsgiStream:
    """Ask with GET; what is no string is sent as JSON."""
    return get_with(application, {"query": query, **parameters}, *headers, scope=scope)


def get_with(
    application: Application, parameters: Mapping[str, Any], *headers: tuple[str, str | None], scope: Any = None
) -> AsgiStream:
    """Ask with GET and these parameters."""
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in parameters.items()}
    string = urlencode(texts, errors="surrogatepass").encode()
    return AsgiStream(application, request_scope(*headers, query_string=string, **(scope or {})), b"")


def post(application: Application, body: Any, *headers: tuple[str, str | None], **scope: Any) -> AsgiStream:
    """Ask with POST; what is neither bytes nor chunks of bytes is sent as JSON."""
    chunks = body if isinstance(body, tuple) else (body if isinstance(body, bytes) else json.dumps(body).encode(),)
    given = request_scope(("content-type", "application/json"), *headers, method="POST", **scope)
    return AsgiStream(application, given, *chunks)


@asynccontextmanager
async def held(stream: AsgiStream) -> AsyncIterator[AsgiStream]:
    """Hold a stream open, and leave it."""
    try:
        yield stream
    finally:
        if not stream.task.done():
            stream.reads.set()
            with suppress(TimeoutError):
                await stream.disconnect()
        stream.task.cancel()
        await asyncio.gather(stream.task, return_exceptions=True)


@asynccontextmanager
async def open_stream(stream: AsgiStream) -> AsyncIterator[AsgiStream]:
    """Hold a stream open that has begun."""
    async with held(stream):
        status, _ = await stream.start()
        assert status == 200, status
        yield stream
