"""What a change says of its row: key and images of any type, and tables and columns of any name."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from django.db import models

from pgnotify_gql.capture import Kind
from pgnotify_gql.capture.render import render
from pgnotify_gql.capture.watch import Watch
from tests.support.databases import Database
from tests.support.watched import LINE_SQL, Connection, Line, WatchedTable, make_model, watched

ROW = {"name": "tea", "version": 1, "note": None}


@pytest.fixture
def items(database: Database) -> WatchedTable:
    """Items, of which keys only are captured."""
    return watched(database)


@pytest.fixture
def whole_items(database: Database) -> WatchedTable:
    """Items, of which everything is captured."""
    return watched(database, columns="__all__")


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
    "n", "rows", "kind", "found", "pgn", "pgn_old", "pgn_new", "pgn_image", "pgn_decidable", "pgn_new_rows",
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
                self.write_everything(odd(connection, column=in_django(name)))
            with subtests.test(key=name):
                self.write_everything(odd(connection, key=in_django(name)))
            with subtests.test(table=name):
                self.write_everything(odd(connection, table=in_django(name)))

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
        names += [str(field.column) for field in table.watch.model._meta.concrete_fields]
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
            table.run(statement.format(*(f'"{name}"' for name in names)))
        changes = table.changes()
        assert (changes[0].pk, changes[0].new) == (1, {"odd": 10})
        assert (changes[3].old, changes[3].new) == ({"odd": 10}, {"odd": 11})
        assert [change.kind.value for change in changes[3:9]] == ["UPDATE"] * 4 + ["DELETE", "INSERT"]
        assert len(changes) == 1 + 2 + 1 + 3 + 2 + 6 + 1 + 2 + 1


def in_django(name: str) -> str:
    """Django quotes names without looking at them: a quote within one has to be written twice."""
    return name.replace('"', '""')


def odd(connection: Connection, **names: str) -> WatchedTable:
    connection.execute("drop table if exists odd")
    table = names.get("table", "odd")
    create = odd_sql(table, names.get("key", "id"), names.get("column", "value"))
    return watched(connection, odd_model(**names), create, columns=["odd"])


def odd_sql(table: str, key: str = "id", column: str = "value") -> str:
    """A table with a key and one column."""
    return f'create table "{table}" ("{key}" int primary key, "{column}" int)'


def odd_model(*, name: str = "Odd", table: str = "odd", key: str = "id", column: str = "value") -> type[models.Model]:
    return make_model(
        name,
        table,
        key=models.IntegerField(primary_key=True, db_column=key),
        odd=models.IntegerField(db_column=column),
    )
