"""Every way to change a watched table becomes the right rows of the journal, and never fails the writer."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import pytest
from django.db import models
from django.db.models.fields.composite import CompositePrimaryKey
from psycopg import sql

from example.conversations.models import Conversation, Message
from pgnotify_gql import names
from pgnotify_gql.capture import Kind
from pgnotify_gql.capture.render import CHUNK_BYTES, CHUNK_ROWS, render
from pgnotify_gql.capture.watch import Watch, column_of
from tests.support.databases import Database
from tests.support.watched import Connection, Item, WatchedTable, install, journal_rows, make_model, watched

ROW = {"name": "tea", "version": 1, "note": None}


@pytest.fixture
def items(database: Database) -> WatchedTable:
    """Items, of which keys only are captured."""
    return watched(database)


@pytest.fixture
def whole_items(database: Database) -> WatchedTable:
    """Items, of which everything is captured."""
    return watched(database, columns="__all__")


class TestKinds:
    def test_an_inserted_row_is_an_insert(self, items: WatchedTable) -> None:
        items.run("insert into item (id) values (7)")
        assert items.seen() == [("INSERT", 7)]

    def test_an_updated_row_is_an_update(self, items: WatchedTable) -> None:
        items.run("insert into item (id) values (7)")
        items.run("update item set version = 1")
        assert items.seen() == [("INSERT", 7), ("UPDATE", 7)]

    def test_a_deleted_row_is_a_delete(self, items: WatchedTable) -> None:
        items.run("insert into item (id) values (7)")
        items.run("delete from item")
        assert items.seen() == [("INSERT", 7), ("DELETE", 7)]

    def test_a_truncated_table_is_one_change_without_a_key(self, items: WatchedTable) -> None:
        items.run("insert into item (id) values (7), (8)")
        items.journal()
        items.run("truncate item")
        assert items.seen() == [("TRUNCATE", None)]

    def test_a_truncate_that_cascades_is_a_change_of_every_table_it_reaches(self, database_triggers: Database) -> None:
        connection = database_triggers.connect()
        connection.execute("truncate conversations_conversation cascade")
        labels = {row.label for row in journal_rows(connection) if row.kind is Kind.TRUNCATE}
        assert labels == {Conversation._meta.label_lower, Message._meta.label_lower}

    def test_rows_deleted_by_a_cascade_in_the_database_are_deletes(self, items: WatchedTable) -> None:
        items.run("create table maker (id int primary key)")
        items.run("alter table item add maker_id int references maker on delete cascade")
        items.run("insert into maker values (1), (2)")
        items.run("insert into item (id, maker_id) values (1, 1), (2, 1), (3, 2)")
        items.journal()
        items.run("delete from maker where id = 1")
        assert sorted(items.seen()) == [("DELETE", 1), ("DELETE", 2)]

    @pytest.mark.parametrize(
        "statement",
        [
            "insert into item (id) select 1 where false",
            "update item set version = 1 where false",
            "delete from item where false",
            "insert into item (id) values (7) on conflict do nothing",
        ],
    )
    def test_a_statement_that_touches_no_row_writes_nothing(self, items: WatchedTable, statement: str) -> None:
        items.run("insert into item (id) values (7)")
        items.journal()
        items.run(statement)
        assert items.journal() == []

    def test_an_update_that_changes_nothing_is_no_change(self, items: WatchedTable) -> None:
        items.run("insert into item (id) values (7), (8)")
        items.journal()
        items.run("update item set version = version where id = 7")
        items.run("update item set version = version")
        assert items.journal() == []

    def test_only_the_rows_that_differ_are_changes_of_a_bulk_update(self, items: WatchedTable) -> None:
        items.run("insert into item (id, version) values (1, 1), (2, 0), (3, 0)")
        items.journal()
        items.run("update item set version = 1")
        assert sorted(items.seen()) == [("UPDATE", 2), ("UPDATE", 3)]

    def test_a_change_of_a_column_that_is_not_captured_is_a_change(self, database: Database) -> None:
        table = watched(database, columns=["name"])
        table.run("insert into item (id, name, version) values (7, 'tea', 0)")
        table.journal()
        table.run("update item set version = 1")
        ((change),) = table.changes()
        assert (change.kind, change.pk, change.changed) == (Kind.UPDATE, 7, frozenset())

    def test_an_upsert_is_an_insert_of_new_rows_and_an_update_of_others(self, items: WatchedTable) -> None:
        items.run("insert into item (id) values (1), (2)")
        items.journal()
        items.run(
            "insert into item (id, version) values (1, 5), (2, 0), (3, 5)"
            " on conflict (id) do update set version = excluded.version"
        )
        assert sorted(items.seen()) == [("INSERT", 3), ("UPDATE", 1)]

    def test_on_conflict_do_nothing_is_an_insert_of_new_rows_only(self, items: WatchedTable) -> None:
        items.run("insert into item (id) values (1)")
        items.journal()
        items.run("insert into item (id) values (1), (2) on conflict do nothing")
        assert items.seen() == [("INSERT", 2)]

    def test_a_merge_is_each_of_the_things_it_did(self, items: WatchedTable) -> None:
        items.run("insert into item (id) values (1), (2)")
        items.journal()
        items.run(
            "merge into item using (values (1), (2), (3)) as wanted (id) on item.id = wanted.id"
            " when matched and item.id = 1 then delete"
            " when matched then update set version = 9"
            " when not matched then insert (id) values (wanted.id)"
        )
        assert sorted(items.seen()) == [("DELETE", 1), ("INSERT", 3), ("UPDATE", 2)]

    def test_copy_is_an_insert(self, items: WatchedTable) -> None:
        with items.connection.cursor() as cursor, cursor.copy("copy item (id) from stdin") as copy:
            for key in (1, 2, 3):
                copy.write_row((key,))
        assert items.seen() == [("INSERT", 1), ("INSERT", 2), ("INSERT", 3)]

    def test_a_statement_with_several_writes_inside_is_all_of_them(self, items: WatchedTable) -> None:
        items.run("insert into item (id) values (1), (2)")
        items.journal()
        items.run(
            "with gone as (delete from item where id = 1 returning id),"
            " new as (insert into item (id) values (3) returning id)"
            " update item set version = 1 where id = 2"
        )
        assert sorted(items.seen()) == [("DELETE", 1), ("INSERT", 3), ("UPDATE", 2)]

    def test_bulk_operations_of_the_orm_are_changes(self, items: WatchedTable) -> None:
        made = Item.objects.bulk_create([Item(name="tea"), Item(name="milk")])
        for item in made:
            item.version = 1
        Item.objects.bulk_update(made, ["version"])
        Item.objects.filter(name="tea").update(version=2)
        Item.objects.all().delete()
        tea, milk = (item.pk for item in made)
        seen = items.seen()
        assert seen[:2] == [("INSERT", tea), ("INSERT", milk)]
        assert set(seen[2:4]) == {("UPDATE", tea), ("UPDATE", milk)}
        assert seen[4] == ("UPDATE", tea)
        assert set(seen[5:]) == {("DELETE", tea), ("DELETE", milk)}


class TestChosenKinds:
    @pytest.mark.parametrize("kind", Kind)
    def test_only_the_chosen_kind_is_captured(self, database: Database, kind: Kind) -> None:
        table = watched(database, kinds=[kind])
        table.run("insert into item (id) values (1)")
        table.run("update item set version = 1")
        table.run("delete from item")
        table.run("truncate item")
        assert [found for found, _ in table.seen()] == [kind.value]

    @pytest.mark.parametrize(
        ("kinds", "expected"),
        [
            ([Kind.INSERT], [("INSERT", 2)]),
            ([Kind.DELETE], [("DELETE", 1)]),
            ([Kind.UPDATE], []),
            ([Kind.UPDATE, Kind.DELETE], [("DELETE", 1)]),
        ],
    )
    def test_a_changed_key_is_captured_as_what_it_is(
        self, database: Database, kinds: list[Kind], expected: list[tuple[str, int]]
    ) -> None:
        table = watched(database, kinds=kinds)
        table.run("insert into item (id) values (1)")
        table.journal()
        table.run("update item set id = 2")
        assert table.seen() == expected

    def test_rows_of_a_kind_that_is_not_captured_are_left_out_of_a_bulk_update(self, database: Database) -> None:
        table = watched(database, kinds=[Kind.INSERT])
        table.run("insert into item (id) values (1), (2)")
        table.journal()
        table.run("update item set id = id + 10 * (id - 1), version = 1")
        assert table.seen() == [("INSERT", 12)]


class TestChangedKeys:
    def test_a_row_with_a_changed_key_is_a_delete_and_an_insert(self, whole_items: WatchedTable) -> None:
        whole_items.run("insert into item (id, name) values (1, 'tea')")
        whole_items.journal()
        whole_items.run("update item set id = 2")
        delete, insert = whole_items.changes()
        assert (delete.kind, delete.pk, delete.new) == (Kind.DELETE, 1, None)
        assert (insert.kind, insert.pk, insert.old) == (Kind.INSERT, 2, None)
        assert delete.old is not None
        assert insert.new is not None
        assert (delete.old["id"], delete.old["name"]) == (1, "tea")
        assert (insert.new["id"], insert.new["name"]) == (2, "tea")

    def test_many_rows_with_changed_keys_are_deletes_and_inserts(self, items: WatchedTable) -> None:
        items.run("insert into item (id) values (1), (2), (3)")
        items.journal()
        items.run("update item set id = id + 100")
        expected = [("DELETE", key) for key in (1, 2, 3)] + [("INSERT", key) for key in (101, 102, 103)]
        assert sorted(items.seen()) == expected

    def test_keys_that_shift_onto_each_other_end_as_the_table_does(self, whole_items: WatchedTable) -> None:
        """A reader that applies the changes, in order, to what it had must arrive at what the table holds."""
        # Deferrable: PostgreSQL checks an ordinary key row by row, and 1 would collide with 2.
        whole_items.run("alter table item drop constraint item_pkey, add primary key (id) deferrable")
        whole_items.run("insert into item (id, name) select n, 'name ' || n from generate_series(1, 50) n")
        replica = replay({}, whole_items)
        whole_items.run("update item set id = id + 1")
        changes = whole_items.changes()
        replica = apply(replica, changes)
        assert replica == dict(whole_items.run("select id, name from item"))
        assert ("DELETE", 1) in [(change.kind, change.pk) for change in changes]
        assert ("INSERT", 51) in [(change.kind, change.pk) for change in changes]

    def test_two_keys_that_swap_end_as_the_table_does(self, whole_items: WatchedTable) -> None:
        whole_items.run("alter table item drop constraint item_pkey, add primary key (id) deferrable")
        whole_items.run("insert into item (id, name) values (1, 'one'), (2, 'two')")
        replica = replay({}, whole_items)
        whole_items.run("update item set id = 3 - id")
        assert replay(replica, whole_items) == {1: "two", 2: "one"}

    def test_a_changed_column_of_a_composite_key_is_a_delete_and_an_insert(self, database: Database) -> None:
        table = watched(database, Line, LINE_SQL)
        table.run("insert into line values (1, 'a', 5)")
        table.journal()
        table.run("update line set position = 'b'")
        assert table.seen() == [("DELETE", (1, "a")), ("INSERT", (1, "b"))]


def apply(rows: dict[Any, Any], changes: list[Any]) -> dict[Any, Any]:
    """Apply changes of items to a copy of the table."""
    rows = dict(rows)
    for change in changes:
        if change.kind is Kind.DELETE:
            rows.pop(change.pk, None)
        else:
            rows[change.pk] = change.new["name"]
    return rows


def replay(rows: dict[Any, Any], table: WatchedTable) -> dict[Any, Any]:
    return apply(rows, table.changes())


class TestBulk:
    def test_many_rows_become_few_journal_rows_in_insertion_order(self, items: WatchedTable) -> None:
        items.run("insert into item (id) select 10000 - n from generate_series(1, 2500) n")
        rows = items.journal()
        assert len(rows) == 2500 // CHUNK_ROWS + 1
        sizes = [len(row.changes(items.watch)) for row in rows]
        assert max(sizes) <= CHUNK_ROWS
        keys = [change.pk for row in rows for change in row.changes(items.watch)]
        assert keys == [10_000 - n for n in range(1, 2501)]

    @pytest.mark.parametrize(
        ("statement", "kind"),
        [("update item set version = 1", Kind.UPDATE), ("delete from item", Kind.DELETE)],
    )
    def test_many_updated_or_deleted_rows_become_few_journal_rows(
        self, items: WatchedTable, statement: str, kind: Kind
    ) -> None:
        items.run("insert into item (id) select n from generate_series(1, 2500) n")
        items.journal()
        items.run(statement)
        rows = items.journal()
        assert len(rows) == 3
        changes = [change for row in rows for change in row.changes(items.watch)]
        assert {change.kind for change in changes} == {kind}
        assert sorted(change.pk for change in changes) == list(range(1, 2501))

    def test_a_statement_of_one_row_and_one_of_two_are_one_journal_row_each(self, items: WatchedTable) -> None:
        items.run("insert into item (id) values (1)")
        items.run("insert into item (id) values (2), (3)")
        items.run("update item set version = 1 where id = 1")
        items.run("update item set version = 1 where id > 1")
        items.run("delete from item where id > 1")
        assert [len(row.changes(items.watch)) for row in items.journal()] == [1, 2, 1, 2, 2]

    def test_large_images_are_spread_over_journal_rows_of_bounded_size(self, whole_items: WatchedTable) -> None:
        size = 400_000
        whole_items.run(f"insert into item (id, name) select n, repeat('x', {size}) from generate_series(1, 10) n")
        rows = whole_items.journal()
        assert max(len(row.rows) for row in rows) < CHUNK_BYTES + 2 * size
        assert [change.pk for row in rows for change in row.changes(whole_items.watch)] == list(range(1, 11))

    @pytest.mark.parametrize("assignment", ["version = version + 1", "id = id + 100000, version = version + 1"])
    def test_a_plan_that_was_made_for_two_rows_copes_with_twenty_thousand(
        self, whole_items: WatchedTable, assignment: str
    ) -> None:
        """A nested loop over both images would compare 400 million pairs, and run into the statement's time limit."""
        whole_items.run("insert into item (id) select n from generate_series(1, 20002) n")
        for _ in range(8):  # from the sixth on, PL/pgSQL keeps a plan for good
            whole_items.run("update item set version = version + 1 where id <= 2")
        whole_items.journal()
        whole_items.run("set statement_timeout = '15s'")
        whole_items.run(f"update item set {assignment} where id > 2")
        expected = 20_000 if assignment.startswith("version") else 40_000
        assert len(whole_items.seen()) == expected


