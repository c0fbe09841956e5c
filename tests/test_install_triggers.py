"""The commands that bring triggers in step with the watches, on tables that are idle, busy, broken or unfit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import ProgrammingError, connection, connections, models
from django.test import override_settings

from pgnotify_gql.capture import Kind
from pgnotify_gql.capture.catalog import Status, installed_functions, installed_triggers
from pgnotify_gql.capture.installer import Step, execute, plan_install
from pgnotify_gql.capture.registry import Registry
from pgnotify_gql.capture.render import render
from pgnotify_gql.capture.watch import Watch
from pgnotify_gql.errors import InstallError
from tests.support.databases import Database
from tests.support.processes import CHECKOUT
from tests.support.watched import ITEM_SQL, Connection, Item, journal_rows, make_model

TRIGGERS = """
    select t.oid, t.tgname, t.tgenabled, t.tgfoid from pg_trigger t
    join pg_proc p on p.oid = t.tgfoid join pg_namespace n on n.oid = p.pronamespace
    where n.nspname = 'pgnotify_gql' order by 1
"""


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A registry with a watch of items, in place of the one that holds the example's watches."""
    registry = Registry()
    registry.add(Watch(Item, ("name",)))
    monkeypatch.setattr("pgnotify_gql.management.commands.install_triggers.registry", registry)
    return registry


@pytest.fixture
def database(database: Database) -> Database:
    """With the table of items."""
    database.connect().execute(ITEM_SQL)
    return database


def run(command: str, *arguments: str) -> str:
    """Run a command and return what it prints."""
    output = StringIO()
    call_command(command, *arguments, stdout=output, stderr=output)
    return output.getvalue()


def failure(command: str, *arguments: str) -> str:
    """Run a command that must fail with exit status 1, and return the sentence it ends with."""
    with pytest.raises(CommandError) as caught:
        run(command, *arguments)
    assert caught.value.returncode == 1
    return str(caught.value)


def triggers(database: Database) -> list[tuple[Any, ...]]:
    """What PostgreSQL has: an object that was dropped and made again has another oid."""
    return database.connect().execute(TRIGGERS).fetchall()


