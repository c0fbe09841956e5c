"""INSTALL_ON_MIGRATE: `migrate` brings the triggers in step, once, and is none the worse for it when that fails."""

from __future__ import annotations

from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection, connections
from django.test import override_settings

from example.conversations.models import Message
from pgnotify_gql.capture.catalog import installed_triggers
from pgnotify_gql.capture.installer import execute
from pgnotify_gql.capture.registry import Registry, make_watch
from pgnotify_gql.errors import ReadOnlyDatabaseError
from tests.support.databases import Database
from tests.support.watched import make_model

# What is installed is tested in test_install_triggers.py, on each version.
pytestmark = pytest.mark.postgres("18")

MODULE = "pgnotify_gql.management.after_migrate"


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """With a watch of messages alone."""
    registry = Registry()
    registry.add(make_watch(Message))
    monkeypatch.setattr(f"{MODULE}.registry", registry)
    return registry


@pytest.fixture(autouse=True)
def switched_on(database: Database) -> Iterator[None]:
    # Only once the database was migrated, and the template that all tests copy.
    with override_settings(PGNOTIFY_GQL={"INSTALL_ON_MIGRATE": True}):
        yield


def migrate(*arguments: str, **options: Any) -> str:
    output = StringIO()
    call_command("migrate", *arguments, stdout=output, skip_checks=True, **options)
    return output.getvalue()


def tables() -> set[str]:
    return {t.table for t in installed_triggers(connection)}


class TestSwitchedOn:
    def test_triggers_are_installed_and_told_once(self, database: Database) -> None:
        assert migrate().count("conversations.message: installed (was MISSING)") == 1
        assert tables() == {"conversations_message"}

    def test_nothing_is_told_or_changed_when_they_are_in_step(self, database: Database) -> None:
        migrate()
        assert "conversations.message" not in migrate()
        assert tables() == {"conversations_message"}

    def test_triggers_without_a_watch_are_removed(self, database: Database, registry: Registry) -> None:
        database.connect().execute("create table box (id bigint primary key)")
        registry.add(make_watch(make_model("Box", "box")))
        migrate()
        assert tables() == {"box", "conversations_message"}
        registry.remove("stock.box")
        assert "stock.box: removed (was ORPHANED)" in migrate()
        assert tables() == {"conversations_message"}

    def test_a_database_that_is_new_has_them(self, database: Database) -> None:
        database.connect().execute("drop schema public cascade; create schema public; drop schema pgnotify_gql cascade")
        migrate()
        assert tables() == {"conversations_message"}

    def test_a_test_database_has_them(self, database: Database) -> None:
        name = str(connection.settings_dict["NAME"])
        connection.creation.create_test_db(verbosity=0, autoclobber=True, serialize=False)
        try:
            assert connection.settings_dict["NAME"] != name
            assert tables() == {"conversations_message"}
        finally:
            connection.creation.destroy_test_db(name, verbosity=0)

    def test_verbosity_0_tells_nothing(self, database: Database, capfd: pytest.CaptureFixture[str]) -> None:
        assert migrate(verbosity=0) == ""
        assert capfd.readouterr() == ("", "")
        assert tables() == {"conversations_message"}

    def test_part_of_the_migrations_is_enough(self, database: Database) -> None:
        migrate("auth")
        assert tables() == {"conversations_message"}


