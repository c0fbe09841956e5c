"""Only what matters: kinds, columns that decide, and conditions, as the triggers apply them."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from django.db import connection, models, transaction
from django.db.models import Exists, F, OuterRef, Q

from pgnotify_gql.capture import Kind, notify_on_model_changes
from pgnotify_gql.capture.installer import plan_install
from pgnotify_gql.capture.registry import make_watch
from pgnotify_gql.capture.render import render
from pgnotify_gql.errors import TableMissingError, WatchError
from tests.support.databases import Database
from tests.support.watched import ITEM_SQL, Item, WatchedTable, install, make_model

WAYS = [False, True]
"""By statement, and row by row."""


def watched(database: Database, sql: str = ITEM_SQL, model: type[models.Model] = Item, **options: Any) -> WatchedTable:
    """A table whose watch has these options."""
    table = WatchedTable(database.connect(), make_watch(model, **options))
    table.run(sql)
    install(table.watch)
    return table


@pytest.mark.parametrize("replicated", WAYS)
class TestUpdateOf:
    def test_an_update_counts_only_when_a_deciding_column_changed(self, database: Database, replicated: bool) -> None:
        items = watched(database, update_of=["version", "note"], replicated=replicated)
        items.run("insert into item (id, name) values (1, 'a'), (2, 'b'), (3, 'c')")
        items.run("update item set name = name || '!'")
        items.run("update item set name = 'x' where id = 1")
        items.run("update item set version = version")
        items.run("update item set version = 1 where id = 1")
        items.run("update item set name = 'y', note = case when id = 2 then 'new' end")
        items.run("delete from item where id = 3")
        assert items.seen() == [
            ("INSERT", 1),
            ("INSERT", 2),
            ("INSERT", 3),
            ("UPDATE", 1),
            ("UPDATE", 2),
            ("DELETE", 3),
        ]

    def test_a_changed_key_counts_in_any_case(self, database: Database, replicated: bool) -> None:
        items = watched(database, update_of=["version"], replicated=replicated)
        items.run("insert into item (id) values (1), (2)")
        items.journal()
        items.run("update item set id = 9 where id = 1")
        items.run("update item set id = id + 10")
        assert sorted(items.seen()) == [
            ("DELETE", 1), ("DELETE", 2), ("DELETE", 9), ("INSERT", 9), ("INSERT", 12), ("INSERT", 19)
        ]  # fmt: skip

    @pytest.mark.parametrize("alteration", ["drop version", "rename version to edition"])
    def test_every_update_counts_when_a_deciding_column_is_gone(
        self, database: Database, replicated: bool, alteration: str
    ) -> None:
        items = watched(database, update_of=["version"], replicated=replicated)
        items.run("insert into item (id) values (1), (2)")
        items.run(f"alter table item {alteration}")
        items.journal()
        items.run("update item set name = 'x' where id = 1")
        items.run("update item set name = 'y'")
        assert sorted(items.seen()) == [("UPDATE", 1), ("UPDATE", 1), ("UPDATE", 2)]

    def test_types_without_an_equality_decide_as_well(self, database: Database, replicated: bool) -> None:
        thing = make_model("Thing", "thing", data=models.JSONField(), n=models.IntegerField())
        sql = "create table thing (id int primary key, data json, n int)"
        things = watched(database, sql, thing, update_of=["data"], replicated=replicated)
        things.run("""insert into thing values (1, '{}', 0), (2, '{}', 0)""")
        things.journal()
        things.run("update thing set n = 1")
        things.run("update thing set n = 1 where id = 1")
        things.run("""update thing set data = '{"a": 1}' where id = 2""")
        assert things.seen() == [("UPDATE", 2)]


@pytest.mark.parametrize("replicated", WAYS)
class TestCondition:
    def test_a_change_counts_when_the_row_fulfils_it_before_or_after(
        self, database: Database, replicated: bool
    ) -> None:
        items = watched(database, columns=["version"], condition=Q(version__gte=10), replicated=replicated)
        items.run("insert into item (id, version) values (1, 1)")
        items.run("insert into item (id, version) values (2, 10)")
        items.run("insert into item (id, version) values (3, 2), (4, 12)")
        assert items.seen() == [("INSERT", 2), ("INSERT", 4)]
        items.run("update item set version = 3 where id = 1")
        items.run("update item set version = 10 where id = 1")
        items.run("update item set version = 11 where id = 1")
        items.run("update item set version = 4 where id = 1")
        items.run("update item set version = 5 where id = 1")
        assert [(c.pk, c.old, c.new) for c in items.changes()] == [
            (1, {"version": 3}, {"version": 10}),
            (1, {"version": 10}, {"version": 11}),
            (1, {"version": 11}, {"version": 4}),
        ]
        # 1: 5, 2: 10, 3: 2, 4: 12; from below to above, nothing changed, below, from above to below.
        items.run("update item set version = case id when 1 then 15 when 2 then 10 when 3 then 3 when 4 then 8 end")
        assert sorted(items.seen()) == [("UPDATE", 1), ("UPDATE", 4)]
        items.run("delete from item where id = 3")
        items.run("delete from item")
        assert sorted(items.seen()) == [("DELETE", 1), ("DELETE", 2)]
        items.run("truncate item")
        assert items.seen() == [("TRUNCATE", None)]

    def test_a_changed_key_is_told_as_far_as_the_row_fulfils_it(self, database: Database, replicated: bool) -> None:
        items = watched(database, condition=Q(version=1), replicated=replicated)
        items.run("insert into item (id, version) values (1, 1), (2, 0)")
        items.journal()
        items.run("update item set id = 11 where id = 1")
        items.run("update item set id = 12 where id = 2")
        assert items.seen() == [("DELETE", 1), ("INSERT", 11)]

    def test_null_does_not_fulfil_a_comparison(self, database: Database, replicated: bool) -> None:
        items = watched(database, condition=Q(note="x"), replicated=replicated)
        items.run("insert into item (id, note) values (1, null)")
        items.run("update item set version = 1 where id = 1")
        items.run("update item set note = 'x' where id = 1")
        items.run("update item set note = null")
        items.run("delete from item")
        assert items.seen() == [("UPDATE", 1), ("UPDATE", 1)]

    @pytest.mark.parametrize(
        ("condition", "fulfilled", "other"),
        [
            (Q(name__startswith="50%"), "50% off", "500"),
            (Q(name="it's {} \\ %s"), "it's {} \\ %s", "its"),
            (Q(name__in=["a", "b"]), "b", "c"),
            (~Q(name="a") & ~Q(name="b"), "c", "b"),
            (Q(name="a") | Q(version=F("version") - 1), "a", "b"),
            (Q(name__icontains="GRÜN"), "grünlich", "blau"),
            (Q(name__regex=r"^\d+$"), "123", "12a"),
            (Q(name__iexact="TEA"), "tea", "milk"),
            (Q(pk__gt=0, name="a"), "a", "b"),
            (Q(name__gt="m"), "z", "a"),
        ],
    )
    def test_lookups_mean_what_they_mean_to_the_orm(
        self, database: Database, replicated: bool, condition: Q, fulfilled: str, other: str
    ) -> None:
        items = watched(database, condition=condition, replicated=replicated)
        items.run("insert into item (id, name) values (1, %s)", fulfilled)
        items.run("insert into item (id, name) values (2, %s)", other)
        items.run("insert into item (id, name) values (3, %s), (4, %s)", fulfilled, other)
        assert items.seen() == [("INSERT", 1), ("INSERT", 3)]
        assert {item.pk for item in Item.objects.filter(condition)} == {1, 3}

    def test_values_of_every_type_may_be_compared(self, database: Database, replicated: bool) -> None:
        stock = make_model(
            "Stock",
            "stock",
            price=models.DecimalField(max_digits=9, decimal_places=2),
            at=models.DateTimeField(),
            data=models.JSONField(),
            good=models.BooleanField(),
        )
        condition = Q(
            price__gt=Decimal("1.50"), at__lt=datetime.fromisoformat("2030-01-01T00:00:00+00:00"), good=True,
            data__kind="a", at__year=2024,
        )  # fmt: skip
        sql = "create table stock (id int primary key, price numeric(9, 2), at timestamptz, data jsonb, good bool)"
        table = watched(database, sql, stock, condition=condition, replicated=replicated)
        table.run("""insert into stock values (1, 1.51, '2024-05-01', '{"kind": "a"}', true)""")
        for number, column in enumerate(("price = 1.5", "at = '2025-01-01'", "data = '{}'", "good = false"), 2):
            row = """insert into stock values (%s, 1.51, '2024-05-01', '{"kind": "a"}', true)"""
            with table.connection.transaction():
                table.run("set local pgnotify_gql.context = 'suppressed'")
                table.run(row, number)
                table.run(f"update stock set {column} where id = %s", number)
            table.run("update stock set id = id + 10 where id = %s", number)
        assert table.seen() == [("INSERT", 1)]

    @pytest.mark.parametrize(
        "alteration",
        [
            "alter table item drop version",
            "alter table item rename version to edition",
            "alter table item alter version type text using 'v' || version",
        ],
    )
    def test_a_condition_that_no_longer_fits_the_table_captures_everything_and_says_so(
        self, database: Database, replicated: bool, alteration: str
    ) -> None:
        items = watched(database, condition=Q(version__gte=10), replicated=replicated)
        items.run("insert into item (id) values (1), (2)")
        items.run(alteration)
        notices: list[str] = []
        items.connection.add_notice_handler(lambda notice: notices.append(str(notice.message_primary)))
        items.run("insert into item (id) values (3)")
        items.run("update item set name = 'x' where id = 1")
        items.run("update item set name = 'y' where id in (1, 2)")
        items.run("delete from item where id = 3")
        seen = items.seen()
        assert seen[:2] == [("INSERT", 3), ("UPDATE", 1)]
        assert sorted(seen[2:4]) == [("UPDATE", 1), ("UPDATE", 2)]
        assert seen[4:] == [("DELETE", 3)]
        assert all("the condition of the watch of stock.item cannot be evaluated" in notice for notice in notices)
        assert len(notices) >= 4

    def test_a_condition_that_fails_for_a_row_fails_no_write(self, database: Database, replicated: bool) -> None:
        items = watched(database, condition=Q(version__gt=10 / (F("version") + 0)), replicated=replicated)
        items.run("insert into item (id, version) values (1, 0)")
        items.run("insert into item (id, version) values (2, 1), (3, 0)")
        items.run("insert into item (id, version) values (4, 1)")
        # A statement that cannot be decided is captured whole, but row by row each row is a statement of its own.
        assert items.seen() == [("INSERT", 1), *([] if replicated else [("INSERT", 2)]), ("INSERT", 3)]

    def test_the_condition_costs_a_writer_no_transaction_id(self, database: Database, replicated: bool) -> None:
        """Ids of subtransactions are scarce: with more than 64 in a transaction every snapshot gets slow."""
        items = watched(database, condition=Q(version=1), replicated=replicated)
        with items.connection.transaction():
            ((first,),) = items.run("select pg_current_xact_id()::text::int")
            for key in range(10):
                items.run("insert into item (id, version) values (%s, 1)", key)
        ((later,),) = items.run("select pg_current_xact_id()::text::int")
        assert later == first + 1

    def test_statements_of_a_cancelled_writer_are_still_cancelled(self, database: Database, replicated: bool) -> None:
        """The error handler around the condition must not catch what is not the condition's."""
        items = watched(database, condition=Q(version=1), replicated=replicated)
        items.run("set statement_timeout = '300ms'")
        with pytest.raises(psycopg.errors.QueryCanceled):
            items.run("insert into item select i, 'x', 1 from generate_series(1, 100000000) i")
        assert items.seen() == []


