"""A change, decoded from a row of the journal."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime
from decimal import Decimal
from threading import Barrier
from typing import Any

import pytest
from django.contrib.postgres.fields import ArrayField
from django.db import connection, models

from pgnotify_gql.capture import Kind
from pgnotify_gql.capture.installer import plan_install
from pgnotify_gql.capture.watch import Watch
from pgnotify_gql.journal import Change, JournalRow
from pgnotify_gql.journal.sighting import RawSource
from tests.support.databases import Database
from tests.support.watched import Item, make_model, micros, watched

AT = datetime(2024, 2, 29, tzinfo=UTC)


class Fruits:
    """What a watch tells about its rows, without a model and a database."""

    label = "stock.fruit"

    def __init__(self) -> None:
        self.fetched: list[Any] = []

    def pk(self, key: Sequence[Any]) -> Any:
        return key[0]

    def keys(self, pk: Any) -> Mapping[str, Any]:
        return {"id": pk}

    def values(self, image: Mapping[str, Any]) -> Mapping[str, Any]:
        return dict(image)

    def instance(self, image: Mapping[str, Any]) -> Any:
        return f"fruit {image['id']}, as it was" if "id" in image else None

    def fetch(self, pk: Any) -> Any:
        self.fetched.append(pk)
        return f"fruit {pk}"


def changes(rows: Any, *, kind: Kind = Kind.UPDATE, context: str | None = None) -> list[Change]:
    row = JournalRow(17, 900, "stock.fruit", kind, json.dumps(rows), micros(AT), context)
    return row.changes(Fruits())


def change(*images: Any, kind: Kind = Kind.UPDATE, context: str | None = None) -> Change:
    (found,) = changes([[[7], *images]], kind=kind, context=context)
    return found


class TestChange:
    def test_unpacks_to_its_key_and_its_model(self) -> None:
        pk, model_label = change()
        assert (pk, model_label) == (7, "stock.fruit")

    def test_knows_where_it_stands(self) -> None:
        first, second = changes([[[7]], [[8]]])
        assert [(found.journal_id, found.index, found.xid, found.at) for found in (first, second)] == [
            (17, 0, 900, AT),
            (17, 1, 900, AT),
        ]

    def test_cannot_be_altered(self) -> None:
        with pytest.raises(FrozenInstanceError):
            change().pk = 8  # type: ignore[misc]

    def test_without_images_has_neither_old_nor_new(self) -> None:
        found = change()
        assert (found.old, found.new, found.changed) == (None, None, frozenset())

    def test_names_the_columns_that_differ(self) -> None:
        found = change({"name": "tea", "size": 1}, {"name": "tea", "size": 2})
        assert found.changed == {"size"}

    def test_of_an_insert_has_no_old_image(self) -> None:
        found = change(None, {"name": "tea"}, kind=Kind.INSERT)
        assert (found.old, found.new, found.changed) == (None, {"name": "tea"}, frozenset({"name"}))

    def test_of_an_insert_names_the_columns_that_are_not_null(self) -> None:
        assert change(None, {"name": "tea", "note": None}, kind=Kind.INSERT).changed == {"name"}

    @pytest.mark.parametrize("same", [math.nan, [math.nan], {"a": [1, 2.5]}, True])
    def test_what_postgresql_wrote_the_same_did_not_change(self, same: Any) -> None:
        """A NaN differs from itself in Python; PostgreSQL writes it as text."""
        written = json.loads(json.dumps(same), parse_constant=str)
        assert change({"value": written}, {"value": written}).changed == frozenset()

    @pytest.mark.parametrize(("old", "new"), [({"a": True}, {"a": 1}), ([1], [1.0]), (0, None), (False, 0)])
    def test_what_postgresql_wrote_differently_changed(self, old: Any, new: Any) -> None:
        assert change({"value": old}, {"value": new}).changed == {"value"}

    def test_a_column_that_one_image_does_not_hold_is_named_and_one_that_neither_holds_is_not(self) -> None:
        found = change({"name": "tea", "size": 1}, {"name": "tea", "note": None})
        assert found.changed == {"size", "note"}

    def test_of_a_truncate_has_no_key(self) -> None:
        (found,) = changes([[None]], kind=Kind.TRUNCATE)
        assert (found.pk, found.old, found.new, found.keys, found.instance) == (None, None, None, {}, None)

    def test_has_its_key_by_column(self) -> None:
        assert change().keys == {"id": 7}

    def test_numbers_keep_all_their_digits(self) -> None:
        (row,) = JournalRow(1, 1, "x", Kind.INSERT, '[[[1], null, {"n": 0.12345678901234567890}]]', micros(AT)).changes(
            Fruits()
        )
        assert row.new == {"n": Decimal("0.12345678901234567890")}

    def test_shows_no_row_data_in_logs(self) -> None:
        assert "secret" not in repr(change({"name": "secret"}, {"name": "secret"}, context='{"why": "secret"}'))


class TestInstance:
    def test_is_fetched_when_asked_for_and_once(self) -> None:
        found = change({"size": 1}, {"size": 2})
        source = found.source
        assert isinstance(source, Fruits)
        assert source.fetched == []
        assert (found.instance, found.instance) == ("fruit 7", "fruit 7")
        assert source.fetched == [7]

    def test_is_not_fetched_when_the_new_image_is_enough(self) -> None:
        found = change({"id": 7}, {"id": 7})
        assert (found.instance, found.instance) == ("fruit 7, as it was", "fruit 7, as it was")
        assert isinstance(found.source, Fruits)
        assert found.source.fetched == []

    @pytest.mark.parametrize("images", [(), ({"size": 1}, None), ({"id": 7}, None)])
    def test_of_a_delete_is_none_and_nobody_is_asked(self, images: tuple[Any, ...]) -> None:
        """Though another row may have taken the key since."""
        found = change(*images, kind=Kind.DELETE)
        assert found.instance is None
        assert isinstance(found.source, Fruits)
        assert found.source.fetched == []

    def test_is_fetched_once_however_many_threads_ask(self) -> None:
        found = change()
        together = Barrier(8)

        def ask() -> Any:
            together.wait(timeout=30)
            return found.instance

        with ThreadPoolExecutor(8) as threads:
            answers = {outcome.result(timeout=30) for outcome in [threads.submit(ask) for _ in range(8)]}
        assert answers == {"fruit 7"}
        assert isinstance(found.source, Fruits)
        assert found.source.fetched == [7]

    def test_is_the_row_as_it_is_now(self, database: Database) -> None:
        table = watched(database)
        table.run("insert into item (id, name) values (7, 'tea')")
        ((insert),) = table.changes()
        table.run("update item set name = 'hot tea'")
        assert insert.instance == Item.objects.get(pk=7)
        assert insert.instance.name == "hot tea"

    def test_is_none_when_the_row_is_gone(self, database: Database) -> None:
        table = watched(database)
        table.run("insert into item (id) values (7)")
        ((insert),) = table.changes()
        table.run("delete from item")
        assert insert.instance is None


class TestValues:
    def test_items_of_an_array_are_decoded_as_its_field_says(self, database: Database) -> None:
        field: ArrayField[Any, Any] = ArrayField(models.DateTimeField())
        table = watched(
            database,
            make_model("Diary", "diary", days=field),
            "create table diary (id bigint primary key, days timestamptz[])",
            columns=["days"],
        )
        table.run("insert into diary values (1, array['2024-02-29 00:00Z'::timestamptz, null]), (2, null)")
        assert [new for _, _, new in table.images()] == [{"days": [AT, None]}, {"days": None}]

    def test_a_key_that_python_cannot_hold_arrives(self, database: Database) -> None:
        model = make_model("Day", "day", key=models.DateField(primary_key=True))
        table = watched(database, model, "create table day (key date primary key)")
        table.run("insert into day values ('infinity'), ('0044-03-15 BC')")
        assert table.seen() == [("INSERT", "infinity"), ("INSERT", "0044-03-15 BC")]

    def test_numbers_that_json_does_not_know_arrive(self, database: Database) -> None:
        """Integers of more digits than int() takes, and the negative zero, which JSON writes like an integer."""
        exact: models.Field[Any, Any] = models.DecimalField(max_digits=1000, decimal_places=2)
        model = make_model("Measure", "measure", exact=exact, rough=models.FloatField())
        create = "create table measure (id bigint primary key, exact numeric, rough float8)"
        table = watched(database, model, create, columns=["exact", "rough"])
        table.run("insert into measure values (1, 10::numeric ^ 5000, '-0'), (2, 'NaN', 'NaN')")
        long, unknown = table.changes()
        assert long.new is not None
        assert unknown.new is not None
        assert long.new["exact"] == Decimal(10) ** 5000
        assert math.copysign(1, long.new["rough"]) == -1
        assert unknown.new["exact"].is_nan()
        assert math.isnan(unknown.new["rough"])

    def test_a_column_that_is_not_watched_any_more_is_left_out(self) -> None:
        """The journal may hold images that an older version of the watch captured."""
        assert Watch(Item, ("name",)).values({"name": "tea", "version": 1, "gone": 2}) == {"name": "tea"}

    @pytest.mark.postgres("18")
    def test_a_column_that_postgresql_does_not_compute_in_triggers_is_refused(self, database: Database) -> None:
        """Reading it there fails, and the write with it.  Beside the watch's columns it does no harm."""
        model = make_model("Box", "box", side=models.IntegerField(), area=models.IntegerField())
        create = (
            "create table box (id bigint primary key, side int, area int generated always as (side * side) virtual)"
        )
        table = watched(database, model, create, columns=["side"])
        table.run("insert into box values (1, 2)")
        table.run("update box set side = 3")
        assert table.images() == [("INSERT", None, {"side": 2}), ("UPDATE", {"side": 2}, {"side": 3})]
        (error,) = plan_install(connection, [Watch(model, "__all__")]).errors
        assert "does not compute virtual generated columns in triggers" in str(error)


def test_a_change_of_what_this_process_does_not_watch_has_values_as_they_stand_in_json_and_no_row() -> None:
    row = JournalRow(1, 1, "elsewhere.thing", Kind.INSERT, '[[[7], null, {"on": "2024-02-29"}]]', micros(AT))
    (change,) = row.changes(RawSource(row.label))
    assert (change.pk, change.new) == (7, {"on": "2024-02-29"})
    assert change.keys == {}
    assert change.instance is None
