"""The writer's safety: whoever they are and whatever they named, nothing of ours fails, blocks or misleads them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from django.core.checks import run_checks
from django.core.management import CommandError, call_command
from django.db import connection, connections
from django.db.models import Q
from psycopg import sql

from pgnotify_gql.capture.installer import execute, plan_install
from pgnotify_gql.capture.registry import Registry, make_watch
from tests.support.databases import Database, forget_connections, used_by_django
from tests.support.postgres import PostgresServer
from tests.support.watched import ITEM_SQL, Connection, Item, WatchedTable, install

OPTIONS: dict[str, dict[str, Any]] = {
    "keys only": {},
    "images": {"columns": "__all__"},
    "row by row": {"columns": "__all__", "replicated": True},
    "conditional": {"columns": ["name"], "condition": Q(version__gte=0), "update_of": ["version", "name"]},
    "conditional row by row": {"condition": Q(name=""), "update_of": ["version"], "replicated": True},
}

WRITES = (
    "insert into public.item (id) values (1)",
    "insert into public.item (id) values (2), (3)",
    "update public.item set version = 1 where id = 1",
    "update public.item set version = version + 1",
    "update public.item set id = id + 10 where id = 1",
    "delete from public.item where id = 2",
    "delete from public.item",
    "truncate public.item",
)

KINDS = ["INSERT"] * 3 + ["UPDATE"] * 4 + ["DELETE", "INSERT"] + ["DELETE"] * 3 + ["TRUNCATE"]


@pytest.fixture(params=OPTIONS)
def items(request: pytest.FixtureRequest, database: Database) -> WatchedTable:
    """Items, captured in each way."""
    table = WatchedTable(database.connect(), make_watch(Item, **OPTIONS[request.param]))
    table.run(ITEM_SQL)
    install(table.watch)
    return table


def write_everything(writer: Connection) -> None:
    for statement in WRITES:
        writer.execute(statement)


def kinds(table: WatchedTable) -> list[str]:
    return [kind for kind, _ in table.seen()]


class TestStrangers:
    @pytest.fixture
    def stranger(self, database: Database) -> Connection:
        """A session of a role that may write items and nothing else."""
        connection = database.connect()
        role = sql.Identifier(f"stranger_{database.name}")  # roles belong to the server and outlive the database
        connection.execute(sql.SQL("create role {}").format(role))
        connection.execute(sql.SQL("set role {}").format(role))
        return connection

    def test_a_role_that_may_write_the_table_needs_to_know_nothing_of_us(
        self, items: WatchedTable, stranger: Connection, database: Database
    ) -> None:
        role = sql.Identifier(f"stranger_{database.name}")
        grant = sql.SQL("grant insert, update, delete, truncate, select on item to {}").format(role)
        items.connection.execute(grant)
        write_everything(stranger)
        assert kinds(items) == KINDS
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            stranger.execute("select from pgnotify_gql.journal")

    def test_a_role_that_may_only_insert_and_see_its_own_rows_is_captured(
        self, items: WatchedTable, stranger: Connection, database: Database
    ) -> None:
        role = sql.Identifier(f"stranger_{database.name}")
        items.run("alter table item enable row level security; alter table item force row level security")
        items.run("create policy writing on item for insert with check (true)")
        items.connection.execute(sql.SQL("grant insert on item to {}").format(role))
        stranger.execute("insert into item (id) values (1), (2)")
        assert items.seen() == [("INSERT", 1), ("INSERT", 2)]


class TestShadows:
    def test_a_hostile_search_path_and_tables_named_like_ours_change_nothing(self, items: WatchedTable) -> None:
        """Everything the trigger functions use, shadowed by something that raises."""
        items.run("create schema hostile")
        for left, right in (("bigint", "bigint"), ("int", "int"), ("text", "text"), ("record", "record")):
            items.run(
                f"create function hostile.boom(a {left}, b {right}) returns boolean language plpgsql as"
                " $$ begin raise 'shadowed'; end $$"
            )
        for name, kind in (("=", "bigint"), (">=", "int"), ("=", "text"), ("*<>", "record")):
            if kind != "record":
                items.run(
                    f"create operator hostile.{name} (leftarg = {kind}, rightarg = {kind}, function = hostile.boom)"
                )
        for name, arguments in {
            "count": "",
            "json_build_array": "variadic anyarray",
            "row_to_json": "record",
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
        items.run("create table public.pgnotify_gql (id int); create table public.journal (id int)")
        items.run("create temp table journal (like pgnotify_gql.journal); create temp table pg_class (oid int)")
        items.run("create temp table item (id int); create temp table pgn_new_rows (id int, name text, version int)")
        items.run("create domain hostile.text as pg_catalog.text check (false)")
        items.run("set search_path = hostile, pg_temp, public, pg_catalog")
        write_everything(items.connection)
        assert items.run("select from hostile.journal") == []
        assert items.run("select from pg_temp.journal") == []
        items.run("reset search_path")
        assert kinds(items) == KINDS

    def test_settings_by_which_sql_reads_differently_change_nothing(self, items: WatchedTable) -> None:
        for setting in (
            "standard_conforming_strings = off",
            "backslash_quote = on",
            "quote_all_identifiers = on",
            "transform_null_equals = on",
            "plan_cache_mode = force_generic_plan",
            "enable_hashjoin = off",
            "enable_mergejoin = off",
            "default_transaction_isolation = 'serializable'",
            "row_security = off",
            "check_function_bodies = off",
            "plpgsql.variable_conflict = error",
            "plpgsql.extra_errors = 'all'",
            "array_nulls = off",
        ):
            items.run(f"set {setting}")
        write_everything(items.connection)
        assert kinds(items) == KINDS


class TestOrdinaryRoles:
    """No superuser, as on every hosted PostgreSQL."""

    @pytest.fixture
    def owner(self, empty_database: Database) -> Iterator[Database]:
        """A database whose owner is an ordinary role, which Django uses."""
        role = f"owner_{empty_database.name}"
        admin = empty_database.connect()
        admin.execute(sql.SQL("create role {} login").format(sql.Identifier(role)))
        statement = sql.SQL("alter database {} owner to {}")
        admin.execute(statement.format(sql.Identifier(empty_database.name), sql.Identifier(role)))
        admin.execute(sql.SQL("alter schema public owner to {}").format(sql.Identifier(role)))
        with used_by_django(empty_database):
            connections.databases["default"]["USER"] = role
            yield empty_database
            forget_connections()
            admin.execute(sql.SQL("reassign owned by {} to postgres").format(sql.Identifier(role)))
            admin.execute(sql.SQL("drop owned by {}").format(sql.Identifier(role)))

    def test_the_owner_of_a_database_migrates_installs_writes_and_uninstalls(self, owner: Database) -> None:
        call_command("migrate", verbosity=0, interactive=False)
        call_command("install_triggers", verbosity=0)
        call_command("install_triggers", "--check", verbosity=0)
        with connection.cursor() as cursor:
            cursor.execute(
                "insert into conversations_conversation (title) select 'x' from generate_series(1, 3) returning id"
            )
            assert len(cursor.fetchall()) == 3
        journaled = owner.connect().execute("select label, kind, json_array_length(rows) from pgnotify_gql.journal")
        assert journaled.fetchall() == [("conversations.conversation", "INSERT", 3)]
        call_command("uninstall_triggers", verbosity=0)


class TestReplicas:
    @pytest.fixture
    def replica(self, database: Database) -> Iterator[Database]:
        """A replica of the server, with the test's database, which Django uses."""
        standby = database.server.standby()
        try:
            copy = Database(standby, database.name)
            with used_by_django(copy):
                yield copy
            copy.close()
        finally:
            standby.close()

    def test_nothing_is_tried_on_a_replica(self, replica: Database, registry: Registry) -> None:
        sentence = (
            "database 'default' is a read-only replica: its triggers are those of its primary, install them there"
        )
        for command in ("install_triggers", "uninstall_triggers"):
            with pytest.raises(CommandError, match=sentence):
                call_command(command)
        with pytest.raises(CommandError, match=sentence):
            call_command("install_triggers", "--check")
        assert [str(message) for message in run_checks(tags=["database"], databases=["default"])] == []

    @pytest.fixture
    def registry(self, database: Database, replica: Database, monkeypatch: pytest.MonkeyPatch) -> Registry:
        """A watch whose triggers are missing."""
        registry = Registry()
        registry.add(make_watch(Item))
        for user in ("management.commands.install_triggers", "checks"):
            monkeypatch.setattr(f"pgnotify_gql.{user}.registry", registry)
        return registry

    def test_a_session_that_may_only_read_is_told_so(self, database_triggers: Database) -> None:
        with connection.cursor() as cursor:
            cursor.execute("set default_transaction_read_only = on")
        with pytest.raises(CommandError, match=r"cannot execute .* in a read-only transaction"):
            call_command("uninstall_triggers")


