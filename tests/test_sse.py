"""GraphQL over SSE as an ASGI application: every status, every event, and what becomes of a client that misbehaves."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from random import Random
from typing import Any
from weakref import WeakKeyDictionary

import graphene
import pytest
from channels.auth import AuthMiddlewareStack
from django.contrib.auth.models import User
from django.test import override_settings

from example.conversations.models import Conversation, Message
from pgnotify_gql.conf import get_settings
from pgnotify_gql.errors import ConfigurationError
from pgnotify_gql.hub import current_hub
from pgnotify_gql.hub.cursor import Cursor
from pgnotify_gql.transport import GraphqlSseConsumer, draining, event_stream
from pgnotify_gql.transport.draining import visits
from tests.support.databases import Database
from tests.support.layers import default_layer
from tests.support.mutations import MUTATIONS
from tests.support.sockets import WAIT, Application
from tests.support.specification import a_request, read
from tests.support.streams import (
    COMPLETE,
    AsgiStream,
    Event,
    get,
    get_with,
    held,
    open_stream,
    post,
    request_scope,
)
from tests.support.subscribers import Chat, declare, inline_feed, joined, returns
from tests.test_wire import AsyncioTransport

started: list[str] = []
ended: list[str] = []


class Query(graphene.ObjectType):  # type: ignore[misc]
    hello = graphene.String(name=graphene.String())
    username = graphene.String()
    session = graphene.String()
    page = graphene.String()
    echo = graphene.String(text=graphene.String(required=True))
    bad = graphene.String()

    @staticmethod
    def resolve_hello(root: Any, info: Any, name: str = "world") -> str:
        return name

    @staticmethod
    def resolve_username(root: Any, info: Any) -> str:
        username: str = info.context.user.username
        return username

    @staticmethod
    def resolve_session(root: Any, info: Any) -> Any:
        return info.context.session["key"]

    @staticmethod
    def resolve_page(root: Any, info: Any) -> Any:
        return info.context.build_absolute_uri("/page/")

    @staticmethod
    def resolve_echo(root: Any, info: Any, text: str) -> str:
        return text

    @staticmethod
    def resolve_bad(root: Any, info: Any) -> str:
        raise ValueError("it is bad")


class Add(graphene.Mutation):  # type: ignore[misc]
    calls = 0
    now = graphene.Int()

    @classmethod
    def mutate(cls, root: Any, info: Any) -> Add:
        Add.calls += 1
        return cls(now=Add.calls)


class Mutation(graphene.ObjectType):  # type: ignore[misc]
    add = Add.Field()


class Subscription(graphene.ObjectType):  # type: ignore[misc]
    count = graphene.Int(to=graphene.Int(required=True))
    forever = graphene.Int()
    flood = graphene.String()
    broken = graphene.Int()

    @staticmethod
    async def subscribe_count(root: Any, info: Any, to: int) -> AsyncIterator[int]:
        for number in range(to):
            yield number

    @staticmethod
    async def subscribe_forever(root: Any, info: Any) -> AsyncIterator[int]:
        started.append("forever")
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            ended.append("forever")

    @staticmethod
    async def subscribe_flood(root: Any, info: Any) -> AsyncIterator[str]:
        try:
            while True:
                yield "x" * 10_000
        finally:
            ended.append("flood")

    @staticmethod
    async def subscribe_broken(root: Any, info: Any) -> AsyncIterator[int]:
        yield 1
        raise RuntimeError("a secret of the server")

    @staticmethod
    def resolve_count(root: Any, info: Any, to: int) -> Any:
        return root

    @staticmethod
    def resolve_forever(root: Any, info: Any) -> Any:
        return root

    @staticmethod
    def resolve_flood(root: Any, info: Any) -> Any:
        return root

    @staticmethod
    def resolve_broken(root: Any, info: Any) -> Any:
        return root


SCHEMA = graphene.Schema(query=Query, mutation=Mutation, subscription=Subscription)

HELLO = {"data": {"hello": "world"}}

MUTATION = "mutation { add { now } }"

MUTATED = 500
"""Requests that something has happened to."""


@pytest.fixture(autouse=True)
def feed() -> Iterator[None]:
    """No listener, but where a test brings one."""
    started.clear()
    ended.clear()
    with default_layer(), override_settings(PGNOTIFY_GQL={}):
        yield


@pytest.fixture
def terminated() -> Iterator[list[int]]:
    """The signals that the server is told."""
    told: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    yield told
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def application() -> Application:
    return GraphqlSseConsumer.as_asgi(schema=SCHEMA)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT):
        while not condition():  # noqa: ASYNC110  (what is waited for tells nobody)
            await asyncio.sleep(0.001)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the transport logged."""
    return [
        record.message
        for record in caplog.records
        if record.name.startswith("pgnotify_gql.transport") and record.levelno > logging.DEBUG
    ]


