"""Writes that say who and why, or keep themselves back; and what may go wrong with a cursor."""

from collections.abc import Iterable
from typing import assert_type

from pgnotify_gql.capture import change_context, suppress_changes
from pgnotify_gql.errors import ConfigurationError, CursorError, CursorTooOldError, PgnotifyGqlError, TopicError

from .models import Order, Product


def import_products(names: Iterable[str], source: dict[str, int], tags: list[str]) -> None:
    with change_context(why="nightly import", step=3, source=source, tags=tags, nested={"a": [1, None, {"b": True}]}):
        Product.objects.bulk_create([Product(name=name) for name in names])
    with suppress_changes(), suppress_changes(using="replica"), change_context(using="default"):
        Order.objects.update(status="open")


@change_context(why="a task")
def close_orders(status: str) -> int:
    return Order.objects.filter(status=status).update(status="closed")


def closed(status: str) -> None:
    assert_type(close_orders(status), int)


def advice(error: Exception) -> str:
    match error:
        case CursorTooOldError():
            return "subscribe without it"
        case CursorError() | TopicError():
            return str(error)
        case ConfigurationError() | PgnotifyGqlError():
            return "ask the operator"
        case _:
            raise error