class TestImages:
    def test_keys_only_have_no_images(self, items: WatchedTable) -> None:
        items.run("insert into item (id) values (1)")
        items.run("update item set version = 1")
        items.run("delete from item")
        assert items.images() == [("INSERT", None, None), ("UPDATE", None, None), ("DELETE", None, None)]

    def test_chosen_columns_have_old_and_new_values(self, database: Database) -> None:
        table = watched(database, columns=["name", "version"])
        table.run("insert into item (id, name, version) values (1, 'tea', 1)")
        table.run("update item set version = 2, note = 'hot'")
        table.run("delete from item")
        before, after = {"name": "tea", "version": 1}, {"name": "tea", "version": 2}
        assert table.images() == [("INSERT", None, before), ("UPDATE", before, after), ("DELETE", after, None)]

    def test_all_columns_have_old_and_new_values(self, whole_items: WatchedTable) -> None:
        whole_items.run("insert into item (id, name, version) values (1, 'tea', 1)")
        whole_items.run("update item set note = 'hot'")
        whole_items.run("truncate item")
        row = {"id": 1, **ROW}
        assert whole_items.images() == [
            ("INSERT", None, row),
            ("UPDATE", row, row | {"note": "hot"}),
            ("TRUNCATE", None, None),
        ]

    def test_images_of_bulk_statements_belong_to_their_rows(self, whole_items: WatchedTable) -> None:
        whole_items.run("insert into item (id, name) values (1, 'a'), (2, 'b')")
        whole_items.run("update item set name = name || name")
        whole_items.run("delete from item")
        found = {
            (change.kind.value, change.pk, (change.old or {}).get("name"), (change.new or {}).get("name"))
            for change in whole_items.changes()
        }
        assert found == {
            ("INSERT", 1, None, "a"),
            ("INSERT", 2, None, "b"),
            ("UPDATE", 1, "a", "aa"),
            ("UPDATE", 2, "b", "bb"),
            ("DELETE", 1, "aa", None),
            ("DELETE", 2, "bb", None),
        }

    @pytest.mark.parametrize("text", ["ä" * 500_000, "😀" * 250_000, '"\\\n' * 350_000])
    def test_a_megabyte_of_text_never_fails_the_write(self, whole_items: WatchedTable, text: str) -> None:
        whole_items.run("insert into item (id, name) values (1, %s)", text)
        whole_items.run("update item set version = 1")
        whole_items.run("insert into item (id, name) values (2, %s), (3, %s)", text, text)
        whole_items.run("update item set version = 2")
        whole_items.run("delete from item")
        changes = whole_items.changes()
        assert len(changes) == 10
        assert all(image["name"] == text for change in changes for image in (change.old, change.new) if image)

    def test_images_do_not_depend_on_the_settings_of_the_writer(self, database: Database) -> None:
        table = watched(database, Sample, SAMPLE_SQL, columns="__all__")
        statement = (
            "insert into sample values (1, '2024-02-29 12:00+00', '2024-02-29', '1 day 02:03:04.5', '\\xdeadbeef',"
            " 12345678901234567890.123456789, 0.1, '00000000-0000-0000-0000-000000000007', true)"
        )
        table.run(statement)
        table.run("delete from sample")
        table.run("set timezone = 'Asia/Kathmandu'; set datestyle = 'German'; set intervalstyle = 'iso_8601'")
        table.run("set bytea_output = 'escape'; set standard_conforming_strings = on")
        table.run(statement)
        table.run("reset all")
        expected = {
            "id": 1,
            "at": datetime(2024, 2, 29, 12, tzinfo=UTC),
            "on": date(2024, 2, 29),
            "lasts": timedelta(days=1, hours=2, minutes=3, seconds=4.5),
            "data": b"\xde\xad\xbe\xef",
            "price": Decimal("12345678901234567890.123456789"),
            "ratio": 0.1,
            "code": UUID(int=7),
            "good": True,
        }
        plain, _, foreign = table.changes()
        assert plain.new == expected
        assert foreign.new == expected

    def test_json_columns_are_compared_and_captured(self, database: Database) -> None:
        """The type json has no equality operator: comparing it with `=` would fail every write."""
        table = watched(database, Document, DOCUMENT_SQL, columns="__all__")
        table.run("""insert into document values (1, '{"a": 1.5}', '{"b": [1, null]}')""")
        table.run("""insert into document values (2, null, 'null'), (3, '"\\u0000"', '{}')""")
        table.run("update document set plain = plain")
        table.run("update document set plain = plain where id = 1")
        assert [(kind, key) for kind, key in table.seen()] == [("INSERT", 1), ("INSERT", 2), ("INSERT", 3)]
        table.run("""update document set plain = '{"a": 2}' where id = 1""")
        table.run("""update document set parsed = '[]'""")
        first, *others = table.changes()
        assert (first.old, first.new) == (
            {"id": 1, "plain": {"a": 1.5}, "parsed": {"b": [1, None]}},
            {"id": 1, "plain": {"a": 2}, "parsed": {"b": [1, None]}},
        )
        assert len(others) == 3

    def test_more_columns_than_a_function_call_takes_arguments_are_captured(self, database: Database) -> None:
        fields: dict[str, Any] = {f"c{n}": models.IntegerField(default=n) for n in range(120)}
        wide = make_model("Wide", "wide", **fields)
        names = ", ".join(f"{name} int not null default {name[1:]}" for name in fields)
        table = watched(database, wide, f"create table wide (id bigint primary key, {names})", columns="__all__")
        table.run("insert into wide values (1)")
        table.run("update wide set c7 = 0")
        insert, update = table.changes()
        assert insert.new == {"id": 1, **{f"c{n}": n for n in range(120)}}
        assert update.changed == {"c7"}