def understood(body: bytes) -> bool:
    """Return whether a body is a request, as the specification has it."""
    try:
        return a_request(read(body.decode()))
    except UnicodeDecodeError:
        return False


async def answered(stream: AsgiStream) -> list[dict[str, Any]]:
    """Return the results of a stream that is completed."""
    async with open_stream(stream):
        *results, complete = await stream.rest()
        assert complete == COMPLETE
        return [event.result for event in results]


class TestTheAnswer:
    async def test_of_a_query_is_one_next_and_a_complete(self, application: Application) -> None:
        async with open_stream(get(application, "{ hello }")) as stream:
            assert await stream.event() == Event((("event", "next"), ("data", json.dumps(HELLO))))
            # An EventSource tells the page of an event only if it has a line of data.
            assert await stream.event() == Event((("event", "complete"), ("data", "")))
            assert await stream.event() is None
            await stream.task

    async def test_has_the_headers_of_a_stream_that_nobody_keeps_or_holds_up(self, application: Application) -> None:
        async with held(get(application, "{ hello }")) as stream:
            assert await stream.start() == (
                200,
                {"content-type": "text/event-stream", "cache-control": "no-store", "x-accel-buffering": "no"},
            )

    async def test_begins_at_once_with_the_time_after_which_to_come_back(self, application: Application) -> None:
        times = set()
        for _ in range(20):
            async with open_stream(get(application, "subscription { forever }")) as stream:
                event = await stream.raw()
                assert event is not None
                [(name, value)] = event.fields
                assert name == "retry"
                times.add(int(value))
        assert all(1_000 <= time <= 3_000 for time in times)
        assert len(times) > 1, "all clients of a server that stops would come back at once"

    async def test_of_a_subscription_is_a_next_for_each_result_and_a_complete(self, application: Application) -> None:
        results = await answered(get(application, "subscription { count(to: 3) }"))
        assert results == [{"data": {"count": number}} for number in range(3)]

    async def test_of_a_subscription_arrives_while_it_goes_on(self, application: Application) -> None:
        async with open_stream(get(application, "subscription { forever }")) as stream:
            assert await stream.result() == {"data": {"forever": 1}}
            assert ended == []

    @pytest.mark.parametrize(
        ("query", "complaint"),
        [
            ("{", "Syntax Error"),
            ("{ unknown }", "Cannot query field 'unknown'"),
            ("subscription { unknown }", "Cannot query field 'unknown'"),
            ("query A { hello } query B { hello }", "several operations"),
            ("\ud800", "Syntax Error"),
            ("{a" * 2_000, "nested too deeply"),
            ("{ " + "hello " * 6_000 + "}", "tokens"),
        ],
    )
    async def test_of_what_cannot_be_run_is_one_next_with_errors_and_a_complete(
        self, application: Application, query: str, complaint: str
    ) -> None:
        for stream in (get(application, query), post(application, {"query": query})):
            [result] = await answered(stream)
            assert "data" not in result
            assert complaint in result["errors"][0]["message"]

    async def test_of_a_resolver_that_fails_has_the_error_beside_the_data(self, application: Application) -> None:
        [result] = await answered(get(application, "{ hello bad }"))
        assert result["data"] == {"hello": "world", "bad": None}
        assert result["errors"][0]["message"] == "it is bad"

    async def test_of_a_stream_that_fails_ends_with_an_error_that_tells_only_the_log(
        self, application: Application, caplog: pytest.LogCaptureFixture
    ) -> None:
        first, last = await answered(get(application, "subscription { broken }"))
        assert first == {"data": {"broken": 1}}
        assert last == {"errors": [{"message": "Internal server error"}]}
        assert "a secret of the server" in caplog.text

    @pytest.mark.parametrize("text", ["a\nb\r\nc\n\nd", "\u2028\u2029\x85", "ä🦜", "event: complete\ndata:\n\n"])
    async def test_is_one_line_of_data_whatever_is_in_it(self, application: Application, text: str) -> None:
        query = "query($text: String!) { echo(text: $text) }"
        assert await answered(get(application, query, variables={"text": text})) == [{"data": {"echo": text}}]

    async def test_has_no_id_where_the_result_has_no_cursor(self, application: Application) -> None:
        for query in ("{ hello }", '{ cursor: echo(text: "x") }', "subscription { cursor: count(to: 1) }"):
            async with open_stream(get(application, query)) as stream:
                event = await stream.event()
                assert event is not None
                assert event.kind == "next"
                assert event.id is None

    async def test_has_a_comment_while_nothing_happens(self) -> None:
        class Impatient(GraphqlSseConsumer):
            keepalive = 0.01

        async with open_stream(get(Impatient.as_asgi(schema=SCHEMA), "subscription { forever }")) as stream:
            assert await stream.result()
            for _ in range(2):
                event = await stream.raw()
                assert event is not None
                assert event.comment

    def test_has_a_comment_every_12_seconds(self) -> None:
        assert GraphqlSseConsumer.keepalive == 12


