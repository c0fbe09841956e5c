"""Changes made by hand: what they hold is what the triggers of a database would have written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any

import pytest
from django.contrib.postgres.fields import DateRangeField, IntegerRangeField
from django.core.exceptions import ValidationError
from django.db import connection, models
from django.db.models.functions import Now
from psycopg.types.range import Range

from example.conversations.models import Conversation, Message
from pgnotify_gql.capture import Kind
from pgnotify_gql.capture.registry import make_watch, registry
from pgnotify_gql.errors import WatchError
from pgnotify_gql.testing import delete, insert, truncate, update
from pgnotify_gql.testing.factories import journal_row
from pgnotify_gql.testing.images import encoded
from tests.support.databases import Database, migrated_template, new_database, used_by_django
from tests.support.postgres import PostgresServer
from tests.support.watched import Line, make_model, watched
from tests.test_values import COLUMNS, TYPES_SQL, write_by_orm, write_by_sql

ENCODED = {"decoded_json", "decoded_jsons"}
"""Columns of which the ORM writes something else than it has read: their encoder makes text of a Decimal."""

Pairs = Mapping[str, list[tuple[Any, Any]]]
"""What triggers and the factory have written for each row, by column."""


@pytest.fixture(scope="module")
def pairs(postgres: PostgresServer) -> Iterator[Pairs]:
    with new_database(postgres, migrated_template(postgres)) as database, used_by_django(database):
        database.connect().execute(TYPES_SQL)
        yield observe(database)


def observe(database: Database) -> Pairs:
    """Write rows of every type of field, and make the same changes by hand."""
    fields = {name: (make(null=True) if literals else make()) for name, (make, literals) in COLUMNS.items()}
    model = make_model("Sample", "sample", **{name: field.clone() for name, field in fields.items()})
    with connection.schema_editor() as editor:
        editor.create_model(model)
    table = watched(database, model, "", columns="__all__")
    write_by_sql(table, COLUMNS)
    by_sql = {pk for (pk,) in table.run("select id from sample")}
    write_by_orm(model)
    written = {change.pk: change.new for change in table.changes()}
    registry.add(table.watch)
    try:
        by_hand = {row.pk: insert(writable(row)).new for row in model._default_manager.all()}
    finally:
        registry.remove(table.watch.label)
    return {
        name: [
            (image[name], by_hand[pk][name])  # type: ignore[index]  # each has an image
            for pk, image in written.items()
            if image is not None and not (pk in by_sql and name in ENCODED)
        ]
        for name in ("id", *COLUMNS)
    }


def writable(row: models.Model) -> models.Model:
    """A row with null for what the ORM reads and does not write: a NaN, an array within an array."""
    for field in row._meta.concrete_fields:
        try:
            encoded(field, getattr(row, field.attname))
        except (TypeError, ValueError, ArithmeticError, ValidationError):
            setattr(row, field.attname, None)
    return row


@pytest.mark.parametrize("column", ["id", *COLUMNS])
def test_an_image_holds_what_triggers_write(pairs: Pairs, column: str) -> None:
    differing = [(written, by_hand) for written, by_hand in pairs[column] if repr(written) != repr(by_hand)]
    assert [pair for pair in differing if pair[1] is not None] == []
    assert len(differing) < len(pairs[column]) // 2


class TestImages:
    def test_it_has_the_columns_that_the_watch_captures(self) -> None:
        change = insert(Message, id=7, conversation=3, author=2, text="tea")
        assert (change.kind, change.pk, change.old) == (Kind.INSERT, 7, None)
        assert change.new == {"conversation": 3, "author": 2, "text": "tea"}
        assert change.changed == {"conversation", "author", "text"}

    def test_a_watch_without_columns_tells_the_key(self) -> None:
        change = update(Conversation(id=7, title="kitchen"))
        assert (change.pk, change.old, change.new, change.instance.title) == (7, None, None, "kitchen")

    def test_an_update_differs_in_what_was_old(self) -> None:
        message = Message(id=7, text="tea", conversation_id=3)
        change = update(message, {"text": "tee"}, context={"via": "shell"})
        assert change.old is not None
        assert change.new is not None
        assert (change.old["text"], change.new["text"], set(change.changed)) == ("tee", "tea", {"text"})
        assert change.instance is message
        assert change.context == {"via": "shell"}

    def test_a_deletion_has_what_was_and_no_instance(self) -> None:
        change = delete(Message(id=7, text="tea"))
        assert change.old is not None
        assert (change.old["text"], change.new, change.instance) == ("tea", None, None)

    def test_a_truncation_has_no_key(self) -> None:
        change = truncate(Message)
        assert tuple(change) == (None, "conversations.message")
        assert (change.kind, change.old, change.new, change.instance) == (Kind.TRUNCATE, None, None, None)

    def test_values_beside_an_instance_leave_it_as_it_is(self) -> None:
        message = Message(id=7, text="tea")
        change = insert(message, text="cake")
        assert (message.text, change.instance.text) == ("tea", "cake")

    def test_keys_are_made_up_and_differ(self) -> None:
        assert insert(Message).pk != insert(Message).pk

    def test_a_related_instance_stands_for_its_key(self) -> None:
        change = insert(Message, conversation=Conversation(id=3))
        assert change.new is not None
        assert change.new["conversation"] == 3

    def test_a_journal_row_of_it_is_decoded_to_the_same(self) -> None:
        for change in (
            insert(Message, text='"ü\\'),
            update(Message, {"text": "a"}, context={"by": 3}),
            delete(Conversation, id=5),
            truncate(Message),
        ):
            source = registry.get(change.model_label)
            assert source is not None
            (again,) = journal_row(change, 5).changes(source)
            assert (again.kind, again.pk, again.old, again.new) == (change.kind, change.pk, change.old, change.new)
            assert (again.at, again.context) == (change.at, change.context)


class TestRefusals:
    def test_an_unknown_field_is_named(self) -> None:
        with pytest.raises(TypeError, match=r"conversations.message has no field 'txt': did you mean text=\?"):
            insert(Message, txt="tea")
        with pytest.raises(TypeError, match="has no field 'qqqq': captured are author, author_id, conversation"):
            update(Message, {"qqqq": 1})

    def test_a_column_that_is_not_captured_is_named(self) -> None:
        with pytest.raises(TypeError, match=r"does not capture 'created_at': add it to columns="):
            insert(Message, created_at=None)

    def test_a_kind_that_is_not_captured_is_named(self) -> None:
        model = make_model("Crate", "crate")
        registry.add(make_watch(model, kinds=["INSERT"]))
        try:
            with pytest.raises(WatchError, match=r"the watch of stock.crate does not capture DELETE"):
                delete(model, id=1)
        finally:
            registry.remove("stock.crate")

    def test_what_the_database_makes_has_to_be_given(self) -> None:
        model = make_model(
            "Crate", "crate", at=models.DateTimeField(db_default=Now()), code=models.UUIDField(null=True)
        )
        registry.add(make_watch(model, columns=["at"]))
        try:
            with pytest.raises(TypeError, match=r"stock.crate.at is made by the database: give at="):
                insert(model)
        finally:
            registry.remove("stock.crate")

    def test_a_key_that_cannot_be_made_up_has_to_be_given(self) -> None:
        registry.add(make_watch(Line))
        try:
            with pytest.raises(TypeError, match=r"a change of stock.line needs its key: give order="):
                insert(Line, position="a")
            assert insert(Line, order=1, position="a").pk == (1, "a")
        finally:
            registry.remove("stock.line")


def test_ranges_are_written_as_the_database_keeps_them() -> None:
    model = make_model("Crate", "crate", days=DateRangeField(), numbers=IntegerRangeField())
    registry.add(make_watch(model, columns="__all__"))
    try:
        change = insert(model, days=Range(date(2024, 1, 1), date(2024, 1, 2), "[]"), numbers=Range(1, 3, "(]"))
        assert change.new is not None
        assert change.new["days"] == Range(date(2024, 1, 1), date(2024, 1, 3))
        assert change.new["numbers"] == Range(2, 4)
    finally:
        registry.remove("stock.crate")


def test_what_a_field_hands_to_the_database_as_text_is_in_the_image_as_it_is() -> None:
    class Interval(models.Field):  # type: ignore[type-arg]
        """An application's own, which leaves months to the database: Python's timedelta has none."""

        def db_type(self, connection: Any) -> str:
            return "interval"

    field = Interval()
    make_model("Crate", "crate", kept=field)
    assert encoded(field, "1 mon") == "1 mon"