class Sample(models.Model):
    """One column of every type whose text depends on settings of the session."""

    at: models.Field[Any, Any] = models.DateTimeField()
    on: models.Field[Any, Any] = models.DateField()
    lasts: models.Field[Any, Any] = models.DurationField()
    data: models.Field[Any, Any] = models.BinaryField()
    price: models.Field[Any, Any] = models.DecimalField(max_digits=40, decimal_places=9)
    ratio: models.Field[Any, Any] = models.FloatField()
    code: models.Field[Any, Any] = models.UUIDField()
    good: models.Field[Any, Any] = models.BooleanField()

    class Meta:
        app_label = "stock"
        db_table = "sample"

    def __str__(self) -> str:
        return str(self.pk)


SAMPLE_SQL = """
    create table sample (id bigint primary key, at timestamptz, "on" date, lasts interval, data bytea,
                         price numeric, ratio float8, code uuid, good bool)
"""


class Document(models.Model):
    plain: models.Field[Any, Any] = models.JSONField()
    parsed: models.Field[Any, Any] = models.JSONField()

    class Meta:
        app_label = "stock"
        db_table = "document"

    def __str__(self) -> str:
        return str(self.pk)


DOCUMENT_SQL = "create table document (id bigint primary key, plain json, parsed jsonb)"


