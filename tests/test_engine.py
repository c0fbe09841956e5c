"""The engine runs requests on a schema: queries and mutations once, subscriptions on a stream or on the hub."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from inspect import isawaitable
from typing import Any, cast

import graphene
import pytest
from django.contrib.auth.models import AnonymousUser, User
from graphene.types.generic import GenericScalar
from graphql import GraphQLError

from example.conversations.models import Message
from pgnotify_gql.hub import Audience, Batch, Event, Interest, Operation, Topic
from pgnotify_gql.hub.cursor import Cursor
from pgnotify_gql.hub.executor import Executor
from pgnotify_gql.hub.hub import Hub
from pgnotify_gql.hub.payloads import Payloads
from pgnotify_gql.journal.change import Change
from pgnotify_gql.transport.context import OperationRequest
from pgnotify_gql.transport.documents import Documents
from pgnotify_gql.transport.engine import GraphqlEngine
from pgnotify_gql.transport.frames import Request
from pgnotify_gql.transport.protocol import RequestError
from tests.support.sockets import WAIT, quiet, socket_scope


class Query(graphene.ObjectType):  # type: ignore[misc]
    thread = graphene.String()
    later = graphene.String()
    sum = graphene.Int(a=graphene.Int(required=True), b=graphene.Int(default_value=1))
    fails = graphene.String()
    refuses = graphene.String()
    raw = graphene.Field(GenericScalar, kind=graphene.String())
    username = graphene.String()
    loaded = graphene.Boolean()

    @staticmethod
    def resolve_thread(root: Any, info: Any) -> str:
        return threading.current_thread().name

    @staticmethod
    async def resolve_later(root: Any, info: Any) -> str:
        await asyncio.sleep(0)
        return threading.current_thread().name

    @staticmethod
    def resolve_sum(root: Any, info: Any, a: int, b: int) -> int:
        return a + b

    @staticmethod
    def resolve_fails(root: Any, info: Any) -> str:
        raise ValueError("it fails")

    @staticmethod
    def resolve_refuses(root: Any, info: Any) -> str:
        raise GraphQLError("it refuses", extensions={"code": "REFUSED"})

    @staticmethod
    def resolve_raw(root: Any, info: Any, kind: str) -> Any:
        circle: list[Any] = []
        circle.append(circle)
        return {"object": object(), "nan": float("nan"), "circle": circle, "surrogate": "\ud800"}[kind]

    @staticmethod
    def resolve_username(root: Any, info: Any) -> str:
        username: str = info.context.user.username
        return username

    @staticmethod
    def resolve_loaded(root: Any, info: Any) -> bool:
        before = hasattr(info.context, "loader")
        info.context.loader = object()
        return before


class Countdown:
    """An asynchronous iterator that is no generator, and so cannot be closed."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __aiter__(self) -> "Countdown":
        return self

    async def __anext__(self) -> int:
        if self.number == 0:
            raise StopAsyncIteration
        self.number -= 1
        return self.number


asked: list[str] = []
"""The fields for which it was asked what feeds them."""


class Increment(graphene.Mutation):  # type: ignore[misc]
    calls = 0
    now = graphene.Int()

    @classmethod
    def mutate(cls, root: Any, info: Any) -> "Increment":
        Increment.calls += 1
        return cls(now=Increment.calls)


class Mutation(graphene.ObjectType):  # type: ignore[misc]
    increment = Increment.Field()