class TestInstalling:
    def test_missing_triggers_are_installed_and_capture(self, database: Database) -> None:
        assert run("install_triggers") == "stock.item: installed (was MISSING)\n"
        writer = database.connect()
        writer.execute("insert into item (id) values (1)")
        assert [row.label for row in journal_rows(writer)] == ["stock.item"]

    def test_installing_again_touches_nothing(self, database: Database) -> None:
        run("install_triggers")
        before = triggers(database)
        assert run("install_triggers") == "All INSTALLED (1), nothing to do.\n"
        assert triggers(database) == before
        assert len(before) == 4

    def test_a_changed_watch_replaces_the_function_and_drops_the_old_one(
        self, database: Database, registry: Registry
    ) -> None:
        run("install_triggers")
        (old,) = installed_functions(connection)
        registry.remove("stock.item")
        registry.add(Watch(Item, "__all__"))
        assert run("install_triggers") == "stock.item: installed (was OUTDATED)\n"
        assert installed_functions(connection) == [render(Watch(Item, "__all__")).function]
        assert installed_functions(connection) != [old]

    def test_kinds_that_are_no_longer_watched_lose_their_triggers(self, database: Database, registry: Registry) -> None:
        run("install_triggers")
        registry.remove("stock.item")
        registry.add(Watch(Item, (), frozenset({Kind.TRUNCATE})))
        run("install_triggers")
        assert [name for _, name, *_ in triggers(database)] == ["pgnotify_gql_truncate"]

    def test_a_model_that_is_no_longer_watched_loses_its_triggers(self, database: Database, registry: Registry) -> None:
        run("install_triggers")
        registry.remove("stock.item")
        assert run("install_triggers") == "stock.item: removed (was ORPHANED)\n"
        assert triggers(database) == []
        assert installed_functions(connection) == []

    def test_several_tables_are_summed_up(self, database: Database, registry: Registry) -> None:
        for table in ("box", "crate", "jar"):
            database.connect().execute(f"create table {table} (id bigint primary key)")
        box, crate, jar = (make_model(name, name.lower()) for name in ("Box", "Crate", "Jar"))
        registry.add(Watch(box))
        registry.add(Watch(crate))
        run("install_triggers")
        registry.remove("stock.crate")
        registry.remove("stock.item")
        registry.add(Watch(jar))
        assert run("install_triggers").splitlines() == [
            "stock.jar: installed (was MISSING)",
            "stock.crate: removed (was ORPHANED)",
            "stock.item: removed (was ORPHANED)",
            "4 tables: 1 installed, 2 removed, 1 unchanged.",
        ]

    def test_says_nothing_where_nothing_is_asked_for(self, database: Database) -> None:
        assert run("install_triggers", "--verbosity=0") == ""
        assert len(triggers(database)) == 4

    def test_nothing_watched_is_said_so(self, database: Database, registry: Registry) -> None:
        registry.remove("stock.item")
        assert run("install_triggers").startswith("No model is watched: call notify_on_model_changes()")

    @pytest.mark.parametrize(
        "how", ["disable trigger pgnotify_gql_update", "enable replica trigger pgnotify_gql_update"]
    )
    def test_a_trigger_that_does_not_fire_is_outdated_and_mended(self, database: Database, how: str) -> None:
        run("install_triggers")
        writer = database.connect()
        writer.execute(f"alter table item {how}")
        assert "OUTDATED" in failing_check()
        run("install_triggers")
        writer.execute("insert into item (id) values (1)")
        writer.execute("update item set version = 1")
        assert len(journal_rows(writer)) == 2

    def test_a_dropped_trigger_is_put_back(self, database: Database) -> None:
        run("install_triggers")
        database.connect().execute("drop trigger pgnotify_gql_update on item")
        assert 'lacks pgnotify_gql_update on "item"' in failing_check()
        run("install_triggers")
        assert len(triggers(database)) == 4

    def test_a_table_that_was_renamed_and_replaced_hands_over_its_capture(self, database: Database) -> None:
        """How large tables are rewritten.  The triggers went along with the old table, and so did their function."""
        run("install_triggers")
        writer = database.connect()
        writer.execute("alter table item rename to item_old")
        writer.execute(ITEM_SQL)
        run("install_triggers")
        writer.execute("insert into item (id) values (1)")
        writer.execute("insert into item_old (id) values (2)")
        assert [json.loads(row.rows)[0][0] for row in journal_rows(writer)] == [[1]]
        assert run("install_triggers", "--check").startswith("INSTALLED stock.item")

    def test_triggers_of_other_schemas_and_programs_are_left_alone(self, database: Database) -> None:
        writer = database.connect()
        writer.execute("create function note() returns trigger language plpgsql as 'begin return null; end'")
        writer.execute("create trigger pgnotify_gql_note after insert on item execute function note()")
        run("install_triggers")
        run("uninstall_triggers")
        found = writer.execute("select tgname from pg_trigger where not tgisinternal").fetchall()
        assert found == [("pgnotify_gql_note",)]

    def test_poll_mode_replaces_functions_that_ring(self, database: Database) -> None:
        run("install_triggers")
        with override_settings(PGNOTIFY_GQL={"WAKE": "poll"}):
            assert run("install_triggers") == "stock.item: installed (was OUTDATED)\n"
        ((source,),) = database.connect().execute("select prosrc from pg_proc where proname like 'capture%'").fetchall()
        assert "pg_notify" not in source


def failing_check(*arguments: str) -> str:
    """Return what `--check` prints before it fails."""
    output = StringIO()
    with pytest.raises(CommandError) as caught:
        call_command("install_triggers", "--check", *arguments, stdout=output)
    assert caught.value.returncode == 1
    return output.getvalue()


class TestDryRun:
    def test_prints_sql_that_does_the_same_and_changes_nothing(self, database: Database) -> None:
        script = run("install_triggers", "--dry-run")
        assert script.startswith('-- stock.item on "item": MISSING\n')
        assert triggers(database) == []
        database.connect().execute(script)
        assert run("install_triggers", "--check").startswith("INSTALLED stock.item")

    def test_prints_a_comment_when_there_is_nothing_to_do(self, database: Database) -> None:
        run("install_triggers")
        assert run("install_triggers", "--dry-run") == "-- nothing to do\n"

    def test_of_removing_prints_sql_that_does_the_same_and_changes_nothing(self, database: Database) -> None:
        run("install_triggers")
        script = run("uninstall_triggers", "--dry-run")
        assert len(triggers(database)) == 4
        database.connect().execute(script)
        assert triggers(database) == []
        assert installed_functions(connection) == []


