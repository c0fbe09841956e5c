"""Tests of the application: in Django's test case, with the fixtures for pytest, and of ``next`` alone."""

from collections.abc import Callable
from typing import Any, assert_type

import pytest
from django.contrib.auth.models import User
from django.test import TestCase

from pgnotify_gql.capture import Kind
from pgnotify_gql.subscriptions import Change
from pgnotify_gql.testing import (
    GraphqlCommunicator,
    GraphqlResultError,
    MemoryJournal,
    NothingSentError,
    SocketClosedError,
    TestSubscription,
    apump,
    delete,
    insert,
    install_triggers,
    pump,
    truncate,
    update,
)

from .models import Order, Product
from .schema import schema

PRODUCTS = "subscription ($limit: Int) { products { id name } }"


class ProductsTest(TestCase):
    ann: User

    @classmethod
    def setUpTestData(cls) -> None:
        install_triggers()
        cls.ann = User.objects.create_user("ann")

    def test_a_new_product_is_sent(self) -> None:
        with GraphqlCommunicator(schema, self.ann, headers={"Origin": "https://shop.example"}) as ann:
            assert_type(ann, GraphqlCommunicator)
            subscription = ann.subscribe(PRODUCTS, {"limit": 5}, cursor=None)
            assert_type(subscription, TestSubscription)
            product = Product.objects.create(name="tea")
            (change,) = pump()
            assert_type(change, Change)
            assert change.pk == product.pk
            assert subscription.next()["products"]["name"] == "tea"
            subscription.nothing()
            assert_type(subscription.cursor, str | None)
            assert_type(ann.execute("{ hello }"), dict[str, Any])
            for data in subscription:
                self.fail(data)
            with pytest.raises(NothingSentError):
                subscription.result()
            subscription.complete()

    async def test_the_same_asynchronously(self) -> None:
        async with GraphqlCommunicator(schema, self.ann, subprotocol="graphql-ws") as ann:
            subscription = await ann.asubscribe(PRODUCTS)
            assert_type(subscription, TestSubscription)
            assert_type(await apump(), list[Change])
            await subscription.anothing()

    def test_next_alone(self) -> None:
        order = Order(status="open")
        changes = [insert(order), update(order, old={"status": "new"}), delete(Order, status="paid"), truncate(Order)]
        assert_type(changes, list[Change])
        assert [change.kind for change in changes] == list(Kind)
        with MemoryJournal() as journal, GraphqlCommunicator(schema) as anybody:
            with pytest.raises(GraphqlResultError):
                anybody.subscribe("subscription { orders { id } }")
            journal.add(*changes)
            pump()


def test_with_fixtures(
    graphql_communicator: Callable[..., GraphqlCommunicator],
    pump: Callable[[], list[Change]],
    memory_journal: MemoryJournal,
) -> None:
    ann = graphql_communicator(schema, None, params={"token": "of ann"})
    memory_journal.add(insert(Product, name="tea"))
    pump()
    assert_type(ann.closed(), SocketClosedError)
