"""Subscriptions: by hand, with a state, asynchronous, and of a model."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, assert_type

import graphene
from django.db.models import Q, QuerySet
from graphene_django import DjangoObjectType
from graphql import GraphQLError, GraphQLResolveInfo

from pgnotify_gql.capture import Kind
from pgnotify_gql.subscriptions import (
    Audience,
    Change,
    ModelSubscription,
    RowChange,
    Subscription,
    Topic,
    Transition,
)

from .models import Line, Order, Product


class ProductType(DjangoObjectType):  # type: ignore[misc]
    class Meta:
        model = Product
        fields = ("id", "name")


class OrderType(DjangoObjectType):  # type: ignore[misc]
    class Meta:
        model = Order
        fields = ("id", "status", "total")

    @classmethod
    def get_queryset(cls, queryset: QuerySet[Order], info: GraphQLResolveInfo) -> QuerySet[Order]:
        return queryset.filter(customer=info.context.user)


class OrdersSubscription(Subscription):
    """Orders of the subscriber."""

    class Meta:
        output = OrderType
        initial = True

    class Arguments:
        status = graphene.String()

    audience = Audience.USER

    @classmethod
    def subscribe(cls, info: GraphQLResolveInfo, status: str | None = None) -> list[Topic]:
        if not info.context.user.is_authenticated:
            raise GraphQLError("log in")
        if status is None:
            return [Topic(Order)]
        return [Topic(Order, status=status), Topic(Order, status__in=["open", "paid"], filter=Q(total__gt=5))]

    @classmethod
    def depends_on(cls, info: GraphQLResolveInfo, status: str | None = None) -> Sequence[type[Line]]:
        return [Line]

    @classmethod
    def state(cls, info: GraphQLResolveInfo, status: str | None = None) -> QuerySet[Order]:
        return Order.objects.filter(status="open")

    @classmethod
    def next(cls, change: Change, info: GraphQLResolveInfo, status: str | None = None) -> Order | None:
        pk, model_label = change
        assert_type(change.kind, Kind)
        assert_type(change.model_label, str)
        assert_type(change.at, datetime)
        assert_type(change.changed, frozenset[str])
        assert_type(change.xid, int)
        if change.kind is Kind.TRUNCATE or change.kind == "DELETE":
            return None
        if change.old is not None and change.new is not None and change.old["status"] == change.new["status"]:
            return None
        if "why" in change.context or "order" in change.keys or model_label == "shop.line":
            return None
        return change.instance or Order.objects.filter(pk=pk).first()


class ProductsSubscription(Subscription):
    class Meta:
        output = ProductType

    @classmethod
    async def subscribe(cls, info: GraphQLResolveInfo) -> list[type[Product]]:
        return [Product]

    @classmethod
    async def next(cls, change: Change, info: GraphQLResolveInfo) -> Product | None:
        return await Product.objects.filter(pk=change.pk).afirst()


class OrderChanges(ModelSubscription):
    class Meta:
        output = OrderType
        optional = ["status", "customer__in"]
        kinds = [Kind.INSERT, Kind.UPDATE]
        filter = Q(status="open")
        object_field = "row"

    @classmethod
    def can_see(cls, change: Change, info: GraphQLResolveInfo) -> bool:
        return change.old is not None and change.old["customer"] == info.context.user.pk

    @classmethod
    def next(cls, change: Change, info: GraphQLResolveInfo, /, **arguments: Any) -> RowChange | None:
        told = super().next(change, info, **arguments)
        if told is None or told.transition is Transition.LEAVE:
            return None
        assert_type(told.kind, Kind | None)
        return told


class Subscriptions(graphene.ObjectType):  # type: ignore[misc]
    orders = OrdersSubscription.Field()
    products = ProductsSubscription.Field(description="Products, as they change.", required=True)
    order_changes = OrderChanges.Field()


class Query(graphene.ObjectType):  # type: ignore[misc]
    hello = graphene.String(default_value="hello")


schema = graphene.Schema(query=Query, subscription=Subscriptions)