class TestCheck:
    def test_passes_when_everything_is_installed(self, database: Database) -> None:
        run("install_triggers")
        assert run("install_triggers", "--check") == 'INSTALLED stock.item on "item"\n'

    def test_lists_what_is_missing_outdated_or_orphaned_and_fails(self, database: Database, registry: Registry) -> None:
        database.connect().execute("create table box (id bigint primary key)")
        database.connect().execute("create table crate (id bigint primary key)")
        box, crate = make_model("Box", "box"), make_model("Crate", "crate")
        registry.add(Watch(box))
        run("install_triggers")
        registry.remove("stock.box")
        registry.add(Watch(crate))
        registry.remove("stock.item")
        registry.add(Watch(Item))
        before = triggers(database)
        lines = failing_check().splitlines()
        assert [line.split()[:2] for line in lines] == [
            ["MISSING", "stock.crate"],
            ["OUTDATED", "stock.item"],
            ["ORPHANED", "stock.box"],
        ]
        assert failure("install_triggers", "--check") == "3 of 3 tables differ: run `manage.py install_triggers`"
        assert triggers(database) == before

    def test_lists_what_cannot_be_captured_beside_what_differs(self, database: Database, registry: Registry) -> None:
        registry.add(Watch(make_model("Box", "box")))
        sentences = failure("install_triggers", "--check").splitlines()
        assert sentences[0].startswith('the table "box" of stock.box does not exist')
        assert sentences[1].startswith("1 of 1 tables differ")

    def test_prints_json_for_programs(self, database: Database) -> None:
        report = json.loads(failing_check("--json"))
        assert report == {
            "database": "default",
            "tables": [{"model": "stock.item", "table": '"item"', "status": "MISSING", "detail": "no triggers"}],
            "errors": [],
        }
        # What is there afterwards, not what there was to do.
        assert json.loads(run("install_triggers", "--json"))["tables"][0]["status"] == "INSTALLED"
        assert json.loads(run("install_triggers", "--check", "--json"))["tables"][0]["status"] == "INSTALLED"

    def test_json_of_sql_is_refused(self, database: Database) -> None:
        assert failure("install_triggers", "--json", "--dry-run").startswith("--json tells about triggers")

    def test_ends_the_program_with_status_1_and_one_sentence(self, database: Database) -> None:
        result = manage(database.url, "install_triggers", "--check")
        assert result.returncode == 1
        assert result.stderr.startswith("CommandError: ")
        assert result.stderr.count("\n") == 1
        assert "MISSING" in result.stdout


