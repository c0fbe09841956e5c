"""The context that a writer attaches to its changes, and changes that are kept out of the journal."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from enum import StrEnum
from typing import Any
from uuid import UUID

import pytest
from django.core.exceptions import SynchronousOnlyOperation
from django.db import DatabaseError, IntegrityError, connection, connections, transaction
from django.db.transaction import TransactionManagementError

from pgnotify_gql.capture import change_context, suppress_changes
from pgnotify_gql.capture.setting import LONGEST_CONTEXT
from pgnotify_gql.names import NOTIFY_CHANNEL
from tests.support.databases import Database
from tests.support.postgres import PostgresServer
from tests.support.second import second_alias
from tests.support.watched import Item, WatchedTable, watched


@pytest.fixture
def items(database: Database) -> WatchedTable:
    return watched(database)


@pytest.fixture
def second(postgres: PostgresServer, items: WatchedTable) -> Iterator[WatchedTable]:
    with second_alias(postgres) as table:
        yield table


def contexts(items: WatchedTable) -> list[Mapping[str, Any]]:
    """Those of the changes since the last look."""
    return [found.context for found in items.changes()]


def in_force(alias: str = "default") -> str | None:
    """The setting as this connection has it now."""
    with connections[alias].cursor() as cursor:
        cursor.execute("select current_setting('pgnotify_gql.context', true)")
        value: str | None = cursor.fetchone()[0]
        return value or None


def set_by_hand(value: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("select set_config('pgnotify_gql.context', %s, true)", [value])


def fail_a_statement() -> None:
    """Break the transaction without Django's knowing."""
    with pytest.raises(DatabaseError), connection.cursor() as cursor:
        cursor.execute("select 1 / 0")