class Subscription(graphene.ObjectType):  # type: ignore[misc]
    count = graphene.Int(to=graphene.Int(required=True))
    breaks = graphene.Int()
    fails = graphene.Int()
    refuses = graphene.Int()
    nothing = graphene.Int()
    countdown = graphene.Int()
    wavers = graphene.Int()
    changes = graphene.Field(Query, audience=graphene.String(), room=graphene.Int())

    @staticmethod
    async def subscribe_count(root: Any, info: Any, to: int) -> AsyncIterator[int]:
        for number in range(to):
            await asyncio.sleep(0)
            yield number

    @staticmethod
    def resolve_count(root: int, info: Any, to: int) -> int:
        return root

    @staticmethod
    async def subscribe_breaks(root: Any, info: Any) -> AsyncIterator[int]:
        yield 1
        raise ValueError("it breaks")

    @staticmethod
    def resolve_breaks(root: int, info: Any) -> int:
        return root

    @staticmethod
    async def subscribe_fails(root: Any, info: Any) -> AsyncIterator[int]:
        raise ValueError("it fails")

    @staticmethod
    async def subscribe_refuses(root: Any, info: Any) -> AsyncIterator[int]:
        raise GraphQLError("it refuses")

    @staticmethod
    async def subscribe_countdown(root: Any, info: Any) -> AsyncIterator[int]:
        return Countdown(3)

    @staticmethod
    def resolve_countdown(root: int, info: Any) -> int:
        return root

    @staticmethod
    async def subscribe_wavers(root: Any, info: Any) -> Any:
        asked.append("wavers")
        return Interest((), dependencies=(Topic(Message),)) if len(asked) == 1 else Countdown(3)

    @staticmethod
    async def subscribe_changes(root: Any, info: Any, audience: str = "nobody", room: int = 0) -> Interest:
        return Interest((), Audience(audience))

    @staticmethod
    def resolve_changes(root: Any, info: Any, **arguments: Any) -> Any:
        change: Any = root.change
        if isinstance(change, Exception):
            raise change
        root.skipped = change is None
        return change


SCHEMA = graphene.Schema(query=Query, mutation=Mutation, subscription=Subscription)


class FakeHub:
    """Keeps what was joined, and feeds nothing."""

    def __init__(self) -> None:
        self.executor = Executor(2)
        self.operations: list[Operation] = []
        self.joined = asyncio.Event()
        self.since: Cursor | None = None
        self.questions = asyncio.Semaphore(1)

    @asynccontextmanager
    async def depending(self, topics: Any, changed: Callable[[], None]) -> AsyncIterator[None]:
        yield

    async def serve(self, operation: Operation, since: Cursor | None = None) -> None:
        self.operations.append(operation)
        self.since = since
        self.joined.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.operations.remove(operation)


@dataclass
class Collected:
    """The results of an operation, in a list."""

    results: list[Any]
    read: Callable[[str], Any] = str

    def send(self, payload: str) -> None:
        self.results.append(self.read(payload))

    def offer(self, payloads: Payloads) -> int:
        for payload in payloads:
            self.send(payload)
        return len(payloads)

    async def room(self) -> None:
        pass


CURSOR = Cursor({}, {})


class Nameless:
    """A user of the application's own, who has no name."""

    is_authenticated = True
    pk = 1

    def get_username(self) -> str:
        raise NotImplementedError