class Other(models.Model):
    item: models.Field[Any, Any] = models.ForeignKey(Item, models.CASCADE)

    class Meta:
        app_label = "stock"
        db_table = "other"

    def __str__(self) -> str:
        return str(self.pk)


class TestRefusedConditions:
    """When installing, not when writing."""

    @pytest.mark.parametrize(
        ("condition", "reason"),
        [
            (Q(colour="red"), "Cannot resolve keyword 'colour' into field"),
            (Q(version="many"), "expected a number but got 'many'"),
            (Q(name__near="x"), "Unsupported lookup 'near'"),
            (Q(name__isnull="no"), "must be True or False"),
            (Q(owner__name="x"), "Cannot resolve keyword 'owner'"),
            (Q(Exists(Other.objects.filter(item=OuterRef("pk")))), "it asks other rows"),
            (Q(pk__in=Other.objects.values("item")), "it asks other rows"),
            (Q(name__in=[]), "it is never true"),
            (~Q(name__in=[]), "it is always true; leave it out"),
            (Q(version=F("name")), "operator does not exist"),
            (Q(name__trigram_similar="x"), "Unsupported lookup|operator does not exist"),
            (Q(name__regex="("), "parentheses .* not balanced"),
        ],
    )
    def test_are_named_with_the_reason(self, database: Database, condition: Q, reason: str) -> None:
        database.connect().execute(ITEM_SQL)
        plan = plan_install(connection, [make_watch(Item, condition=condition)])
        assert plan.steps == []
        (error,) = plan.errors
        assert str(error).startswith("the condition of the watch of stock.item cannot be evaluated in a trigger: ")
        with pytest.raises(WatchError, match=reason):
            raise error

    def test_a_value_that_the_field_does_not_take_is_refused(self, database: Database) -> None:
        database.connect().execute(ITEM_SQL)
        model = make_model("Item", "item", version=models.DecimalField(max_digits=5, decimal_places=2))
        (error,) = plan_install(connection, [make_watch(model, condition=Q(version="many"))]).errors
        assert str(error).endswith("“many” value must be a decimal number.")

    @pytest.mark.postgres("15")  # the other server comes without extensions
    def test_a_column_whose_operators_an_extension_brings_is_refused(self, database: Database) -> None:
        """In the fixed search_path of the trigger function, citext would be compared as text, case and all."""
        database.connect().execute("create extension citext; create table item (id int primary key, name citext)")
        model = make_model("Item", "item", name=models.TextField())
        (error,) = plan_install(connection, [make_watch(model, condition=Q(name="x"))]).errors
        assert str(error).endswith("name is of type citext, whose operators an extension brings")

    def test_trying_a_condition_leaves_nothing_set_in_the_transaction_around_it(self, database: Database) -> None:
        database.connect().execute(ITEM_SQL)
        with transaction.atomic(), connection.cursor() as cursor:
            assert plan_install(connection, [make_watch(Item, condition=Q(version=1))]).errors == []
            cursor.execute("show search_path")
            assert cursor.fetchone() == ('"$user", public',)

    def test_an_enum_and_an_array_may_be_compared(self, database: Database) -> None:
        database.connect().execute(
            "create type mood as enum ('glad', 'sad'); create table item (id int primary key, name mood)"
        )
        model = make_model("Item", "item", name=models.TextField())
        assert plan_install(connection, [make_watch(model, condition=Q(name="sad"))]).errors == []

    def test_a_column_that_is_not_there_yet_is_waited_for(self, database: Database) -> None:
        database.connect().execute("create table item (id int primary key, name text)")
        (error,) = plan_install(connection, [make_watch(Item, condition=Q(version=1))]).errors
        assert isinstance(error, TableMissingError)
        assert "has no column version" in str(error)


