"""Every way to change a watched table becomes the right rows of the journal, and never fails the writer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from example.conversations.models import Conversation, Message
from pgnotify_gql.capture import Kind
from pgnotify_gql.capture.function import CHUNK_BYTES, CHUNK_ROWS
from pgnotify_gql.capture.watch import Watch
from tests.support.databases import Database
from tests.support.watched import LINE_SQL, Item, Line, WatchedTable, install, journal_rows, watched


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
