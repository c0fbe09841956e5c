"""Mistakes of the first minutes that no system check can see: what says them, and what to do, in so many words."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import graphene
import pytest
from django.core import checks
from django.test import override_settings

from example.conversations.models import Message
from pgnotify_gql.errors import ConfigurationError
from pgnotify_gql.subscriptions import ModelSubscription, Subscription
from pgnotify_gql.transport import GraphqlSseConsumer, GraphqlSubscriptionConsumer
from tests.support.subscribers import Query
from tests.test_subscription_checks import Letter

SCHEMA_OF_A_BEGINNER = """
import graphene
from pgnotify_gql.subscriptions import Subscription

class Letters(Subscription):
    class Meta:
        output = graphene.String

    @classmethod
    def subscribe(cls, info):
        return []

    def next(self, change, info):
        return "text"
"""


class Subscriptions(graphene.ObjectType):  # type: ignore[misc]
    letters: Any = graphene.Field(graphene.String)


class Forgotten(graphene.ObjectType):  # type: ignore[misc]
    """Its subscription is not mounted with ``Field()``, so that it has no field."""

    letters = Subscription


@pytest.mark.parametrize("consumer", [GraphqlSubscriptionConsumer, GraphqlSseConsumer])
def test_a_consumer_that_is_mounted_without_as_asgi_says_how_to_mount_it(consumer: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        consumer({"type": "websocket"}, print, print)
    name = consumer.__name__
    assert str(caught.value) == f"{name} is no ASGI application by itself: mount {name}.as_asgi(schema=schema)"


def test_a_schema_that_is_not_valid_is_refused_when_it_is_mounted_and_not_by_each_operation() -> None:
    with pytest.raises(ConfigurationError, match="the schema is not valid: Type Forgotten must define one or more"):
        GraphqlSubscriptionConsumer.as_asgi(schema=graphene.Schema(query=Query, subscription=Forgotten))
    with pytest.raises(ConfigurationError, match="the schema is not valid: Query root type must be provided"):
        GraphqlSubscriptionConsumer.as_asgi(schema=graphene.Schema(subscription=Subscriptions))


def test_a_schema_without_subscriptions_is_warned_of_when_it_is_mounted(caplog: pytest.LogCaptureFixture) -> None:
    GraphqlSubscriptionConsumer.as_asgi(schema=graphene.Schema(query=Query))
    assert [(record.levelno, record.message) for record in caplog.records] == [
        (logging.WARNING, "the schema has no subscriptions: give graphene.Schema the argument subscription=")
    ]
    caplog.clear()
    GraphqlSubscriptionConsumer.as_asgi(schema=graphene.Schema(query=Query, subscription=Subscriptions))
    assert caplog.records == []


def of_subscription(**methods: Any) -> None:
    """Declare a subscription that is whole but for these methods."""
    meta = type("Meta", (), {"output": Letter, "initial": "state" in methods})
    whole = {"subscribe": classmethod(lambda cls, info: [Message]), "next": classmethod(lambda cls, change, info: None)}
    type("Declared", (Subscription,), {"Meta": meta, **whole, **methods})


@pytest.mark.parametrize("name", ["subscribe", "next", "state", "depends_on"])
def test_a_method_that_is_no_classmethod_is_refused_when_the_subscription_is_declared(name: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        of_subscription(**{name: lambda self, *arguments: None})
    assert str(caught.value) == f"Declared.{name}() is called on the class: put @classmethod above it"


def test_e007_is_a_subscription_that_is_declared_wrongly_in_place_of_a_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "first_minutes_schema.py").write_text(SCHEMA_OF_A_BEGINNER)
    monkeypatch.syspath_prepend(tmp_path)
    with override_settings(GRAPHENE={"SCHEMA": "first_minutes_schema.schema"}):
        (message,) = [each for each in checks.run_checks() if str(each.id).startswith("pgnotify_gql.E")]
    assert message.id == "pgnotify_gql.E007"
    assert message.msg == "Letters.next() is called on the class: put @classmethod above it"


def test_can_see_that_is_no_classmethod_is_refused_when_the_subscription_is_declared() -> None:
    body = {"Meta": type("Meta", (), {"output": Letter}), "can_see": lambda self, change, info: True}
    with pytest.raises(ConfigurationError, match=r"Declared.can_see\(\) is called on the class"):
        type("Declared", (ModelSubscription,), body)


def test_static_methods_and_classmethods_are_both_fine() -> None:
    of_subscription(next=staticmethod(lambda change, info: None), depends_on=classmethod(lambda cls, info: []))