class TestContext:
    def test_travels_with_the_changes_inside(self, items: WatchedTable) -> None:
        Item.objects.create(name="before")
        with change_context(user=7, why="import"):
            item = Item.objects.create(name="inside")
            Item.objects.filter(pk=item.pk).update(version=1)
            Item.objects.bulk_create([Item(), Item()])
            Item.objects.all().delete()
        Item.objects.create(name="after")
        inside = {"user": 7, "why": "import"}
        assert contexts(items) == [{}, *[inside] * 8, {}]

    def test_inside_another_is_merged_and_the_inner_one_wins(self, items: WatchedTable) -> None:
        with change_context(user=7, why="outer"):
            with change_context(why="inner", step=1):
                Item.objects.create()
            Item.objects.create()
        assert contexts(items) == [{"user": 7, "why": "inner", "step": 1}, {"user": 7, "why": "outer"}]

    def test_ends_with_a_block_that_failed(self, items: WatchedTable) -> None:
        with change_context(user=7):
            with pytest.raises(IntegrityError), change_context(user=8):
                Item.objects.bulk_create([Item(pk=1), Item(pk=1)])
            Item.objects.create()
        Item.objects.create()
        assert contexts(items) == [{"user": 7}, {}]

    def test_ends_with_the_transaction_around_it(self, items: WatchedTable) -> None:
        with transaction.atomic():
            with change_context(user=7):
                Item.objects.create()
            Item.objects.create()
        Item.objects.create()
        assert contexts(items) == [{"user": 7}, {}, {}]

    def test_of_the_outermost_block_is_taken_back_by_the_end_of_the_transaction(self, items: WatchedTable) -> None:
        """Also where the connection is kept: it may be another client's next, behind a pooler."""
        with change_context(user=7):
            assert in_force() == '{"user": 7}'
        assert in_force() is None

    def test_holds_for_triggers_that_are_deferred_to_the_end(self, items: WatchedTable) -> None:
        items.run("create table source (id bigint)")
        items.run("""
            create function copy_on() returns trigger language plpgsql as $$
            begin
                insert into item (name) values ('copied');
                return null;
            end $$
        """)
        items.run("""
            create constraint trigger copying after insert on source
            deferrable initially deferred for each row execute function copy_on()
        """)
        with change_context(user=7), connection.cursor() as cursor:
            cursor.execute("insert into source values (1)")
            assert contexts(items) == []
        assert contexts(items) == [{"user": 7}]

    def test_leads_to_the_database_that_is_named(self, items: WatchedTable, second: WatchedTable) -> None:
        with transaction.atomic("annex"), change_context(using="annex", user=7):
            Item.objects.using("annex").create()
            Item.objects.create()
        assert contexts(second) == [{"user": 7}]
        assert contexts(items) == [{}]

    def test_decorates_a_function(self, items: WatchedTable) -> None:
        @change_context(why="nightly")
        def run() -> None:
            Item.objects.create()

        run()
        run()
        assert contexts(items) == [{"why": "nightly"}] * 2

    @pytest.mark.parametrize(
        "value", ["tea", "Zürich 茶 \U0001f375", 7, 2**70, 0.5, True, None, [1, ["a"], {}], {"a": {"b": [None]}}]
    )
    def test_comes_back_as_it_was_given(self, items: WatchedTable, value: Any) -> None:
        with change_context(value=value):
            Item.objects.create()
        assert contexts(items) == [{"value": value}]

    def test_of_a_database_in_another_encoding_holds_every_letter(self, items: WatchedTable) -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("set local client_encoding = latin1")
            with change_context(user="茶"):
                cursor.execute("insert into item default values")
        assert contexts(items) == [{"user": "茶"}]

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (object(), r"the context\['value'\] is of type object"),
            (UUID(int=7), r"the context\['value'\] is of type UUID"),
            ([1, {"deep": {2}}], r"the context\['value'\]\[1\]\['deep'\] is of type set"),
            ((1, 2), "of type tuple"),
            (b"bytes", "of type bytes"),
            ({7: "seven"}, r"the context\['value'\] has the key 7: the keys of a JSON object are strings"),
        ],
    )
    def test_that_is_no_json_is_refused_before_anything_is_written(
        self, items: WatchedTable, value: Any, message: str
    ) -> None:
        with pytest.raises(TypeError, match=message), change_context(value=value):
            Item.objects.create()
        assert contexts(items) == []

    @pytest.mark.parametrize("value", [float("nan"), [float("inf")], "a\0b", "\ud83c", {"\0": 1}])
    def test_that_postgresql_could_not_read_as_json_is_refused(self, items: WatchedTable, value: Any) -> None:
        with pytest.raises(ValueError, match=r"which (is no JSON|PostgreSQL cannot read)"), change_context(value=value):
            Item.objects.create()
        assert contexts(items) == []

    def test_that_holds_itself_is_refused(self, items: WatchedTable) -> None:
        value: list[Any] = []
        value.append(value)
        with pytest.raises(ValueError, match="nested too deeply, or holds itself"), change_context(value=value):
            Item.objects.create()
        assert contexts(items) == []

    def test_takes_strings_and_numbers_of_an_enum(self, items: WatchedTable) -> None:
        class Reason(StrEnum):
            IMPORT = "import"

        with change_context(why=Reason.IMPORT):
            Item.objects.create()
        assert contexts(items) == [{"why": "import"}]

    def test_may_be_as_long_as_the_limit_and_no_longer(self, items: WatchedTable) -> None:
        longest = "x" * (LONGEST_CONTEXT - len('{"why": ""}'))
        with change_context(why=longest):
            Item.objects.create()
        refused = pytest.raises(ValueError, match=rf"{LONGEST_CONTEXT + 1} bytes.*at most {LONGEST_CONTEXT}")
        with refused, change_context(why=longest + "x"):
            Item.objects.create()
        assert contexts(items) == [{"why": longest}]

    def test_that_grows_too_long_by_merging_is_refused_and_the_outer_one_goes_on(self, items: WatchedTable) -> None:
        half = "x" * (LONGEST_CONTEXT // 2)
        with change_context(outer=half):
            with pytest.raises(ValueError, match="bytes long"), change_context(inner=half):
                Item.objects.create()
            Item.objects.create()
        assert contexts(items) == [{"outer": half}]

    @pytest.mark.parametrize(
        ("value", "context"),
        [
            ("no json", {"raw": "no json"}),
            ("[1, 2]", {"raw": [1, 2]}),
            ("null", {"raw": None}),
            ("", {}),
            ('{"user": 7}', {"user": 7}),
            ("{'" * 1000, {"raw": "{'" * 1000}),
        ],
    )
    def test_set_by_hand_never_fails_a_write_whatever_it_is(
        self, items: WatchedTable, value: str, context: Mapping[str, Any]
    ) -> None:
        items.run("select set_config('pgnotify_gql.context', %s, false)", value)
        items.run("insert into item (id) values (1)")
        items.run("insert into item (id) values (2), (3)")
        items.run("update item set version = 1 where id = 1")
        items.run("update item set version = 2")
        items.run("update item set id = 9 where id = 1")
        items.run("delete from item where id = 9")
        items.run("truncate item")
        assert contexts(items) == [context] * 11

    @pytest.mark.parametrize("value", ["no json", "[1, 2]"])
    def test_inside_one_that_is_no_object_stands_alone_and_leaves_it_in_place(
        self, items: WatchedTable, value: str
    ) -> None:
        with transaction.atomic():
            set_by_hand(value)
            with change_context(user=7):
                Item.objects.create()
            assert in_force() == value
        assert contexts(items) == [{"user": 7}]


class TestSuppress:
    def test_leaves_every_way_to_write_out_of_the_journal(self, items: WatchedTable) -> None:
        Item.objects.create(name="before")
        with suppress_changes(), connection.cursor() as cursor:
            Item.objects.create()
            Item.objects.bulk_create([Item(), Item()])
            Item.objects.update(version=1)
            cursor.execute("update item set id = id + 100 where id = 2")
            with cursor.copy("copy item (name) from stdin") as copy:
                copy.write("copied\n")
            Item.objects.all().delete()
            Item.objects.create()
            cursor.execute("truncate item")
        Item.objects.create(name="after")
        assert items.seen() == [("INSERT", 1), ("INSERT", 7)]

    def test_does_not_ring(self, items: WatchedTable, database: Database) -> None:
        listener = database.connect()
        listener.execute(f"listen {NOTIFY_CHANNEL}")
        for block in (suppress_changes(), nullcontext()):
            with block:
                Item.objects.create()
            items.run("select pg_notify(%s, 'end')", NOTIFY_CHANNEL)
        heard = [notification.payload for notification in listener.notifies(timeout=30, stop_after=3)]
        assert heard == ["end", "", "end"]

    def test_inside_another_goes_on_after_the_inner_one(self, items: WatchedTable) -> None:
        with suppress_changes():
            with suppress_changes():
                Item.objects.create()
            Item.objects.create()
        Item.objects.create()
        assert items.seen() == [("INSERT", 3)]

    def test_goes_on_inside_and_after_a_context(self, items: WatchedTable) -> None:
        with suppress_changes():
            with change_context(user=7):
                Item.objects.create()
            Item.objects.create()
        assert items.seen() == []

    def test_inside_a_context_gives_it_back(self, items: WatchedTable) -> None:
        with change_context(user=7):
            with suppress_changes():
                Item.objects.create()
            Item.objects.create()
        assert contexts(items) == [{"user": 7}]

    def test_ends_before_the_transaction_around_it(self, items: WatchedTable) -> None:
        with transaction.atomic():
            with suppress_changes():
                Item.objects.create()
            Item.objects.create()
        assert items.seen() == [("INSERT", 2)]

    def test_takes_its_writes_back_when_the_block_fails(self, items: WatchedTable) -> None:
        def load() -> None:
            Item.objects.create()
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError), suppress_changes():
            load()
        Item.objects.create()
        assert not Item.objects.filter(pk=1).exists()
        assert items.seen() == [("INSERT", 2)]

    def test_leaves_others_in_peace(self, items: WatchedTable, second: WatchedTable) -> None:
        with suppress_changes():
            Item.objects.using("annex").create()
            items.run("insert into item (id) values (7)")
        assert items.seen() == [("INSERT", 7)]
        assert second.seen() == [("INSERT", 1)]

    def test_leads_to_the_database_that_is_named(self, items: WatchedTable, second: WatchedTable) -> None:
        with suppress_changes(using="annex"):
            Item.objects.using("annex").create()
            Item.objects.create()
        assert items.seen() == [("INSERT", 1)]
        assert second.seen() == []

    def test_decorates_a_function(self, items: WatchedTable) -> None:
        @suppress_changes()
        def load() -> None:
            Item.objects.create()

        load()
        load()
        assert Item.objects.count() == 2
        assert items.seen() == []