class TestSuppression:
    def test_what_is_suppressed_is_not_in_the_journal(self, database: Database) -> None:
        items = watched(database)
        with items.connection.transaction():
            items.run("set local pgnotify_gql.context = 'suppressed'")
            for statement in (
                "insert into item (id) values (1), (2)",
                "update item set version = 1",
                "delete from item where id = 1",
                "truncate item",
            ):
                items.run(statement)
        items.run("insert into item (id) values (3)")
        assert items.seen() == [("INSERT", 3)]


class TestDeclarations:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"exclude": ["name"]}, r'exclude= without columns="__all__"'),
            ({"columns": ["name"], "exclude": ["name"]}, r'exclude= without columns="__all__"'),
            ({"columns": "__all__", "exclude": "name"}, r"exclude='name': give a list of names"),
            ({"update_of": "name"}, r"update_of='name': give a list of names"),
            ({"update_of": ["name"], "kinds": ["INSERT"]}, r"update_of= but does not capture UPDATE"),
            ({"condition": "version > 1"}, r"condition='version > 1': give a Q object"),
        ],
    )
    def test_options_that_contradict_each_other_are_refused(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(WatchError, match=message):
            notify_on_model_changes(Item, **options)

    def test_an_option_that_is_not_there_is_refused_with_the_nearest_one(self) -> None:
        with pytest.raises(
            TypeError, match=r"notify_on_model_changes\(\) has no option 'column': did you mean columns="
        ):
            notify_on_model_changes(Item, column=["name"])  # type: ignore[call-overload]
        with pytest.raises(TypeError, match="has no option 'zzz': it takes columns, exclude, kinds"):
            notify_on_model_changes(zzz=1)  # type: ignore[call-overload]

    def test_what_is_no_list_of_names_is_refused(self) -> None:
        with pytest.raises(WatchError, match="columns=7: give a list of names"):
            notify_on_model_changes(Item, columns=7)  # type: ignore[call-overload]

    @pytest.mark.parametrize("option", ["columns", "exclude", "update_of"])
    def test_unknown_names_are_refused_whatever_they_are_for(self, database: Database, option: str) -> None:
        columns: Any = {"columns": "__all__"} if option == "exclude" else {}
        watch = make_watch(Item, **columns | {option: ["colour"]})
        (error,) = plan_install(connection, [watch]).errors
        assert str(error).startswith("the watch of stock.item names the column 'colour', which its table does not have")

    def test_all_columns_are_the_same_watch_in_whatever_order_the_model_has_them(self) -> None:
        """A model as migrations know it has a field that was added later at the end."""
        fields: dict[str, Any] = {"b": models.IntegerField(), "a": models.TextField()}
        backwards = dict(reversed(fields.items()))
        digests = {
            render(make_watch(make_model("Thing", "thing", **order), columns="__all__")).digest
            for order in (fields, backwards)
        }
        assert len(digests) == 1

    def test_an_empty_condition_is_none(self) -> None:
        assert make_watch(Item, condition=Q()).condition is None

    def test_everything_but_secrets_is_captured(self, database: Database) -> None:
        items = watched(database, columns="__all__", exclude=["note", "version"])
        items.run("insert into item (id, name, note) values (1, 'tea', 'secret')")
        items.run("update item set note = 'hidden'")
        insert, update = items.changes()
        assert insert.new == {"id": 1, "name": "tea"}
        assert (update.old, update.new) == ({"id": 1, "name": "tea"}, {"id": 1, "name": "tea"})
        assert not any("secret" in row.rows or "hidden" in row.rows for row in items.journal())


def test_kinds_that_are_left_out_are_left_out_row_by_row_as_well(database: Database) -> None:
    items = watched(database, kinds=[Kind.DELETE], replicated=True)
    items.run("insert into item (id) values (1), (2)")
    items.run("update item set version = 1")
    items.run("update item set id = 3 where id = 1")
    items.run("delete from item")
    items.run("truncate item")
    assert sorted(items.seen()) == [("DELETE", 1), ("DELETE", 2), ("DELETE", 3)]
