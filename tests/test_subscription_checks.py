"""What the system checks say of model subscriptions, before anybody subscribes."""

from __future__ import annotations

from typing import Any

import graphene
import pytest
from django.core import checks
from django.db.models import Q
from django.test import override_settings
from graphene_django import DjangoObjectType

from example.conversations.models import Membership, Message
from pgnotify_gql.subscriptions import ModelSubscription
from tests.support.subscribers import Query


class Letter(DjangoObjectType):  # type: ignore[misc]
    class Meta:
        model = Message
        fields = ("id", "text")
        skip_registry = True


class Member(DjangoObjectType):  # type: ignore[misc]
    class Meta:
        model = Membership
        fields = ("id",)
        skip_registry = True


def found(output: Any = Letter, *, decides: bool = True, **meta: Any) -> list[checks.CheckMessage]:
    """Return what is found of a schema with one model subscription, `Declared`."""
    body: dict[str, Any] = {"Meta": type("Meta", (), {"output": output, **meta})}
    if decides:
        body["can_see"] = classmethod(lambda cls, change, info: True)
    declared: Any = type("Declared", (ModelSubscription,), body)

    class Subscriptions(graphene.ObjectType):  # type: ignore[misc]
        changes = declared.Field()

    with override_settings(GRAPHENE={"SCHEMA": graphene.Schema(query=Query, subscription=Subscriptions)}):
        return [each for each in checks.run_checks() if each.id in {"pgnotify_gql.E007", "pgnotify_gql.W007"}]


def test_one_that_can_work_is_left_alone() -> None:
    assert found(optional=["conversation"], filter=Q(text__startswith="x")) == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"output": Member}, "conversations.membership is not watched: call notify_on_model_changes(Membership)"),
        ({"required": ["created_at"]}, "the watch of conversations.message does not capture 'created_at'"),
        ({"filter": Q(created_at__isnull=False)}, "does not capture; add it to its columns="),
    ],
)
def test_what_cannot_work_is_an_error_with_advice(options: dict[str, Any], sentence: str) -> None:
    [message] = found(**options)
    assert message.id == "pgnotify_gql.E007"
    assert message.msg.startswith("Declared: ")
    assert sentence in message.msg


def test_one_that_tells_nobody_of_rows_that_have_gone_is_warned_of() -> None:
    [message] = found(decides=False)
    assert message.id == "pgnotify_gql.W007"
    assert "Declared has no can_see()" in message.msg
    assert "return True" in str(message.hint)


def test_one_of_insertions_alone_needs_no_decision() -> None:
    assert found(decides=False, kinds=["INSERT"]) == []


def test_without_a_schema_nothing_is_said() -> None:
    with override_settings(GRAPHENE={"SCHEMA": ""}):
        assert not [each for each in checks.run_checks() if str(each.id).startswith("pgnotify_gql.")]


@pytest.mark.parametrize("schema", ["no.such.module.schema", "example.schema.schemer"])
def test_w010_is_a_schema_that_is_not_there(schema: str) -> None:
    with override_settings(GRAPHENE={"SCHEMA": schema}):
        [message] = [each for each in checks.run_checks() if str(each.id).startswith("pgnotify_gql.")]
    assert message.id == "pgnotify_gql.W010"
    assert message.msg.startswith("the schema that GRAPHENE['SCHEMA'] names cannot be imported: ")
    assert "chat.schema.schema" in str(message.hint)
