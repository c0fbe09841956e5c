"""Whoever may write a watched table can: in any transaction, with any rights and settings, and rings if need be."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import sql

from pgnotify_gql import names
from tests.support.databases import Database
from tests.support.watched import Connection, WatchedTable, watched


@pytest.fixture
def items(database: Database) -> WatchedTable:
    """Items, of which keys only are captured."""
    return watched(database)


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

    def test_a_role_without_rights_on_the_journal_rings_the_bell(
        self, database: Database, items: WatchedTable, stranger: Connection
    ) -> None:
        with database.connect() as listener:
            listener.execute("listen pgnotify_gql")
            stranger.execute("insert into item (id) values (1)")
            assert bells(listener) == 1

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