class Line(models.Model):
    pk = CompositePrimaryKey("order", "position")
    order: models.Field[Any, Any] = models.IntegerField()
    position: models.Field[Any, Any] = models.TextField()
    amount: models.Field[Any, Any] = models.IntegerField()

    class Meta:
        app_label = "stock"
        db_table = "line"

    def __str__(self) -> str:
        return str(self.pk)


LINE_SQL = 'create table line ("order" int, position text, amount int, primary key ("order", position))'


class TestKeys:
    @pytest.mark.parametrize(
        ("field", "column", "first", "second"),
        [
            (models.UUIDField(primary_key=True), "uuid", UUID(int=1), UUID(int=2)),
            (models.TextField(primary_key=True), "text", 'ä"\\ 1', ""),
            (models.CharField(primary_key=True, max_length=5), "varchar(5)", "abc", "ABC"),
            (models.BigIntegerField(primary_key=True), "bigint", 2**63 - 1, -(2**63)),
            (models.DateField(primary_key=True), "date", date(2024, 2, 29), date(1, 1, 1)),
            (
                models.DateTimeField(primary_key=True),
                "timestamptz",
                datetime(2024, 2, 29, 12, 0, 0, 123456, tzinfo=UTC),
                datetime(2024, 2, 29, 12, 0, 0, 123457, tzinfo=UTC),
            ),
            (
                models.DecimalField(primary_key=True, max_digits=30, decimal_places=20),
                "numeric(30, 20)",
                Decimal("1234567890.12345678901234567890"),
                Decimal("-1.00000000000000000000"),
            ),
            (models.GenericIPAddressField(primary_key=True), "inet", "192.168.0.1", "::1"),
            (models.BinaryField(primary_key=True), "bytea", b"\x00\xff", b""),
        ],
        ids=lambda value: value if isinstance(value, str) else type(value).__name__,
    )
    def test_a_key_of_any_type_arrives_as_the_orm_would_give_it(
        self, database: Database, field: models.Field[Any, Any], column: str, first: Any, second: Any
    ) -> None:
        table = watched(
            database, make_model("Keyed", "keyed", key=field), f"create table keyed (key {column} primary key, n int)"
        )
        table.run("insert into keyed values (%s, 0), (%s, 0)", first, second)
        table.run("update keyed set n = 1")
        table.run("update keyed set n = 2 where key = %s", first)
        table.run("delete from keyed where key = %s", first)
        table.run("update keyed set key = %s", first)
        seen = table.seen()
        assert seen[:2] == [("INSERT", first), ("INSERT", second)]
        assert {("UPDATE", first), ("UPDATE", second)} == set(seen[2:4])
        assert seen[4:] == [("UPDATE", first), ("DELETE", first), ("DELETE", second), ("INSERT", first)]

    def test_a_composite_key_is_a_tuple(self, database: Database) -> None:
        table = watched(database, Line, LINE_SQL, columns=["amount"])
        table.run("insert into line values (1, 'a', 5), (1, 'b', 6)")
        table.run("update line set amount = 7 where position = 'b'")
        table.run("update line set amount = 0")
        table.run("delete from line where position = 'a'")
        seen = table.changes()
        assert [change.pk for change in seen[:3]] == [(1, "a"), (1, "b"), (1, "b")]
        assert seen[0].keys == {"order": 1, "position": "a"}
        assert (seen[2].old, seen[2].new) == ({"amount": 6}, {"amount": 7})
        assert {change.pk: change.old for change in seen[3:5]} == {(1, "a"): {"amount": 5}, (1, "b"): {"amount": 7}}
        assert (seen[5].kind, seen[5].pk) == (Kind.DELETE, (1, "a"))


