"""
A site whose subscribers are told the text of every message that is written, as it was written.

What the example shows of an edited message is what the database has by then; a load is judged by every version.
"""

import os
from typing import Any

from channels.routing import ProtocolTypeRouter
from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "example.settings")
django_application = get_asgi_application()

import graphene  # noqa: E402

from example.conversations.models import Message  # noqa: E402
from pgnotify_gql.subscriptions import Audience, Change, Subscription  # noqa: E402
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


class SharedTexts(Texts):
    audience = Audience.EVERYBODY

    class Meta:
        output = graphene.String


class Query(graphene.ObjectType):  # type: ignore[misc]
    nothing = graphene.Int()


class Subscriptions(graphene.ObjectType):  # type: ignore[misc]
    texts = Texts.Field()
    shared_texts = SharedTexts.Field()


schema = graphene.Schema(query=Query, subscription=Subscriptions)
application = ProtocolTypeRouter(
    {"http": django_application, "websocket": GraphqlSubscriptionConsumer.as_asgi(schema=schema)}
)
