"""Model subscriptions declared by a test: messages as members of their conversation see them, and tables of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import graphene
from graphene_django import DjangoObjectType

from example.conversations.models import Conversation, Message
from example.conversations.types import ConversationType
from pgnotify_gql.capture.registry import registry
from pgnotify_gql.hub import Audience
from pgnotify_gql.subscriptions import ModelSubscription
from tests.support.databases import Database
from tests.support.stock import Stock
from tests.support.subscribers import Query, Subscriber


class Letter(DjangoObjectType):  # type: ignore[misc]
    """A message, as members of its conversation see it; that is a ConversationType, which is known for the model."""

    class Meta:
        model = Message
        fields = ("id", "text", "conversation")
        skip_registry = True

    @classmethod
    def get_queryset(cls, queryset: Any, info: Any) -> Any:
        if not info.context.user.is_authenticated:
            return queryset.none()
        return queryset.filter(conversation__memberships__user=info.context.user)


class Postcard(DjangoObjectType):  # type: ignore[misc]
    """A message that anybody may read."""

    class Meta:
        model = Message
        fields = ("id", "text")
        skip_registry = True


def is_member(cls: Any, change: Any, info: Any) -> bool:
    return bool(Conversation.objects.for_user(info.context.user).filter(pk=change.old["conversation"]).exists())


def everybody_can_see(cls: Any, change: Any, info: Any) -> bool:
    return True


def declare_changes(
    can_see: Callable[..., bool] | None = is_member,
    name: str = "Letters",
    audience: Audience = Audience.NOBODY,
    **meta: Any,
) -> Any:
    """Return a ModelSubscription with these options, of letters unless others are named."""
    options = {"output": Letter, "object_field": "letter", **meta}
    body: dict[str, Any] = {"Meta": type("Meta", (), options), "audience": audience}
    if can_see is not None:
        body["can_see"] = classmethod(can_see)
    return type(name, (ModelSubscription,), body)


def schema_with(declared: Any, *types: Any, **options: Any) -> graphene.Schema:
    """Return a schema with one field `changes`, of a ModelSubscription."""

    class Subscriptions(graphene.ObjectType):  # type: ignore[misc]
        changes = declared.Field()

    return graphene.Schema(query=Query, subscription=Subscriptions, types=[ConversationType, *types], **options)


def schema_of(can_see: Callable[..., bool] | None = is_member, **options: Any) -> graphene.Schema:
    """Return a schema with one field `changes`, see ``declare_changes``."""
    return schema_with(declare_changes(can_see, **options))


SELECTION = "kind pk transition changedFields letter { id text }"


def query(arguments: str = "", selection: str = SELECTION) -> str:
    return f"subscription {{ changes{f'({arguments})' if arguments else ''} {{ {selection} }} }}"


async def letters(subscriber: Subscriber, count: int) -> list[Any]:
    """Return the texts of so many changes, each None without a row."""
    found = [await subscriber.change() for _ in range(count)]
    return [change["letter"] and change["letter"]["text"] for change in found]


@contextmanager
def own_stock(database: Database) -> Iterator[Stock]:
    """Hold an application of a test's own; its watches are among those of the process meanwhile."""
    before = {watch.label for watch in registry}
    try:
        yield Stock(database, registry)
    finally:
        for label in {watch.label for watch in registry} - before:
            registry.remove(label)
