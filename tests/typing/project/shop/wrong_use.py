"""
What type checkers are to find: each line with two comments is a mistake, found by both.

A comment that ignores nothing is an error of its own.  This file is never run.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from graphql import GraphQLResolveInfo

from pgnotify_gql.capture import Kind, change_context, notify_on_model_changes, suppress_changes
from pgnotify_gql.capture.operations import InstallTriggers
from pgnotify_gql.subscriptions import Change, ModelSubscription, RowChange, Subscription, Topic
from pgnotify_gql.testing import GraphqlCommunicator, insert, pump, truncate
from pgnotify_gql.transport import GraphqlSubscriptionConsumer, Request, disconnect_user

from .models import Order, Product
from .schema import OrderChanges, OrdersSubscription, schema


def look(value: object) -> None:
    """Do nothing with a value, since one that is only named would be a mistake of its own."""


def watches() -> None:
    notify_on_model_changes("shop.order")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    notify_on_model_changes(Order, column=["status"])  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    notify_on_model_changes(Order, columns=5)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    notify_on_model_changes(Order, ["status"])  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    notify_on_model_changes(Order, condition="open")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    notify_on_model_changes(Order, kinds=[5])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    notify_on_model_changes(columns="__all__")(5)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
    notify_on_model_changes(Order)().shout()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    InstallTriggers(Order)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    InstallTriggers("order", column=["status"])  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    look(Kind.UPSERT)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownArgumentType]


def contexts() -> None:
    with change_context("nightly import"):  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
        pass
    with change_context(at=datetime.now(UTC)):  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        pass
    with change_context(pair=(1, 2)):  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        pass
    with suppress_changes(Order):  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        pass


def topics() -> None:
    Topic("shop.order")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Topic(Order, 5)  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
    Topic(Order, filter="open")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Topic()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def changes(change: Change) -> None:
    change.kind = Kind.DELETE  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    look(change.operation)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownArgumentType]
    change.old["status"]  # type: ignore[index]  # pyright: ignore[reportOptionalSubscript]
    change.changed.append("status")  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    RowChange(Kind.INSERT, 5, "ENTER")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


class Orders(Subscription):
    audience = "everybody"  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]


class Changes(ModelSubscription):
    @classmethod
    def next(cls, change: Change) -> RowChange | None:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return None

    @classmethod
    def subscribe(cls, info: GraphQLResolveInfo, /, **arguments: Any) -> str:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return "shop.order"


def fields() -> None:
    OrdersSubscription.Fields()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    OrderChanges.Field(5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


class Sockets(GraphqlSubscriptionConsumer):
    async def on_connect(self, payload: Mapping[str, Any]) -> str:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return "welcome"

    async def on_operation(self, request: Request, info: GraphQLResolveInfo) -> None:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        pass

    def depends_on(self) -> list[type[Product]]:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return [Product]


def transports() -> None:
    Sockets.as_asgi()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Sockets.as_asgi(schema)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    disconnect_user()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def tests() -> None:
    with GraphqlCommunicator(schema) as client:
        client.subscribe("subscription { products { id } }").wait()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
        client.subscribe(variables={})  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    pump("default")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    insert("shop.product")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    truncate(Product())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
