"""
A site for clients that do not read: an ASGI application with one subscription.

It tells the texts of messages from what was captured, without a query, and executes them once for everybody: so it is
the writer's speed and the clients' that limit it, and a server without bounds would grow as fast as can be.
"""

import os
from typing import Any

import graphene
from channels.auth import AuthMiddlewareStack
from channels.routing import ProtocolTypeRouter, URLRouter
from channels.security.websocket import AllowedHostsOriginValidator
from django.core.asgi import get_asgi_application
from django.urls import path

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.faults.slow_settings")
django_application = get_asgi_application()

# Models can be imported only now.
from example.conversations.models import Message  # noqa: E402
from pgnotify_gql.hub import Audience  # noqa: E402
from pgnotify_gql.subscriptions import Change, Subscription  # noqa: E402
from pgnotify_gql.transport import GraphqlSubscriptionConsumer  # noqa: E402


class Texts(Subscription):
    audience = Audience.EVERYBODY

    class Meta:
        output = graphene.String

    @classmethod
    def subscribe(cls, info: Any) -> Any:
        return Message

    @classmethod
    def next(cls, change: Change, info: Any) -> Any:
        return (change.new or {}).get("text")


class Subscriptions(graphene.ObjectType):  # type: ignore[misc]
    texts = Texts.Field()


class Query(graphene.ObjectType):  # type: ignore[misc]
    nothing = graphene.Int()


schema = graphene.Schema(query=Query, subscription=Subscriptions)
consumer: Any = GraphqlSubscriptionConsumer.as_asgi(schema=schema)
# The usual middleware, which wraps `send`.
sockets = AllowedHostsOriginValidator(AuthMiddlewareStack(URLRouter([path("graphql/", consumer)])))
application = ProtocolTypeRouter({"http": django_application, "websocket": sockets})
