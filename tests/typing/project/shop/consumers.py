"""Consumers with hooks: asynchronous, plain, and as a mixin for sockets and streams."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from django.contrib.auth.models import User
from graphql import GraphQLError

from pgnotify_gql.monitor import MonitorConsumer
from pgnotify_gql.subscriptions import Topic
from pgnotify_gql.transport import (
    GraphqlSseConsumer,
    GraphqlSubscriptionConsumer,
    Request,
    adisconnect_user,
    disconnect_user,
)

from .models import Order


class Sockets(GraphqlSubscriptionConsumer):
    async def on_connect(self, payload: Mapping[str, Any]) -> dict[str, str] | bool:
        user = await User.objects.filter(username=payload.get("name")).afirst()
        if user is None:
            return False
        self.scope["user"] = user
        self.expires_at = datetime.now(UTC) + timedelta(hours=1)
        return {"hello": user.username}

    async def on_operation(self, request: Request) -> None:
        if request.operation_name is None or "secret" in (request.variables or {}):
            raise GraphQLError("name your operations")

    async def on_recheck(self) -> bool:
        return await User.objects.filter(pk=self.scope["user"].pk, is_active=True).aexists()

    def depends_on(self) -> Iterable[Topic]:
        return [*super().depends_on(), Topic(Order, customer=self.scope["user"].pk)]


class PlainSockets(GraphqlSubscriptionConsumer):
    """Plain methods run in a worker thread."""

    def on_connect(self, payload: Mapping[str, Any]) -> bool | None:
        return None if User.objects.filter(username=payload.get("name")).exists() else False

    def on_operation(self, request: Request) -> bool:
        return request.query.startswith("subscription")

    def on_recheck(self) -> bool:
        return bool(super().on_recheck()) and User.objects.filter(is_active=True).exists()


class Tokens:
    scope: dict[str, Any]
    expires_at: datetime | float | None

    def on_connect(self, payload: Mapping[str, Any]) -> bool | None:
        header = dict(self.scope["headers"]).get(b"authorization", b"")
        self.expires_at = 4_102_444_800.0
        return None if header else False


class TokenSockets(Tokens, GraphqlSubscriptionConsumer):
    pass


class TokenStreams(Tokens, GraphqlSseConsumer):
    allowed_origins = ["https://shop.example"]
    keepalive = 30.0


class Monitor(MonitorConsumer):
    pass


def log_out(user: User) -> None:
    disconnect_user(user)


async def log_out_async(user: User) -> None:
    await adisconnect_user(user)