class Bench:
    """An engine between a fake hub and a list of results."""

    def __init__(self) -> None:
        self.hub = FakeHub()
        self.user: Any = AnonymousUser()
        self.results: list[Any] = []

    def engine(self, schema: Any = SCHEMA) -> GraphqlEngine:
        graphql_schema = schema.graphql_schema
        return GraphqlEngine(graphql_schema, Documents(graphql_schema), cast(Hub, self.hub), self.context)

    def context(self) -> OperationRequest:
        return OperationRequest(socket_scope(user=self.user))

    async def run(self, query: str, **request: Any) -> list[Any]:
        """Run to the end and return the results."""
        self.results.clear()
        async with asyncio.timeout(WAIT):
            await self.engine().run(Request(query, **request), Collected(self.results, json.loads))
        return self.results

    async def refused(self, query: str, **request: Any) -> list[Any]:
        """Run what cannot be run, and return the errors."""
        with pytest.raises(RequestError) as caught:
            await self.run(query, **request)
        assert self.results == []
        return list(caught.value.errors)

    @asynccontextmanager
    async def subscribed(self, query: str, schema: Any = SCHEMA, **request: Any) -> AsyncIterator[Operation]:
        """Hold an operation of the hub open."""
        self.hub.joined.clear()
        running = asyncio.create_task(self.engine(schema).run(Request(query, **request), Collected(self.results)))
        joined = asyncio.create_task(self.hub.joined.wait())
        try:
            async with asyncio.timeout(WAIT):
                await asyncio.wait({running, joined}, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
            yield self.hub.operations[-1]
        finally:
            joined.cancel()
            running.cancel()
            with suppress(asyncio.CancelledError, RequestError):
                await running


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    await bench.hub.executor.close()


async def executed(operation: Operation, change: Any) -> Any:
    """Execute for a change as the hub does, and return the result, or None for nothing to send."""
    outcome = operation.execution(cast(Change, change), CURSOR, Batch())
    text = await outcome if isawaitable(outcome) else outcome
    return None if text is None else json.loads(text)


class TestQueriesAndMutations:
    async def test_a_query_runs_in_a_worker_thread(self, bench: Bench) -> None:
        [result] = await bench.run("{ thread }")
        assert result["data"]["thread"].startswith("pgnotify_gql")

    async def test_an_asynchronous_resolver_runs_on_the_event_loop(self, bench: Bench) -> None:
        [result] = await bench.run("{ later }")
        assert result == {"data": {"later": threading.current_thread().name}}

    async def test_a_mutation_runs_once(self, bench: Bench) -> None:
        before = Increment.calls
        [result] = await bench.run("mutation { increment { now } }")
        assert result == {"data": {"increment": {"now": before + 1}}}
        assert Increment.calls == before + 1

    async def test_variables_are_passed_and_defaults_kept(self, bench: Bench) -> None:
        query = "query Q($a: Int!, $b: Int) { sum(a: $a, b: $b) }"
        assert await bench.run(query, variables={"a": 2, "b": 3}) == [{"data": {"sum": 5}}]
        assert await bench.run(query, variables={"a": 2}) == [{"data": {"sum": 3}}]

    @pytest.mark.parametrize("variables", [None, {}, {"a": None}, {"a": "x"}, {"a": {}}, {"a": 1e300}])
    async def test_variables_that_do_not_fit_are_errors_of_the_result(self, bench: Bench, variables: Any) -> None:
        [result] = await bench.run("query Q($a: Int!) { sum(a: $a) }", variables=variables)
        assert "$a" in result["errors"][0]["message"]

    async def test_errors_of_resolvers_travel_in_the_result_beside_the_data(self, bench: Bench) -> None:
        [result] = await bench.run("{ sum(a: 1) fails refuses }")
        assert result["data"] == {"sum": 2, "fails": None, "refuses": None}
        assert [error["message"] for error in result["errors"]] == ["internal error", "it refuses"]
        assert result["errors"][1]["extensions"] == {"code": "REFUSED"}

    async def test_the_operation_name_chooses(self, bench: Bench) -> None:
        query = "query One { sum(a: 0) } query Two { sum(a: 1) }"
        assert await bench.run(query, operation_name="Two") == [{"data": {"sum": 2}}]

    async def test_several_operations_need_a_name(self, bench: Bench) -> None:
        [error] = await bench.refused("query One { sum(a: 0) } query Two { sum(a: 1) }")
        assert error["message"] == "the document has several operations: say which with operationName"

    @pytest.mark.parametrize("name", ["Three", "", "\ud800"])
    async def test_an_unknown_operation_name_is_an_error(self, bench: Bench, name: str) -> None:
        [error] = await bench.refused("query One { sum(a: 0) }", operation_name=name)
        assert error["message"] == f"the document has no operation '{name}'"

    @pytest.mark.parametrize("query", ["", "{", "nonsense", "\ud800"])
    async def test_a_query_that_does_not_parse_is_refused(self, bench: Bench, query: str) -> None:
        [error] = await bench.refused(query)
        assert error["message"].startswith("Syntax Error")

    @pytest.mark.parametrize("query", ["{ unknown }", "mutation { unknown }", "subscription { unknown }"])
    async def test_what_does_not_validate_is_refused_whatever_its_type(self, bench: Bench, query: str) -> None:
        [error] = await bench.refused(query)
        assert "'unknown'" in error["message"]

    @pytest.mark.parametrize("kind", ["object", "nan", "circle"])
    async def test_a_result_that_is_no_json_is_told_and_logged(
        self, bench: Bench, kind: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        [result] = await bench.run(f'{{ raw(kind: "{kind}") }}')
        assert result == {"data": None, "errors": [{"message": "the result cannot be sent as JSON"}]}
        assert "cannot be sent as JSON" in caplog.text

    async def test_a_result_with_half_a_surrogate_pair_is_sent(self, bench: Bench) -> None:
        assert await bench.run('{ raw(kind: "surrogate") }') == [{"data": {"raw": "\ud800"}}]

    async def test_every_execution_has_a_context_of_its_own(self, bench: Bench) -> None:
        for _ in range(2):
            assert await bench.run("{ loaded }") == [{"data": {"loaded": False}}]

    async def test_the_context_is_the_sockets(self, bench: Bench) -> None:
        bench.user = User(username="alice")
        assert await bench.run("{ username }") == [{"data": {"username": "alice"}}]


class TestStreams:
    async def test_every_event_is_a_result_and_the_end_of_the_stream_is_the_end(self, bench: Bench) -> None:
        results = await bench.run("subscription { count(to: 3) }")
        assert results == [{"data": {"count": number}} for number in range(3)]

    async def test_a_stream_may_be_any_asynchronous_iterator(self, bench: Bench) -> None:
        results = await bench.run("subscription { countdown }")
        assert results == [{"data": {"countdown": number}} for number in (2, 1, 0)]

    async def test_an_exception_in_a_stream_ends_the_operation_after_what_came_before(self, bench: Bench) -> None:
        with pytest.raises(ValueError, match="it breaks"):
            await bench.run("subscription { breaks }")
        assert bench.results == [{"data": {"breaks": 1}}]

    async def test_a_subscription_that_refuses_is_an_error_and_not_logged(
        self, bench: Bench, caplog: pytest.LogCaptureFixture
    ) -> None:
        [error] = await bench.refused("subscription { refuses }")
        assert error["message"] == "it refuses"
        assert caplog.records == []

    async def test_a_subscription_that_fails_is_an_error_and_logged(
        self, bench: Bench, caplog: pytest.LogCaptureFixture
    ) -> None:
        [error] = await bench.refused("subscription { fails }")
        assert "it fails" not in json.dumps(error)
        assert f"(error {error['extensions']['id']})" in caplog.text
        assert "ValueError: it fails" in caplog.text

    async def test_variables_of_a_subscription_that_do_not_fit_refuse_it(self, bench: Bench) -> None:
        [error] = await bench.refused("subscription S($to: Int!) { count(to: $to) }", variables={"to": "x"})
        assert "$to" in error["message"]

    @pytest.mark.parametrize("directive", ["@skip(if: true)", "@include(if: false)"])
    async def test_a_subscription_that_skips_its_only_field_is_refused(self, bench: Bench, directive: str) -> None:
        [error] = await bench.refused(f"subscription {{ count(to: 1) {directive} }}")
        assert error["message"] == "the subscription selects no field"

    @pytest.mark.parametrize("query", ["subscription { count(to: 1) fails }", "subscription { __typename }"])
    async def test_a_subscription_has_exactly_one_field_and_it_is_the_schemas(self, bench: Bench, query: str) -> None:
        assert await bench.refused(query)

    async def test_a_field_without_a_stream_is_an_error(self, bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
        with pytest.raises((RequestError, TypeError)):
            await bench.run("subscription { nothing }")
        assert bench.results == []


class TestOperationsOfTheHub:
    async def test_it_joins_and_leaves_when_it_is_cancelled(self, bench: Bench) -> None:
        async with bench.subscribed("subscription { changes { thread } }") as operation:
            assert bench.hub.operations == [operation]
        assert bench.hub.operations == []

    async def test_it_leaves_even_when_it_is_cancelled_twice(self, bench: Bench) -> None:
        request = Request("subscription { changes { thread } }")
        running = asyncio.create_task(bench.engine().run(request, Collected(bench.results)))
        await bench.hub.joined.wait()
        await quiet()
        running.cancel()
        await asyncio.sleep(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await quiet()
        assert bench.hub.operations == []

    async def test_what_becomes_a_stream_when_it_is_asked_again_whether_it_may_go_on_is_refused(
        self, bench: Bench
    ) -> None:
        asked.clear()
        [error] = await bench.refused("subscription { wavers }")
        assert error == {"message": "the subscription is no longer fed by the hub"}
        assert asked == ["wavers", "wavers"]

    @pytest.mark.parametrize(
        ("user", "name"), [(User(username="alice"), "alice"), (AnonymousUser(), ""), (Nameless(), "?")]
    )
    async def test_it_tells_whose_it_is_also_where_a_user_of_the_application_cannot_say(
        self, bench: Bench, user: Any, name: str
    ) -> None:
        bench.user = user
        async with bench.subscribed("subscription { changes { thread } }") as operation:
            assert operation.description == (name, "changes", None)

    async def test_results_it_is_delivered_are_emitted(self, bench: Bench) -> None:
        async with bench.subscribed("subscription { changes { thread } }") as operation:
            assert operation.outlet.offer(Payloads("one")) == 1
            assert operation.outlet.offer(Payloads("two", "three")) == 2
        assert bench.results == ["one", "two", "three"]

    async def test_a_change_is_executed_with_the_selection_and_tells_its_cursor(self, bench: Bench) -> None:
        async with bench.subscribed("subscription { changes { sum(a: 1) } }") as operation:
            result = await executed(operation, {})
        assert result["data"] == {"changes": {"sum": 2}}
        assert Cursor.read(result["extensions"]["cursor"])

    async def test_a_cursor_is_of_the_field_and_its_arguments_whatever_is_selected(self, bench: Bench) -> None:
        async def subject(query: str, **request: Any) -> str:
            async with bench.subscribed(query, **request) as operation:
                return operation.interest.subject

        asked = await subject("subscription { changes { thread } }")
        assert await subject("subscription Named { mine: changes { sum(a: 1) loaded } }") == asked
        variables = "subscription S($room: Int) { changes(room: $room) { thread } }"
        fragment = "subscription {{ ...F }} fragment F on Subscription {{ changes(room: {}) {{ thread }} }}"
        others = [
            await subject("subscription { changes(room: 1) { thread } }"),
            await subject("subscription { changes(room: 2) { thread } }"),
            await subject(variables, variables={"room": 1}),
            await subject(variables, variables={"room": 2}),
            await subject(fragment.format(1)),
            await subject(fragment.format(2)),
        ]
        assert len({asked, *others}) == 1 + len(others)

    async def test_a_skipped_change_has_no_result(self, bench: Bench) -> None:
        async with bench.subscribed("subscription { changes { thread } }") as operation:
            assert await executed(operation, None) is None

    async def test_an_exception_is_a_result_with_errors(self, bench: Bench) -> None:
        async with bench.subscribed("subscription { changes { thread } }") as operation:
            result = await executed(operation, ValueError("it fails"))
            assert result["data"] == {"changes": None}
            assert result["errors"][0]["message"] == "internal error"

    async def test_an_asynchronous_resolver_is_awaited(self, bench: Bench) -> None:
        async with bench.subscribed("subscription { changes { later } }") as operation:
            assert (await executed(operation, {}))["data"]["changes"]["later"]

    async def test_a_result_that_is_no_json_is_told_to_the_subscriber(
        self, bench: Bench, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with bench.subscribed('subscription { changes { raw(kind: "object") } }') as operation:
            result = await executed(operation, {})
        assert result["errors"] == [{"message": "the result cannot be sent as JSON"}]
        assert "cannot be sent as JSON" in caplog.text

    async def test_what_a_resolver_keeps_on_the_context_is_gone_at_the_next_change(self, bench: Bench) -> None:
        async with bench.subscribed("subscription { changes { loaded } }") as operation:
            for _ in range(2):
                assert (await executed(operation, {}))["data"] == {"changes": {"loaded": False}}

    @pytest.mark.parametrize(("audience", "username"), [("nobody", "alice"), ("user", "alice"), ("everybody", "")])
    async def test_it_executes_as_its_audience(self, bench: Bench, audience: str, username: str) -> None:
        bench.user = User(pk=1, username="alice")
        query = f'subscription {{ changes(audience: "{audience}") {{ username }} }}'
        async with bench.subscribed(query) as operation:
            assert (await executed(operation, {}))["data"] == {"changes": {"username": username}}

    def test_an_interest_cannot_be_iterated_without_a_hub(self) -> None:
        with pytest.raises(TypeError, match="GraphqlSubscriptionConsumer"):
            aiter(Interest(()))

    def test_an_event_sends_something_by_default(self) -> None:
        assert not Event(cast(Change, None), CURSOR).skipped


class Device(User):
    """A second kind of user, as some applications have."""

    class Meta:
        app_label = "tests"
        proxy = True


CHANGES = "subscription S($room: Int) { changes(audience: %s, room: $room) { thread } }"
EVERYBODY, USER, NOBODY = (CHANGES % f'"{audience}"' for audience in ("everybody", "user", "nobody"))

OTHER_SCHEMA = graphene.Schema(query=Query, subscription=Subscription)


class TestSharing:
    async def key(self, bench: Bench, query: str, user: Any, schema: Any = SCHEMA, **request: Any) -> Any:
        bench.user = user
        async with bench.subscribed(query, schema, **request) as operation:
            return operation.share

    @pytest.mark.parametrize(
        ("query", "one", "other"),
        [
            (EVERYBODY, User(pk=1), User(pk=2)),
            (EVERYBODY, User(pk=1), AnonymousUser()),
            (USER, User(pk=1), User(pk=1)),
        ],
    )
    async def test_who_shares(self, bench: Bench, query: str, one: Any, other: Any) -> None:
        key = await self.key(bench, query, one, variables={"room": 1})
        assert key is not None
        assert key == await self.key(bench, query, other, variables={"room": 1})

    @pytest.mark.parametrize(
        ("query", "user"), [(NOBODY, User(pk=1)), (NOBODY, AnonymousUser()), (USER, AnonymousUser())]
    )
    async def test_who_shares_with_nobody(self, bench: Bench, query: str, user: Any) -> None:
        assert await self.key(bench, query, user) is None

    async def test_users_do_not_share_with_each_other(self, bench: Bench) -> None:
        assert await self.key(bench, USER, User(pk=1)) != await self.key(bench, USER, User(pk=2))

    async def test_users_of_two_models_do_not_share_though_their_keys_are_the_same(self, bench: Bench) -> None:
        assert await self.key(bench, USER, User(pk=1)) != await self.key(bench, USER, Device(pk=1))

    @pytest.mark.parametrize(
        "change",
        [
            lambda request: request | {"variables": {"room": 2}},
            lambda request: request | {"variables": {}},
            lambda request: request | {"query": request["query"].replace("thread", "sum(a: 1)")},
            lambda request: request | {"query": request["query"] + " "},
            lambda request: request | {"query": USER},
            lambda request: request | {"schema": OTHER_SCHEMA},
            lambda request: request | {"operation_name": "S"},
        ],
        ids=["variables", "no variables", "selection", "spelling", "audience", "schema", "operation name"],
    )
    async def test_different_requests_do_not_share(
        self, bench: Bench, change: Callable[[dict[str, Any]], dict[str, Any]]
    ) -> None:
        request: dict[str, Any] = {"query": EVERYBODY, "variables": {"room": 1}}
        user = User(pk=1)
        assert await self.key(bench, user=user, **request) != await self.key(bench, user=user, **change(request))

    async def test_the_order_of_variables_does_not_matter(self, bench: Bench) -> None:
        one = await self.key(bench, EVERYBODY, User(pk=1), variables={"room": 1, "more": 2})
        assert one == await self.key(bench, EVERYBODY, User(pk=1), variables={"more": 2, "room": 1})
