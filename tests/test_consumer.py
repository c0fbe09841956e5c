"""The consumer as an ASGI application, with a schema of its own and no database."""

import asyncio
import functools
import json
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from random import Random
from typing import Any

import graphene
import pytest
from asgiref.sync import sync_to_async
from channels.layers import BaseChannelLayer, channel_layers
from channels.security.websocket import AllowedHostsOriginValidator
from django.contrib.auth.models import AnonymousUser, User
from django.test import override_settings

from pgnotify_gql.errors import ConfigurationError
from pgnotify_gql.hub import current_hub, process
from pgnotify_gql.transport import GraphqlSubscriptionConsumer
from pgnotify_gql.transport.close_codes import PRIVATE_CODES, CloseCode
from tests.support.layers import default_layer
from tests.support.sockets import (
    WAIT,
    Application,
    AsgiSocket,
    ClosedError,
    open_socket,
    quiet,
    socket_scope,
)

BOTH = pytest.mark.parametrize("subprotocol", ["graphql-transport-ws", "graphql-ws"])


started: list[str] = []
ended: list[str] = []


class Query(graphene.ObjectType):  # type: ignore[misc]
    hello = graphene.String()
    bad = graphene.String()
    username = graphene.String()
    param = graphene.String()
    page = graphene.String()
    big = graphene.String(size=graphene.Int(required=True))

    @staticmethod
    def resolve_hello(root: Any, info: Any) -> str:
        return "world"

    @staticmethod
    def resolve_bad(root: Any, info: Any) -> str:
        raise ValueError("it is bad")

    @staticmethod
    def resolve_username(root: Any, info: Any) -> str:
        username: str = info.context.user.username
        return username

    @staticmethod
    def resolve_param(root: Any, info: Any) -> Any:
        return info.context.connection_params.get("param")

    @staticmethod
    def resolve_page(root: Any, info: Any) -> Any:
        return info.context.build_absolute_uri("/page/")

    @staticmethod
    def resolve_big(root: Any, info: Any, size: int) -> str:
        return "x" * size


class Add(graphene.Mutation):  # type: ignore[misc]
    calls = 0
    now = graphene.Int()

    @classmethod
    def mutate(cls, root: Any, info: Any) -> "Add":
        Add.calls += 1
        return cls(now=Add.calls)


class Mutation(graphene.ObjectType):  # type: ignore[misc]
    add = Add.Field()


class Subscription(graphene.ObjectType):  # type: ignore[misc]
    count = graphene.Int(to=graphene.Int(required=True))
    forever = graphene.Int()
    flood = graphene.String()
    large = graphene.String()
    broken = graphene.Int()

    @staticmethod
    async def subscribe_count(root: Any, info: Any, to: int) -> AsyncIterator[int]:
        for number in range(to):
            yield number

    @staticmethod
    def resolve_count(root: int, info: Any, to: int) -> int:
        return root

    @staticmethod
    async def subscribe_forever(root: Any, info: Any) -> AsyncIterator[int]:
        started.append("forever")
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            ended.append("forever")

    @staticmethod
    def resolve_forever(root: int, info: Any) -> int:
        return root

    @staticmethod
    async def subscribe_broken(root: Any, info: Any) -> AsyncIterator[int]:
        yield 1
        raise RuntimeError("a secret of the server")

    @staticmethod
    def resolve_broken(root: int, info: Any) -> int:
        return root

    @staticmethod
    async def subscribe_large(root: Any, info: Any) -> AsyncIterator[str]:
        yield "x" * 10_000
        await asyncio.Event().wait()

    @staticmethod
    def resolve_large(root: str, info: Any) -> str:
        return root

    @staticmethod
    async def subscribe_flood(root: Any, info: Any) -> AsyncIterator[str]:
        started.append("flood")
        try:
            while True:
                yield "x" * 10_000
        finally:
            ended.append("flood")

    @staticmethod
    def resolve_flood(root: str, info: Any) -> str:
        return root


SCHEMA = graphene.Schema(query=Query, mutation=Mutation, subscription=Subscription)