@contextmanager
def held(database: Database, statement: str) -> Iterator[Connection]:
    """A transaction that stays open and has run a statement."""
    with database.server.connect(database.name) as session:
        session.execute("begin")
        session.execute(statement)
        yield session
        session.execute("rollback")


class TestLocks:
    @pytest.fixture
    def item(self, database: Database) -> Database:
        database.connect().execute(ITEM_SQL)
        return database

    def test_nothing_is_locked_when_nothing_differs(self, item: Database) -> None:
        install(make_watch(Item))
        with held(item, "lock table item in access exclusive mode"):
            plan = plan_install(connection, [make_watch(Item)])
        assert plan.pending == []

    def test_a_backup_that_reads_the_table_does_not_hinder_an_installation(self, item: Database) -> None:
        """pg_dump holds ACCESS SHARE on every table for as long as it takes."""
        with held(item, "lock table item in access share mode"):
            install(make_watch(Item))
            install(make_watch(Item, columns="__all__"))
        assert plan_install(connection, [make_watch(Item, columns="__all__")]).pending == []

    def test_readers_do_not_wait_for_an_installation_that_waits_to_drop_triggers(self, item: Database) -> None:
        """Dropping needs the strongest lock; who queued for that would stop every reader as well."""
        install(make_watch(Item))
        (step,) = plan_install(connection, [make_watch(Item, replicated=True)]).pending
        assert any(statement.startswith("drop trigger") for statement in step.statements)
        with held(item, "select from item"):
            reader = item.connect()
            reader.execute("set lock_timeout = '5ms'")
            stopping = threading.Event()
            failures: list[Exception] = []

            def read() -> None:
                while not stopping.is_set():
                    try:
                        reader.execute("select from item")
                        reader.execute("insert into item default values")
                    except psycopg.Error as error:
                        failures.append(error)

            reading = threading.Thread(target=read)
            reading.start()
            try:
                with pytest.raises(Exception, match="was locked by other transactions in each of 2 tries"):
                    execute(connection, step, lock_timeout=0.3, attempts=2)
            finally:
                stopping.set()
                reading.join()
        assert failures == []
        execute(connection, step)
        assert plan_install(connection, [make_watch(Item, replicated=True)]).pending == []


def test_a_standby_is_a_server_of_the_same_version(postgres: PostgresServer) -> None:
    standby = postgres.standby()
    try:
        with standby.connect() as session:
            assert session.execute("select pg_is_in_recovery()").fetchone() == (True,)
            assert session.info.server_version // 10000 == int(postgres.version)
    finally:
        standby.close()