def manage(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=CHECKOUT,
        env=os.environ | {"DATABASE_URL": url},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


class TestBusyTables:
    @pytest.fixture
    def writer(self, database: Database) -> Connection:
        """A session with an open transaction that has written into the table."""
        writer = database.connect()
        writer.execute("begin")
        writer.execute("insert into item (id) values (1)")
        return writer

    def step(self) -> Step:
        (step,) = plan_install(connection, [Watch(Item)]).steps
        return step

    def test_a_busy_table_is_tried_again_until_it_is_free(self, database: Database, writer: Connection) -> None:
        tries: list[int] = []

        def waiting(attempt: int) -> None:
            tries.append(attempt)
            if attempt == 2:
                writer.execute("commit")

        execute(connection, self.step(), lock_timeout=0.05, waiting=waiting)
        assert tries == [1, 2]
        assert run_check_of(Watch(Item)) == "INSTALLED"

    def test_a_table_that_never_gets_free_is_an_error_and_as_it_was(
        self, database: Database, writer: Connection
    ) -> None:
        with pytest.raises(InstallError) as caught:
            execute(connection, self.step(), lock_timeout=0.02, attempts=2)
        assert str(caught.value) == (
            '"item" was locked by other transactions in each of 2 tries of 0.02 s: nothing was changed; '
            "try again when it is less busy, or with a larger --lock-timeout"
        )
        assert triggers(database) == []
        assert installed_functions(connection) == []
        writer.execute("commit")
        assert database.connect().execute("select count(*) from item").fetchone() == (1,)

    def test_the_command_says_that_it_waits(
        self, database: Database, writer: Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def execute_and_release(*arguments: Any, **options: Any) -> None:
            said = options["waiting"]

            def waiting(attempt: int) -> None:
                said(attempt)
                writer.execute("commit")

            execute(*arguments, **options | {"waiting": waiting})

        monkeypatch.setattr("pgnotify_gql.management.installing.execute", execute_and_release)
        assert run("install_triggers", "--lock-timeout", "0.05") == (
            '"item" is locked (try 1); trying again\nstock.item: installed (was MISSING)\n'
        )

    def test_a_locked_table_holds_up_no_other(
        self, database: Database, writer: Connection, registry: Registry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        database.connect().execute("create table shelf (id bigint primary key)")
        registry.add(Watch(make_model("Shelf", "shelf")))
        monkeypatch.setattr(
            "pgnotify_gql.management.installing.execute",
            lambda *given, **options: execute(*given, **options, attempts=1),
        )
        output = StringIO()
        with pytest.raises(CommandError, match=r'^"item" was locked by other transactions in each of 1 tries'):
            call_command("install_triggers", "--lock-timeout=0.02", stdout=output)
        assert output.getvalue().splitlines() == [
            "stock.shelf: installed (was MISSING)",
            "2 tables: 1 installed, 1 failed.",
        ]
        assert {t.table for t in installed_triggers(connection)} == {"shelf"}

    def test_removing_tells_that_it_waits_and_holds_up_no_other_table(
        self, database: Database, registry: Registry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        database.connect().execute("create table shelf (id bigint primary key)")
        registry.add(Watch(make_model("Shelf", "shelf")))
        run("install_triggers")
        holder = database.connect()
        holder.execute("begin; insert into item (id) values (1)")
        monkeypatch.setattr(
            "pgnotify_gql.management.commands.uninstall_triggers.execute",
            lambda *given, **options: execute(*given, **options, attempts=2),
        )
        output = StringIO()
        with pytest.raises(CommandError, match=r"^item was locked by other transactions in each of 2 tries"):
            call_command("uninstall_triggers", "--lock-timeout=0.02", stdout=output, stderr=output)
        assert output.getvalue().splitlines() == [
            "item is locked (try 1); trying again",
            "stock.shelf: removed from shelf",
        ]
        assert {t.table for t in installed_triggers(connection)} == {"item"}
        assert len(installed_functions(connection)) == 1

    def test_nobody_waits_for_an_installation_that_waits_for_a_long_transaction(
        self, database: Database, writer: Connection
    ) -> None:
        """Behind a queued trigger, every later write would queue for as long as the open transaction lasts."""
        other = database.connect()
        other.execute("set lock_timeout = '5ms'")
        step = self.step()
        written = 0

        def install() -> None:
            while True:
                try:
                    # A connection of its own.
                    execute(connections["default"], step, lock_timeout=0.5, attempts=1)
                except InstallError:
                    # Who stood still while it tried has written little; then it shall try again.
                    if written > 20:
                        raise
                else:
                    return

        with ThreadPoolExecutor(1) as thread:
            installing = thread.submit(install)
            while not installing.done():
                written += 1
                other.execute("insert into item (id) values (%s)", [100 + written])
            with pytest.raises(InstallError):
                installing.result()
        writer.execute("rollback")
        assert other.execute("select count(*) from item").fetchone() == (written,)
        assert written > 20

    def test_a_table_that_is_never_without_a_writer_is_waited_for_shortly(self, database: Database) -> None:
        """Transactions follow each other so closely that asking without waiting would never succeed."""
        step = self.step()
        stopping = threading.Event()
        holding = threading.Barrier(2)

        def write() -> None:
            with database.server.connect(database.name) as session:
                while not stopping.is_set():
                    # Whoever ends its transaction has seen the other one's begin.
                    session.execute("begin; insert into item default values")
                    with suppress(threading.BrokenBarrierError):
                        holding.wait(timeout=0.02)
                    session.execute("commit")

        tries: list[int] = []
        with ThreadPoolExecutor(2) as threads:
            writing = [threads.submit(write) for _ in range(2)]
            try:
                execute(connection, step, lock_timeout=2.0, waiting=tries.append)
            finally:
                stopping.set()
            for outcome in writing:
                outcome.result(timeout=30)
        assert run_check_of(Watch(Item)) == "INSTALLED"

    def test_two_installations_at_once_do_not_disturb_each_other(self, database: Database) -> None:
        with ThreadPoolExecutor(4) as threads:
            outcomes = [threads.submit(run, "install_triggers") for _ in range(4)]
            for outcome in outcomes:
                outcome.result(timeout=60)
        assert run("install_triggers", "--check").startswith("INSTALLED stock.item")
        assert len(installed_functions(connection)) == 1

    def test_a_lost_connection_is_not_taken_for_a_busy_table(self, database: Database) -> None:
        step = Step("stock.item", '"item"', Status.MISSING, ["select pg_terminate_backend(pg_backend_pid())"])
        with pytest.raises(Exception, match="terminating connection"):
            execute(connection, step, waiting=lambda attempt: pytest.fail("tried again"))

    @pytest.mark.parametrize("value", ["0", "-1", "0.0001", "soon", "inf"])
    def test_a_lock_timeout_that_postgresql_would_take_for_none_is_refused(self, value: str) -> None:
        with pytest.raises(CommandError, match=r"a number of seconds, 0\.001 at least"):
            run("install_triggers", f"--lock-timeout={value}")


def run_check_of(watch: Watch) -> str:
    (step,) = plan_install(connection, [watch]).steps
    return step.status.value


class TestBadInput:
    """One sentence each, exit status 1, and the good watch beside it is installed all the same."""

    @pytest.fixture
    def box(self, registry: Registry) -> type[models.Model]:
        box = make_model("Box", "box")
        registry.add(Watch(box))
        return box

    @pytest.mark.parametrize(
        ("create", "message"),
        [
            ("create view box as select 1 as id", "is a view: watch the tables behind it"),
            ("create materialized view box as select 1 as id", "is a materialized view: watch the tables behind it"),
            (
                "create foreign data wrapper nothing; create server nowhere foreign data wrapper nothing;"
                "create foreign table box (id int) server nowhere",
                "is a foreign table, which other programs change without this database knowing",
            ),
            (
                "create foreign data wrapper nothing; create server nowhere foreign data wrapper nothing;"
                "create table box (id int) partition by range (id);"
                "create foreign table far partition of box for values from (1) to (9) server nowhere",
                'far, which belongs to "box", is a foreign table, which other programs change without this database '
                "knowing",
            ),
        ],
        ids=["view", "materialized view", "foreign table", "foreign partition"],
    )
    def test_a_relation_that_cannot_be_captured_is_refused(
        self, database: Database, box: type[models.Model], create: str, message: str
    ) -> None:
        database.connect().execute(create)
        sentence = failure("install_triggers")
        assert sentence.startswith("stock.box cannot be watched: ")
        assert sentence.endswith(message)
        assert {t.table for t in installed_triggers(connection)} == {"item"}

    def test_a_missing_table_is_refused(self, database: Database, box: type[models.Model]) -> None:
        assert failure("install_triggers") == (
            "the table \"box\" of stock.box does not exist in database 'default': "
            "run `manage.py makemigrations` and `manage.py migrate` first"
        )
        assert {t.table for t in installed_triggers(connection)} == {"item"}

    def test_a_column_that_the_table_does_not_have_yet_is_refused(self, database: Database, registry: Registry) -> None:
        """The code is deployed, the migration is not: a trigger that names the column would fail every write."""
        database.connect().execute("create table box (id bigint primary key)")
        registry.add(Watch(make_model("Box", "box", size=models.IntegerField()), "__all__"))
        assert failure("install_triggers") == (
            "the table \"box\" of stock.box has no column size in database 'default': "
            "run `manage.py makemigrations` and `manage.py migrate` first"
        )
        assert {t.table for t in installed_triggers(connection)} == {"item"}

    def test_an_unknown_column_is_refused(self, database: Database, registry: Registry) -> None:
        registry.add(Watch(make_model("Box", "box"), ("colour",)))
        assert failure("install_triggers") == (
            "the watch of stock.box names the column 'colour', which its table does not have: use one of id, "
            'or "__all__"'
        )
        assert {t.table for t in installed_triggers(connection)} == {"item"}

    def test_a_mistake_in_a_watch_does_not_end_the_capture_that_is_in_place(
        self, database: Database, registry: Registry
    ) -> None:
        run("install_triggers")
        before = triggers(database)
        registry.remove("stock.item")
        registry.add(Watch(Item, ("nmae",)))
        assert "names the column 'nmae'" in failure("install_triggers")
        assert triggers(database) == before

    def test_two_watches_of_one_table_are_refused(self, database: Database, registry: Registry) -> None:
        """Each would replace the triggers of the other."""
        registry.add(Watch(make_model("Twin", "item")))
        assert failure("install_triggers") == (
            'stock.twin and stock.item are both watched and share the table "item": keep one watch a table'
        )
        assert {t.label for t in installed_triggers(connection)} == {"stock.item"}

    @pytest.mark.parametrize("arguments", [(), ("--check",), ("--dry-run",)])
    def test_a_missing_journal_is_refused(self, database: Database, arguments: tuple[str, ...]) -> None:
        database.connect().execute("drop schema pgnotify_gql cascade")
        assert failure("install_triggers", *arguments) == (
            "database 'default' has no journal: run `manage.py migrate pgnotify_gql --database default` first"
        )

    def test_a_role_that_does_not_own_a_table_is_told_so_and_installs_the_others(
        self, database: Database, box: type[models.Model], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        admin = database.connect()
        role = f"stranger_{database.name}"
        admin.execute(f"create role {role} login; grant usage, create on schema pgnotify_gql to {role}")
        admin.execute(f"create table box (id bigint primary key); alter table box owner to {role}")
        connection.close()
        monkeypatch.setitem(connections.databases["default"], "USER", role)
        sentence = failure("install_triggers")
        assert sentence == (
            'the triggers of stock.item on "item" are as they were: permission denied for table item; '
            "connect as the owner of the table, who may also create functions in the schema pgnotify_gql"
        )
        assert {t.table for t in installed_triggers(connection)} == {"box"}

    def test_what_is_no_lack_of_rights_is_not_told_as_one(self, database: Database) -> None:
        (step,) = plan_install(connection, [Watch(Item)]).steps
        database.connect().execute("drop table item")
        with pytest.raises(ProgrammingError, match="does not exist"):
            execute(connection, step)

    @pytest.mark.postgres("18")
    def test_where_no_triggers_are_there_is_nothing_to_uninstall(self, database: Database) -> None:
        assert run("uninstall_triggers") == "No triggers are installed, nothing to do.\n"

    @pytest.mark.parametrize("command", ["install_triggers", "uninstall_triggers"])
    def test_a_database_that_is_not_postgresql_is_refused(self, command: str, sqlite: str) -> None:
        assert failure(command, "--database", sqlite).startswith(f"database '{sqlite}' is sqlite")

    @pytest.mark.parametrize("command", ["install_triggers", "uninstall_triggers"])
    def test_an_alias_that_does_not_exist_is_refused(self, command: str) -> None:
        with pytest.raises(CommandError, match="invalid choice: 'nowhere'"):
            run(command, "--database", "nowhere")

    @pytest.mark.parametrize("command", ["install_triggers", "uninstall_triggers"])
    def test_a_database_that_is_down_is_one_sentence(self, command: str) -> None:
        result = manage("postgresql://nobody@127.0.0.1:1/nothing", command)
        assert result.returncode == 1
        assert result.stderr.startswith("CommandError: database 'default' cannot be used: ")
        assert "127.0.0.1" in result.stderr
        assert result.stderr.count("\n") == 1

    @pytest.fixture
    def sqlite(self) -> Iterator[str]:
        """The alias of a database in memory."""
        connections.databases["sqlite"] = connections.databases["default"] | {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": ":memory:",
            "OPTIONS": {},
        }
        try:
            yield "sqlite"
        finally:
            del connections["sqlite"]
            del connections.databases["sqlite"]