@pytest.mark.parametrize("block", [lambda: change_context(user=8), suppress_changes], ids=["context", "suppress"])
class TestFailures:
    """Of both kinds of block."""

    def test_a_failed_block_gives_back_what_was_in_force(self, items: WatchedTable, block: Any) -> None:
        with change_context(user=7):
            with pytest.raises(ZeroDivisionError), block():
                raise ZeroDivisionError
            assert in_force() == '{"user": 7}'
            with pytest.raises(IntegrityError), block():
                Item.objects.bulk_create([Item(pk=1), Item(pk=1)])
            Item.objects.create()
        assert contexts(items) == [{"user": 7}]

    def test_an_error_that_the_block_swallows_does_not_become_another_one(
        self, items: WatchedTable, block: Any
    ) -> None:
        """What `atomic` does with it is all that happens: a rollback without a word, as the outermost one."""
        with block():
            Item.objects.create()
            fail_a_statement()
        assert items.seen() == []
        assert Item.objects.count() == 0

    def test_a_block_marked_for_rollback_is_rolled_back_in_silence(self, items: WatchedTable, block: Any) -> None:
        with change_context(user=7):
            with block():
                Item.objects.create()
                transaction.set_rollback(True)
            Item.objects.create()
        assert contexts(items) == [{"user": 7}]
        assert Item.objects.count() == 1

    def test_an_inner_block_without_a_savepoint_that_failed_rolls_it_back(
        self, items: WatchedTable, block: Any
    ) -> None:
        with change_context(user=7):
            with block(), pytest.raises(IntegrityError), transaction.atomic(savepoint=False):
                Item.objects.bulk_create([Item(pk=1), Item(pk=1)])
            Item.objects.create()
        assert contexts(items) == [{"user": 7}]

    def test_a_swallowed_error_inside_a_savepoint_is_raised_by_the_savepoint_and_by_nothing_before(
        self, items: WatchedTable, block: Any
    ) -> None:
        with change_context(user=7):
            with pytest.raises(DatabaseError) as raised, block():
                fail_a_statement()
            Item.objects.create()
        assert contexts(items) == [{"user": 7}]
        # From "release savepoint", not from setting something.
        assert any(entry.name == "savepoint_commit" for entry in raised.traceback)

    def test_a_lost_connection_is_the_error_that_is_raised(self, items: WatchedTable, block: Any) -> None:
        def lose_it() -> None:
            with connection.cursor() as cursor:
                cursor.execute("select pg_backend_pid()")
                items.run("select pg_terminate_backend(%s, 60000)", cursor.fetchone()[0])
                cursor.execute("insert into item default values")

        with pytest.raises(DatabaseError, match=r"terminating|closed"), transaction.atomic(), block():
            lose_it()
        Item.objects.create()
        assert contexts(items) == [{}]

    def test_a_connection_that_is_closed_inside_opens_again_afterwards(self, items: WatchedTable, block: Any) -> None:
        with block():
            Item.objects.create()
            connection.close()
        with transaction.atomic(), block():
            Item.objects.create()
            connection.close()
        Item.objects.create()
        assert contexts(items) == [{}]

    def test_is_refused_in_a_transaction_that_failed_before(self, items: WatchedTable, block: Any) -> None:
        with transaction.atomic():
            transaction.set_rollback(True)
            with pytest.raises(TransactionManagementError), block():
                Item.objects.create()

    def test_is_refused_in_async_code(self, items: WatchedTable, block: Any) -> None:
        async def write() -> None:
            with block():
                await Item.objects.acreate()

        with pytest.raises(SynchronousOnlyOperation):
            asyncio.run(write())
        assert items.seen() == []

    def test_works_where_django_does_not_manage_transactions(self, items: WatchedTable, block: Any) -> None:
        connection.ensure_connection()
        transaction.set_autocommit(False)
        try:
            with block():
                Item.objects.create()
            Item.objects.create(name="outside")
            assert in_force() is None
            transaction.commit()
        finally:
            transaction.rollback()
            transaction.set_autocommit(True)
        assert contexts(items)[-1] == {}
