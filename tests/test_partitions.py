"""Tables whose rows are written through other tables: partitions, and what inherits the plain way."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connection, connections, models
from django.db.models.fields.composite import CompositePrimaryKey

from pgnotify_gql.capture.installer import execute, plan_uninstall
from pgnotify_gql.capture.registry import Registry, make_watch
from pgnotify_gql.errors import InstallError
from tests.support.databases import Database
from tests.support.stock import Stock

RANGES = """
    create table event (id bigint primary key, note text not null default '') partition by range (id);
    create table event_1 partition of event for values from (1) to (10);
    create table event_2 partition of event for values from (10) to (20);
"""

INHERITED = """
    create table event (id bigint primary key, note text not null default '');
    create table event_child (extra int) inherits (event);
"""


@pytest.fixture
def stock(database: Database, monkeypatch: pytest.MonkeyPatch) -> Stock:
    """An application without models, in place of the example."""
    registry = Registry()
    monkeypatch.setattr("pgnotify_gql.management.commands.install_triggers.registry", registry)
    return Stock(database, registry)


@pytest.fixture
def event(stock: Stock) -> type[Any]:
    """A model whose table each test makes."""
    return stock.model("Event", "event", note=models.TextField(default=""), meta={"managed": False})


def seen(stock: Stock) -> list[tuple[str, Any]]:
    """Kind and key of each change since the last look, all of one model."""
    found = stock.seen()
    assert {model for model, *_ in found} <= {"event"}
    return [(kind, key) for _, kind, key in found]


class TestWritingPartitions:
    @pytest.fixture
    def ranges(self, stock: Stock, event: type[Any]) -> Stock:
        stock.run(RANGES)
        stock.watch(event, columns="__all__")
        return stock

    def test_writes_through_the_parent_are_captured_once(self, ranges: Stock, event: type[Any]) -> None:
        event.objects.create(id=1)
        event.objects.bulk_create([event(id=2, note="x"), event(id=11)])
        event.objects.filter(id__in=(2, 11)).update(note="y")
        event.objects.filter(id=1).update(note="")
        event.objects.all().delete()
        ranges.copy("copy event (id) from stdin", (3,), (12,))
        found = ranges.images()
        assert found[:3] == [
            ("event", "INSERT", None, {"id": 1, "note": ""}),
            ("event", "INSERT", None, {"id": 2, "note": "x"}),
            ("event", "INSERT", None, {"id": 11, "note": ""}),
        ]
        assert sorted((kind, old["id"], old["note"], new["note"]) for _, kind, old, new in found[3:5]) == [
            ("UPDATE", 2, "x", "y"),
            ("UPDATE", 11, "", "y"),
        ]
        assert sorted((kind, old["id"], old["note"]) for _, kind, old, _ in found[5:8]) == [
            ("DELETE", 1, ""),
            ("DELETE", 2, "y"),
            ("DELETE", 11, "y"),
        ]
        assert found[8:] == [
            ("event", "INSERT", None, {"id": 3, "note": ""}),
            ("event", "INSERT", None, {"id": 12, "note": ""}),
        ]

    def test_writes_straight_into_a_partition_are_changes_of_the_parents_model(self, ranges: Stock) -> None:
        ranges.run("insert into event_1 values (1), (2); insert into event_2 values (11)")
        ranges.run("update event_1 set note = 'x' where id = 1; update event_2 set note = note")
        ranges.run("delete from event_1 where id = 2")
        ranges.copy("copy event_2 (id) from stdin", (12,))
        ranges.run("truncate event_2")
        assert seen(ranges) == [
            ("INSERT", 1),
            ("INSERT", 2),
            ("INSERT", 11),
            ("UPDATE", 1),
            ("DELETE", 2),
            ("INSERT", 12),
            ("TRUNCATE", None),
        ]

    def test_an_upsert_and_a_merge_of_the_parent_are_what_they_do(self, ranges: Stock) -> None:
        ranges.run("insert into event values (1, 'a')")
        ranges.run("insert into event values (1, 'b'), (11, 'c') on conflict (id) do update set note = excluded.note")
        ranges.run("insert into event values (1, 'b') on conflict do nothing")
        ranges.run(
            "merge into event using (values (1), (11), (12)) as wanted (id) on event.id = wanted.id"
            " when matched and event.id = 1 then delete when matched then update set note = 'd'"
            " when not matched then insert values (wanted.id)"
        )
        found = seen(ranges)
        assert found[:3] == [("INSERT", 1), ("UPDATE", 1), ("INSERT", 11)]
        assert sorted(found[3:]) == [("DELETE", 1), ("INSERT", 12), ("UPDATE", 11)]

    def test_a_changed_key_within_a_partition_is_a_delete_and_an_insert(self, ranges: Stock) -> None:
        ranges.run("insert into event values (1)")
        ranges.run("update event set id = 2")
        assert seen(ranges) == [("INSERT", 1), ("DELETE", 1), ("INSERT", 2)]

    def test_truncating_the_parent_is_one_change(self, ranges: Stock) -> None:
        ranges.run("truncate event")
        assert seen(ranges) == [("TRUNCATE", None)]

    def test_truncating_twice_in_a_transaction_is_a_change_for_each_time_that_there_was_something(
        self, ranges: Stock
    ) -> None:
        ranges.run("begin; truncate event; insert into event values (1); truncate event_1; truncate event_2; commit")
        assert seen(ranges) == [("TRUNCATE", None), ("INSERT", 1), ("TRUNCATE", None)]

    def test_a_truncation_that_was_rolled_back_does_not_hide_the_next(self, ranges: Stock) -> None:
        ranges.run("begin; savepoint one; truncate event; rollback to one; truncate event_1; commit")
        assert seen(ranges) == [("TRUNCATE", None)]

    def test_only_the_chosen_kinds_are_captured(self, stock: Stock, event: type[Any]) -> None:
        stock.run(RANGES)
        stock.watch(event, kinds=["DELETE", "TRUNCATE"])
        stock.run("insert into event values (1), (11); update event set note = 'x'; update event_1 set id = 2")
        stock.run("delete from event_2; truncate event_1")
        assert seen(stock) == [("DELETE", 1), ("DELETE", 11), ("TRUNCATE", None)]

    def test_a_condition_and_update_of_hold_in_every_partition(self, stock: Stock, event: type[Any]) -> None:
        stock.run(RANGES)
        stock.watch(event, condition=models.Q(note__startswith="!"), update_of=["note"])
        stock.run("insert into event values (1, 'a'), (2, '!b'), (11, '!c')")
        stock.run("update event set note = '!' || note where id = 1; update event_2 set note = 'c'")
        stock.run("delete from event")
        found = seen(stock)
        assert found[:4] == [("INSERT", 2), ("INSERT", 11), ("UPDATE", 1), ("UPDATE", 11)]
        assert sorted(found[4:]) == [("DELETE", 1), ("DELETE", 2)]


class TestPartitioning:
    """The other ways to divide a table, and partitions that are made differently inside."""

    def test_by_list_with_a_default_partition(self, stock: Stock) -> None:
        sale = stock.model(
            "Sale", "sale", pk=CompositePrimaryKey("region", "id"), region=models.TextField(), id=models.IntegerField()
        )
        stock.run("create table sale (region text, id int, primary key (region, id)) partition by list (region)")
        stock.run("create table sale_eu partition of sale for values in ('de', 'fr')")
        stock.run("create table sale_rest partition of sale default")
        stock.watch(sale)
        stock.run("insert into sale values ('de', 1), ('us', 1); insert into sale_rest values ('jp', 1)")
        stock.run("update sale set region = 'fr' where region = 'us'")
        stock.run("update sale set region = 'fr', id = 2 where region = 'de'")
        assert [(kind, key) for _, kind, key in stock.seen()] == [
            ("INSERT", ("de", 1)),
            ("INSERT", ("us", 1)),
            ("INSERT", ("jp", 1)),
            ("DELETE", ("us", 1)),
            ("INSERT", ("fr", 1)),
            ("DELETE", ("de", 1)),
            ("INSERT", ("fr", 2)),
        ]

    def test_by_hash(self, stock: Stock, event: type[Any]) -> None:
        stock.run("create table event (id bigint primary key, note text default '') partition by hash (id)")
        for part in range(3):
            stock.run(f"create table event_{part} partition of event for values with (modulus 3, remainder {part})")
        stock.watch(event)
        event.objects.bulk_create([event(id=key) for key in range(30)])
        assert seen(stock) == [("INSERT", key) for key in range(30)]
        event.objects.filter(id__lt=10).update(note="x")
        assert sorted(seen(stock)) == [("UPDATE", key) for key in range(10)]
        stock.run("truncate event_1")
        assert seen(stock) == [("TRUNCATE", None)]

    def test_by_range_and_then_by_list(self, stock: Stock, event: type[Any]) -> None:
        stock.run("create table event (id bigint, note text, primary key (id, note)) partition by range (id)")
        stock.run("create table event_1 partition of event for values from (1) to (10) partition by list (note)")
        stock.run("create table event_1_a partition of event_1 for values in ('a')")
        stock.run("create table event_1_b partition of event_1 for values in ('b')")
        stock.run("create table event_2 partition of event for values from (10) to (20)")
        stock.watch(event, columns=["note"])
        stock.run("insert into event values (1, 'a'); insert into event_1 values (2, 'b')")
        stock.run("insert into event_1_b values (3, 'b')")
        stock.run("update event set id = 11 where id = 1")
        stock.run("update event set id = 4 where id = 11")
        stock.run("update event_1 set note = 'b' where id = 4")
        assert stock.images() == [
            ("event", "INSERT", None, {"note": "a"}),
            ("event", "INSERT", None, {"note": "b"}),
            ("event", "INSERT", None, {"note": "b"}),
            ("event", "DELETE", {"note": "a"}, None),
            ("event", "INSERT", None, {"note": "a"}),
            ("event", "DELETE", {"note": "a"}, None),
            ("event", "INSERT", None, {"note": "a"}),
            ("event", "DELETE", {"note": "a"}, None),
            ("event", "INSERT", None, {"note": "b"}),
        ]
        for table in ("event_1_a", "event_1", "event"):
            stock.run(f"truncate {table}")
            assert seen(stock) == [("TRUNCATE", None)]

    def test_columns_in_another_order_and_columns_that_were_dropped(self, stock: Stock, event: type[Any]) -> None:
        """Each partition has its rows laid out in its own way, and moves translate between them."""
        stock.run("create table event (gone int, id bigint, note text not null default '') partition by range (id)")
        stock.run("alter table event drop gone; alter table event add primary key (id)")
        stock.run("create table event_1 partition of event for values from (1) to (10)")
        stock.run(
            "create table event_2 (note text not null, old int, id bigint not null); alter table event_2 drop old"
        )
        stock.run("alter table event attach partition event_2 for values from (10) to (20)")
        stock.watch(event, columns="__all__")
        stock.run("insert into event values (1, 'a'), (11, 'b'); insert into event_2 values ('c', 12)")
        stock.run("update event set note = note || note")
        stock.run("update event set id = 13 where id = 1")
        stock.run("update event_2 set note = 'x' where id = 11")
        stock.run("update event set id = 2 where id = 11")
        found = stock.images()
        assert found[:3] == [
            ("event", "INSERT", None, {"id": 1, "note": "a"}),
            ("event", "INSERT", None, {"id": 11, "note": "b"}),
            ("event", "INSERT", None, {"id": 12, "note": "c"}),
        ]
        assert sorted((old["id"], new["note"]) for _, _, old, new in found[3:6]) == [(1, "aa"), (11, "bb"), (12, "cc")]
        assert found[6:] == [
            ("event", "DELETE", {"id": 1, "note": "aa"}, None),
            ("event", "INSERT", None, {"id": 13, "note": "aa"}),
            ("event", "UPDATE", {"id": 11, "note": "bb"}, {"id": 11, "note": "x"}),
            ("event", "DELETE", {"id": 11, "note": "x"}, None),
            ("event", "INSERT", None, {"id": 2, "note": "x"}),
        ]

    def test_a_table_without_a_partition_yet(self, stock: Stock, event: type[Any]) -> None:
        stock.run("create table event (id bigint primary key, note text not null default '') partition by range (id)")
        stock.watch(event)
        stock.run("create table event_1 partition of event for values from (1) to (10)")
        event.objects.create(id=1)
        stock.run("truncate event")
        assert seen(stock) == [("INSERT", 1), ("TRUNCATE", None)]

    def test_stored_generated_columns(self, stock: Stock) -> None:
        area = stock.model("Area", "area", width=models.IntegerField(), twice=models.IntegerField())
        stock.run(
            "create table area (id bigint primary key, width int, twice int generated always as (width * 2) stored)"
            " partition by range (id)"
        )
        stock.run("create table area_1 partition of area for values from (1) to (10)")
        stock.run("create table area_2 partition of area for values from (10) to (20)")
        stock.watch(area, columns="__all__")
        stock.run("insert into area values (1, 5); update area set width = 6; update area_1 set id = 1")
        stock.run("update area set id = 11")
        assert stock.images() == [
            ("area", "INSERT", None, {"id": 1, "width": 5, "twice": 10}),
            ("area", "UPDATE", {"id": 1, "width": 5, "twice": 10}, {"id": 1, "width": 6, "twice": 12}),
            ("area", "DELETE", {"id": 1, "width": 6, "twice": 12}, None),
            ("area", "INSERT", None, {"id": 11, "width": 6, "twice": 12}),
        ]

    @pytest.mark.postgres("18")
    @pytest.mark.parametrize("columns", [(), "__all__"])
    def test_virtual_generated_columns_do_not_fail_the_write(
        self, stock: Stock, event: type[Any], columns: Any
    ) -> None:
        stock.run(RANGES)
        stock.run("alter table event add twice bigint generated always as (id * 2) virtual")
        stock.watch(event, columns=columns)
        stock.run("insert into event values (1), (2); update event set note = 'x'; update event set note = 'x'")
        stock.run("update event set id = id + 10")
        found = seen(stock)
        assert found[:2] == [("INSERT", 1), ("INSERT", 2)]
        assert sorted(found[2:4]) == [("UPDATE", 1), ("UPDATE", 2)]
        assert sorted(found[4:]) == [("DELETE", 1), ("DELETE", 2), ("INSERT", 11), ("INSERT", 12)]


class TestMoves:
    @pytest.fixture
    def moved(self, stock: Stock, event: type[Any]) -> Stock:
        """Rows move by their note; the key stays."""
        stock.run("create table event (id bigint, note text, primary key (id, note)) partition by list (note)")
        stock.run("create table event_a partition of event for values in ('a')")
        stock.run("create table event_bc partition of event for values in ('b', 'c') partition by list (note)")
        stock.run("create table event_b partition of event_bc for values in ('b')")
        stock.run("create table event_c partition of event_bc for values in ('c')")
        return stock

    def test_a_row_that_moves_is_deleted_and_inserted_with_the_same_key(self, moved: Stock, event: type[Any]) -> None:
        moved.watch(event, columns=["note"])
        moved.run("insert into event values (1, 'a')")
        for note in ("b", "c", "a"):
            event.objects.update(note=note)
        changes = moved.changes()
        assert [(change.kind.value, change.pk, change.old, change.new) for change in changes] == [
            ("INSERT", 1, None, {"note": "a"}),
            ("DELETE", 1, {"note": "a"}, None),
            ("INSERT", 1, None, {"note": "b"}),
            ("DELETE", 1, {"note": "b"}, None),
            ("INSERT", 1, None, {"note": "c"}),
            ("DELETE", 1, {"note": "c"}, None),
            ("INSERT", 1, None, {"note": "a"}),
        ]

    def test_many_rows_that_move_are_each_deleted_before_they_are_inserted(
        self, moved: Stock, event: type[Any]
    ) -> None:
        moved.watch(event)
        moved.run("insert into event values (1, 'a'), (2, 'a'), (3, 'b')")
        seen(moved)
        moved.run("update event set note = 'c'")
        found = seen(moved)
        assert sorted(found) == [(kind, key) for kind in ("DELETE", "INSERT") for key in (1, 2, 3)]
        for key in (1, 2, 3):
            assert found.index(("DELETE", key)) < found.index(("INSERT", key))

    def test_a_watch_of_updates_alone_does_not_see_moves(self, moved: Stock, event: type[Any]) -> None:
        """PostgreSQL tells triggers of a DELETE and an INSERT."""
        moved.watch(event, kinds=["UPDATE"])
        moved.run("insert into event values (1, 'a')")
        moved.run("update event set note = 'b'; update event set id = 2")
        assert seen(moved) == []
        moved.run("update event_b set note = 'b', id = 2")
        assert seen(moved) == []


class TestPartitionsThatComeAndGo:
    @pytest.fixture
    def ranges(self, stock: Stock, event: type[Any]) -> Stock:
        stock.run(RANGES)
        stock.watch(event)
        return stock

    @pytest.mark.parametrize(
        "create",
        [
            "create table event_3 partition of event for values from (20) to (30)",
            "create table event_3 (note text not null default '', id bigint not null);"
            "alter table event attach partition event_3 for values from (20) to (30)",
        ],
        ids=["partition of", "attach"],
    )
    def test_a_partition_that_comes_later_is_captured_but_for_truncate_until_triggers_are_installed(
        self, ranges: Stock, create: str
    ) -> None:
        ranges.run(create)
        ranges.run("insert into event_3 (id) values (21); insert into event (id) values (22)")
        ranges.run("update event_3 set note = 'x' where id = 21; delete from event_3 where id = 22")
        ranges.run("update event set id = 1 where id = 21; update event set id = 21 where id = 1")
        assert seen(ranges) == [
            ("INSERT", 21),
            ("INSERT", 22),
            ("UPDATE", 21),
            ("DELETE", 22),
            ("DELETE", 21),
            ("INSERT", 1),
            ("DELETE", 1),
            ("INSERT", 21),
        ]
        ranges.run("truncate event_3")
        assert seen(ranges) == []
        ranges.run("truncate event")
        assert seen(ranges) == [("TRUNCATE", None)]
        assert ranges.check() == [
            'OUTDATED  stock.event on "event" (lacks pgnotify_gql_truncate_stock$event on event_3)',
            "1 of 1 tables differ: run `manage.py install_triggers`",
        ]
        assert ranges.install() == ["stock.event: installed (was OUTDATED)"]
        ranges.run("truncate event_3")
        assert seen(ranges) == [("TRUNCATE", None)]

    def test_a_subtree_that_is_attached_is_captured(self, ranges: Stock) -> None:
        ranges.run("create table event_3 (id bigint not null, note text not null default '') partition by list (id)")
        ranges.run("create table event_3_1 partition of event_3 for values in (21)")
        ranges.run("alter table event attach partition event_3 for values from (20) to (30)")
        ranges.run("insert into event_3_1 values (21); update event_3 set note = 'x'")
        assert seen(ranges) == [("INSERT", 21), ("UPDATE", 21)]
        ranges.install()
        for table in ("event_3_1", "event_3", "event"):
            ranges.run(f"truncate {table}")
            assert seen(ranges) == [("TRUNCATE", None)]

    @pytest.mark.parametrize("how", ["", " concurrently"])
    def test_a_detached_partition_is_not_captured_and_its_left_over_trigger_is_removed(
        self, ranges: Stock, how: str
    ) -> None:
        ranges.run(f"alter table event detach partition event_2{how}")
        ranges.run("insert into event_2 values (11); update event_2 set note = 'x'; delete from event_2")
        assert seen(ranges) == []
        assert ranges.check() == [
            'INSTALLED stock.event on "event"',
            "ORPHANED  stock.event on event_2 (no watch)",
            "1 of 2 tables differ: run `manage.py install_triggers`",
        ]
        assert ranges.install() == ["stock.event: removed (was ORPHANED)"]
        ranges.run("truncate event_2; insert into event values (1)")
        assert seen(ranges) == [("INSERT", 1)]
        assert (
            ranges.run("select tgname from pg_trigger where tgrelid = 'event_2'::regclass and not tgisinternal") == []
        )

    def test_a_partition_that_comes_back_is_captured(self, ranges: Stock) -> None:
        ranges.run("alter table event detach partition event_2; insert into event_2 values (11)")
        ranges.run("alter table event attach partition event_2 for values from (10) to (20)")
        assert ranges.check() == ['INSTALLED stock.event on "event"']
        ranges.run("update event_2 set note = 'x'; truncate event_2")
        assert seen(ranges) == [("UPDATE", 11), ("TRUNCATE", None)]

    def test_a_dropped_partition_leaves_nothing_to_do(self, ranges: Stock) -> None:
        ranges.run("insert into event values (11)")
        ranges.run("drop table event_2")
        assert ranges.check() == ['INSTALLED stock.event on "event"']
        ranges.run("insert into event values (1)")
        assert seen(ranges) == [("INSERT", 11), ("INSERT", 1)]

    def test_a_dropped_table_leaves_only_functions_which_the_next_installation_drops(
        self, ranges: Stock, event: type[Any]
    ) -> None:
        ranges.run("drop table event")
        ranges.forget(event)
        ranges.install()
        assert ranges.run("select proname from pg_proc where proname like 'capture%'") == []

    def test_a_plain_table_that_becomes_a_partitioned_one(self, stock: Stock, event: type[Any]) -> None:
        """The way of an online migration: the old table becomes the first partition of a new one."""
        stock.run("create table event (id bigint primary key, note text not null default '')")
        stock.watch(event)
        stock.run("insert into event values (1)")
        stock.run(
            "begin; alter table event rename to event_1;"
            "create table event (like event_1 including defaults, primary key (id)) partition by range (id);"
            "alter table event attach partition event_1 for values from (1) to (10); commit"
        )
        assert stock.check()[0].startswith(
            'OUTDATED  stock.event on "event" (lacks pgnotify_gql_insert_stock$event on '
        )
        assert stock.install() == ["stock.event: installed (was OUTDATED)"]
        stock.run("insert into event values (2); update event_1 set note = 'x' where id = 1; truncate event_1")
        assert seen(stock) == [("INSERT", 1), ("INSERT", 2), ("UPDATE", 1), ("TRUNCATE", None)]

    def test_inheritance_that_becomes_partitions(self, stock: Stock, event: type[Any]) -> None:
        """The children have triggers of the names that PostgreSQL wants to give to the clones."""
        stock.run(INHERITED)
        stock.watch(event)
        stock.run(
            "begin; alter table event rename to event_old; alter table event_child no inherit event_old;"
            "alter table event_child drop extra;"
            "create table event (id bigint primary key, note text not null default '') partition by range (id);"
            "alter table event attach partition event_child for values from (1) to (10); commit"
        )
        stock.install()
        stock.run("insert into event values (1); update event_child set note = 'x'; truncate event_child")
        assert seen(stock) == [("INSERT", 1), ("UPDATE", 1), ("TRUNCATE", None)]
        assert stock.run("select tgname from pg_trigger where tgrelid = 'event_old'::regclass") == []


class TestPartitionsThatAreWatchedThemselves:
    @pytest.fixture
    def first(self, stock: Stock) -> type[Any]:
        return stock.model("First", "event_1", note=models.TextField(default=""), meta={"managed": False})

    def test_both_models_are_told(self, stock: Stock, event: type[Any], first: type[Any]) -> None:
        stock.run(RANGES)
        stock.watch(event)
        stock.watch(first, columns=["note"])
        event.objects.create(id=1)
        first.objects.create(id=2)
        event.objects.create(id=11)
        event.objects.filter(id=1).update(note="x")
        first.objects.filter(id=2).delete()
        assert stock.seen() == [
            *both("INSERT", 1),
            *both("INSERT", 2),
            ("event", "INSERT", 11),
            *both("UPDATE", 1),
            *both("DELETE", 2),
        ]
        event.objects.filter(id=1).update(id=12)
        found = stock.seen()
        assert sorted(found) == [("event", "DELETE", 1), ("event", "INSERT", 12), ("first", "DELETE", 1)]
        for statement in ("truncate event", "truncate event_1"):
            stock.run(statement)
            assert sorted(stock.seen()) == [("event", "TRUNCATE", None), ("first", "TRUNCATE", None)]
        stock.run("truncate event_2")
        assert stock.seen() == [("event", "TRUNCATE", None)]

    def test_a_partition_of_a_parent_that_is_not_watched(self, stock: Stock, first: type[Any]) -> None:
        stock.run(RANGES)
        stock.watch(first)
        stock.run(
            "insert into event values (1), (11); update event_1 set note = 'x'; update event set id = 12 where id = 1"
        )
        stock.run("update event set id = 2 where id = 12; truncate event")
        assert stock.seen() == [
            ("first", "INSERT", 1),
            ("first", "UPDATE", 1),
            ("first", "DELETE", 1),
            ("first", "INSERT", 2),
            ("first", "TRUNCATE", None),
        ]

    def test_a_partition_that_is_partitioned_itself(self, stock: Stock, event: type[Any], first: type[Any]) -> None:
        stock.run("create table event (id bigint primary key, note text not null default '') partition by range (id)")
        stock.run("create table event_1 partition of event for values from (1) to (10) partition by range (id)")
        stock.run("create table event_1_1 partition of event_1 for values from (1) to (5)")
        stock.watch(first)
        stock.watch(event)
        stock.run("insert into event_1_1 values (1)")
        stock.run("create table event_1_2 partition of event_1 for values from (5) to (10)")
        stock.run("insert into event_1_2 values (6)")
        assert stock.seen() == [*both("INSERT", 1), *both("INSERT", 6)]
        stock.install()
        stock.run("truncate event_1_2")
        assert sorted(stock.seen()) == [("event", "TRUNCATE", None), ("first", "TRUNCATE", None)]

    def test_a_watched_table_that_becomes_a_partition_is_outdated(
        self, stock: Stock, event: type[Any], first: type[Any]
    ) -> None:
        """Its triggers, made for statements aimed at it, do not see what comes through the parent."""
        stock.run("create table event (id bigint primary key, note text not null default '') partition by range (id)")
        stock.run("create table event_1 (id bigint primary key, note text not null default '')")
        stock.watch(first)
        stock.run("alter table event attach partition event_1 for values from (1) to (10)")
        stock.run("insert into event_1 values (1); insert into event values (2)")
        assert stock.seen() == [("first", "INSERT", 1)]
        assert stock.check()[0].startswith('OUTDATED  stock.first on "event_1"')
        stock.install()
        stock.run("insert into event values (3)")
        assert stock.seen() == [("first", "INSERT", 3)]
        stock.run("alter table event detach partition event_1")
        assert stock.check()[0].startswith('OUTDATED  stock.first on "event_1"')
        stock.run("insert into event_1 values (4)")
        stock.install()
        stock.run("insert into event_1 values (5), (6)")
        assert stock.seen() == [("first", "INSERT", key) for key in (4, 5, 6)]

    def test_a_partition_that_is_watched_itself_stays_so_when_it_is_detached(
        self, stock: Stock, event: type[Any], first: type[Any]
    ) -> None:
        stock.run(RANGES)
        stock.watch(event, first)
        stock.run("alter table event detach partition event_1")
        stock.run("insert into event_1 values (1)")
        stock.install()
        stock.run("insert into event_1 values (2); truncate event_1; truncate event")
        assert stock.seen() == [
            ("first", "INSERT", 1),
            ("first", "INSERT", 2),
            ("first", "TRUNCATE", None),
            ("event", "TRUNCATE", None),
        ]

    def test_one_of_both_watches_can_be_taken_back(self, stock: Stock, event: type[Any], first: type[Any]) -> None:
        stock.run(RANGES)
        stock.watch(event, first)
        stock.forget(event)
        assert {*stock.install()} == {"stock.event: removed (was ORPHANED)"}
        stock.run("insert into event values (1), (11); truncate event")
        assert stock.seen() == [("first", "INSERT", 1), ("first", "TRUNCATE", None)]
        stock.watch(event)
        stock.forget(first)
        assert stock.install() == ["stock.first: removed (was ORPHANED)"]
        stock.run("insert into event values (1), (11); truncate event")
        assert seen(stock) == [("INSERT", 1), ("INSERT", 11), ("TRUNCATE", None)]

    def test_long_labels_that_differ_only_at_the_end_have_triggers_of_their_own(self, stock: Stock) -> None:
        stock.run(RANGES)
        long = [stock.model("E" * 90 + end, table) for end, table in (("a", "event"), ("b", "event_1"))]
        stock.watch(*long)
        stock.run("insert into event values (1)")
        assert sorted(stock.seen()) == [("e" * 90 + end, "INSERT", 1) for end in "ab"]


def both(kind: str, key: Any) -> list[tuple[str, str, Any]]:
    """What both models are told of a row: PostgreSQL fires triggers in the order of their names."""
    return [("event", kind, key), ("first", kind, key)]


class TestInstallingOnPartitions:
    def test_a_changed_watch_replaces_the_clones(self, stock: Stock, event: type[Any]) -> None:
        stock.run(RANGES)
        stock.run("create table event_3 partition of event for values from (20) to (30) partition by range (id)")
        stock.run("create table event_3_1 partition of event_3 for values from (20) to (30)")
        stock.watch(event)
        stock.run("insert into event values (1), (21)")
        assert [new for _, _, _, new in stock.images()] == [None, None]
        stock.watch(event, columns=["note"])
        stock.run("update event_3_1 set note = 'x'; update event_1 set note = 'y'")
        assert stock.images() == [
            ("event", "UPDATE", {"note": ""}, {"note": "x"}),
            ("event", "UPDATE", {"note": ""}, {"note": "y"}),
        ]
        stock.watch(event, kinds=["INSERT"])
        stock.run("delete from event; insert into event_3 values (22); truncate event")
        assert seen(stock) == [("INSERT", 22)]
        assert len(stock.run("select proname from pg_proc where proname like 'capture%'")) == 1

    def test_disabled_triggers_of_a_partition_are_told_and_mended(
        self, stock: Stock, event: type[Any], subtests: pytest.Subtests
    ) -> None:
        """What is done before a large import, and then forgotten."""
        stock.run(RANGES)
        stock.run("create table event_3 partition of event for values from (20) to (30) partition by range (id)")
        stock.run("create table event_3_1 partition of event_3 for values from (20) to (30)")
        stock.watch(event)
        for part in ("event_1", "event_3", "event_3_1"):
            for triggers in ("pgnotify_gql_insert_stock$event", "user", "all"):
                with subtests.test(part=part, triggers=triggers):
                    stock.run(f"alter table {part} disable trigger {triggers}")
                    first = stock.check()[0]
                    assert first.startswith('OUTDATED  stock.event on "event" (disabled, or enabled otherwise: ')
                    assert f"pgnotify_gql_insert_stock$event on {part}" in first
                    assert stock.install() == ["stock.event: installed (was OUTDATED)"]
                    stock.run("insert into event values (1), (21); insert into event_3_1 values (22)")
                    assert seen(stock) == [("INSERT", 1), ("INSERT", 21), ("INSERT", 22)]
                    stock.run("truncate event")
                    assert seen(stock) == [("TRUNCATE", None)]

    def test_always_reaches_the_clones(self, stock: Stock, event: type[Any]) -> None:
        stock.run(RANGES)
        stock.watch(event, replicated=True)
        stock.run("create table event_3 partition of event for values from (20) to (30)")
        stock.install()
        stock.run("set session_replication_role = replica")
        stock.run("insert into event values (1); insert into event_2 values (11); insert into event_3 values (21)")
        stock.run("update event set id = 2 where id = 1; truncate event_2")
        stock.run("reset session_replication_role")
        assert seen(stock) == [
            ("INSERT", 1),
            ("INSERT", 11),
            ("INSERT", 21),
            ("DELETE", 1),
            ("INSERT", 2),
            ("TRUNCATE", None),
        ]
        stock.run("alter table event_1 enable trigger user")
        assert stock.check()[0].startswith("OUTDATED")
        stock.install()

    def test_and_is_taken_back(self, stock: Stock, event: type[Any]) -> None:
        stock.run(RANGES)
        stock.watch(event, replicated=True)
        stock.watch(event)
        stock.run(
            "set session_replication_role = replica; insert into event values (1); insert into event_1 values (2)"
        )
        stock.run("reset session_replication_role; insert into event_1 values (3)")
        assert seen(stock) == [("INSERT", 3)]

    def test_a_foreign_partition_that_came_later_is_told_and_the_rest_stays_captured(
        self, stock: Stock, event: type[Any]
    ) -> None:
        stock.run(RANGES)
        stock.watch(event)
        stock.run("create foreign data wrapper nothing; create server nowhere foreign data wrapper nothing")
        # PostgreSQL wants a foreign table to be without unique indexes above it.
        stock.run("alter table event drop constraint event_pkey")
        stock.run("create foreign table far (id bigint not null, note text not null) server nowhere")
        stock.run("alter table event attach partition far for values from (20) to (30)")
        assert stock.refusal() == (
            'stock.event cannot be watched: far, which belongs to "event", is a foreign table, which other programs '
            "change without this database knowing"
        )
        stock.run("insert into event values (1)")
        assert seen(stock) == [("INSERT", 1)]

    def test_nobody_waits_for_a_removal_that_waits_for_a_partition(
        self, stock: Stock, event: type[Any], database: Database
    ) -> None:
        """PostgreSQL drops the clones with the trigger, and would queue for each partition."""
        stock.run(RANGES)
        stock.watch(event, kinds=["INSERT"])  # partitions have no trigger of their own
        writer, other = database.connect(), database.connect()
        # The first write of a session looks at the partitioned table as well, to learn what the partition may hold.
        for session in (writer, other):
            session.execute("insert into event_1 values (9); delete from event_1")
        writer.execute("begin; insert into event_1 values (1)")
        other.execute("set lock_timeout = '5ms'")
        (step,) = plan_uninstall(connection, []).steps
        written = 0

        def remove() -> None:
            own = connections["default"]  # of this thread
            try:
                execute(own, step, lock_timeout=0.5, attempts=1)
            finally:
                own.close()

        with ThreadPoolExecutor(1) as thread:
            # Again, where whoever stood still meanwhile has written little.
            while written <= 20:
                removing = thread.submit(remove)
                while not removing.done():
                    written += 1
                    other.execute("insert into event_1 (id) select coalesce(max(id), 1) + 1 from event_1 where id > 1")
                    other.execute("delete from event_1 where id > 1")
                with pytest.raises(InstallError):
                    removing.result()
        writer.execute("rollback")

    def test_triggers_of_a_family_are_removed_at_once(self, stock: Stock, event: type[Any]) -> None:
        stock.run(RANGES)
        before = stock.objects()
        stock.watch(event)
        stock.forget(event)
        assert stock.check()[0] == "ORPHANED  stock.event on event (no watch, also on event_1, event_2)"
        assert stock.install() == ["stock.event: removed (was ORPHANED)"]
        assert stock.objects() == before


class TestPlainInheritance:
    @pytest.fixture
    def child(self, stock: Stock) -> type[Any]:
        return stock.model(
            "Child", "event_child", note=models.TextField(default=""), extra=models.IntegerField(null=True)
        )

    def test_writes_of_the_parent_that_reach_children_are_captured(self, stock: Stock, event: type[Any]) -> None:
        stock.run(INHERITED)
        stock.watch(event, columns="__all__")
        stock.run("insert into event values (1, 'p'); insert into event_child values (2, 'c', 7)")
        event.objects.update(note="x")
        event.objects.all().delete()
        found = stock.images()
        assert found[:2] == [
            ("event", "INSERT", None, {"id": 1, "note": "p"}),
            ("event", "INSERT", None, {"id": 2, "note": "c"}),
        ]
        assert sorted((old["id"], new) for _, _, old, new in found[2:4]) == [
            (1, {"id": 1, "note": "x"}),
            (2, {"id": 2, "note": "x"}),
        ]
        assert sorted((kind, old["id"]) for _, kind, old, _ in found[4:]) == [("DELETE", 1), ("DELETE", 2)]

    def test_writes_straight_into_a_child_are_captured(self, stock: Stock, event: type[Any]) -> None:
        stock.run(INHERITED)
        stock.watch(event)
        stock.copy("copy event_child (id) from stdin", (1,), (2,))
        stock.run("update event_child set note = 'x' where id = 1; delete from event_child where id = 2")
        assert seen(stock) == [("INSERT", 1), ("INSERT", 2), ("UPDATE", 1), ("DELETE", 2)]

    def test_a_column_that_only_the_child_has_counts_unless_update_of_says_what_does(
        self, stock: Stock, event: type[Any]
    ) -> None:
        stock.run(INHERITED)
        stock.watch(event, columns="__all__")
        stock.run("insert into event_child values (1)")
        stock.run("update event_child set extra = 5")
        _, update = stock.changes()
        assert (update.kind.value, update.pk, update.changed) == ("UPDATE", 1, frozenset())
        stock.watch(event, columns="__all__", update_of=["note"])
        stock.run("update event_child set extra = 6")
        assert seen(stock) == []

    def test_only_is_the_parent_alone(self, stock: Stock, event: type[Any]) -> None:
        stock.run(INHERITED)
        stock.watch(event)
        stock.run("insert into event values (1); insert into event_child values (2)")
        seen(stock)
        stock.run("update only event set note = 'x'; delete from only event")
        assert seen(stock) == [("UPDATE", 1), ("DELETE", 1)]

    def test_truncate_is_one_change_whichever_table_it_is_aimed_at(self, stock: Stock, event: type[Any]) -> None:
        stock.run(INHERITED)
        stock.watch(event)
        for statement in (
            "truncate event",
            "truncate only event",
            "truncate event_child",
            "truncate event, event_child",
        ):
            stock.run(statement)
            assert seen(stock) == [("TRUNCATE", None)]

    def test_a_child_that_comes_later_is_outdated_until_triggers_are_installed(
        self, stock: Stock, event: type[Any]
    ) -> None:
        stock.run(INHERITED)
        stock.watch(event)
        stock.run("create table late (more int) inherits (event)")
        stock.run("insert into late values (1)")
        assert seen(stock) == []
        lines = stock.check()
        assert lines[0].startswith('OUTDATED  stock.event on "event" (lacks pgnotify_gql_insert_stock$event on late, ')
        stock.install()
        stock.run("update late set note = 'x'; truncate late")
        assert seen(stock) == [("UPDATE", 1), ("TRUNCATE", None)]

    def test_the_first_child_of_a_plain_table_makes_it_outdated(self, stock: Stock, event: type[Any]) -> None:
        """Until then, its triggers see what statements aimed at the parent do to the child, and nothing else of it."""
        stock.run("create table event (id bigint primary key, note text not null default '')")
        stock.watch(event)
        stock.run("insert into event values (1)")
        stock.run("create table late (more int) inherits (event)")
        stock.run("insert into late values (2)")
        assert seen(stock) == [("INSERT", 1)]
        stock.run("update event set note = 'x'")
        assert sorted(seen(stock)) == [("UPDATE", 1), ("UPDATE", 2)]
        assert stock.check()[0].startswith("OUTDATED")
        stock.install()
        stock.run("update late set note = 'y'; update event set note = 'z'")
        found = seen(stock)
        assert (found[0], sorted(found[1:])) == (("UPDATE", 2), [("UPDATE", 1), ("UPDATE", 2)])

    def test_a_table_that_lost_its_last_child_is_outdated_and_then_plain_again(
        self, stock: Stock, event: type[Any]
    ) -> None:
        stock.run(INHERITED)
        stock.watch(event)
        stock.run("alter table event_child no inherit event")
        stock.run("insert into event values (1)")
        assert stock.check()[0].startswith("OUTDATED")
        stock.install()
        stock.run("insert into event values (2); insert into event_child values (3); truncate event_child")
        assert seen(stock) == [("INSERT", 1), ("INSERT", 2)]
        assert stock.run("select tgname from pg_trigger where tgrelid = 'event_child'::regclass") == []

    @pytest.mark.parametrize(
        "alteration", ["alter extra type text", "drop extra", "rename extra to other", "add n int"]
    )
    def test_a_column_that_only_the_child_has_may_be_altered_while_sessions_write(
        self, stock: Stock, event: type[Any], alteration: str
    ) -> None:
        """Plans of the trigger function were made for the child as it was, and nothing of the parent changes."""
        stock.run(INHERITED)
        stock.watch(event, columns="__all__")
        for key in range(8):
            stock.run("insert into event_child values (%s, '', 5)", key)
            stock.run("update event_child set note = 'x' where id = %s", key)
        stock.run("delete from event_child")
        seen(stock)
        stock.run(f"alter table event_child {alteration}")
        stock.run("insert into event_child values (1); update event_child set note = 'x'; delete from event_child")
        assert seen(stock) == [("INSERT", 1), ("UPDATE", 1), ("DELETE", 1)]

    def test_grandchildren_are_captured(self, stock: Stock, event: type[Any]) -> None:
        stock.run(INHERITED)
        stock.run("create table event_grandchild (more text) inherits (event_child)")
        stock.watch(event)
        stock.run("insert into event_grandchild values (1); update event set note = 'x'; truncate event_child")
        assert seen(stock) == [("INSERT", 1), ("UPDATE", 1), ("TRUNCATE", None)]

    def test_a_child_that_is_watched_as_well_is_told_too(
        self, stock: Stock, event: type[Any], child: type[Any]
    ) -> None:
        stock.run(INHERITED)
        stock.watch(event, child, columns="__all__")
        stock.run("insert into event values (1); insert into event_child values (2, '', 5)")
        stock.run("update event_child set extra = 6")
        stock.run("update event set note = 'x'")
        stock.run("truncate only event")
        stock.run("truncate event")
        found = stock.images()
        assert found[0] == ("event", "INSERT", None, {"id": 1, "note": ""})
        assert sorted(model for model, *_ in found[1:3]) == ["child", "event"]
        (update,) = (change for change in found[3:5] if change[0] == "child")
        assert update[2:] == ({"id": 2, "note": "", "extra": 5}, {"id": 2, "note": "", "extra": 6})
        assert sorted((model, kind, old["id"]) for model, kind, old, _ in found[5:8]) == [
            ("child", "UPDATE", 2),
            ("event", "UPDATE", 1),
            ("event", "UPDATE", 2),
        ]
        assert found[8][:2] == ("event", "TRUNCATE")
        assert sorted(model for model, *_ in found[9:]) == ["child", "event"]

    def test_a_child_alone_is_told_of_writes_of_the_parent_that_reach_it(
        self, stock: Stock, event: type[Any], child: type[Any]
    ) -> None:
        stock.run(INHERITED)
        stock.watch(child)
        stock.run("insert into event values (1); insert into event_child values (2)")
        stock.run("update event set note = 'x'; delete from event; truncate event; truncate only event")
        assert stock.seen() == [
            ("child", "INSERT", 2),
            ("child", "UPDATE", 2),
            ("child", "DELETE", 2),
            ("child", "TRUNCATE", None),
        ]

    def test_a_child_of_two_watched_parents_is_a_change_of_both(self, stock: Stock, event: type[Any]) -> None:
        other = stock.model("Other", "other", size=models.IntegerField(null=True))
        stock.run("create table event (id bigint primary key, note text not null default '')")
        stock.run("create table other (id bigint primary key, size int)")
        stock.run("create table both_of () inherits (event, other)")
        stock.run("create table below () inherits (both_of, event)")
        stock.watch(event, other, columns="__all__")
        stock.run("insert into both_of values (1, 'a', 5); insert into below values (2, 'b', 6)")
        found = stock.images()
        assert sorted((model, new["id"], new.get("note", new.get("size"))) for model, _, _, new in found[:2]) == [
            ("event", 1, "a"),
            ("other", 1, 5),
        ]
        assert sorted(model for model, *_ in found[2:]) == ["event", "other"]
        stock.run("update event set note = 'x' where id = 2")
        stock.run("truncate event")
        stock.run("truncate only other")
        assert [sorted(part) for part in in_statements(stock, 2, 2, 1)] == [
            [("event", "UPDATE", 2), ("other", "UPDATE", 2)],
            [("event", "TRUNCATE", None), ("other", "TRUNCATE", None)],
            [("other", "TRUNCATE", None)],
        ]

    def test_always_reaches_the_children(self, stock: Stock, event: type[Any]) -> None:
        stock.run(INHERITED)
        stock.watch(event, replicated=True)
        stock.run("set session_replication_role = replica")
        stock.run("insert into event_child values (1); truncate event_child")
        stock.run("reset session_replication_role")
        assert seen(stock) == [("INSERT", 1), ("TRUNCATE", None)]

    def test_a_foreign_child_is_refused(self, stock: Stock, event: type[Any]) -> None:
        stock.run(INHERITED)
        stock.run("create foreign data wrapper nothing; create server nowhere foreign data wrapper nothing")
        stock.run("create foreign table far () inherits (event_child) server nowhere")
        stock.registry.add(make_watch(event))
        assert stock.refusal().startswith('stock.event cannot be watched: far, which belongs to "event", is a foreign')


def in_statements(stock: Stock, *counts: int) -> list[list[tuple[str, str, Any]]]:
    """The changes since the last look, as many for each statement as are expected of it."""
    found = stock.seen()
    assert len(found) == sum(counts)
    parts, start = [], 0
    for count in counts:
        parts.append(found[start : start + count])
        start += count
    return parts