ODD_NAMES = [
    "n", "rows", "kind", "found", "pgn", "pgn_old", "pgn_new", "pgn_image", "pgn_touched", "pgn_new_rows",
    "pgn_old_rows", "label", "context", "entry", "number", "chunk", "part", "made", "sized", "paired", "changed",
    "update_entry", "old", "new", "tg_op", "xid", "slot", "select", "Capital", "with space", 'quo"te', "it's",
    "back\\slash", "grün", "percent%s", "brace{}", "$$", "a.b", "journal", "long" * 15,
]  # fmt: skip
"""What generated SQL might mistake for something of its own, and what has to be quoted."""


class TestNames:
    def test_columns_keys_and_tables_of_any_name_are_captured(
        self, database: Database, subtests: pytest.Subtests
    ) -> None:
        """Each stands in another place of the SQL, where another confusion is possible."""
        connection = database.connect()
        for name in ODD_NAMES:
            with subtests.test(column=name):
                self.write_everything(odd(connection, column=name))
            with subtests.test(key=name):
                self.write_everything(odd(connection, key=name))
            with subtests.test(table=name):
                self.write_everything(odd(connection, table=name))

    def test_names_that_postgresql_would_cut_stay_different(self, database: Database) -> None:
        """A trigger function is named after its model."""
        models = [odd_model(name="Odd" + "grün" * 20 + end, table=end) for end in ("one", "two")]
        for model in models:
            table = watched(database, model, odd_sql(model._meta.db_table), columns=["odd"])
            self.write_everything(table)
        functions = {render(Watch(model, ("odd",))).function for model in models}
        found = database.connect().execute("select proname from pg_proc where proname like 'capture%'")
        assert {name for (name,) in found} == functions
        assert len(functions) == 2

    def write_everything(self, table: WatchedTable) -> None:
        names = [table.watch.model._meta.db_table]
        names += [column_of(field) for field in table.watch.model._meta.concrete_fields]
        for statement in (
            "insert into {0} values (1, 10)",
            "insert into {0} values (2, 20), (3, 30)",
            "update {0} set {2} = 11 where {2} = 10",
            "update {0} set {2} = 0",
            "update {0} set {1} = 4 where {1} = 1",
            "update {0} set {1} = {1} + 10, {2} = 1",
            "delete from {0} where {1} = 14",
            "delete from {0}",
            "truncate {0}",
        ):
            table.run(sql.SQL(statement).format(*map(sql.Identifier, names)).as_string(None))
        changes = table.changes()
        assert (changes[0].pk, changes[0].new) == (1, {"odd": 10})
        assert (changes[3].old, changes[3].new) == ({"odd": 10}, {"odd": 11})
        assert [change.kind.value for change in changes[3:9]] == ["UPDATE"] * 4 + ["DELETE", "INSERT"]
        assert len(changes) == 1 + 2 + 1 + 3 + 2 + 6 + 1 + 2 + 1


