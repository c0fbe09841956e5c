"""Subscriptions declared by a test, and sockets that subscribe to them, on the database of the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

import graphene
import psycopg
from django.contrib.auth.models import User
from django.test import override_settings

from example.conversations.models import Conversation, Membership
from pgnotify_gql.hub import Audience, current_hub
from pgnotify_gql.subscriptions import Subscription
from pgnotify_gql.transport import GraphqlSubscriptionConsumer
from tests.support.databases import Database
from tests.support.layers import default_layer
from tests.support.sockets import WAIT, AsgiSocket, open_socket


class Seen(graphene.ObjectType):  # type: ignore[misc]
    """What a subscriber of a test is shown of a change."""

    pk = graphene.ID()
    label = graphene.String()
    kind = graphene.String()
    text = graphene.String()
    username = graphene.String()
    private = graphene.Boolean()

    @staticmethod
    def resolve_username(seen: Any, info: Any) -> str:
        username: str = info.context.user.username
        return username

    @staticmethod
    def resolve_private(seen: Any, info: Any) -> bool:
        context = info.context
        return bool(context.session or context.COOKIES or "Authorization" in context.headers)


class Query(graphene.ObjectType):  # type: ignore[misc]
    nothing = graphene.Int()


def seen(change: Any) -> dict[str, Any]:
    image = change.new or change.old or {}
    return {"pk": change.pk, "label": change.model_label, "kind": change.kind, "text": image.get("text")}


def next_change(cls: Any, /, change: Any, info: Any, **arguments: Any) -> Any:
    return seen(change)


def declare(
    subscribe: Callable[..., Any],
    next: Callable[..., Any] = next_change,  # noqa: A002  (the method's name)
    audience: Audience = Audience.NOBODY,
    **arguments: Any,
) -> graphene.Schema:
    """Return a schema with one field `changes`, of a Subscription with these methods and arguments."""

    class Meta:
        output = Seen

    methods = {"subscribe": classmethod(subscribe), "next": classmethod(next)}
    body = {"Meta": Meta, "Arguments": type("Arguments", (), arguments), "audience": audience, **methods}
    declared: Any = type("Declared", (Subscription,), body)

    class Subscriptions(graphene.ObjectType):  # type: ignore[misc]
        changes = declared.Field()

    return graphene.Schema(query=Query, subscription=Subscriptions)


def returns(topics: Any) -> Callable[..., Any]:
    """Return a subscribe method that answers the same to everybody."""
    return lambda cls, info, **arguments: topics


@contextmanager
def inline_feed() -> Iterator[None]:
    """The listener in the event loop of the test, and a channel layer in its memory."""
    with default_layer(), override_settings(PGNOTIFY_GQL={"INLINE_LISTENER": True}):
        yield


class Chat:
    """Two conversations, and a connection that is not Django's: alice is in one of them, bob in both."""

    def __init__(self, database: Database) -> None:
        self.alice, self.bob = (User.objects.create(username=name) for name in ("alice", "bob"))
        self.both, self.bobs = (Conversation.objects.create(title=title) for title in ("both", "bob's"))
        for user, conversation in ((self.alice, self.both), (self.bob, self.both), (self.bob, self.bobs)):
            Membership.objects.create(user=user, conversation=conversation)
        self.connection: psycopg.Connection = database.connect()

    def insert(self, *texts: str, conversation: Conversation | None = None) -> list[int]:
        """Write messages of bob in one statement, and return their keys."""
        rows = self.connection.execute(
            "insert into conversations_message (conversation_id, author_id, text)"
            " select %s, %s, t from unnest(%s::text[]) t returning id",
            [(conversation or self.both).pk, self.bob.pk, list(texts)],
        )
        return [key for (key,) in rows.fetchall()]

    def execute(self, statement: str, *parameters: Any) -> None:
        self.connection.execute(statement.encode(), parameters)


QUERY = "subscription { changes { pk label kind text username private } }"


class Subscriber:
    """A socket, and what its operations are sent."""

    def __init__(self, socket: AsgiSocket) -> None:
        self.socket = socket

    async def subscribe(self, query: str = QUERY, id: str = "1", **payload: Any) -> None:  # noqa: A002
        """Subscribe, and wait until every change from now on is delivered."""
        members = joined()
        self.socket.subscribe(query, id, **payload)
        async with asyncio.timeout(WAIT):
            while joined() == members:  # noqa: ASYNC110  (a client cannot know when it is live)
                await asyncio.sleep(0.001)

    async def result(self) -> dict[str, Any]:
        """Return the next result of any operation."""
        while (message := await self.socket.receive())["type"] in {"ping", "ka"}:
            pass
        assert message["type"] in {"next", "data"}, message
        payload: dict[str, Any] = message["payload"]
        return payload

    async def change(self) -> dict[str, Any]:
        """Return the next change of the field `changes`."""
        result = await self.result()
        assert "errors" not in result, result
        found: dict[str, Any] = result["data"]["changes"]
        return found

    async def refusal(self, query: str = QUERY, **payload: Any) -> list[dict[str, Any]]:
        """Subscribe to what is refused, and return the errors."""
        self.socket.subscribe(query, **payload)
        message = await self.socket.receive()
        assert message["type"] == "error", message
        errors: list[dict[str, Any]] = message["payload"]
        return errors


def joined() -> int:
    """Return how many operations the hub feeds."""
    return sum(len(cohort.members) for cohort in current_hub()._cohorts.values())


@asynccontextmanager
async def subscribers(schema: Any, *users: Any, **scope: Any) -> AsyncIterator[list[Subscriber]]:
    """Hold a socket open for each user."""
    application = GraphqlSubscriptionConsumer.as_asgi(schema=schema)
    async with AsyncExitStack() as stack:
        opened = []
        for user in users:
            socket = await stack.enter_async_context(open_socket(application, user=user, **scope))
            await socket.init()
            opened.append(Subscriber(socket))
        yield opened