class TestWhereNothingIsInstalled:
    def test_switched_off(self, database: Database) -> None:
        with override_settings(PGNOTIFY_GQL={}):
            migrate()
        assert tables() == set()

    def test_a_plan(self, database: Database) -> None:
        migrate(plan=True)
        assert tables() == set()

    def test_flush_which_migrates_nothing(self, database: Database) -> None:
        call_command("flush", interactive=False, stdout=StringIO())
        assert tables() == set()

    def test_a_database_for_which_the_router_has_no_watched_model(self, database: Database) -> None:
        with override_settings(DATABASE_ROUTERS=["tests.test_install_on_migrate.Elsewhere"]):
            assert "message" not in migrate()
        assert tables() == set()

    def test_a_database_of_another_vendor(self, database: Database) -> None:
        connections.databases["sqlite"] = connections.databases["default"] | {
            "ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:", "OPTIONS": {},
        }  # fmt: skip
        try:
            assert "message: installed" not in migrate(database="sqlite")
        finally:
            connections["sqlite"].close()
            del connections["sqlite"]
            del connections.databases["sqlite"]

    def test_a_replica(
        self, database: Database, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        def require_primary(connection: Any) -> None:
            raise ReadOnlyDatabaseError(connection.alias)

        monkeypatch.setattr(f"{MODULE}.require_primary", require_primary)
        assert "replica" not in migrate()
        assert capfd.readouterr().err == ""
        assert tables() == set()

    def test_a_database_without_a_journal_is_told_so(
        self, database: Database, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert "No triggers were installed: database 'default' has no journal" in migrate("pgnotify_gql", "zero")
        assert capfd.readouterr().err == ""

    def test_a_table_that_is_not_migrated_yet_is_told_so_and_others_are_installed(
        self, database: Database, registry: Registry, capfd: pytest.CaptureFixture[str]
    ) -> None:
        registry.add(make_watch(make_model("Box", "box")))
        assert 'Not installed (yet): the table "box" of stock.box does not exist' in migrate()
        assert capfd.readouterr().err == ""
        assert tables() == {"conversations_message"}


class Elsewhere:
    """A router that has the conversations in no database."""

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        return False if app_label == "conversations" else None


class TestFailures:
    def test_a_table_that_stays_locked_is_reported_and_keeps_neither_migrations_nor_others(
        self,
        database: Database,
        registry: Registry,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        database.connect().execute("create table shelf (id bigint primary key)")
        registry.add(make_watch(make_model("Shelf", "shelf")))
        monkeypatch.setattr(
            "pgnotify_gql.management.installing.execute",
            lambda connection, step, **options: execute(connection, step, attempts=1),
        )
        holder = database.connect()
        holder.execute("begin; lock table conversations_message in row exclusive mode")
        migrate("sessions", "zero", verbosity=0)
        holder.execute("rollback")
        error = capfd.readouterr().err
        assert error.startswith(
            "The migrations of database 'default' are done, but NOT ALL ITS TRIGGERS ARE IN STEP:\n"
            '  "conversations_message" was locked by other transactions'
        )
        assert error.endswith("until you run `manage.py install_triggers --database default`.\n")
        assert tables() == {"shelf"}
        assert holder.execute("select to_regclass('django_session')").fetchone() == (None,)

    def test_a_watch_that_cannot_be_captured_is_reported(
        self, database: Database, registry: Registry, capfd: pytest.CaptureFixture[str]
    ) -> None:
        database.connect().execute("create view box as select 1 as id")
        registry.add(make_watch(make_model("Box", "box")))
        migrate()
        assert 'stock.box cannot be watched: "box" is a view' in capfd.readouterr().err
        assert tables() == {"conversations_message"}

    def test_a_statement_that_is_cancelled_is_reported(
        self, database: Database, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        def make_plan(connection: Any, watches: Any) -> Any:
            with connection.cursor() as cursor:
                cursor.execute("select pg_cancel_backend(pg_backend_pid())")

        monkeypatch.setattr(f"{MODULE}.make_plan", make_plan)
        migrate("sessions", "zero", verbosity=0)
        error = capfd.readouterr().err
        assert "NOT ALL ITS TRIGGERS ARE IN STEP:\n  canceling statement" in error
        assert tables() == set()

    def test_what_the_database_refuses_is_reported(
        self, database: Database, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        admin = database.connect()
        role = f"stranger_{database.name}"
        admin.execute(
            f"create role {role} login; grant select on all tables in schema public to {role};"
            f"grant usage, create on schema pgnotify_gql, public to {role}"
        )
        connection.close()
        monkeypatch.setitem(connections.databases["default"], "USER", role)
        migrate(verbosity=0)
        error = capfd.readouterr().err
        assert "permission denied for table conversations_message" in error
        assert "NOT ALL ITS TRIGGERS ARE IN STEP" in error
        assert tables() == set()