def odd(connection: Connection, **names: str) -> WatchedTable:
    connection.execute("drop table if exists odd")
    table = names.get("table", "odd")
    create = odd_sql(table, names.get("key", "id"), names.get("column", "value"))
    return watched(connection, odd_model(**names), create, columns=["odd"])


def odd_sql(table: str, key: str = "id", column: str = "value") -> str:
    """A table with a key and one column."""
    statement = "create table {} ({} int primary key, {} int)"
    return sql.SQL(statement).format(*map(sql.Identifier, (table, key, column))).as_string(None)


def odd_model(*, name: str = "Odd", table: str = "odd", key: str = "id", column: str = "value") -> type[models.Model]:
    return make_model(
        name,
        table,
        key=models.IntegerField(primary_key=True, db_column=key),
        odd=models.IntegerField(db_column=column),
    )


class TestTransactions:
    def test_a_change_that_is_rolled_back_is_not_in_the_journal(self, items: WatchedTable) -> None:
        with items.connection.transaction(force_rollback=True):
            items.run("insert into item (id) values (1)")
        assert items.journal() == []

    def test_a_change_in_a_savepoint_that_is_rolled_back_is_not_in_the_journal(self, items: WatchedTable) -> None:
        with items.connection.transaction():
            items.run("insert into item (id) values (1)")
            with items.connection.transaction(force_rollback=True):
                items.run("insert into item (id) values (2)")
            with items.connection.transaction():
                items.run("insert into item (id) values (3)")
        assert items.seen() == [("INSERT", 1), ("INSERT", 3)]

    def test_all_changes_of_a_transaction_have_its_id(self, items: WatchedTable) -> None:
        with items.connection.transaction():
            items.run("insert into item (id) values (1)")
            with items.connection.transaction():
                items.run("insert into item (id) values (2)")
            ((xid,),) = items.run("select pg_current_xact_id()::text::bigint")
        assert {row.xid for row in items.journal()} == {xid}

    def test_a_statement_that_fails_afterwards_leaves_nothing(self, items: WatchedTable) -> None:
        items.run("insert into item (id) values (1)")
        items.journal()
        with pytest.raises(psycopg.errors.UniqueViolation):
            items.run("insert into item (id) values (2), (1)")
        assert items.journal() == []

    def test_writers_of_different_rows_do_not_fail_each_other_when_they_are_serializable(
        self, database: Database, items: WatchedTable
    ) -> None:
        items.run("insert into item (id) values (1), (2)")
        items.journal()
        writers = [database.connect(), database.connect()]
        for writer in writers:
            writer.execute("begin isolation level serializable")
        for key, writer in enumerate(writers, 1):
            writer.execute("update item set version = 1 where id = %s", [key])
            writer.execute("update item set version = 2 where id = %s", [key])
        for writer in writers:
            writer.execute("commit")
        assert len(items.seen()) == 4