@pytest.fixture(autouse=True)
def feed() -> Iterator[None]:
    """No listener: nothing here waits for a change."""
    started.clear()
    ended.clear()
    with default_layer(), override_settings(PGNOTIFY_GQL={}):
        yield


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the transport logged; the hub's remark that nobody feeds it is not of it."""
    return [
        record.message
        for record in caplog.records
        if record.name.startswith("pgnotify_gql.transport") and record.levelno > logging.DEBUG
    ]


@pytest.fixture
def application() -> Application:
    return GraphqlSubscriptionConsumer.as_asgi(schema=SCHEMA)


@pytest.fixture
async def socket(application: Application) -> AsyncIterator[AsgiSocket]:
    async with open_socket(application) as socket:
        yield socket


async def raised(application: Application, scope: dict[str, Any]) -> BaseException:
    socket = AsgiSocket(application, scope)
    with pytest.raises(BaseException) as caught:  # noqa: PT011  (the test looks at it)
        await socket.event()
    return caught.value


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT):
        while not condition():  # noqa: ASYNC110  (what a generator's end tells is a list)
            await asyncio.sleep(0)


class TestTheHandshake:
    @BOTH
    async def test_the_subprotocol_that_is_offered_is_accepted(
        self, application: Application, subprotocol: str
    ) -> None:
        async with open_socket(application, subprotocol) as socket:
            assert socket.subprotocol == subprotocol

    @pytest.mark.parametrize("offered", [["graphql-ws", "graphql-transport-ws"], ["x", "graphql-transport-ws"]])
    async def test_of_several_the_newer_one_is_chosen_whatever_the_order(
        self, application: Application, offered: list[str]
    ) -> None:
        async with open_socket(application, subprotocols=offered) as socket:
            assert socket.subprotocol == "graphql-transport-ws"

    @pytest.mark.parametrize("offered", [[], ["graphql"], ["GraphQL-WS"], ["graphql-sse", "mqtt"]])
    async def test_without_one_of_ours_the_socket_is_accepted_and_closed_so_that_browsers_see_the_code(
        self, application: Application, offered: list[str]
    ) -> None:
        socket = AsgiSocket(application, socket_scope(subprotocols=offered))
        await socket.accepted()
        assert socket.subprotocol is None
        closed = await socket.closed()
        assert (closed.code, closed.reason) == (4406, "Subprotocol not acceptable")
        await socket.task

    @pytest.mark.parametrize(
        ("origin", "accepted"),
        [(b"http://localhost", True), (b"http://localhost:8000", True), (b"https://evil.example", False)],
    )
    @override_settings(ALLOWED_HOSTS=["localhost"])
    async def test_an_origin_is_accepted_or_refused_by_the_validator_of_channels(
        self, application: Application, origin: bytes, accepted: bool
    ) -> None:
        scope = socket_scope(headers=[(b"host", b"localhost"), (b"origin", origin)])
        socket = AsgiSocket(AllowedHostsOriginValidator(application), scope)
        event = await socket.event()
        assert event["type"] == ("websocket.accept" if accepted else "websocket.close")
        if accepted:
            await socket.disconnect()

    @pytest.mark.parametrize("kind", ["http", "lifespan"])
    async def test_mounted_by_mistake_for_something_else_it_says_where_it_belongs(
        self, application: Application, kind: str
    ) -> None:
        error = await raised(application, {"type": kind, "path": "/", "headers": []})
        assert isinstance(error, ValueError)
        assert str(error) == f"GraphqlSubscriptionConsumer serves WebSockets: mount it under 'websocket', not {kind}"

    @pytest.mark.parametrize("schema", [None, "example.schema.schema", Query])
    def test_it_is_mounted_with_a_schema_and_nothing_else(self, schema: Any) -> None:
        with pytest.raises(ConfigurationError, match=r"takes a graphene\.Schema, not"):
            GraphqlSubscriptionConsumer.as_asgi(schema=schema)

    async def test_it_can_be_mounted_with_the_schema_of_graphql_core(self) -> None:
        async with open_socket(GraphqlSubscriptionConsumer.as_asgi(schema=SCHEMA.graphql_schema)) as socket:
            await socket.init()
            assert await socket.run("{ hello }") == {"data": {"hello": "world"}}


