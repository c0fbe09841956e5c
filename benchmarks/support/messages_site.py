"""
What is measured, as a server process imports it: the messages of a conversation, with the example's models.

The subscriptions differ in where a result comes from, and in who shares it; whatever is done with a result is alike.
"""

from __future__ import annotations

import os
from typing import Any

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "example.settings")
django.setup()

# Models can be imported only now.
import graphene  # noqa: E402
from channels.auth import AuthMiddlewareStack  # noqa: E402
from channels.routing import URLRouter  # noqa: E402
from channels.security.websocket import AllowedHostsOriginValidator  # noqa: E402
from django.urls import path  # noqa: E402

from benchmarks.support import bare  # noqa: E402
from example.conversations.models import Message  # noqa: E402
from pgnotify_gql.subscriptions import Audience, Change, Subscription, Topic  # noqa: E402
from pgnotify_gql.transport import GraphqlSubscriptionConsumer  # noqa: E402


class MessageType(graphene.ObjectType):  # type: ignore[misc]
    id = graphene.ID(required=True)
    text = graphene.String(required=True)


class OfConversation:
    """What all wait for."""

    class Arguments:
        conversation = graphene.ID(required=True)

    @classmethod
    def subscribe(cls, info: Any, conversation: str) -> list[Topic]:
        return [Topic(Message, conversation=conversation)]


class FetchedSubscription(OfConversation, Subscription):
    """The row is fetched, by the ORM: once for each change and process."""

    audience = Audience.EVERYBODY

    class Meta:
        output = MessageType

    @classmethod
    def next(cls, change: Change, info: Any, conversation: str) -> Message | None:
        instance: Message | None = change.instance
        return instance


class CapturedSubscription(OfConversation, Subscription):
    """The captured columns answer, and no database is asked."""

    audience = Audience.EVERYBODY

    class Meta:
        output = MessageType

    @classmethod
    def next(cls, change: Change, info: Any, conversation: str) -> dict[str, Any] | None:
        return None if change.new is None else {"id": change.pk, "text": change.new["text"]}


class PrivateSubscription(CapturedSubscription):
    """The same, executed for each subscriber by itself."""

    audience = Audience.NOBODY

    class Meta:
        output = MessageType


class QueriedSubscription(OfConversation, Subscription):
    """Each subscriber has a query of its own."""

    class Meta:
        output = MessageType

    @classmethod
    def next(cls, change: Change, info: Any, conversation: str) -> Message | None:
        return message_of(conversation, change.pk)


def message_of(conversation: str, pk: int) -> Message | None:
    """Return a message, if it is one of the conversation."""
    return Message.objects.filter(pk=pk, conversation=conversation).first()


class Subscriptions(graphene.ObjectType):  # type: ignore[misc]
    fetched = FetchedSubscription.Field()
    captured = CapturedSubscription.Field()
    private = PrivateSubscription.Field()
    queried = QueriedSubscription.Field()


class Query(graphene.ObjectType):  # type: ignore[misc]
    nothing = graphene.String()


schema = graphene.Schema(query=Query, subscription=Subscriptions)

consumer: Any = GraphqlSubscriptionConsumer.as_asgi(schema=schema)
"""Ours alone."""


def _authenticated(application: Any) -> Any:
    # As the documentation mounts it.
    return AllowedHostsOriginValidator(AuthMiddlewareStack(URLRouter([path("", application)])))


authenticated = _authenticated(consumer)
bare_authenticated = _authenticated(bare.accepting)