class TestStrangers:
    """Whoever may write the table can, whatever rights and settings they have."""

    @pytest.fixture
    def stranger(self, database: Database) -> Connection:
        """A session of a role that may write items and nothing else."""
        connection = database.connect()
        # Roles belong to the server and outlive the database.
        role = sql.Identifier(f"stranger_{database.name}")
        connection.execute(sql.SQL("create role {}").format(role))
        connection.execute(sql.SQL("grant insert, update, delete, truncate, select on item to {}").format(role))
        connection.execute(sql.SQL("set role {}").format(role))
        return connection

    def test_a_role_without_rights_on_the_journal_may_write(self, items: WatchedTable, stranger: Connection) -> None:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            stranger.execute("select from pgnotify_gql.journal")
        stranger.execute("insert into item (id) values (1), (2)")
        stranger.execute("update item set version = 1 where id = 1")
        stranger.execute("delete from item where id = 1")
        stranger.execute("truncate item")
        assert [kind for kind, _ in items.seen()] == ["INSERT", "INSERT", "UPDATE", "DELETE", "TRUNCATE"]

    def test_a_role_without_rights_on_the_journal_rings_the_bell(
        self, database: Database, items: WatchedTable, stranger: Connection
    ) -> None:
        with database.connect() as listener:
            listener.execute("listen pgnotify_gql")
            stranger.execute("insert into item (id) values (1)")
            assert bells(listener) == 1

    def test_a_hostile_search_path_changes_nothing(self, items: WatchedTable) -> None:
        """Every function and operator that the trigger functions use, shadowed by one that raises."""
        items.run("create schema hostile")
        items.run(
            "create function hostile.boom(a bigint, b bigint) returns boolean language plpgsql as"
            " $$ begin raise 'shadowed'; end $$"
        )
        items.run("create operator hostile.= (leftarg = bigint, rightarg = bigint, function = hostile.boom)")
        items.run(
            "create function hostile.bang(a record, b record) returns boolean language plpgsql as"
            " $$ begin raise 'shadowed'; end $$"
        )
        for name, arguments in {
            "count": "",
            "json_build_array": "variadic anyarray",
            "current_setting": "text, boolean",
            "pg_current_xact_id": "",
            "clock_timestamp": "",
            "pg_notify": "text, text",
            "pg_try_advisory_lock_shared": "int, int",
            "octet_length": "text",
        }.items():
            items.run(
                f"create function hostile.{name}({arguments}) returns text language plpgsql as"
                " $$ begin raise 'shadowed'; end $$"
            )
        items.run("create table hostile.journal (like pgnotify_gql.journal)")
        items.run("create temp table journal (like pgnotify_gql.journal)")
        items.run("create temp table pg_class (oid int)")
        items.run("set search_path = hostile, pg_temp, public, pg_catalog")
        items.run("insert into public.item (id) values (1)")
        items.run("insert into public.item (id) values (2), (3)")
        items.run("update public.item set version = 1 where name = ''")
        items.run("update public.item set version = 2 where name = '' and version < 2")
        items.run("delete from public.item")
        items.run("truncate public.item")
        assert items.run("select * from hostile.journal") == []
        assert items.run("select * from pg_temp.journal") == []
        items.run("reset search_path")
        kinds = [kind for kind, _ in items.seen()]
        assert kinds == ["INSERT"] * 3 + ["UPDATE"] * 6 + ["DELETE"] * 3 + ["TRUNCATE"]

    def test_a_table_outside_the_search_path_of_the_writer_is_captured(self, items: WatchedTable) -> None:
        items.run("set search_path = ''")
        items.run("insert into public.item (id) values (1)")
        items.run("reset search_path")
        assert items.seen() == [("INSERT", 1)]


AWAKE = [names.LOCK_CLASS, names.AWAKE_LOCK]