class TestWhatIsAsked:
    QUERY = "query A($name: String) { hello(name: $name) } query B { hello }"

    async def test_with_get_is_in_the_parameters(self, application: Application) -> None:
        stream = get(application, self.QUERY, operationName="A", variables={"name": "ann"}, extensions={"x": 1})
        assert await answered(stream) == [{"data": {"hello": "ann"}}]

    async def test_with_get_may_leave_parameters_empty(self, application: Application) -> None:
        stream = get(application, "{ hello }", operationName="", variables="", extensions="")
        assert await answered(stream) == [HELLO]

    @pytest.mark.parametrize("content_type", ["application/json", "Application/JSON; charset=utf-8"])
    async def test_with_post_is_a_json_object(self, application: Application, content_type: str) -> None:
        body = {"query": self.QUERY, "operationName": "A", "variables": {"name": "ann"}, "extensions": {"x": 1}}
        stream = post(application, body, ("content-type", content_type))
        assert await answered(stream) == [{"data": {"hello": "ann"}}]

    async def test_with_post_may_come_in_pieces(self, application: Application) -> None:
        stream = post(application, (b'{"query": "{ hel', b"", b'lo }", "variables": null}'))
        assert await answered(stream) == [HELLO]

    async def test_may_be_a_subscription_with_post(self, application: Application) -> None:
        results = await answered(post(application, {"query": "subscription { count(to: 2) }"}))
        assert results == [{"data": {"count": 0}}, {"data": {"count": 1}}]

    async def test_may_be_a_mutation_with_post(self, application: Application) -> None:
        before = Add.calls
        assert await answered(post(application, {"query": MUTATION})) == [{"data": {"add": {"now": before + 1}}}]
        assert Add.calls == before + 1

    @pytest.mark.parametrize(
        ("query", "parameters"),
        [(MUTATION, {}), ("query A { hello } mutation B { add { now } }", {"operationName": "B"})],
    )
    async def test_must_be_no_mutation_with_get(
        self, application: Application, query: str, parameters: dict[str, str]
    ) -> None:
        before = Add.calls
        status, headers, message = await get(application, query, **parameters).refusal()
        assert (status, headers["allow"], message) == (405, "POST", "a mutation needs POST")
        assert Add.calls == before

    async def test_may_be_a_query_beside_a_mutation_with_get(self, application: Application) -> None:
        stream = get(application, "query A { hello } mutation B { add { now } }", operationName="A")
        assert await answered(stream) == [HELLO]

    @pytest.mark.parametrize("method", ["PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "get"])
    async def test_needs_get_or_post(self, application: Application, method: str) -> None:
        status, headers, message = await get(application, "{ hello }", scope={"method": method}).refusal()
        assert (status, headers["allow"], message) == (405, "GET, POST", "ask with GET, POST")

    @pytest.mark.parametrize(
        "accept",
        [None, "", "*/*", "text/*", "application/json", "text/event-streams", "text/event-stream;q=0", "nonsense;;"],
    )
    async def test_must_accept_a_stream_by_name(self, application: Application, accept: str | None) -> None:
        status, _, message = await get(application, "{ hello }", ("accept", accept)).refusal()
        assert (status, message) == (406, "ask with 'Accept: text/event-stream'")

    @pytest.mark.parametrize("accept", ["application/json, text/event-stream", "Text/Event-Stream;q=0.1, */*;q=0.9"])
    async def test_may_accept_other_things_as_well(self, application: Application, accept: str) -> None:
        assert await answered(get(application, "{ hello }", ("accept", accept))) == [HELLO]

    @pytest.mark.parametrize(
        "content_type",
        [
            None,
            "",
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "application/jsonp",
        ],
    )
    async def test_with_post_must_be_said_to_be_json(self, application: Application, content_type: str | None) -> None:
        before = Add.calls
        stream = post(application, {"query": MUTATION}, ("content-type", content_type))
        status, _, message = await stream.refusal()
        assert (status, message) == (415, "send the request as application/json")
        assert Add.calls == before

    @pytest.mark.parametrize(
        ("body", "complaint"),
        [
            (b"", "the request is not JSON"),
            (b"{", "the request is not JSON"),
            (b"\xff\xfe{}", "the request is not JSON"),
            (b'{"query": "{ hello }", "variables": {"x": NaN}}', "the request is not JSON"),
            (b'{"query": "{ hello }", "variables": {"x": 1e999}}', "the request is not JSON"),
            (b"[" * 100_000, "the request is not JSON"),
            (b"[]", "the request is not a JSON object"),
            (b'"{ hello }"', "the request is not a JSON object"),
            (b"{}", "the payload needs a 'query' that is a string"),
            (b'{"query": 1}', "the payload needs a 'query' that is a string"),
            (b'{"query": "{ hello }", "operationName": 1}', "'operationName' must be a string"),
            (b'{"query": "{ hello }", "variables": []}', "'variables' must be an object"),
            (b'{"query": "{ hello }", "extensions": "x"}', "'extensions' must be an object"),
        ],
    )
    async def test_with_post_that_cannot_be_understood_is_a_bad_request(
        self, application: Application, body: bytes, complaint: str
    ) -> None:
        status, headers, message = await post(application, body).refusal()
        assert (status, message) == (400, complaint)
        assert headers["cache-control"] == "no-store"

    @pytest.mark.parametrize(
        ("parameters", "complaint"),
        [
            ({}, "the payload needs a 'query' that is a string"),
            ({"query": ""}, "the payload needs a 'query' that is a string"),
            ({"query": "{ hello }", "variables": "{"}, "'variables' is not JSON"),
            ({"query": "{ hello }", "variables": "[]"}, "'variables' must be an object"),
            ({"query": "{ hello }", "variables": '{"x": 1e999}'}, "'variables' is not JSON"),
            ({"query": "{ hello }", "extensions": "x"}, "'extensions' is not JSON"),
            ({"query": "{ hello }", "extensions": "1"}, "'extensions' must be an object"),
            ({str(number): "" for number in range(2_000)}, "there are too many parameters"),
        ],
    )
    async def test_with_get_that_cannot_be_understood_is_a_bad_request(
        self, application: Application, parameters: dict[str, str], complaint: str
    ) -> None:
        status, _, message = await get_with(application, parameters).refusal()
        assert (status, message) == (400, complaint)

    async def test_when_something_has_happened_to_it_is_a_bad_request_or_answered_with_a_whole_stream(
        self, application: Application, caplog: pytest.LogCaptureFixture
    ) -> None:
        random, asked, statuses = (
            Random(1),
            {"query": "{ hello }", "variables": {"n": 1}, "extensions": None},
            Counter[int](),
        )
        for _ in range(MUTATED):
            body = random.choice(MUTATIONS)(dict(asked), random).encode(errors="surrogatepass")
            stream = post(application, body)
            if understood(body):
                assert len(await answered(stream)) == 1, body
                statuses[200] += 1
            else:
                assert (await stream.refusal())[0] == 400, body
                statuses[400] += 1
        assert min(statuses[200], statuses[400]) > MUTATED / 10
        assert told(caplog) == []

    @override_settings(PGNOTIFY_GQL={"MAX_MESSAGE_BYTES": 100})
    async def test_has_a_limit_that_is_the_settings(self, application: Application) -> None:
        fits, large = (json.dumps({"query": "{ hello }"}).encode().ljust(size) for size in (100, 101))
        assert await answered(post(application, fits)) == [HELLO]
        assert (await post(application, large).refusal())[::2] == (413, "A request may have 100 bytes")
        query = "{ hello }".ljust(100)
        assert (await get(application, query).refusal())[::2] == (414, "A query string may have 100 bytes")

    async def test_above_the_limit_is_refused_before_the_rest_has_come(self, application: Application) -> None:
        stream = AsgiStream(application, request_scope(("content-type", "application/json"), method="POST"))
        stream.body(*[b"x" * 100_000] * 11, more=True)
        assert (await stream.refusal())[0] == 413


class TestWhoAsks:
    async def test_is_whom_the_middleware_has_put_into_the_scope(self, application: Application) -> None:
        scope = {"user": User(username="alice"), "session": {"key": "value"}}
        for stream in (
            get(application, "{ username session }", scope=scope),
            post(application, {"query": "{ username session }"}, **scope),
        ):
            assert await answered(stream) == [{"data": {"username": "alice", "session": "value"}}]

    async def test_is_nobody_without_a_middleware_or_a_session(self, application: Application) -> None:
        assert await answered(get(application, "{ username }")) == [{"data": {"username": ""}}]
        inside: Any = AuthMiddlewareStack(application)
        assert await answered(get(inside, "{ username }")) == [{"data": {"username": ""}}]

    @pytest.mark.parametrize("scheme", ["http", "https"])
    async def test_is_told_addresses_of_the_scheme_that_was_asked_with(
        self, application: Application, scheme: str
    ) -> None:
        stream = get(application, "{ page }", scope={"scheme": scheme})
        assert await answered(stream) == [{"data": {"page": f"{scheme}://localhost/page/"}}]

    async def test_may_be_said_by_a_subclass(self) -> None:
        class ByHeader(GraphqlSseConsumer):
            async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
                name = dict(scope["headers"]).get(b"x-user", b"").decode()
                await super().__call__({**scope, "user": User(username=name)}, receive, send)

        stream = get(ByHeader.as_asgi(schema=SCHEMA), "{ username }", ("x-user", "bob"))
        assert await answered(stream) == [{"data": {"username": "bob"}}]


@pytest.fixture
def hosts() -> Iterator[None]:
    with override_settings(ALLOWED_HOSTS=["localhost", ".example.com"]):
        yield


@pytest.mark.usefixtures("hosts")
class TestAPage:
    @pytest.mark.parametrize(
        ("origin", "site"),
        [
            (None, None),  # no browser, or an old one
            (None, "same-origin"),
            (None, "none"),
            ("http://localhost", "same-origin"),
            ("http://localhost:3000", "same-site"),
            ("https://app.example.com", "cross-site"),
        ],
    )
    async def test_of_this_site_may_ask(self, application: Application, origin: str | None, site: str | None) -> None:
        headers = (("origin", origin), ("sec-fetch-site", site))
        assert await answered(get(application, "{ hello }", *headers)) == [HELLO]
        assert await answered(post(application, {"query": "{ hello }"}, *headers)) == [HELLO]

    @pytest.mark.parametrize(
        ("origin", "site"),
        [
            ("https://evil.example", "cross-site"),
            ("https://evil.example", None),
            ("https://localhost.evil.example", None),
            ("null", None),
            ("http://[", None),
            (None, "cross-site"),  # what an image or a script asks for
            (None, "same-site"),
            (None, "nonsense"),
        ],
    )
    async def test_of_another_site_may_neither_ask_nor_read(
        self, application: Application, origin: str | None, site: str | None
    ) -> None:
        before = Add.calls
        headers = (("origin", origin), ("sec-fetch-site", site))
        for stream in (get(application, "{ hello }", *headers), post(application, {"query": MUTATION}, *headers)):
            status, answer, message = await stream.refusal()
            assert (status, message) == (403, "a page of this origin may not ask")
            assert not [name for name in answer if name.startswith("access-control-")]
        assert Add.calls == before

    async def test_of_another_site_may_ask_where_a_subclass_lets_it(self) -> None:
        class Wider(GraphqlSseConsumer):
            allowed_origins = ("https://app.example",)

        application = Wider.as_asgi(schema=SCHEMA)
        assert await answered(get(application, "{ hello }", ("origin", "https://app.example"))) == [HELLO]
        for origin in ("http://app.example", "https://app.example:8443", "https://app.example:x", "https://localhost"):
            assert (await get(application, "{ hello }", ("origin", origin)).refusal())[0] == 403

    async def test_of_another_site_is_not_told_that_it_may_send_json(self, application: Application) -> None:
        headers = (("origin", "http://localhost"), ("access-control-request-headers", "content-type"))
        status, answer, _ = await get(application, "", *headers, scope={"method": "OPTIONS"}).refusal()
        assert status == 405
        assert not [name for name in answer if name.startswith("access-control-")]

    @pytest.mark.parametrize("host", ["evil.example", "localhost:x", "a b"])
    async def test_of_a_host_that_is_not_ours_is_a_bad_request(self, application: Application, host: str) -> None:
        # Otherwise a name that its owner points here would make a page of this origin.
        status, _, message = await get(application, "{ hello }", ("host", host)).refusal()
        assert (status, message) == (400, "the host is not one of this site")


class TestMounting:
    @pytest.mark.parametrize("kind", ["websocket", "lifespan"])
    async def test_for_something_else_by_mistake_it_says_where_it_belongs(
        self, application: Application, kind: str
    ) -> None:
        with pytest.raises(ValueError, match=f"GraphqlSseConsumer serves HTTP: mount it under 'http', not {kind}"):
            await AsgiStream(application, {"type": kind, "path": "/", "headers": []}).start()

    @pytest.mark.parametrize("schema", [None, "example.schema.schema", Query])
    def test_takes_a_schema_and_nothing_else(self, schema: Any) -> None:
        with pytest.raises(ConfigurationError, match=r"GraphqlSseConsumer.as_asgi\(schema=\.\.\.\) takes a graphene"):
            GraphqlSseConsumer.as_asgi(schema=schema)

    @pytest.mark.parametrize(
        ("settings", "complaint"),
        [
            ({"CHANNEL_LAYER": "nowhere"}, "CHANNEL_LAYERS has no 'nowhere': configure a channel layer"),
            ({"WORKER": 3}, "unknown key 'WORKER': did you mean WORKERS?"),
        ],
    )
    async def test_with_a_mistake_in_the_settings_answers_500_and_tells_the_log_in_one_sentence(
        self, application: Application, caplog: pytest.LogCaptureFixture, settings: dict[str, Any], complaint: str
    ) -> None:
        with override_settings(PGNOTIFY_GQL=settings):
            status, _, message = await get(application, "{ hello }").refusal()
        assert (status, message) == (500, "Internal server error")
        [record] = caplog.records
        assert record.exc_info is None
        assert record.message.startswith("streams cannot be served: ")
        assert complaint in record.message


class TestTheEndOfAStream:
    async def test_by_its_client_leaves_no_task_and_no_operation(
        self, application: Application, caplog: pytest.LogCaptureFixture
    ) -> None:
        before = asyncio.all_tasks()
        async with open_stream(get(application, "subscription { forever }")) as stream:
            await stream.result()
            await stream.disconnect()
            assert not stream.ended
        assert ended == ["forever"]
        assert asyncio.all_tasks() == before
        assert told(caplog) == []
        with pytest.raises(RuntimeError, match="no hub is open"):
            current_hub()

    async def test_by_itself_leaves_no_task(self, application: Application) -> None:
        before = asyncio.all_tasks()
        await answered(get(application, "subscription { count(to: 3) }"))
        assert asyncio.all_tasks() == before

    async def test_by_its_client_before_all_was_asked_leaves_no_task_and_is_quiet(
        self, application: Application, caplog: pytest.LogCaptureFixture
    ) -> None:
        before = asyncio.all_tasks()
        stream = AsgiStream(application, request_scope(("content-type", "application/json"), method="POST"))
        stream.body(b'{"query":', more=True)
        await stream.disconnect()
        assert not stream.begun
        assert asyncio.all_tasks() == before
        assert caplog.records == []

    async def test_by_its_client_while_it_does_not_read_leaves_no_task(self, application: Application) -> None:
        before = asyncio.all_tasks()
        async with open_stream(get(application, "subscription { forever }")) as stream:
            stream.reads.clear()
            await stream.waiting.wait()
            await stream.disconnect()
        assert asyncio.all_tasks() == before

    async def test_by_the_server_leaves_no_task(self, application: Application) -> None:
        before = asyncio.all_tasks()
        async with open_stream(get(application, "subscription { forever }")) as stream:
            await stream.result()
            stream.task.cancel()
            await asyncio.gather(stream.task, return_exceptions=True)
            await until(lambda: asyncio.all_tasks() == before)
        assert ended == ["forever"]

    async def test_before_anything_was_sent_is_an_answer_all_the_same(self) -> None:
        events: list[dict[str, Any]] = []

        async def send(event: dict[str, Any]) -> None:
            events.append(event)

        await event_stream.EventStream(send, get_settings(), server_waits=True).end()
        assert [event["type"] for event in events] == ["http.response.start", "http.response.body"]

    async def test_that_is_noticed_when_it_is_written_to_is_quiet(
        self, application: Application, caplog: pytest.LogCaptureFixture
    ) -> None:
        receiving: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        receiving.put_nowait({"type": "http.request", "body": b"", "more_body": False})

        async def send(event: dict[str, Any]) -> None:
            if b"event" in event.get("body", b""):
                raise OSError("the client is gone")

        scope = request_scope(query_string=b"query={hello}")
        async with asyncio.timeout(WAIT):
            await application(scope, receiving.get, send)
        assert told(caplog) == []

    @override_settings(PGNOTIFY_GQL={"DRAIN_WINDOW": 0.1})
    async def test_by_a_server_that_drains_is_none_for_its_client_who_comes_back(
        self, application: Application, terminated: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # What drains here is no server of other tests.
        monkeypatch.setattr(draining, "_visits", WeakKeyDictionary())
        async with open_stream(get(application, "subscription { forever }")) as early:
            await early.result()
            with visits().begun():
                os.kill(os.getpid(), signal.SIGTERM)
                assert await early.rest() == []
                await early.task
                async with open_stream(get(application, "subscription { forever }")) as late:
                    assert COMPLETE not in await late.rest()
                    await late.task
            await until(lambda: terminated == [signal.SIGTERM])


class Uvicorn:
    """As Uvicorn has it: `send` is a method of the protocol, and waits for a client, which does not read here."""

    def __init__(self) -> None:
        self.transport = AsyncioTransport()

    async def send(self, message: Any) -> None:
        await asyncio.Event().wait()


class TestAClientThatDoesNotRead:
    @override_settings(PGNOTIFY_GQL={"OUTBOX_MESSAGES": 10})
    async def test_is_cut_off_so_that_it_comes_back_once_too_many_events_wait(
        self, application: Application, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with open_stream(get(application, "subscription { flood }")) as stream:
            stream.reads.clear()
            await until(lambda: ended == ["flood"])
            stream.reads.set()
            rest = await stream.rest()
            assert len(rest) <= 11
            assert COMPLETE not in rest
            await stream.task
        assert told(caplog) == ["a client did not read fast enough; its stream is ended"]

    @override_settings(PGNOTIFY_GQL={"OUTBOX_BYTES": 50_000})
    async def test_is_cut_off_once_too_many_bytes_wait(self, application: Application) -> None:
        async with open_stream(get(application, "subscription { flood }")) as stream:
            stream.reads.clear()
            await until(lambda: ended == ["flood"])
            stream.reads.set()
            assert len(await stream.rest()) <= 6

    async def test_not_even_the_end_has_its_connection_cut(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(event_stream, "END_TIMEOUT", 0.01)
        server = Uvicorn()
        stream = event_stream.EventStream(server.send, get_settings(), server_waits=True)
        await stream.end()
        assert server.transport.aborted

    @override_settings(PGNOTIFY_GQL={"OUTBOX_BYTES": 5_000})
    async def test_is_sent_a_result_that_alone_is_above_the_limit(self, application: Application) -> None:
        text = "x" * 10_000
        query = f'{{ echo(text: "{text}") }}'
        assert await answered(post(application, {"query": query})) == [{"data": {"echo": text}}]


# What a subscription is given needs a database.

FIELDS = "{ changes { pk kind text } }"
QUERY = f"subscription {FIELDS}"


@pytest.fixture
def chat(database_triggers: Database) -> Iterator[Chat]:
    """Two conversations, and a listener in the event loop of the test."""
    with inline_feed():
        yield Chat(database_triggers)


@pytest.fixture
def messages() -> Application:
    """A consumer with a subscription to every message."""
    return GraphqlSseConsumer.as_asgi(schema=declare(returns([Message])))


async def live(stream: AsgiStream, members: int = 1) -> AsgiStream:
    """Wait until every change from now on is delivered."""
    assert (await stream.start())[0] == 200
    await until(lambda: joined() == members)
    return stream


async def texts(stream: AsgiStream, *wanted: str) -> str:
    """Read these texts, which must come alone and in this order; return the id of the last."""
    last = None
    for text in wanted:
        event = await stream.event()
        assert event is not None, f"the stream has ended before {text}"
        assert event.result["data"]["changes"]["text"] == text, event
        last = event.id
    assert last is not None
    return last


@pytest.mark.postgres("18")
class TestResuming:
    async def test_a_result_has_its_cursor_as_its_id(self, chat: Chat, messages: Application) -> None:
        async with held(get(messages, QUERY)) as stream:
            await live(stream)
            chat.insert("one")
            event = await stream.event()
            assert event is not None
            assert event.id == event.result["extensions"]["cursor"]
            assert Cursor.read(event.id).positions.keys() == {("default", "conversations.message")}

    @pytest.mark.parametrize("with_post", [False, True])
    async def test_the_last_id_brings_exactly_what_was_missed_and_then_the_live_stream(
        self, chat: Chat, messages: Application, with_post: bool
    ) -> None:
        async with held(get(messages, QUERY)) as stream:
            await live(stream)
            chat.insert("one")
            chat.insert("two", "three")
            last = await texts(stream, "one", "two")
        chat.insert("four")
        header = ("last-event-id", last)
        again = post(messages, {"query": QUERY}, header) if with_post else get(messages, QUERY, header)
        async with held(again) as stream:
            await live(stream)
            await texts(stream, "three", "four")
            chat.insert("five")
            await texts(stream, "five")

    @pytest.mark.parametrize("how", ["get", "post", "get, and an empty last id"])
    async def test_a_cursor_in_the_extensions_does_the_same(self, chat: Chat, messages: Application, how: str) -> None:
        async with held(get(messages, QUERY)) as stream:
            await live(stream)
            chat.insert("one")
            extensions = {"cursor": await texts(stream, "one")}
        chat.insert("two")
        empty = [("last-event-id", "")] if "empty" in how else []
        if how == "post":
            again = post(messages, {"query": QUERY, "extensions": extensions})
        else:
            again = get(messages, QUERY, *empty, extensions=extensions)
        async with held(again) as stream:
            await live(stream)
            await texts(stream, "two")

    async def test_the_last_id_wins_because_it_is_the_newer_one(self, chat: Chat, messages: Application) -> None:
        async with held(get(messages, QUERY)) as stream:
            await live(stream)
            chat.insert("one", "two")
            first, last = await texts(stream, "one"), await texts(stream, "two")
        chat.insert("three")
        # As an EventSource does it: its address has the cursor that the page began with.
        async with held(get(messages, QUERY, ("last-event-id", last), extensions={"cursor": first})) as stream:
            await live(stream)
            await texts(stream, "three")

    @pytest.mark.parametrize("last", ["nonsense", "a:b:c", "\xff\xfe", "0"])
    async def test_a_last_id_that_is_not_ours_is_answered_with_an_error_and_a_complete(
        self, chat: Chat, messages: Application, last: str
    ) -> None:
        [result] = await answered(get(messages, QUERY, ("last-event-id", last)))
        [error] = result["errors"]
        assert error["message"] == "the cursor is not one of this site: subscribe without it"
        assert error["extensions"] == {"code": "INVALID_CURSOR"}
        with pytest.raises(RuntimeError, match="no hub is open"):
            current_hub()

    async def test_a_last_id_of_another_subscription_is_answered_with_a_resync_and_the_live_stream(
        self, chat: Chat, messages: Application
    ) -> None:
        other = GraphqlSseConsumer.as_asgi(schema=declare(returns([Conversation])))
        async with held(get(other, QUERY)) as stream:
            await live(stream)
            chat.execute("update conversations_conversation set title = title || 'x' where title = 'both'")
            event = await stream.event()
            assert event is not None
            assert event.id is not None
        async with held(get(messages, QUERY, ("last-event-id", event.id))) as stream:
            await live(stream)
            marker = await stream.event()
            assert marker is not None
            assert marker.result["data"] is None
            assert "another subscription" in marker.result["extensions"]["resync"]["reason"]
            assert marker.id == marker.result["extensions"]["cursor"]
            chat.insert("one")
            await texts(stream, "one")

    async def test_a_last_id_means_nothing_to_a_query(self, application: Application) -> None:
        assert await answered(get(application, "{ hello }", ("last-event-id", "nonsense"))) == [HELLO]


@pytest.mark.postgres("18")
class TestAClientThatReadsSlowly:
    async def test_catches_up_from_the_journal_and_misses_nothing(self, chat: Chat, messages: Application) -> None:
        with override_settings(PGNOTIFY_GQL={"INLINE_LISTENER": True, "OUTBOX_MESSAGES": 20}):
            async with held(get(messages, QUERY)) as stream:
                await live(stream)
                stream.reads.clear()
                wanted = [f"message {number}" for number in range(500)]
                chat.insert(*wanted)
                await until(lambda: joined() == 0)
                stream.reads.set()
                await texts(stream, *wanted)
                chat.insert("live")
                await texts(stream, "live")

    async def test_at_all_is_cut_off_after_a_while_and_comes_back_for_the_rest(
        self, chat: Chat, messages: Application, caplog: pytest.LogCaptureFixture
    ) -> None:
        settings = {"INLINE_LISTENER": True, "OUTBOX_MESSAGES": 20, "SLOW_CLIENT_TIMEOUT": 0.1}
        wanted = [f"message {number}" for number in range(500)]
        with override_settings(PGNOTIFY_GQL=settings):
            async with held(get(messages, QUERY)) as stream:
                await live(stream)
                chat.insert(wanted[0])
                last = await texts(stream, wanted[0])
                stream.reads.clear()
                chat.insert(*wanted[1:])
                await until(lambda: "a client did not read fast enough; its stream is ended" in told(caplog))
                stream.reads.set()
                assert await stream.rest() == []
                await stream.task
        async with held(get(messages, QUERY, ("last-event-id", last))) as stream:
            await live(stream)
            await texts(stream, *wanted[1:])

    @pytest.mark.parametrize("size", [0, 1_000])
    async def test_where_the_server_does_not_wait_comes_back_after_every_so_many_bytes(
        self, chat: Chat, messages: Application, size: int
    ) -> None:
        """Daphne says no version of the specification that it follows."""
        daphne = {"asgi": {"version": "3.0"}}
        wanted = [f"{number} {'x' * size}" for number in range(200)]
        most = 20_000
        with override_settings(PGNOTIFY_GQL={"INLINE_LISTENER": True, "OUTBOX_BYTES": most}):
            async with held(get(messages, QUERY, scope=daphne)) as stream:
                await live(stream)
                chat.insert(wanted[0])
                last = await texts(stream, wanted[0])
            chat.insert(*wanted[1:])
            found, times = [wanted[0]], 0
            while len(found) < len(wanted):
                async with held(get(messages, QUERY, ("last-event-id", last), scope=daphne)) as stream:
                    times += 1
                    await stream.start()
                    while len(found) < len(wanted) and (event := await stream.event()) is not None:
                        assert event.kind == "next"
                        found.append(event.result["data"]["changes"]["text"])
                        last = event.id or last
                    assert stream.written < 2 * most + 2_000
        assert found == wanted
        assert times > 1

    async def test_where_the_server_does_not_wait_is_not_sent_away_from_what_cannot_be_resumed(
        self, application: Application
    ) -> None:
        with override_settings(PGNOTIFY_GQL={"OUTBOX_BYTES": 1_000}):
            scope = {"asgi": {"version": "3.0"}}
            results = await answered(get(application, "subscription { count(to: 100) }", scope=scope))
        assert [result["data"]["count"] for result in results] == list(range(100))
