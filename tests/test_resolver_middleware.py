"""Graphene's middleware stands around the resolvers of sockets as it does around those of graphene_django's view."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import graphene
import pytest
from django.test import override_settings
from graphene_django.debug import DjangoDebugMiddleware
from graphql import GraphQLError, MiddlewareManager

from pgnotify_gql.errors import ConfigurationError
from pgnotify_gql.hub import Audience, Batch, Interest
from pgnotify_gql.hub.cursor import Cursor
from pgnotify_gql.hub.hub import Hub
from pgnotify_gql.journal.change import Change
from pgnotify_gql.monitor import MonitorConsumer
from pgnotify_gql.transport import GraphqlSubscriptionConsumer
from pgnotify_gql.transport.context import OperationRequest
from pgnotify_gql.transport.documents import Documents
from pgnotify_gql.transport.engine import _Execution
from pgnotify_gql.transport.frames import Request
from pgnotify_gql.transport.masking import Masking
from pgnotify_gql.transport.resolver_middleware import middleware_manager
from tests.support.sockets import open_socket, socket_scope

Next = Callable[..., Any]


class Thing(graphene.ObjectType):  # type: ignore[misc]
    name = graphene.String()


class Query(graphene.ObjectType):  # type: ignore[misc]
    thing = graphene.Field(Thing)

    @staticmethod
    def resolve_thing(root: Any, info: Any) -> dict[str, str]:
        return {"name": "one"}


class Subscription(graphene.ObjectType):  # type: ignore[misc]
    things = graphene.Field(Thing)

    @staticmethod
    async def subscribe_things(root: Any, info: Any) -> Interest:
        return Interest((), Audience.EVERYBODY)

    @staticmethod
    def resolve_things(root: Any, info: Any) -> Any:
        return root.change


SCHEMA = graphene.Schema(query=Query, subscription=Subscription)


class Loud:
    """Middleware of the kind with a method."""

    def resolve(self, next: Next, root: Any, info: Any, **arguments: Any) -> Any:  # noqa: A002  (graphene's name)
        value = next(root, info, **arguments)
        return value.upper() if isinstance(value, str) else value


def refuse_names(next: Next, root: Any, info: Any, **arguments: Any) -> Any:  # noqa: A002
    """Middleware of the kind that is a function."""
    if info.field_name == "name":
        raise GraphQLError("names are secret")
    return next(root, info, **arguments)


LOUD = f"{__name__}.Loud"
REFUSING = f"{__name__}.refuse_names"


async def answered(application: Any) -> dict[str, Any]:
    async with open_socket(application) as socket:
        await socket.init()
        return await socket.run("{ thing { name } }")


def execution(middleware: MiddlewareManager | None) -> _Execution:
    document = Documents(SCHEMA.graphql_schema).get("subscription { things { name } }").node
    assert document is not None
    request = Request("subscription { things { name } }")
    asking = OperationRequest(socket_scope())
    return _Execution(SCHEMA.graphql_schema, document, request, asking, Masking(True), cast(Hub, None), middleware)


class TestWhatIsMounted:
    async def test_is_resolved_through_the_middleware_of_the_settings(self) -> None:
        with override_settings(GRAPHENE={"MIDDLEWARE": [LOUD]}):
            application = GraphqlSubscriptionConsumer.as_asgi(schema=SCHEMA)
        assert await answered(application) == {"data": {"thing": {"name": "ONE"}}}

    async def test_is_resolved_without_any_where_the_settings_name_none(self) -> None:
        assert await answered(GraphqlSubscriptionConsumer.as_asgi(schema=SCHEMA)) == {
            "data": {"thing": {"name": "one"}}
        }

    async def test_may_have_middleware_of_its_own_in_place_of_that(self) -> None:
        with override_settings(GRAPHENE={"MIDDLEWARE": [REFUSING]}):
            own = GraphqlSubscriptionConsumer.as_asgi(schema=SCHEMA, middleware=[Loud()])
            none = GraphqlSubscriptionConsumer.as_asgi(schema=SCHEMA, middleware=[])
        assert await answered(own) == {"data": {"thing": {"name": "ONE"}}}
        assert await answered(none) == {"data": {"thing": {"name": "one"}}}

    async def test_answers_with_the_error_that_middleware_raises(self) -> None:
        answer = await answered(GraphqlSubscriptionConsumer.as_asgi(schema=SCHEMA, middleware=[refuse_names]))
        assert answer["data"] == {"thing": {"name": None}}
        assert answer["errors"][0]["message"] == "names are secret"

    def test_refuses_what_is_no_middleware_with_what_it_should_be(self) -> None:
        with pytest.raises(ConfigurationError, match=r"'loud' is no middleware of graphene: it needs a method resolve"):
            GraphqlSubscriptionConsumer.as_asgi(schema=SCHEMA, middleware=["loud"])

    async def test_of_the_monitor_is_not_touched_by_the_middleware_of_the_site(self) -> None:
        with override_settings(GRAPHENE={"MIDDLEWARE": [REFUSING]}):
            assert MonitorConsumer.as_asgi() is not None
        assert middleware_manager(()) is None


class TestOfTheSettings:
    def test_the_debug_middleware_that_graphene_django_adds_is_left_out(self) -> None:
        path = "graphene_django.debug.DjangoDebugMiddleware"
        with override_settings(GRAPHENE={"MIDDLEWARE": [path]}):
            assert middleware_manager(None) is None
        assert middleware_manager([DjangoDebugMiddleware]) is not None

    def test_classes_are_instantiated_and_a_manager_is_taken_as_it_is(self) -> None:
        manager = middleware_manager([Loud, refuse_names])
        assert manager is not None
        assert [type(one).__name__ for one in manager.middlewares] == ["Loud", "function"]
        assert middleware_manager(manager) is manager


class TestASubscription:
    @pytest.mark.parametrize("times", [1, 3])
    def test_is_resolved_through_it_for_each_change(self, times: int) -> None:
        executed = execution(middleware_manager([Loud]))
        for _ in range(times):
            text = executed(cast(Change, {"name": "one"}), Cursor({}, {}), Batch())
            assert isinstance(text, str)
            assert text.startswith('{"data": {"things": {"name": "ONE"}}')

    def test_is_not_shared_with_those_of_another_middleware(self) -> None:
        first, second = middleware_manager([Loud]), middleware_manager([refuse_names])
        keys = {execution(middleware).share_key(Audience.EVERYBODY) for middleware in (first, second, None)}
        assert len(keys) == 3
        assert execution(first).share_key(Audience.EVERYBODY) in keys
