"""The three ways to declare a watch."""

from __future__ import annotations

from decimal import Decimal
from typing import assert_type

from django.conf import settings
from django.contrib.auth.models import User
from django.db import models
from django.db.models import Q

from pgnotify_gql.capture import Kind, notify_on_model_changes


class Order(models.Model):
    customer: models.ForeignKey[User, User] = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE)
    status: models.CharField[str, str] = models.CharField(max_length=20)
    total: models.DecimalField[Decimal, Decimal] = models.DecimalField(max_digits=10, decimal_places=2)

    def __str__(self) -> str:
        return self.status


@notify_on_model_changes
class Product(models.Model):
    name: models.CharField[str, str] = models.CharField(max_length=100)

    def __str__(self) -> str:
        return self.name

    def shout(self) -> str:
        return self.name.upper()


@notify_on_model_changes(columns=("order", "product"), kinds=[Kind.INSERT, "DELETE"])
class Line(models.Model):
    order: models.ForeignKey[Order, Order] = models.ForeignKey(Order, on_delete=models.CASCADE)
    product: models.ForeignKey[Product, Product] = models.ForeignKey(Product, on_delete=models.CASCADE)

    def __str__(self) -> str:
        return self.label

    @property
    def label(self) -> str:
        return f"{self.order} {self.product.shout()}"


watched = notify_on_model_changes(
    Order,
    columns="__all__",
    exclude=["total"],
    kinds=["INSERT", "UPDATE"],
    update_of=["status", "total"],
    condition=Q(status__in=["open", "paid"]),
    replicated=False,
)

assert_type(watched, type[Order])


def decorated_classes_are_what_they_were(product: Product, line: Line) -> None:
    assert_type(product.shout(), str)
    assert_type(Product(name="tea").shout(), str)
    assert_type(line.label, str)
