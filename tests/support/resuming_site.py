"""
A site for clients that come back: `texts` are those of messages as they are written, `current` has a state before them.

What it sends was captured, so that every version of a message is told, and no query is asked.
"""

import os
from typing import Any

from channels.routing import ProtocolTypeRouter
from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "example.settings")
django_application = get_asgi_application()

import graphene  # noqa: E402

from example.conversations.models import Conversation, Message  # noqa: E402
from pgnotify_gql.subscriptions import Change, Subscription  # noqa: E402
from pgnotify_gql.transport import GraphqlSubscriptionConsumer  # noqa: E402


class Texts(Subscription):
    class Meta:
        output = graphene.String

    @classmethod
    def subscribe(cls, info: Any) -> Any:
        return Message

    @classmethod
    def next(cls, change: Change, info: Any) -> str | None:
        return None if change.new is None else change.new["text"]


class Current(Texts):
    class Meta:
        output = graphene.String
        initial = True

    @classmethod
    def state(cls, info: Any) -> Any:
        return Message.objects.order_by("pk").values_list("text", flat=True)


class Titles(Subscription):
    class Meta:
        output = graphene.String

    @classmethod
    def subscribe(cls, info: Any) -> Any:
        return Conversation

    @classmethod
    def next(cls, change: Change, info: Any) -> str | None:
        return "a conversation"


class Query(graphene.ObjectType):  # type: ignore[misc]
    nothing = graphene.Int()


class Subscriptions(graphene.ObjectType):  # type: ignore[misc]
    texts = Texts.Field()
    current = Current.Field()
    titles = Titles.Field()


schema = graphene.Schema(query=Query, subscription=Subscriptions)
application = ProtocolTypeRouter(
    {"http": django_application, "websocket": GraphqlSubscriptionConsumer.as_asgi(schema=schema)}
)
