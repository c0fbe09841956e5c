"""What a mutation over a socket writes says who asked for it, where the middleware says it of HTTP requests."""

from __future__ import annotations

from typing import Any

import graphene
import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.http import HttpRequest
from django.test import override_settings

from example.settings import MIDDLEWARE
from pgnotify_gql.capture import change_context
from pgnotify_gql.capture.middleware import ChangeContextMiddleware
from pgnotify_gql.capture.setting import Context
from pgnotify_gql.transport import GraphqlSubscriptionConsumer
from tests.support.databases import Database
from tests.support.sockets import open_socket
from tests.support.watched import Item, WatchedTable, watched

pytestmark = pytest.mark.postgres("18")

OURS = "pgnotify_gql.capture.middleware.ChangeContextMiddleware"

Read = Any


class Tenants(ChangeContextMiddleware):
    """A site's own."""

    def context(self, request: HttpRequest) -> Context:
        return {"tenant": request.get_host()}


class Write(graphene.Mutation):  # type: ignore[misc]
    ok = graphene.Boolean()

    @classmethod
    def mutate(cls, root: Any, info: Any) -> Write:
        Item.objects.create(name="plain")
        return cls(ok=True)


class WriteLater(graphene.Mutation):  # type: ignore[misc]
    ok = graphene.Boolean()

    @classmethod
    async def mutate(cls, root: Any, info: Any) -> WriteLater:
        await Item.objects.acreate(name="asynchronous")
        return cls(ok=True)


class WriteWhy(graphene.Mutation):  # type: ignore[misc]
    ok = graphene.Boolean()

    @classmethod
    def mutate(cls, root: Any, info: Any) -> WriteWhy:
        with change_context(why="asked"):
            Item.objects.create(name="why")
        return cls(ok=True)


class Mutation(graphene.ObjectType):  # type: ignore[misc]
    write = Write.Field()
    write_later = WriteLater.Field()
    write_why = WriteWhy.Field()


class Query(graphene.ObjectType):  # type: ignore[misc]
    ok = graphene.Boolean()


APPLICATION = GraphqlSubscriptionConsumer.as_asgi(schema=graphene.Schema(query=Query, mutation=Mutation))


@pytest.fixture
def items(database: Database) -> WatchedTable:
    return watched(database)


@pytest.fixture
def alice(database: Database) -> User:
    return User.objects.create_user("alice")


async def contexts(items: WatchedTable, *mutations: str, middleware: str | None = OURS, **scope: Any) -> list[Any]:
    """Run mutations over one socket, and return the context of each change."""
    settings = {"MIDDLEWARE": [*MIDDLEWARE, middleware] if middleware else MIDDLEWARE, "ALLOWED_HOSTS": ["*"]}
    with override_settings(**settings):
        async with open_socket(APPLICATION, **scope) as socket:
            await socket.init()
            for number, mutation in enumerate(mutations):
                answer = await socket.run(f"mutation {{ {mutation} {{ ok }} }}", id=str(number))
                assert "errors" not in answer, answer
    return [dict(change.context) for change in await sync_to_async(items.changes)()]


@pytest.mark.parametrize("mutation", ["write", "writeLater"])
async def test_the_user_and_an_id_of_the_request_are_in_the_change(
    items: WatchedTable, alice: User, mutation: str
) -> None:
    [context] = await contexts(items, mutation, user=alice)
    assert context["user"] == alice.pk
    assert len(context["request_id"]) == 32


async def test_each_operation_has_an_id_of_its_own(items: WatchedTable, alice: User) -> None:
    first, second = await contexts(items, "write", "write", user=alice)
    assert first["request_id"] != second["request_id"]


async def test_the_id_that_a_proxy_gave_the_handshake_is_that_of_all(items: WatchedTable) -> None:
    given = await contexts(items, "write", "write", headers=[(b"x-request-id", b"from-the-proxy")])
    assert given == [{"request_id": "from-the-proxy"}] * 2


async def test_change_context_inside_adds_to_it(items: WatchedTable, alice: User) -> None:
    [context] = await contexts(items, "writeWhy", user=alice)
    assert (context["user"], context["why"]) == (alice.pk, "asked")


async def test_a_subclass_in_the_settings_says_what_it_says_of_requests(items: WatchedTable) -> None:
    [context] = await contexts(items, "write", middleware=f"{__name__}.Tenants", headers=[(b"host", b"one.example")])
    assert context == {"tenant": "one.example"}


async def test_nothing_is_attributed_where_the_settings_do_not_name_the_middleware(
    items: WatchedTable, alice: User
) -> None:
    assert await contexts(items, "write", middleware=None, user=alice) == [{}]


async def test_what_one_socket_writes_is_not_attributed_to_the_one_before(items: WatchedTable, alice: User) -> None:
    [first] = await contexts(items, "write", user=alice)
    [second] = await contexts(items, "write")
    assert "user" in first
    assert "user" not in second