class TestOperations:
    @BOTH
    async def test_queries_mutations_and_subscriptions_run_over_one_socket(
        self, application: Application, subprotocol: str
    ) -> None:
        async with open_socket(application, subprotocol) as socket:
            await socket.init()
            before = Add.calls
            assert await socket.run("{ hello }") == {"data": {"hello": "world"}}
            assert await socket.run("mutation { add { now } }") == {"data": {"add": {"now": before + 1}}}
            socket.subscribe("subscription { count(to: 2) }")
            messages = [await socket.receive() for _ in range(3)]
            assert [message.get("payload") for message in messages] == [
                {"data": {"count": 0}},
                {"data": {"count": 1}},
                None,
            ]
            assert Add.calls == before + 1

    @pytest.mark.parametrize(
        ("query", "complaint"), [("{", "Syntax Error"), ("", "Syntax Error"), ("{ unknown }", "Cannot query field")]
    )
    @BOTH
    async def test_what_cannot_be_run_is_an_error_and_the_socket_stays_open(
        self, application: Application, subprotocol: str, query: str, complaint: str
    ) -> None:
        async with open_socket(application, subprotocol) as socket:
            await socket.init()
            socket.subscribe(query)
            message = await socket.receive()
            assert (message["id"], message["type"]) == ("1", "error")
            [error] = message["payload"] if isinstance(message["payload"], list) else [message["payload"]]
            assert complaint in error["message"]
            assert await socket.run("{ hello }") == {"data": {"hello": "world"}}

    @BOTH
    async def test_errors_of_resolvers_travel_in_the_result_and_the_operation_is_completed(
        self, application: Application, subprotocol: str
    ) -> None:
        async with open_socket(application, subprotocol) as socket:
            await socket.init()
            result = await socket.run("{ hello bad }")
            assert result["data"] == {"hello": "world", "bad": None}
            assert [error["path"] for error in result["errors"]] == [["bad"]]

    @BOTH
    async def test_an_exception_in_an_event_stream_is_an_error_and_the_socket_stays_open(
        self, application: Application, subprotocol: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with open_socket(application, subprotocol) as socket:
            await socket.init()
            socket.subscribe("subscription { broken }")
            assert (await socket.receive())["payload"] == {"data": {"broken": 1}}
            message = await socket.receive()
            error = {"message": "Internal server error"}
            assert message == {"id": "1", "type": "error", "payload": error if subprotocol == "graphql-ws" else [error]}
            assert await socket.run("{ hello }") == {"data": {"hello": "world"}}
        assert "a secret of the server" in caplog.text

    async def test_a_long_operation_does_not_keep_others_waiting(self, socket: AsgiSocket) -> None:
        await socket.init()
        socket.subscribe("subscription { forever }", id="long")
        assert (await socket.receive())["id"] == "long"
        assert await socket.run("{ hello }", id="short") == {"data": {"hello": "world"}}

    @override_settings(PGNOTIFY_GQL={"MAX_OPERATIONS": 1})
    async def test_the_limit_of_operations_is_the_settings(self, application: Application) -> None:
        async with open_socket(application) as socket:
            await socket.init()
            socket.subscribe("subscription { forever }")
            assert (await socket.receive())["type"] == "next"
            socket.subscribe("{ hello }", id="2")
            assert (await socket.receive())["type"] == "error"

    async def test_the_context_is_a_request(self, application: Application) -> None:
        async with open_socket(application, scheme="wss", user=User(username="alice")) as socket:
            await socket.init(payload={"param": "p"})
            result = await socket.run("{ username param page }")
            assert result == {"data": {"username": "alice", "param": "p", "page": "https://localhost/page/"}}

    async def test_mutated_queries_are_answered_and_never_raise(
        self, socket: AsgiSocket, caplog: pytest.LogCaptureFixture
    ) -> None:
        await socket.init()
        random = Random(1)
        query = "query Q($size: Int = 1) { hello big(size: $size) ...F @skip(if: false) } fragment F on Query { page }"
        for number in range(500):
            place, count = random.randrange(len(query)), random.choice([0, 1, 5])
            insert = random.choice(["", "{", "}", "(", "$", "...", '"', '"""', "@", "#", "\0", "\ud800", "🦜", "F"])
            socket.subscribe(query[:place] + insert + query[place + count :], id=str(number))
            message = await socket.receive()
            assert message["type"] in {"next", "error"}
            if message["type"] == "next":
                assert (await socket.receive())["type"] == "complete"
        assert [record for record in caplog.records if record.levelno > logging.INFO] == []


class TestBadFrames:
    async def test_a_frame_above_the_limit_closes_its_socket_and_disturbs_no_other(
        self, application: Application
    ) -> None:
        async with open_socket(application) as socket, open_socket(application) as other:
            await other.init()
            await socket.init()
            socket.send("ping", payload={"x": "x" * 10_000_000})
            closed = await socket.closed()
            assert (closed.code, closed.reason) == (1009, "Messages may have 1000000 bytes")
            assert await other.run("{ hello }") == {"data": {"hello": "world"}}

    @override_settings(PGNOTIFY_GQL={"MAX_MESSAGE_BYTES": 100})
    @pytest.mark.parametrize("character", ["x", "ä", "🦜", "\ud800"])
    async def test_a_frame_is_measured_in_bytes(self, application: Application, character: str) -> None:
        def ping(size: int) -> str:
            width = len(character.encode(errors="replace"))
            head, tail = '{"type":"ping","payload":{"x":"', '"}}'
            room = size - len(head) - len(tail)
            return head + character * (room // width) + "x" * (room % width) + tail

        async with open_socket(application) as socket:
            socket.text(ping(100))
            assert (await socket.receive())["type"] == "pong"
            socket.text(ping(101))
            assert (await socket.closed()).code == 1009

    @BOTH
    async def test_a_frame_above_the_limit_closes_whatever_the_subprotocol(
        self, application: Application, subprotocol: str
    ) -> None:
        async with open_socket(application, subprotocol) as socket:
            socket.text("x" * 1_000_001)
            assert (await socket.closed()).code == 1009

    async def test_an_unreadable_frame_closes_with_a_reason(self, socket: AsgiSocket) -> None:
        socket.text("nonsense")
        closed = await socket.closed()
        assert (closed.code, closed.reason) == (4400, "the message is not JSON")

    async def test_a_binary_frame_closes_with_a_reason(self, socket: AsgiSocket) -> None:
        socket.bytes(b'{"type":"ping"}')
        closed = await socket.closed()
        assert (closed.code, closed.reason) == (4400, "binary frames are not part of the protocol")

    async def test_on_the_legacy_subprotocol_an_unreadable_frame_leaves_the_socket_open(
        self, application: Application
    ) -> None:
        async with open_socket(application, "graphql-ws") as socket:
            await socket.init()
            socket.text("nonsense")
            assert (await socket.receive())["type"] == "connection_error"
            socket.bytes(b"{}")
            assert (await socket.receive())["type"] == "connection_error"
            assert await socket.run("{ hello }") == {"data": {"hello": "world"}}

    @pytest.mark.parametrize("kind", ["\ud800" * 200, "🦜" * 200])
    async def test_a_reason_is_one_a_server_can_send(self, socket: AsgiSocket, kind: str) -> None:
        socket.send(kind)
        closed = await socket.closed()
        assert closed.code == 4400
        assert 40 < len(closed.reason.encode()) <= 123


class TestAClientThatDoesNotRead:
    @override_settings(PGNOTIFY_GQL={"OUTBOX_MESSAGES": 10})
    async def test_is_closed_so_that_it_comes_back_once_too_many_messages_wait(
        self, application: Application, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with open_socket(application) as socket:
            await socket.init()
            socket.reads.clear()
            socket.subscribe("subscription { flood }")
            closed = await socket.closed()
            assert (closed.code, closed.reason) == (1013, "Too many messages are waiting for this client")
            assert told(caplog) == ["a client did not read fast enough; its socket is closed with 1013"]
            await until(lambda: ended == ["flood"])

    @override_settings(PGNOTIFY_GQL={"OUTBOX_BYTES": 50_000})
    async def test_is_closed_once_too_many_bytes_wait(self, application: Application) -> None:
        async with open_socket(application) as socket:
            await socket.init()
            socket.reads.clear()
            socket.subscribe("subscription { flood }")
            assert (await socket.closed()).code == 1013

    @override_settings(PGNOTIFY_GQL={"OUTBOX_BYTES": 5_000})
    async def test_is_sent_a_message_that_alone_is_above_the_limit(self, application: Application) -> None:
        async with open_socket(application) as socket:
            await socket.init()
            socket.subscribe("subscription { large }")
            message = await socket.receive()
            assert len(message["payload"]["data"]["large"]) == 10_000

    @override_settings(PGNOTIFY_GQL={"OUTBOX_BYTES": 5_000})
    async def test_is_sent_the_result_of_a_query_that_alone_is_above_the_limit(self, application: Application) -> None:
        async with open_socket(application) as socket:
            await socket.init()
            result = await socket.run("{ big(size: 10000) }")
            assert len(result["data"]["big"]) == 10_000

    @override_settings(PGNOTIFY_GQL={"OUTBOX_MESSAGES": 10})
    async def test_disturbs_no_other(self, application: Application) -> None:
        async with open_socket(application) as socket, open_socket(application) as other:
            await other.init()
            await socket.init()
            socket.reads.clear()
            socket.subscribe("subscription { flood }")
            assert (await socket.closed()).code == 1013
            assert await other.run("{ hello }") == {"data": {"hello": "world"}}

    @override_settings(PGNOTIFY_GQL={"OUTBOX_MESSAGES": 10})
    async def test_has_no_more_of_its_frames_run_after_the_close(self, application: Application) -> None:
        async with open_socket(application) as socket:
            await socket.init()
            socket.reads.clear()
            socket.subscribe("subscription { flood }")
            assert (await socket.closed()).code == 1013
            before = Add.calls
            socket.subscribe("mutation { add { now } }", id="2")
            await socket.disconnect()
            assert Add.calls == before

    @override_settings(PGNOTIFY_GQL={"OUTBOX_MESSAGES": 10})
    async def test_may_flood_us_with_pings_and_fills_no_more_than_its_outbox(self, application: Application) -> None:
        async with open_socket(application) as socket:
            socket.reads.clear()
            for _ in range(1_000):
                socket.send("ping")
            assert (await socket.closed()).code == 1013


@pytest.mark.parametrize("code", [1001, 1009, 1012, 1013])
def test_a_code_that_some_servers_cannot_send_has_a_private_one_on_which_clients_act_alike(code: int) -> None:
    never_retried = {4004, 4005, 4400, 4401, 4406, 4409, 4429, 4500}
    assert (PRIVATE_CODES[CloseCode(code)] in never_retried) is (code == CloseCode.MESSAGE_TOO_BIG)


async def test_a_server_that_sends_private_codes_only_is_given_one(application: Application) -> None:
    def as_daphne(application: Application) -> Application:
        async def wrapped(scope: Any, receive: Any, send: Any) -> None:
            async def send_private(event: dict[str, Any]) -> None:
                if event["type"] == "websocket.close" and event["code"] != 1000 and event["code"] < 3000:
                    raise RuntimeError("invalid close code")
                await send(event)

            await application(scope, receive, send_private)

        return wrapped

    async with open_socket(as_daphne(application)) as socket:
        socket.text("x" * 1_000_001)
        closed = await socket.closed()
        assert (closed.code, closed.reason) == (4400, "Messages may have 1000000 bytes")


class Asynchronous(GraphqlSubscriptionConsumer):
    async def on_connect(self, payload: Mapping[str, Any]) -> Mapping[str, Any] | bool | None:
        self.scope["user"] = User(username=payload.get("name", ""))
        return {"thread": threading.current_thread().name}


class Synchronous(GraphqlSubscriptionConsumer):
    def on_connect(self, payload: Mapping[str, Any]) -> Any:
        self.scope["user"] = User(username=payload.get("name", ""))
        return {"thread": threading.current_thread().name}


class Adapted(GraphqlSubscriptionConsumer):
    @sync_to_async
    def on_connect(self, payload: Mapping[str, Any]) -> Any:
        self.scope["user"] = User(username=payload.get("name", ""))
        return {"thread": ""}


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


class Decorated(GraphqlSubscriptionConsumer):
    @logged
    async def on_connect(self, payload: Mapping[str, Any]) -> Any:
        self.scope["user"] = User(username=payload.get("name", ""))
        return payload["name"] == "alice" and {"thread": ""}


class TestOnConnect:
    @pytest.mark.parametrize("consumer", [Asynchronous, Synchronous, Adapted, Decorated])
    async def test_sets_the_user_of_every_operation(self, consumer: type[GraphqlSubscriptionConsumer]) -> None:
        scope = socket_scope(user=AnonymousUser())
        async with open_socket(consumer.as_asgi(schema=SCHEMA), **scope) as socket:
            ack = await socket.init(payload={"name": "alice"})
            assert "thread" in ack["payload"]
            assert await socket.run("{ username }") == {"data": {"username": "alice"}}
        assert isinstance(scope["user"], AnonymousUser)

    async def test_a_plain_method_runs_in_a_worker_thread(self) -> None:
        async with open_socket(Synchronous.as_asgi(schema=SCHEMA)) as socket:
            assert (await socket.init())["payload"]["thread"].startswith("pgnotify_gql")
        async with open_socket(Asynchronous.as_asgi(schema=SCHEMA)) as socket:
            assert (await socket.init())["payload"]["thread"] == threading.current_thread().name

    async def test_a_decorated_asynchronous_method_can_refuse(self) -> None:
        async with open_socket(Decorated.as_asgi(schema=SCHEMA)) as socket:
            socket.send("connection_init", payload={"name": "mallory"})
            assert (await socket.closed()).code == 4403

    async def test_what_one_socket_sets_no_other_sees(self) -> None:
        application = Asynchronous.as_asgi(schema=SCHEMA)
        async with open_socket(application) as one, open_socket(application) as other:
            await one.init(payload={"name": "alice"})
            await other.init(payload={"name": "bob"})
            assert await one.run("{ username }") == {"data": {"username": "alice"}}
            assert await other.run("{ username }") == {"data": {"username": "bob"}}

    @BOTH
    async def test_that_raises_closes_with_an_internal_error_and_tells_only_the_log(
        self, subprotocol: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with open_socket(Decorated.as_asgi(schema=SCHEMA), subprotocol) as socket:
            socket.send("connection_init", payload={"token": "hunter2"})
            closed = await socket.closed()
            assert (closed.code, closed.reason) == (4500, "Internal server error")
        assert "KeyError: 'name'" in caplog.text

    async def test_without_an_override_everybody_may_connect(self, socket: AsgiSocket) -> None:
        assert await socket.init() == {"type": "connection_ack"}

    @override_settings(PGNOTIFY_GQL={"INIT_TIMEOUT": 0.01})
    async def test_that_is_never_asked_ends_in_a_time_out(self, application: Application) -> None:
        async with open_socket(application) as socket:
            closed = await socket.closed()
            assert (closed.code, closed.reason) == (4408, "Connection initialisation timeout")


class BrokenLayer(BaseChannelLayer):  # type: ignore[misc]
    async def new_channel(self, prefix: str = "specific.") -> str:
        raise OSError("Connection refused")


class TestConfigurationErrors:
    async def closed(self, application: Application) -> ClosedError:
        socket = AsgiSocket(application, socket_scope())
        await socket.accepted()
        closed = await socket.closed()
        await socket.task
        return closed

    @override_settings(PGNOTIFY_GQL={"CHANNEL_LAYER": "nowhere"})
    async def test_without_a_channel_layer_one_sentence_says_so(
        self, application: Application, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert (await self.closed(application)).code == 4500
        [record] = caplog.records
        assert record.exc_info is None
        assert record.message == (
            "sockets cannot be served: CHANNEL_LAYERS has no 'nowhere': configure a channel layer"
        )

    async def test_without_postgresql_one_sentence_says_so(
        self, application: Application, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr("django.db.backends.postgresql.base.DatabaseWrapper.vendor", "sqlite")
        assert (await self.closed(application)).code == 4500
        [record] = caplog.records
        assert record.exc_info is None
        assert record.message == ("sockets cannot be served: database 'default' is sqlite: the feed needs PostgreSQL")

    @override_settings(PGNOTIFY_GQL={"WORKER": 3})
    async def test_a_mistake_in_the_settings_is_told_in_one_sentence(
        self, application: Application, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert (await self.closed(application)).code == 4500
        [record] = caplog.records
        assert "unknown key 'WORKER': did you mean WORKERS?" in record.message

    @override_settings(CHANNEL_LAYERS={"default": {"BACKEND": "no.such.Layer"}})
    async def test_a_layer_that_cannot_be_made_is_told_in_one_sentence(
        self, application: Application, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert (await self.closed(application)).code == 4500
        [record] = caplog.records
        assert record.exc_info is None
        assert "sockets cannot be served: Cannot import BACKEND 'no.such.Layer'" in record.message


async def test_a_socket_is_served_while_the_layer_is_away_and_one_sentence_says_so(
    application: Application, caplog: pytest.LogCaptureFixture
) -> None:
    channel_layers.set("default", BrokenLayer())
    async with open_socket(application) as socket:
        await socket.init()
        assert await socket.run("{ hello }") == {"data": {"hello": "world"}}
    [record] = caplog.records
    assert record.exc_info is None
    assert "the channel layer failed (OSError('Connection refused')); it is tried again" in record.message


class TestTheEndOfASocket:
    @BOTH
    async def test_in_the_middle_of_operations_leaves_no_task_and_no_stream(
        self, application: Application, subprotocol: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        before = asyncio.all_tasks()
        async with open_socket(application, subprotocol) as socket:
            await socket.init()
            for name in ("1", "2", "3"):
                socket.subscribe("subscription { forever }", id=name)
                await socket.receive()
            socket.subscribe("{ hello }", id="4")
            await socket.disconnect()
            await until(lambda: len(ended) == len(started) == 3)
        assert asyncio.all_tasks() == before
        assert told(caplog) == []

    async def test_while_its_initialisation_is_pending_leaves_no_task(self) -> None:
        class Slow(GraphqlSubscriptionConsumer):
            async def on_connect(self, payload: Mapping[str, Any]) -> Mapping[str, Any] | bool | None:
                started.append("on_connect")
                await asyncio.Event().wait()
                return None

        before = asyncio.all_tasks()
        async with open_socket(Slow.as_asgi(schema=SCHEMA)) as socket:
            socket.send("connection_init")
            await until(lambda: started == ["on_connect"])
            await socket.disconnect()
        assert asyncio.all_tasks() == before

    async def test_before_it_said_anything_leaves_no_task(self, application: Application) -> None:
        before = asyncio.all_tasks()
        async with open_socket(application) as socket:
            await socket.disconnect()
        assert asyncio.all_tasks() == before

    async def test_while_it_does_not_read_leaves_no_task(self, application: Application) -> None:
        before = asyncio.all_tasks()
        async with open_socket(application) as socket:
            await socket.init()
            socket.reads.clear()
            socket.subscribe("{ hello }")
            await socket.waiting.wait()
            await socket.disconnect()
        assert asyncio.all_tasks() == before

    async def test_that_the_server_cancels_leaves_no_task(self, application: Application) -> None:
        before = asyncio.all_tasks()
        async with open_socket(application) as socket:
            await socket.init()
            socket.subscribe("subscription { forever }")
            await socket.receive()
            socket.task.cancel()
            await asyncio.gather(socket.task, return_exceptions=True)
            await until(lambda: asyncio.all_tasks() == before)
        assert ended == ["forever"]

    async def test_whose_client_is_gone_when_it_is_written_to_is_quiet(
        self, application: Application, caplog: pytest.LogCaptureFixture
    ) -> None:
        receiving: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        sending = asyncio.Event()

        async def send(event: dict[str, Any]) -> None:
            if event["type"] == "websocket.send":
                sending.set()
                raise OSError("the client is gone")

        receiving.put_nowait({"type": "websocket.connect"})
        receiving.put_nowait({"type": "websocket.receive", "text": json.dumps({"type": "ping"})})
        task = asyncio.create_task(_served(application, receiving, send))
        await sending.wait()
        receiving.put_nowait({"type": "websocket.disconnect", "code": 1006})
        await task
        assert told(caplog) == []

    @pytest.mark.parametrize("code", [CloseCode.BAD_REQUEST, CloseCode.MESSAGE_TOO_BIG])
    async def test_whose_client_is_gone_when_it_is_closed_is_quiet(
        self, application: Application, caplog: pytest.LogCaptureFixture, code: CloseCode
    ) -> None:
        receiving: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        caplog.set_level(logging.DEBUG, "pgnotify_gql.transport")
        closes: list[int] = []
        closing = asyncio.Event()

        async def send(event: dict[str, Any]) -> None:
            if event["type"] == "websocket.close":
                closes.append(event["code"])
                closing.set()
                raise OSError("the client is gone")

        receiving.put_nowait({"type": "websocket.connect"})
        text = "no JSON" if code == CloseCode.BAD_REQUEST else "x" * 1_000_001
        receiving.put_nowait({"type": "websocket.receive", "text": text})
        task = asyncio.create_task(_served(application, receiving, send))
        await closing.wait()
        await quiet()
        receiving.put_nowait({"type": "websocket.disconnect", "code": 1006})
        await task
        assert told(caplog) == []
        assert "a socket could not be closed: OSError('the client is gone')" in caplog.text
        assert closes == [code, *([PRIVATE_CODES[code]] if code in PRIVATE_CODES else [])]


async def _served(application: Application, receiving: asyncio.Queue[dict[str, Any]], send: Any) -> None:
    await application(socket_scope(), receiving.get, send)


class TestTheHub:
    async def test_starts_with_the_first_socket_and_closes_after_the_last(self, application: Application) -> None:
        with pytest.raises(RuntimeError, match="no hub is open"):
            current_hub()
        async with open_socket(application) as first:
            await first.init()
            hub = current_hub()
            async with open_socket(application) as second:
                await second.init()
                assert current_hub() is hub
            assert current_hub() is hub
        with pytest.raises(RuntimeError, match="no hub is open"):
            current_hub()

    async def test_of_the_next_socket_is_a_new_one(self, application: Application) -> None:
        hubs = []
        for _ in range(2):
            async with open_socket(application) as socket:
                await socket.init()
                hubs.append(current_hub())
        assert hubs[0] is not hubs[1]

    async def test_is_one_for_sockets_that_open_at_once(self, application: Application) -> None:
        sockets = [AsgiSocket(application, socket_scope()) for _ in range(20)]
        for socket in sockets:
            await socket.accepted()
            await socket.init()
        names = [task.get_name() for task in asyncio.all_tasks()]
        assert names.count("pgnotify_gql hub default") == 1
        await asyncio.gather(*(socket.disconnect() for socket in sockets))
        assert not any(task.get_name().startswith("pgnotify_gql") for task in asyncio.all_tasks())

    @override_settings(PGNOTIFY_GQL={"INLINE_LISTENER": True})
    async def test_brings_the_inline_listener_with_it(
        self, application: Application, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def listen(*_: Any) -> None:
            started.append("listener")
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("listener")

        monkeypatch.setattr(process, "_listen", listen)
        async with open_socket(application), open_socket(application):
            await until(lambda: bool(started))
        assert started == ended == ["listener"]
