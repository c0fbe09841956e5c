"""A row that is fetched by its key is what the ORM makes of it, whichever way it is asked."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.contrib.sessions.models import Session
from django.db import connection, models
from django.test.utils import CaptureQueriesContext

from example.conversations.models import Conversation, Message
from pgnotify_gql.capture import row_query as row_query_module
from pgnotify_gql.capture.row_query import row_query
from tests.support.databases import Database
from tests.support.watched import make_model


class Reversed(models.TextField):  # type: ignore[type-arg]  # generic only for the type checker
    def from_db_value(self, value: str, *ignored: Any) -> str:
        return value[::-1]


class Hidden(models.Manager):  # type: ignore[type-arg]
    def get_queryset(self) -> models.QuerySet[Any]:
        return super().get_queryset().exclude(number=1)


def fetched(model: type[models.Model], pk: Any) -> Any:
    return row_query(model, "default")(pk)


def state(instance: Any) -> dict[str, Any]:
    values = dict(instance.__dict__)
    made = values.pop("_state")
    return {**values, "db": made.db, "adding": made.adding, "class": type(instance)}


@pytest.fixture
def chat(database: Database) -> Message:
    author = User.objects.create(username="ann")
    conversation = Conversation.objects.create(title="tea")
    return Message.objects.create(conversation=conversation, author=author, text="hello")


@pytest.fixture
def special(database: Database) -> type[models.Model]:
    """A model with what is read otherwise than it is stored, and an order."""
    with connection.cursor() as cursor:
        cursor.execute('create table "Special" (id uuid primary key, "order" int, data jsonb, backwards text)')
    model = make_model(
        "Special",
        "Special",
        id=models.UUIDField(primary_key=True),
        number=models.IntegerField(db_column="order"),
        data=models.JSONField(),
        backwards=Reversed(),
    )
    model._meta.ordering = ["-number"]
    return model


def test_it_is_what_the_orm_makes_of_it(chat: Message) -> None:
    session = Session.objects.create(session_key="a key", session_data="data", expire_date="2030-01-01T00:00:00Z")
    for row in (chat, chat.author, chat.conversation, session, Permission.objects.all()[0]):
        assert state(fetched(type(row), row.pk)) == state(type(row)._base_manager.get(pk=row.pk))


def test_it_is_asked_in_one_query_that_is_compiled_once(chat: Message) -> None:
    fetch = row_query(Message, "default")
    with CaptureQueriesContext(
        connection,
    ) as queries:
        assert fetch(chat.pk).text == "hello"  # type: ignore[union-attr]
        assert fetch(chat.pk + 1) is None
    assert len(queries) == 2
    assert queries[0]["sql"].endswith(f'WHERE "conversations_message"."id" = {chat.pk}')


def test_values_are_converted_and_names_quoted(special: type[models.Model]) -> None:
    pk = uuid.uuid4()
    special._base_manager.create(pk=pk, number=2, data={"a": [1, None]}, backwards="abc")
    assert row_query_module._compiled(special, "default") is not None
    found = fetched(special, pk)
    assert (found.data, found.backwards, found.pk) == ({"a": [1, None]}, "cba", pk)
    assert state(found) == state(special._base_manager.get(pk=pk))
    assert state(fetched(special, str(pk))) == state(found)


def test_a_manager_of_the_model_s_own_decides_what_there_is(special: type[models.Model]) -> None:
    hidden, shown = uuid.uuid4(), uuid.uuid4()
    special._base_manager.create(pk=hidden, number=1, data=1, backwards="")
    special._base_manager.create(pk=shown, number=2, data=1, backwards="")
    manager = Hidden()
    manager.model = special
    special._meta.__dict__["base_manager"] = manager
    assert row_query_module._compiled(special, "default") is None
    assert fetched(special, hidden) is None
    assert fetched(special, shown).pk == shown