def bells(listener: Connection) -> int:
    """Count the bells so far.  They arrive in the order of commits, so all before the marker are there."""
    listener.execute("select pg_notify('pgnotify_gql', 'marker')")
    payloads = iter(notification.payload for notification in listener.notifies(timeout=30))
    return sum(1 for _ in iter(lambda: next(payloads), "marker"))


class TestDoorbell:
    @pytest.fixture
    def listener(self, database: Database) -> Connection:
        connection = database.connect()
        connection.execute("listen pgnotify_gql")
        return connection

    WRITES = (
        "insert into item (id) values (1)",
        "insert into item (id) values (2), (3)",
        "update item set version = 1 where id = 1",
        "update item set version = 2",
        "update item set id = 9 where id = 1",
        "delete from item where id = 9",
        "truncate item",
    )

    def test_every_kind_of_write_rings_when_the_listener_sleeps(
        self, items: WatchedTable, listener: Connection
    ) -> None:
        for statement in self.WRITES:
            items.run(statement)
            assert bells(listener) == 1, statement

    def test_no_write_rings_while_the_listener_is_awake(self, items: WatchedTable, listener: Connection) -> None:
        listener.execute("select pg_advisory_lock(%s, %s)", AWAKE)
        for statement in self.WRITES:
            items.run(statement)
        assert bells(listener) == 0
        listener.execute("select pg_advisory_unlock(%s, %s)", AWAKE)
        items.run("insert into item (id) values (1)")
        assert bells(listener) == 1

    def test_a_transaction_rings_once(self, items: WatchedTable, listener: Connection) -> None:
        with items.connection.transaction():
            for statement in self.WRITES:
                items.run(statement)
        assert bells(listener) == 1

    def test_what_is_rolled_back_or_changes_nothing_does_not_ring(
        self, items: WatchedTable, listener: Connection
    ) -> None:
        items.run("insert into item (id) values (1)")
        assert bells(listener) == 1
        with items.connection.transaction(force_rollback=True):
            items.run("update item set version = 5")
        items.run("update item set version = version")
        items.run("delete from item where false")
        assert bells(listener) == 0

    def test_a_writer_keeps_no_lock_by_which_it_could_keep_the_listener_from_waking(
        self, items: WatchedTable, listener: Connection
    ) -> None:
        items.connection.execute("begin")
        for statement in self.WRITES:
            items.run(statement)
        assert items.run("select from pg_locks where locktype = 'advisory'") == []
        ((taken,),) = listener.execute("select pg_try_advisory_lock(%s, %s)", AWAKE).fetchall()
        assert taken
        items.connection.execute("commit")

    def test_polled_tables_never_ring(self, database: Database, listener: Connection) -> None:
        table = watched(database, rings=False)
        for statement in self.WRITES:
            table.run(statement)
        assert bells(listener) == 0
        assert len(table.journal()) == 8

    def test_polled_tables_may_be_written_in_two_phases(self, database: Database) -> None:
        table = watched(database, rings=False)
        connection = database.connect()
        connection.autocommit = False
        connection.tpc_begin(connection.xid(1, "two phases", "one"))
        connection.execute("insert into item (id) values (1)")
        connection.tpc_prepare()
        assert table.journal() == []
        connection.tpc_commit()
        assert table.seen() == [("INSERT", 1)]

    def test_a_transaction_that_has_rung_cannot_be_prepared(self, database: Database, items: WatchedTable) -> None:
        """Why polling exists.  Should PostgreSQL ever lift this, that reason for polling is gone."""
        connection = database.connect()
        connection.autocommit = False
        connection.tpc_begin(connection.xid(1, "two phases", "one"))
        connection.execute("insert into item (id) values (1)")
        with pytest.raises(psycopg.errors.FeatureNotSupported, match="NOTIFY"):
            connection.tpc_prepare()


def test_a_watched_table_may_be_altered_and_written_on(items: WatchedTable) -> None:
    items.run("insert into item (id) values (1)")
    items.run("alter table item add colour text default 'red'")
    items.run("alter table item drop note")
    items.run("alter table item alter name type varchar(100)")
    items.run("update item set colour = 'blue'")
    items.run("insert into item (id) values (2), (3)")
    assert [kind for kind, _ in items.seen()] == ["INSERT", "UPDATE", "INSERT", "INSERT"]


def test_two_watched_tables_are_told_apart_by_their_labels(database: Database, items: WatchedTable) -> None:
    items.run(LINE_SQL)
    install(items.watch, Watch(Line))
    items.run("insert into item (id) values (1)")
    items.run("insert into line values (1, 'a', 1)")
    assert [row.label for row in items.journal()] == ["stock.item", "stock.line"]


def test_the_journal_is_json_that_says_what_it_holds(database: Database) -> None:
    table = watched(database, columns=["name"])
    table.run("insert into item (id, name) values (1, 'tea')")
    table.run("update item set name = 'hot'")
    table.run("truncate item")
    rows = [json.loads(row.rows) for row in table.journal()]
    assert rows == [[[[1], None, {"name": "tea"}]], [[[1], {"name": "tea"}, {"name": "hot"}]], [[None]]]
