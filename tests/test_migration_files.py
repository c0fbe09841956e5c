"""
`install_triggers --migration`: the file that it writes, what the file does when it is run, and when there is none.

The application is the example's, its migrations are a copy in a directory of the test.
"""

from __future__ import annotations

import ast
import importlib
import shutil
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db import connection, models
from django.db.models import Q
from django.test import override_settings

from example.conversations.models import Conversation, Message
from pgnotify_gql.capture import render
from pgnotify_gql.capture.catalog import Status, installed_functions, installed_triggers
from pgnotify_gql.capture.installer import plan_install
from pgnotify_gql.capture.kinds import Kind
from pgnotify_gql.capture.registry import Registry, make_watch
from pgnotify_gql.capture.watch import Watch
from tests.support.databases import Database
from tests.support.processes import CHECKOUT

# What is installed is tested in test_install_triggers.py and test_trigger_operations.py, on each version.
pytestmark = pytest.mark.postgres("18")

APP = "conversations"

MODULES = (
    "pgnotify_gql.management.commands.install_triggers",
    "pgnotify_gql.checks",
    "pgnotify_gql.management.after_migrate",
)


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """With a watch of messages alone."""
    registry = Registry()
    registry.add(make_watch(Message, columns=["text"]))
    for module in MODULES:
        monkeypatch.setattr(f"{module}.registry", registry)
    return registry


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder with the migrations of the application."""
    package = f"migrations_{uuid4().hex}"
    folder = tmp_path / package
    shutil.copytree(CHECKOUT / "example/conversations/migrations", folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.syspath_prepend(tmp_path)
    with override_settings(MIGRATION_MODULES={APP: package}):
        yield folder
    for name in [name for name in sys.modules if name.startswith(package)]:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def prepared(files: Path, database: Database) -> None:
    """A migrated database without triggers."""


def write(*arguments: str) -> str:
    """Run the command for the application and return what it prints."""
    output = StringIO()
    call_command("install_triggers", "--migration", APP, *arguments, stdout=output, stderr=output)
    importlib.invalidate_caches()
    return output.getvalue()


def failure(*arguments: str, app: str = APP) -> str:
    """Run the command, which must fail, and return the sentence that it ends with."""
    with pytest.raises(CommandError) as caught:
        call_command("install_triggers", "--migration", app, *arguments, stdout=StringIO(), stderr=StringIO())
    assert caught.value.returncode == 1
    return str(caught.value)


def migrate(target: str = "", **options: object) -> str:
    output = StringIO()
    given = [APP, target] if target else [APP]
    call_command("migrate", *given, stdout=output, stderr=output, skip_checks=True, **options)
    return output.getvalue()


def change(registry: Registry, *watches: Watch) -> None:
    """Let these be the watches, and no others."""
    for watch in list(registry):
        registry.remove(watch.label)
    for watch in watches:
        registry.add(watch)


def status(watch: Watch) -> Status:
    (step,) = (step for step in plan_install(connection, [watch]).steps if step.label == watch.label)
    return step.status


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("0*.py"))


class TestWriting:
    def test_the_next_file_is_written_and_told(self, files: Path) -> None:
        assert write().splitlines() == [
            "Migrations for 'conversations':",
            f"  {files}/0002_install_triggers.py",
            "    s Install the triggers of conversations.message",
        ]
        assert files_in(files) == ["0001_initial.py", "0002_install_triggers.py"]

    def test_it_comes_after_the_last_migrations_of_its_application_and_of_the_journal(self, files: Path) -> None:
        write()
        module = importlib.import_module(f"{files.name}.0002_install_triggers")
        assert module.Migration.dependencies == [(APP, "0001_initial"), ("pgnotify_gql", "0002_cluster")]
        assert not module.Migration.atomic

    def test_a_name_may_be_chosen(self, files: Path) -> None:
        write("--name", "capture_messages")
        assert files_in(files)[1:] == ["0002_capture_messages.py"]

    def test_a_dry_run_prints_it_and_writes_nothing(self, files: Path) -> None:
        printed = write("--dry-run")
        assert files_in(files) == ["0001_initial.py"]
        write()
        assert printed == (files / "0002_install_triggers.py").read_text()

    def test_a_check_fails_where_a_file_would_be_written(self, files: Path) -> None:
        assert failure("--check") == (
            "the migrations of conversations differ from its watches: run "
            "`manage.py install_triggers --migration conversations`"
        )
        assert files_in(files) == ["0001_initial.py"]
        write()
        importlib.invalidate_caches()
        assert write("--check") == "No changes, conversations.0002_install_triggers has them\n"

    def test_the_text_is_python_that_says_who_wrote_it_and_names_no_watch(self, files: Path) -> None:
        write()
        text = (files / "0002_install_triggers.py").read_text()
        assert text.startswith("# Written by pgnotify_gql ")
        assert "--migration conversations" in text.splitlines()[0]
        imported = {node.module for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)}
        assert imported == {"django.db", "pgnotify_gql.capture.operations"}

    def test_makemigrations_sees_nothing_to_do_afterwards(self) -> None:
        write()
        call_command("makemigrations", APP, "--check", stdout=StringIO(), skip_checks=True)


class TestRunning:
    @pytest.mark.parametrize(
        "watch",
        [
            make_watch(Message),
            make_watch(Message, columns="__all__"),
            make_watch(Message, condition=Q(text__contains='"""\\ 100 % "')),
            make_watch(Message, columns=["text"], replicated=True),
        ],
        ids=["keys", "all", "condition", "replicated"],
    )
    def test_it_installs_what_install_triggers_would(
        self, registry: Registry, database: Database, watch: Watch
    ) -> None:
        change(registry, watch)
        write()
        migrate()
        assert status(watch) is Status.INSTALLED
        output = StringIO()
        call_command("install_triggers", "--check", stdout=output)
        assert output.getvalue().startswith("INSTALLED conversations.message")

    def test_going_back_removes_the_triggers(self) -> None:
        write()
        migrate()
        assert len(installed_triggers(connection)) == 4
        migrate("0001")
        assert installed_triggers(connection) == []
        assert installed_functions(connection) == []

    def test_a_later_version_of_the_package_does_not_change_what_it_does(
        self, registry: Registry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write()
        (watch,) = registry
        change(registry, make_watch(Message, columns="__all__"))
        with monkeypatch.context() as patched:
            patched.setattr(render, "FORMAT", "v2")
            migrate()
            assert status(watch) is Status.OUTDATED
        assert status(watch) is Status.INSTALLED

    def test_it_runs_where_triggers_of_another_version_are(self, registry: Registry) -> None:
        (watch,) = registry
        write()
        change(registry, make_watch(Message, replicated=True))
        call_command("install_triggers", stdout=StringIO())
        migrate()
        assert status(watch) is Status.INSTALLED
        assert len(installed_triggers(connection)) == 4
        assert len(installed_functions(connection)) == 1

    def test_a_new_database_is_captured_from_the_first_row_on(self, database: Database) -> None:
        """As a test database, in which everything is migrated at once."""
        write()
        writer = database.connect()
        writer.execute("drop schema public cascade; create schema public; drop schema pgnotify_gql cascade")
        call_command("migrate", stdout=StringIO(), skip_checks=True)
        assert status(make_watch(Message, columns=["text"])) is Status.INSTALLED


class TestWritingAgain:
    def test_nothing_is_written_while_the_watches_are_the_same(self, files: Path) -> None:
        write()
        assert write() == "No changes, conversations.0002_install_triggers has them\n"
        assert len(files_in(files)) == 2

    def test_a_changed_watch_gets_a_file_whose_reverse_restores_the_earlier_one(
        self, files: Path, registry: Registry
    ) -> None:
        (first,) = registry
        second = make_watch(Message, columns=["text", "author"])
        write()
        change(registry, second)
        assert "0003_install_triggers.py" in write()
        migrate()
        assert status(second) is Status.INSTALLED
        migrate("0002")
        assert status(first) is Status.INSTALLED
        assert len(installed_functions(connection)) == 1
        migrate("0003")
        assert status(second) is Status.INSTALLED
        migrate("0001")
        assert installed_triggers(connection) == []

    def test_only_what_differs_is_in_it(self, registry: Registry) -> None:
        write()
        registry.add(make_watch(Conversation))
        printed = write("--dry-run")
        assert "conversations.conversation" in printed
        assert "conversations.message" not in printed

    def test_a_model_that_is_no_longer_watched_gets_a_file_that_removes_its_triggers(self, registry: Registry) -> None:
        (watch,) = registry
        write()
        registry.remove(watch.label)
        registry.add(make_watch(Conversation))
        assert "    s Remove the triggers of conversations.message" in write().splitlines()
        migrate()
        assert {t.label for t in installed_triggers(connection)} == {"conversations.conversation"}
        assert write().startswith("No changes, ")
        migrate("0002")
        assert status(watch) is Status.INSTALLED
        assert {t.label for t in installed_triggers(connection)} == {"conversations.message"}

    def test_a_model_that_is_watched_again_gets_a_file_again(self, registry: Registry) -> None:
        (watch,) = registry
        write()
        registry.remove(watch.label)
        write("--name", "remove")
        registry.add(watch)
        assert "0004_again.py" in write("--name", "again")
        migrate()
        assert status(watch) is Status.INSTALLED
        migrate("0003")
        assert installed_triggers(connection) == []

    def test_an_operation_by_hand_in_between_is_no_reason_to_write_nothing(self, files: Path) -> None:
        write()
        by_hand(files, "0003_by_hand", "0002_install_triggers", "UninstallTriggers('message')")
        assert "0004_install_triggers.py" in write()
        migrate()
        assert len(installed_triggers(connection)) == 4

    def test_nor_is_one_that_has_nothing_to_do_with_the_state_of_models(self, files: Path) -> None:
        write()
        operation = "migrations.SeparateDatabaseAndState(database_operations=[UninstallTriggers('message')])"
        by_hand(files, "0003_by_hand", "0002_install_triggers", operation)
        assert "0004_install_triggers.py" in write()


def by_hand(folder: Path, name: str, after: str, *operations: str) -> None:
    """Write a migration as somebody would."""
    listed = "".join(f"        {operation},\n" for operation in operations)
    (folder / f"{name}.py").write_text(
        "from django.db import migrations, models\n"
        "from pgnotify_gql.capture.operations import InstallTriggers, UninstallTriggers\n\n\n"
        "class Migration(migrations.Migration):\n"
        f"    dependencies = [({APP!r}, {after!r})]\n"
        f"    operations = [\n{listed}    ]\n"
    )
    importlib.invalidate_caches()


class TestRenamed:
    """Going back restores the earlier triggers on the table as it is called at that point."""

    @pytest.fixture
    def note(self) -> type[models.Model]:
        """What the model is called after the migration."""

        class Note(models.Model):
            text: models.Field[str, str] = models.TextField()

            class Meta:
                app_label = APP
                apps = type(Message._meta.apps)()

            def __str__(self) -> str:
                return self.text

        return Note

    def test_a_model(self, files: Path, registry: Registry, database: Database, note: type[models.Model]) -> None:
        (before,) = registry
        write()
        by_hand(files, "0003_note", "0002_install_triggers", "migrations.RenameModel('Message', 'Note')")
        after = make_watch(note, columns=["text"])
        change(registry, after)
        assert "    s Install the triggers of conversations.note" in write().splitlines()
        migrate()
        assert status(after) is Status.INSTALLED
        assert len(installed_triggers(connection)) == 4
        migrate("0003")
        assert {(t.table, t.label) for t in installed_triggers(connection)} == {
            ("conversations_note", "conversations.message")
        }
        migrate("0002")
        assert status(before) is Status.INSTALLED

    def test_a_table(self, files: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
        change(registry, make_watch(Message, columns=["text"], replicated=True))
        (before,) = registry
        write()
        by_hand(files, "0003_notes", "0002_install_triggers", "migrations.AlterModelTable('message', 'my notes')")
        with monkeypatch.context() as patched:
            patched.setattr(Message._meta, "db_table", "my notes")
            write("--name", "again")
            migrate()
            assert status(before) is Status.INSTALLED
            migrate("0003")
            assert status(before) is Status.INSTALLED
        migrate("0002")
        assert status(before) is Status.INSTALLED

    def test_a_model_without_triggers(self, files: Path) -> None:
        by_hand(files, "0002_room", "0001_initial", "migrations.RenameModel('Conversation', 'Room')")
        assert [line for line in write().splitlines() if "triggers of" in line] == [
            "    s Install the triggers of conversations.message"
        ]

    def test_a_model_that_was_deleted_is_forgotten(self, files: Path, registry: Registry) -> None:
        write()
        by_hand(files, "0003_gone", "0002_install_triggers", "migrations.DeleteModel('Message')")
        change(registry, make_watch(Conversation))
        printed = write("--dry-run")
        assert "conversations.message" not in printed


class TestDjangosCommands:
    def test_sqlmigrate_prints_the_sql(self, database: Database, registry: Registry) -> None:
        (watch,) = registry
        write()
        output = StringIO()
        call_command("sqlmigrate", APP, "0002", stdout=output)
        assert installed_triggers(connection) == []
        database.connect().execute(output.getvalue())
        assert status(watch) is Status.INSTALLED

    def test_migrate_shows_it_in_its_plan(self) -> None:
        write()
        assert "Install the triggers of conversations.message" in migrate(plan=True)
        assert installed_triggers(connection) == []

    def test_squashmigrations_keeps_it(self, files: Path, registry: Registry, database: Database) -> None:
        (watch,) = registry
        write()
        by_hand(
            files, "0003_by_hand", "0002_install_triggers",
            "migrations.AddField('conversation', 'note', models.TextField(default=''))",
            "InstallTriggers('conversation', condition=models.Q(title='x'), kinds=['UPDATE'])",
        )  # fmt: skip
        call_command("squashmigrations", APP, "0003", interactive=False, stdout=StringIO(), stderr=StringIO())
        importlib.invalidate_caches()
        writer = database.connect()
        writer.execute("drop schema public cascade; create schema public; drop schema pgnotify_gql cascade")
        output = StringIO()
        call_command("migrate", stdout=output, skip_checks=True)
        assert "0001_squashed_0003_by_hand" in output.getvalue()
        assert status(watch) is Status.INSTALLED
        conditional = make_watch(Conversation, condition=Q(title="x"), kinds=[Kind.UPDATE])
        assert status(conditional) is Status.INSTALLED
        change(registry, watch)
        assert write() == "No changes, conversations.0001_squashed_0003_by_hand has them\n"


class TestTablesThatAreNotThere:
    """A migration may be written, and checked, where nothing has been migrated yet."""

    def test_are_assumed_to_have_no_relatives(self, database: Database) -> None:
        database.connect().execute("drop table conversations_message")
        printed = write()
        assert printed.splitlines()[0] == (
            "The table of conversations.message is not in database 'default': assumed to be one without partitions and "
            "children. If it has any, migrate first, or choose its --database."
        )

    def test_nor_are_those_that_the_router_has_in_another_database(self) -> None:
        with override_settings(DATABASE_ROUTERS=["tests.test_install_on_migrate.Elsewhere"]):
            printed = write()
        assert printed.startswith("The table of conversations.message is not in database 'default': assumed")

    def test_of_partitions_are_known_from_an_earlier_file(self, database: Database) -> None:
        writer = database.connect()
        writer.execute("drop table conversations_message")
        writer.execute(
            "create table conversations_message (id bigint, conversation_id bigint, author_id bigint, text text, "
            "created_at timestamptz, primary key (id)) partition by range (id)"
        )
        write()
        writer.execute("drop table conversations_message")
        assert write("--check") == "No changes, conversations.0002_install_triggers has them\n"

    def test_a_column_that_is_not_migrated_yet_does_not_hide_the_partitions(
        self, database: Database, registry: Registry
    ) -> None:
        change(registry, make_watch(Message, columns=["text"], condition=Q(text="x")))
        writer = database.connect()
        writer.execute("drop table conversations_message")
        writer.execute("create table conversations_message (id bigint primary key) partition by range (id)")
        printed = write("--dry-run")
        assert "for each row" in printed
        assert "is not in database" not in printed


class TestRefusals:
    def test_an_unknown_application(self) -> None:
        assert failure(app="nothing") == "No installed app with label 'nothing'."

    def test_an_application_without_migrations(self) -> None:
        with override_settings(MIGRATION_MODULES={APP: None}):
            assert failure() == "conversations has no migrations: run `manage.py makemigrations conversations` first"

    def test_an_application_without_a_migration_yet(self, files: Path) -> None:
        (files / "0001_initial.py").unlink()
        assert failure() == "conversations has no migration yet: run `manage.py makemigrations conversations` first"

    def test_an_application_that_was_installed(self, registry: Registry) -> None:
        """Its folder is the environment's, and the file would be gone with the next one."""
        change(registry, Watch(User))
        sentence = failure(app="auth")
        assert sentence.startswith("the migrations of auth are installed in ")
        assert "not yours to write" in sentence

    def test_an_application_without_a_watch(self) -> None:
        assert failure(app="auth") == (
            "no model of auth is watched: call notify_on_model_changes() on those whose changes to capture"
        )

    def test_branches_that_were_not_merged(self, files: Path) -> None:
        by_hand(files, "0002_one", "0001_initial")
        by_hand(files, "0002_two", "0001_initial")
        assert failure() == (
            "conversations has several last migrations (0002_one, 0002_two): "
            "run `manage.py makemigrations --merge` first"
        )

    def test_a_column_that_no_migration_makes(self, files: Path) -> None:
        by_hand(files, "0002_gone", "0001_initial", "migrations.RemoveField('message', 'text')")
        assert failure() == (
            "the migrations of conversations do not make column text of conversations.message: "
            "run `manage.py makemigrations conversations` first"
        )

    def test_a_model_that_no_migration_makes(self, files: Path) -> None:
        by_hand(files, "0002_gone", "0001_initial", "migrations.DeleteModel('Message')")
        assert failure() == (
            "the migrations of conversations do not make its table of conversations.message: "
            "run `manage.py makemigrations conversations` first"
        )

    def test_a_table_that_no_migration_makes(self, files: Path) -> None:
        by_hand(files, "0002_gone", "0001_initial", "migrations.AlterModelTable('message', 'messages')")
        assert 'do not make the table "conversations_message" of conversations.message' in failure()

    def test_a_condition_that_cannot_be_evaluated(self, registry: Registry) -> None:
        change(registry, make_watch(Message, condition=Q(author__username="x")))
        assert failure().startswith("the condition of the watch of conversations.message cannot be evaluated")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--name", "not a name"], "--name=not a name is not a valid Python identifier"),
            (["--json"], "--json tells about triggers, not about migrations: leave it out"),
        ],
    )
    def test_options_that_make_no_sense(self, arguments: list[str], message: str) -> None:
        assert failure(*arguments) == message

    def test_a_name_without_a_migration(self) -> None:
        with pytest.raises(CommandError, match="--name is that of a migration"):
            call_command("install_triggers", "--name=x")
