"""What matters most about event streams, on the servers that people run, and in a browser."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPResponse, IncompleteRead
from io import StringIO
from pathlib import Path
from queue import Empty, SimpleQueue
from socket import SHUT_RDWR, socket
from threading import Thread
from typing import Any
from urllib.parse import urlencode

import pytest
from django.core.management import call_command
from playwright.sync_api import Browser, Page, sync_playwright

from pgnotify_gql.conf import get_settings
from tests.acceptance.room import Room
from tests.acceptance.site import Visitor
from tests.acceptance.test_browser import FLAGS
from tests.support.databases import Database
from tests.support.processes import ProjectServer
from tests.support.streams import COMPLETE, Event, EventReader

pytestmark = pytest.mark.postgres("18")

PATH = "/graphql/stream/"

QUERY = "subscription($room: ID!) { messages(conversationId: $room) { text } }"

TIMEOUT = 20
"""Seconds until something that must come counts as missing."""

AT_ONCE = 1.0
"""Seconds; an event takes milliseconds, and one that a server holds back waits for the next, which may never come."""


@pytest.fixture(params=["daphne", "uvicorn"])
def start(request: pytest.FixtureRequest) -> Callable[..., ProjectServer]:
    start: Callable[..., ProjectServer] = request.getfixturevalue(request.param)
    return start


@pytest.fixture
def room(database_triggers: Database) -> Room:
    """A conversation of alice and bob, and a raw connection that writes into it."""
    call_command("sample_data", stdout=StringIO())
    return Room(database_triggers.connect())


@pytest.fixture
def server(start: Callable[..., ProjectServer], room: Room, database_triggers: Database) -> Iterator[ProjectServer]:
    server = start(database_triggers)
    yield server
    assert "Traceback" not in server.log
    assert "ERROR" not in server.log


@pytest.fixture
def alice(server: ProjectServer) -> Visitor:
    return Visitor.logged_in(server.http_url, "alice")


class Answer:
    """
    An answer.

    As a stream it is read in a thread: whoever waits for an event can give up without spoiling what is half read.
    """

    def __init__(self, response: HTTPResponse, socket: socket) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read
        self.last: str | None = None
        self._response = response
        self._socket = socket
        self._arrived: SimpleQueue[Event | None] = SimpleQueue()
        self._thread = Thread(target=self._read)

    def _read(self) -> None:
        reader = EventReader()
        # A server that is stopped may cut a stream in the middle.
        with suppress(OSError, IncompleteRead, ValueError):
            while data := self._response.read1():
                for event in reader.read(data):
                    if event.kind is not None:
                        self._arrived.put(event)
        self._arrived.put(None)

    def event(self, timeout: float = TIMEOUT) -> Event | None:
        """Return the next event that a page would be told, or None at the end of the stream."""
        if self._thread.ident is None:
            self._thread.start()
        return self._arrived.get(timeout=timeout)

    def text(self) -> str:
        """Return the text of the next message but for probes."""
        while True:
            event = self.event()
            assert event is not None, "the stream has ended"
            text: str = event.result["data"]["messages"]["text"]
            if text != "probe":
                self.last = event.id
                return text

    def live(self, room: Room) -> None:
        """Wait until what is written from now on arrives."""
        for _ in range(100):
            room.probe()
            with suppress(Empty):
                assert self.event(TIMEOUT / 100) is not None, "the stream has ended"
                return
        raise AssertionError("the subscription does not become live")

    def leave(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(SHUT_RDWR)
        if self._thread.ident is not None:
            self._thread.join()
        self._response.close()


@contextmanager
def asked(server: ProjectServer, method: str, path: str, body: bytes | None = None, **headers: str) -> Iterator[Answer]:
    """Ask, with underscores for hyphens in the names of headers."""
    assert server.port is not None
    given = {"Accept": "text/event-stream"} | {name.replace("_", "-"): value for name, value in headers.items()}
    with closing(HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT)) as connection:
        connection.request(method, path, body, given)
        answer = Answer(connection.getresponse(), connection.sock)
        try:
            yield answer
        finally:
            answer.leave()


@contextmanager
def subscribed(server: ProjectServer, visitor: Visitor, room: Room, **headers: str) -> Iterator[Answer]:
    parameters = {"query": QUERY, "variables": json.dumps({"room": str(room.id)})}
    given = {"Cookie": visitor.headers["Cookie"]} | headers
    with asked(server, "GET", f"{PATH}?{urlencode(parameters)}", None, **given) as stream:
        assert stream.status == 200
        assert stream.headers["Content-Type"] == "text/event-stream"
        yield stream


def test_a_subscription_receives_at_once_what_raw_sql_writes(server: ProjectServer, room: Room, alice: Visitor) -> None:
    with subscribed(server, alice, room) as stream:
        stream.live(room)
        delays = []
        for number in range(20):
            room.insert(f"message {number}")
            written = time.monotonic()
            assert stream.text() == f"message {number}"
            delays.append(time.monotonic() - written)
        assert max(delays) < AT_ONCE, delays


def test_who_comes_back_with_the_last_id_receives_exactly_what_it_missed_and_then_the_live_stream(
    server: ProjectServer, room: Room, alice: Visitor
) -> None:
    with subscribed(server, alice, room) as stream:
        stream.live(room)
        room.insert("one")
        assert stream.text() == "one"
        last = stream.last
        assert last is not None
    missed = [f"missed {number}" for number in range(300)]
    for text in missed:
        room.insert(text)
    with subscribed(server, alice, room, Last_Event_ID=last) as stream:
        assert [stream.text() for _ in missed] == missed
        room.insert("live")
        assert stream.text() == "live"


def test_queries_mutations_and_refusals_have_the_same_answers_on_every_server(
    server: ProjectServer, alice: Visitor
) -> None:
    me = urlencode({"query": "{ me { username } }"})
    cookie = alice.headers["Cookie"]
    with asked(server, "GET", f"{PATH}?{me}", Cookie=cookie) as stream:
        event = stream.event()
        assert event is not None
        assert event.result == {"data": {"me": {"username": "alice"}}}
        assert stream.event() == COMPLETE
        assert stream.event() is None
    mutation = json.dumps({"query": "mutation { deleteMessage(id: 1) { id } }"}).encode()
    with asked(server, "POST", PATH, mutation, Content_Type="application/json; charset=utf-8") as answer:
        event = answer.event()
        assert event is not None
        assert "log in" in str(event.result["errors"])
    large = b" " * 1_000_001
    for status, method, path, body, headers in (
        (405, "DELETE", PATH, None, {}),
        (405, "HEAD", PATH, None, {}),
        (405, "GET", f"{PATH}?{urlencode({'query': 'mutation { deleteMessage(id: 1) { id } }'})}", None, {}),
        (406, "GET", f"{PATH}?{me}", None, {"Accept": "*/*"}),
        (415, "POST", PATH, mutation, {"Content_Type": "text/plain"}),
        (413, "POST", PATH, large, {"Content_Type": "application/json"}),
        (400, "POST", PATH, b"{", {"Content_Type": "application/json"}),
        (400, "GET", PATH, None, {}),
        (403, "GET", f"{PATH}?{me}", None, {"Origin": "https://evil.example"}),
    ):
        with asked(server, method, path, body, **headers) as answer:
            assert answer.status == status
            assert answer.headers["Content-Type"] == "application/json"
            if method != "HEAD":
                assert json.loads(answer.body())["errors"]


def test_a_client_that_leaves_leaves_nothing_behind(
    server: ProjectServer, room: Room, alice: Visitor, database_triggers: Database
) -> None:
    for _ in range(3):
        with subscribed(server, alice, room) as stream:
            stream.live(room)
    listeners = "select count(*) from pg_stat_activity where application_name like 'pgnotify_gql %'"
    deadline = time.monotonic() + TIMEOUT
    while room.connection.execute(listeners).fetchone() != (0,):
        assert time.monotonic() < deadline, "hub or listener outlive the last stream"
        time.sleep(0.01)


def test_a_long_backlog_arrives_whole_and_daphne_is_given_no_more_of_it_at_a_time_than_it_may_buffer(
    server: ProjectServer, room: Room, alice: Visitor
) -> None:
    texts = [f"{number} {'x' * 100_000}" for number in range(120)]
    with subscribed(server, alice, room) as stream:
        stream.live(room)
        room.insert("begin")
        assert stream.text() == "begin"
        last = stream.last
    found: list[str] = []
    streams, waits = 0, "uvicorn" in server.command
    for text in texts:
        room.insert(text)
    while len(found) < len(texts):
        assert last is not None
        streams, size = streams + 1, 0
        with subscribed(server, alice, room, Last_Event_ID=last) as stream:
            while len(found) < len(texts) and (event := stream.event()) is not None:
                assert event.result["data"] is not None, event.result
                text = event.result["data"]["messages"]["text"]
                found.append(text)
                size += len(text)
                last = event.id
        assert waits or size < 2 * get_settings().OUTBOX_BYTES
    assert found == texts
    assert waits is (streams == 1)


def test_a_server_that_is_stopped_ends_its_streams_and_itself(
    server: ProjectServer, room: Room, alice: Visitor
) -> None:
    with subscribed(server, alice, room) as one, subscribed(server, alice, room) as other:
        one.live(room)
        server.terminate()
        for stream in (one, other):
            while (event := stream.event()) is not None:
                assert event != COMPLETE
        server.wait()


@pytest.fixture
def page(chromium: Path, server: ProjectServer, alice: Visitor) -> Iterator[Page]:
    """A page of the server, with alice's cookies."""
    with sync_playwright() as playwright:
        browser: Browser = playwright.chromium.launch(executable_path=chromium, headless=True, args=FLAGS)
        context = browser.new_context()
        for cookie in alice.headers["Cookie"].split("; "):
            name, _, value = cookie.partition("=")
            context.add_cookies([{"name": name, "value": value, "url": server.http_url}])
        page = context.new_page()
        page.set_default_timeout(TIMEOUT * 1_000)
        page.goto(f"{server.http_url}/login/")
        yield page
        browser.close()


