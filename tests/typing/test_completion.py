"""What editors offer a user while he writes, as pyright's language server tells them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.typing.conftest import PROJECT
from tests.typing.language_server import LanguageServer

pytestmark = pytest.mark.timeout(300)

SUBSCRIBE = """
import graphene
from pgnotify_gql.capture import Kind
from pgnotify_gql.subscriptions import Change, ModelSubscription, Subscription
from .schema import OrderChanges, OrderType, OrdersSubscription, Subscriptions

class More(OrdersSubscription):
    @classmethod
    def next(cls, change: Change, info: object) -> None:
        {}
"""


@pytest.fixture(scope="module")
def editor(user_python: Path, node: Path) -> Iterator[LanguageServer]:
    with LanguageServer(PROJECT, user_python) as server:
        yield server


@pytest.mark.parametrize(
    ("written", "offered"),
    [
        ("cls.|", {"Field", "audience", "subscribe", "next", "state", "depends_on"}),
        ("OrdersSubscription.|", {"Field", "audience", "subscribe", "next", "state", "depends_on"}),
        ("OrderChanges.|", {"Field", "can_see", "subscribe", "next", "state"}),
        ("change.|", {"pk", "kind", "old", "new", "changed", "keys", "instance", "context", "at", "model_label"}),
        ("Kind.|", {"INSERT", "UPDATE", "DELETE", "TRUNCATE"}),
        ("graphene.|", {"ObjectType", "Schema", "String", "Argument"}),
        ("OrderType.|", {"get_queryset", "get_node", "Meta"}),
        ("Subscriptions.|", {"orders", "products", "order_changes"}),
        ("OrdersSubscription.Field().|", {"args", "description", "name"}),
    ],
)
def test_an_editor_offers_the_members_of(written: str, offered: set[str], editor: LanguageServer) -> None:
    assert offered <= editor.offered("shop/editing.py", SUBSCRIBE.format(written))


def test_an_editor_offers_the_hooks_of_a_consumer_to_override(editor: LanguageServer) -> None:
    source = """
from pgnotify_gql.transport import GraphqlSubscriptionConsumer

class Sockets(GraphqlSubscriptionConsumer):
    def hook(self) -> None:
        self.|
"""
    hooks = {"on_connect", "on_operation", "on_recheck", "depends_on", "scope", "expires_at", "as_asgi"}
    assert hooks <= editor.offered("shop/editing.py", source)
