"""No write fails because a table was altered after its triggers were made, and what can be captured still is."""

from __future__ import annotations

import pytest
from django.db import models

from pgnotify_gql.capture.registry import make_watch
from tests.support.databases import Database
from tests.support.watched import ITEM_SQL, LINE_SQL, Item, Line, WatchedTable, install, make_model, watched


@pytest.fixture(params=[False, True], ids=["by statement", "by row"])
def items(request: pytest.FixtureRequest, database: Database) -> WatchedTable:
    """Items, of which two columns are captured, and a session that has written them: it has plans."""
    table = WatchedTable(database.connect(), make_watch(Item, columns=["name", "version"], replicated=request.param))
    table.run(ITEM_SQL)
    install(table.watch)
    table.run("insert into item (id, name, version) values (1, 'tea', 1), (2, 'milk', 1)")
    table.run("alter table item alter id restart with 50")
    for version in range(10):
        table.run("update item set version = %s", version)
    table.run("update item set version = 1")
    table.journal()
    return table


ALTERATIONS = ["alter table item rename name to title", "alter table item drop name"]


class TestColumns:
    @pytest.mark.parametrize("alteration", ALTERATIONS)
    def test_a_column_that_is_gone_is_left_out_of_the_images(self, items: WatchedTable, alteration: str) -> None:
        items.run(alteration)
        items.run("insert into item (id, version) values (3, 7)")
        items.run("update item set version = 2 where id = 1")
        items.run("update item set version = 3 where id in (1, 2)")
        items.run("delete from item where id = 3")
        insert, update, *updates, delete = items.changes()
        assert (insert.old, insert.new) == (None, {"version": 7})
        assert (update.old, update.new) == ({"version": 1}, {"version": 2})
        assert {(change.pk, change.new["version"]) for change in updates if change.new} == {(1, 3), (2, 3)}
        assert (delete.old, delete.new) == ({"version": 7}, None)

    @pytest.mark.parametrize("alteration", ALTERATIONS)
    def test_an_update_of_nothing_else_is_still_a_change(self, items: WatchedTable, alteration: str) -> None:
        items.run(alteration)
        items.run("update item set note = 'x' where id = 1")
        assert items.seen() == [("UPDATE", 1)]

    def test_a_renamed_column_is_captured_again_under_its_old_name(self, items: WatchedTable) -> None:
        items.run("alter table item rename name to title")
        items.run("update item set version = 5 where id = 1")
        items.run("alter table item rename title to name")
        items.run("update item set version = 6 where id = 1")
        first, second = items.changes()
        assert first.new == {"version": 5}
        assert second.new == {"name": "tea", "version": 6}

    def test_an_update_of_a_column_that_was_added_is_a_change(self, items: WatchedTable) -> None:
        items.run("alter table item add colour text")
        items.run("update item set colour = 'green' where id = 1")
        items.run("update item set colour = 'green'")
        assert items.seen() == [("UPDATE", 1), ("UPDATE", 2)]

    def test_a_column_of_another_type_is_captured_as_it_is_now(self, items: WatchedTable) -> None:
        items.run("alter table item alter name type varchar(20), alter version type bigint")
        items.run("update item set version = 9000000000 where id = 1")
        (change,) = items.changes()
        assert change.new == {"name": "tea", "version": 9_000_000_000}


class TestKeys:
    @pytest.mark.parametrize("alteration", ["alter table item rename id to code", "alter table item drop id"])
    def test_changes_of_a_table_whose_key_is_gone_have_no_key(self, items: WatchedTable, alteration: str) -> None:
        """Which row it was nobody knows: an UPDATE may have changed the key, so it is a DELETE and an INSERT."""
        items.run(alteration)
        items.run("insert into item (version) values (3)")
        items.run("update item set version = 4 where version = 3")
        items.run("update item set version = 5")
        items.run("delete from item where name = 'tea'")
        seen = items.seen()
        assert seen[:3] == [("INSERT", None), ("DELETE", None), ("INSERT", None)]
        assert sorted(seen[3:-1]) == [("DELETE", None)] * 3 + [("INSERT", None)] * 3
        assert seen[-1] == ("DELETE", None)

    def test_a_key_of_which_one_column_is_gone_is_no_key(self, database: Database) -> None:
        lines = watched(database, Line, LINE_SQL)
        lines.run("insert into line values (1, 'a', 5), (1, 'b', 6)")
        lines.journal()
        lines.run("alter table line rename position to place")
        lines.run("update line set amount = 7 where place = 'b'")
        lines.run("delete from line")
        assert lines.seen() == [("DELETE", None), ("INSERT", None), ("DELETE", None), ("DELETE", None)]

    @pytest.mark.parametrize(
        ("old", "new"), [("int", "bigint"), ("bigint", "text"), ("text", "uuid"), ("int", "numeric")]
    )
    def test_a_key_of_another_type_is_captured_as_it_is_now(self, database: Database, old: str, new: str) -> None:
        key: models.Field[str, str] = models.TextField(primary_key=True)
        table = watched(
            database, make_model("Keyed", "keyed", key=key), f"create table keyed (key {old} primary key, n int)"
        )
        value = "00000000-0000-0000-0000-000000000007" if "uuid" in (old, new) else "7"
        table.run("insert into keyed values (%s, 0)", value)
        table.run(f"alter table keyed alter key type {new} using key::{new}")
        table.run("update keyed set n = 1")
        table.run("update keyed set n = 2 where n = 1 or n is null")
        table.run("delete from keyed")
        assert table.seen() == [("INSERT", value), ("UPDATE", value), ("UPDATE", value), ("DELETE", value)]


def test_a_table_that_was_renamed_is_captured_as_before(items: WatchedTable) -> None:
    items.run("alter table item rename to thing")
    items.run("update thing set version = 2 where id = 1")
    assert items.seen() == [("UPDATE", 1)]


def test_a_table_that_was_moved_to_another_schema_is_captured_as_before(items: WatchedTable) -> None:
    items.run("create schema attic; alter table item set schema attic")
    items.run("update attic.item set version = 2 where id = 1")
    assert items.seen() == [("UPDATE", 1)]