SUBSCRIBE = """
([path, query, room]) => {
    const parameters = new URLSearchParams({ query, variables: JSON.stringify({ room }) });
    window.texts = [];
    window.opened = 0;
    window.source = new EventSource(path + "?" + parameters);
    source.onopen = () => { opened++; };
    source.addEventListener("next", (event) => {
        const text = JSON.parse(event.data).data.messages.text;
        window.lastEventId = event.lastEventId;
        if (text === "probe") window.live = true;
        else texts.push(text);
    });
    source.addEventListener("complete", () => { texts.push("complete"); source.close(); });
}
"""


class Source:
    """A native EventSource in a page."""

    def __init__(self, page: Page, room: Room) -> None:
        self._page = page
        page.evaluate(SUBSCRIBE, [PATH, QUERY, str(room.id)])
        deadline = time.monotonic() + TIMEOUT
        while not page.evaluate("window.live"):
            assert time.monotonic() < deadline, "the subscription does not become live"
            room.probe()
            page.wait_for_timeout(100)

    @property
    def texts(self) -> list[str]:
        found: list[str] = self._page.evaluate("texts")
        return found

    def opened(self, times: int) -> None:
        self._page.wait_for_function("times => opened >= times", arg=times)

    def has(self, *wanted: str) -> None:
        """Wait for the last of these texts; it and all before must have come once and in this order."""
        self._page.wait_for_function("text => texts.includes(text)", arg=wanted[-1])
        assert self.texts == list(wanted)


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_an_event_source_of_a_browser_survives_a_restart_of_the_server_and_misses_nothing(
    server: ProjectServer, room: Room, page: Page, how: str
) -> None:
    source = Source(page, room)
    wanted = ["before"]
    room.insert("before")
    source.has(*wanted)
    for round_ in range(2):
        if how == "stopped":
            server.terminate()
            server.wait()
        server.kill()
        missed = [f"missed {round_} {number}" for number in range(50)]
        for text in missed:
            room.insert(text)
        server.start()
        source.opened(round_ + 2)
        room.insert(f"after {round_}")
        wanted += [*missed, f"after {round_}"]
        source.has(*wanted)
    room.insert("the last")
    source.has(*wanted, "the last")


def test_an_event_source_whose_query_is_wrong_is_told_so_and_then_complete(page: Page, room: Room) -> None:
    results: list[Any] = page.evaluate(
        """(path) => new Promise((resolve) => {
            const events = [];
            const source = new EventSource(path + "?query=" + encodeURIComponent("{ unknown }"));
            source.addEventListener("next", (event) => events.push(JSON.parse(event.data)));
            source.addEventListener("complete", () => { source.close(); resolve(events); });
        })""",
        PATH,
    )
    [result] = results
    assert "Cannot query field 'unknown'" in result["errors"][0]["message"]
