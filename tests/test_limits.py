"""What a client may ask, and how often: each limit of the settings, and exactly what it is told."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any

import graphene
import pytest
from django.core.exceptions import PermissionDenied
from django.test import override_settings
from graphql import GraphQLError, get_introspection_query

from pgnotify_gql.checks import check_settings
from pgnotify_gql.errors import ConfigurationError
from pgnotify_gql.transport import GraphqlSseConsumer, GraphqlSubscriptionConsumer
from pgnotify_gql.transport.documents import Documents
from tests.support.layers import default_layer
from tests.support.sockets import Application, AsgiSocket, open_socket
from tests.support.streams import COMPLETE, get, held, open_stream, post

BOTH = pytest.mark.parametrize("subprotocol", ["graphql-transport-ws", "graphql-ws"])

LISTED = "query Known($n: Int) { hello(n: $n) }"
OTHER = "query Other { hello(n: 2) }"


class Query(graphene.ObjectType):  # type: ignore[misc]
    hello = graphene.String(n=graphene.Int())
    deeper = graphene.Field(lambda: Query)

    @staticmethod
    def resolve_hello(root: Any, info: Any, n: int = 0) -> str:
        return f"hello {n}"

    @staticmethod
    def resolve_deeper(root: Any, info: Any) -> dict[str, Any]:
        return {}


class Shout(graphene.Mutation):  # type: ignore[misc]
    loud = graphene.String()

    @classmethod
    def mutate(cls, root: Any, info: Any) -> Shout:
        raise AssertionError("it was run")


class Mutation(graphene.ObjectType):  # type: ignore[misc]
    shout = Shout.Field()


SCHEMA = graphene.Schema(query=Query, mutation=Mutation)


@pytest.fixture(autouse=True)
def feed() -> Iterator[None]:
    """No listener: nothing here waits for a change."""
    with default_layer():
        yield


def settings(**values: Any) -> Any:
    return override_settings(PGNOTIFY_GQL=values)


def application(**methods: Any) -> Application:
    consumer: type[GraphqlSubscriptionConsumer] = type("Consumer", (GraphqlSubscriptionConsumer,), methods)
    return consumer.as_asgi(schema=SCHEMA)


async def errors(socket: AsgiSocket, query: str, **payload: Any) -> list[dict[str, Any]]:
    """Ask for what is refused; the socket is open afterwards."""
    socket.subscribe(query, **payload)
    message = await socket.receive()
    assert message["type"] == "error", message
    socket.send("connection_init" if socket.subprotocol == "graphql-ws" else "ping")
    assert (await socket.receive())["type"] in {"pong", "connection_error"}
    found = message["payload"]
    return found if isinstance(found, list) else [found]


QUERIES: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "depth": (
        {"MAX_QUERY_DEPTH": 2},
        "{ deeper { hello } }",
        "{ deeper { deeper { hello } } }",
        "QUERY_TOO_DEEP",
    ),
    "complexity": (
        {"MAX_QUERY_COMPLEXITY": 3},
        "{ deeper { a: hello(n: 1) b: hello(n: 2) } }",
        "{ ...f deeper { ...f } } fragment f on Query { a: hello b: hello(n: 1) }",
        "QUERY_TOO_COMPLEX",
    ),
    "aliases": (
        {"MAX_QUERY_ALIASES": 2},
        "{ a: hello b: hello hello }",
        "{ a: hello b: hello c: hello }",
        "TOO_MANY_ALIASES",
    ),
    "introspection": (
        {"INTROSPECTION": False},
        "{ __typename hello }",
        get_introspection_query(),
        "INTROSPECTION_DISABLED",
    ),
}


@BOTH
@pytest.mark.parametrize("name", QUERIES)
async def test_a_document_may_ask_for_so_much_and_no_more(subprotocol: str, name: str) -> None:
    values, allowed, refused, code = QUERIES[name]
    with settings(**values), override_settings(DEBUG=False):
        async with open_socket(application(), subprotocol) as socket:
            await socket.init()
            assert "errors" not in await socket.run(allowed)
            [error] = (await errors(socket, refused))[:1]
            assert error["extensions"]["code"] == code
            assert "MAX_" not in error["message"]


async def test_a_document_may_have_so_many_tokens() -> None:
    with settings(MAX_QUERY_TOKENS=10):
        async with open_socket(application()) as socket:
            await socket.init()
            assert "errors" not in await socket.run("{ a: hello }")
            [error] = await errors(socket, "{ a: hello b: hello c: hello d: hello }")
            assert "10 tokens" in error["message"]


@pytest.mark.parametrize(
    ("debug", "setting", "told"), [(True, False, True), (False, True, True), (False, False, False)]
)
async def test_the_schema_is_told_with_debug_or_where_the_site_says_so(debug: bool, setting: bool, told: bool) -> None:
    with settings(INTROSPECTION=setting), override_settings(DEBUG=debug):
        async with open_socket(application()) as socket:
            await socket.init()
            if told:
                assert (await socket.run(get_introspection_query()))["data"]["__schema"]
            else:
                [error, *_] = await errors(socket, "{ __schema { types { name } } }")
                assert error["extensions"]["code"] == "INTROSPECTION_DISABLED"


async def test_limits_hold_for_streams_as_well() -> None:
    with settings(MAX_QUERY_DEPTH=1):
        async with open_stream(get(GraphqlSseConsumer.as_asgi(schema=SCHEMA), "{ deeper { hello } }")) as stream:
            [error] = (await stream.result())["errors"]
            assert error["extensions"]["code"] == "QUERY_TOO_DEEP"
            assert await stream.event() == COMPLETE


class TestMessages:
    @BOTH
    async def test_whoever_sends_faster_than_allowed_is_closed(self, subprotocol: str) -> None:
        with settings(MESSAGE_RATE=1):
            async with open_socket(application(), subprotocol) as socket:
                await socket.init()
                # Those of ten seconds at once, of which the initialisation was one.
                for _ in range(9):
                    assert (await socket.run("{ hello }"))["data"] == {"hello": "hello 0"}
                for number in range(10):
                    socket.subscribe("{ hello }", id=f"more {number}")
                closed = await socket.closed()
                assert (closed.code, closed.reason) == (4429, "Too many messages")

    async def test_binary_frames_count_too(self) -> None:
        with settings(MESSAGE_RATE=1):
            async with open_socket(application(), "graphql-ws") as socket:
                for _ in range(12):
                    socket.bytes(b"\0")
                assert (await socket.closed()).code == 4429


class TestAllowedDocuments:
    @pytest.fixture
    def path(self, tmp_path: Path) -> str:
        path = tmp_path / "documents.json"
        path.write_text(json.dumps({"known": LISTED, "shout": "mutation { shout { loud } }"}))
        return str(path)

    @BOTH
    async def test_only_documents_of_the_list_are_run(self, path: str, subprotocol: str) -> None:
        with settings(ALLOWED_DOCUMENTS=path):
            async with open_socket(application(), subprotocol) as socket:
                await socket.init()
                assert await socket.run(LISTED, variables={"n": 3}) == {"data": {"hello": "hello 3"}}
                [error] = await errors(socket, OTHER)
                assert error["extensions"]["code"] == "DOCUMENT_NOT_ALLOWED"

    @pytest.mark.parametrize("extensions", [{"documentId": "known"}])
    async def test_an_id_stands_for_a_document(self, path: str, extensions: dict[str, Any]) -> None:
        with settings(ALLOWED_DOCUMENTS=path):
            async with open_socket(application()) as socket:
                await socket.init()
                result = await socket.run("", variables={"n": 4}, extensions=extensions)
                assert result == {"data": {"hello": "hello 4"}}

    async def test_a_mutation_by_its_id_is_not_run_over_get(self, path: str) -> None:
        with settings(ALLOWED_DOCUMENTS=path):
            app = GraphqlSseConsumer.as_asgi(schema=SCHEMA)
            stream = get(app, "", extensions={"documentId": "shout"})
            assert (await stream.refusal())[0] == 405
            async with held(post(app, {"query": "", "extensions": {"documentId": "known"}})) as posted:
                await posted.start()
                assert await posted.result() == {"data": {"hello": "hello 0"}}

    async def test_what_is_not_in_the_list_is_not_even_read(self, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        read: list[str] = []
        monkeypatch.setattr(Documents, "get", lambda self, query: read.append(query))
        with settings(ALLOWED_DOCUMENTS=path):
            async with open_stream(get(GraphqlSseConsumer.as_asgi(schema=SCHEMA), OTHER)) as stream:
                [error] = (await stream.result())["errors"]
                assert error["extensions"]["code"] == "DOCUMENT_NOT_ALLOWED"
        assert read == []

    async def test_they_are_not_limited(self, path: str) -> None:
        with settings(ALLOWED_DOCUMENTS=path, MAX_QUERY_TOKENS=1, MAX_QUERY_COMPLEXITY=1, MAX_QUERY_DEPTH=1):
            async with open_socket(application()) as socket:
                await socket.init()
                assert "errors" not in await socket.run(LISTED)

    def test_a_file_that_is_not_there_is_a_mistake_of_the_settings(self, tmp_path: Path) -> None:
        with (
            settings(ALLOWED_DOCUMENTS=str(tmp_path / "none.json")),
            pytest.raises(ConfigurationError, match="cannot be read"),
        ):
            application()


class TestOnOperation:
    @pytest.mark.parametrize("asynchronous", [False, True])
    async def test_the_application_may_refuse(self, asynchronous: bool) -> None:
        seen = []

        def decide(self: Any, request: Any) -> bool | None:
            seen.append((request.query, request.operation_name, dict(request.variables or {})))
            return None if request.operation_name == "Known" else False

        async def later(self: Any, request: Any) -> bool | None:
            return decide(self, request)

        async with open_socket(application(on_operation=later if asynchronous else decide)) as socket:
            await socket.init()
            result = await socket.run(LISTED, variables={"n": 1}, operationName="Known")
            assert result == {"data": {"hello": "hello 1"}}
            [error] = await errors(socket, OTHER)
            assert (error["message"], error["extensions"]) == ("permission denied", {"code": "FORBIDDEN"})
        assert seen == [(LISTED, "Known", {"n": 1}), (OTHER, None, {})]

    async def test_what_it_raises_for_the_client_is_told(self) -> None:
        def refuse(self: Any, request: Any) -> None:
            raise GraphQLError("not today", extensions={"code": "LATER"})

        async with open_socket(application(on_operation=refuse)) as socket:
            await socket.init()
            [error] = await errors(socket, OTHER)
            assert (error["message"], error["extensions"]) == ("not today", {"code": "LATER"})

    @pytest.mark.parametrize(
        ("raised", "code"), [(PermissionDenied("of the vault"), "FORBIDDEN"), (KeyError("vault"), "INTERNAL_ERROR")]
    )
    async def test_what_else_it_raises_is_not(self, raised: Exception, code: str) -> None:
        def fail(self: Any, request: Any) -> None:
            raise raised

        with override_settings(DEBUG=False):
            async with open_socket(application(on_operation=fail)) as socket:
                await socket.init()
                [error] = await errors(socket, OTHER)
                assert error["extensions"]["code"] == code
                assert "vault" not in str(error)

    async def test_a_subclass_may_leave_the_decision_to_the_class_above_which_lets_everything_run(self) -> None:
        class Consumer(GraphqlSubscriptionConsumer):
            async def on_operation(self, request: Any) -> bool | None:
                above = super().on_operation(request)
                assert isinstance(above, Awaitable)
                return await above

        async with open_socket(Consumer.as_asgi(schema=SCHEMA)) as socket:
            await socket.init()
            socket.send("subscribe", id="1", payload={"query": OTHER})
            assert (await socket.receive())["type"] == "next"

    async def test_streams_ask_as_well(self) -> None:
        class Consumer(GraphqlSseConsumer):
            async def on_operation(self, request: Any) -> bool:
                return False

        async with open_stream(get(Consumer.as_asgi(schema=SCHEMA), OTHER)) as stream:
            [error] = (await stream.result())["errors"]
            assert error["extensions"]["code"] == "FORBIDDEN"
            assert await stream.event() == COMPLETE

    @pytest.mark.parametrize(("answer", "status"), [(False, 403), ("", 500), (0, 500)])
    async def test_a_stream_may_be_refused_at_the_door(self, answer: Any, status: int) -> None:
        class Consumer(GraphqlSseConsumer):
            async def on_connect(self, payload: Any) -> Any:
                return answer

        assert (await get(Consumer.as_asgi(schema=SCHEMA), OTHER).refusal())[0] == status

    @pytest.mark.parametrize("answer", ["", 0, "yes"])
    async def test_what_is_no_answer_lets_nothing_run(self, answer: Any) -> None:
        async with open_socket(application(on_operation=lambda self, request: answer)) as socket:
            await socket.init()
            [error] = await errors(socket, OTHER)
            assert error["extensions"]["code"] == "FORBIDDEN"

    async def test_a_slow_rate_lets_one_message_through_at_a_time(self) -> None:
        with settings(MESSAGE_RATE=0.01):
            async with open_socket(application()) as socket:
                await socket.init()


def test_a_list_of_documents_that_cannot_be_read_is_found_by_the_system_check(tmp_path: Path) -> None:
    (tmp_path / "empty.json").write_text("[]")
    with settings(ALLOWED_DOCUMENTS=str(tmp_path / "empty.json")):
        [message] = check_settings()
    assert message.id == "pgnotify_gql.E008"
    assert "empty.json" in message.msg
