"""Every system check, by its id: what sets it off, and what it says to do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.core import checks, mail
from django.core.checks import CheckMessage
from django.core.handlers.asgi import ASGIHandler
from django.core.management import call_command
from django.db import connections, models
from django.db.models import Q
from django.test import override_settings
from django.test.utils import CaptureQueriesContext

from pgnotify_gql.capture.registry import Registry, make_watch
from pgnotify_gql.capture.watch import Watch
from tests.support.databases import Database, forget_connections, migrated_template, new_database, used_by_django
from tests.support.postgres import PostgresServer, find_bin_path
from tests.support.watched import ITEM_SQL, Item, make_model

# The servers of the tests allow prepared transactions, which is what W006 is about.
TWO_PHASE_COMMIT = "pgnotify_gql.W006"

IN_MEMORY = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
PLAIN_APPLICATION = ASGIHandler()

REDIS = {"default": {"BACKEND": "channels_redis.core.RedisChannelLayer"}}


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A registry with a watch of items, in place of the one that holds the example's watches."""
    registry = Registry()
    registry.add(Watch(Item, ("name",)))
    for module in (
        "pgnotify_gql.checks",
        "pgnotify_gql.capture.installed",
        "pgnotify_gql.management.commands.install_triggers",
    ):
        monkeypatch.setattr(f"{module}.registry", registry)
    return registry


@pytest.fixture
def database(database: Database) -> Database:
    """With the table of items, and its triggers."""
    database.connect().execute(ITEM_SQL)
    call_command("install_triggers", stdout=StringIO())
    return database


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    with override_settings(SILENCED_SYSTEM_CHECKS=[TWO_PHASE_COMMIT]):
        yield


@pytest.fixture
def second() -> Iterator[dict[str, Any]]:
    """The parameters of another alias, "second", which a test may change."""
    parameters = connections.databases["default"] | {"NAME": "second", "TEST": {"MIRROR": None}}
    connections.databases["second"] = parameters
    try:
        yield parameters
    finally:
        del connections["second"]
        del connections.databases["second"]


@pytest.fixture
def own_database() -> Iterator[Database]:
    """A database with the table of items and without triggers, on a server that no other test uses."""
    if (bin_path := find_bin_path("18")) is None:
        pytest.skip("PostgreSQL 18 is not installed")
    server = PostgresServer.create("18", bin_path)
    try:
        with new_database(server, migrated_template(server)) as database, used_by_django(database):
            database.connect().execute(ITEM_SQL)
            yield database
    finally:
        server.close()


def restart(server: PostgresServer) -> None:
    server.restart()
    forget_connections()


def found(*databases: str) -> list[CheckMessage]:
    """Run all checks and return the messages that are ours, and not silenced."""
    messages = checks.run_checks(databases=databases)
    return [
        message for message in messages if str(message.id).startswith("pgnotify_gql.") and not message.is_silenced()
    ]


def ids(*databases: str) -> list[str | None]:
    return [message.id for message in found(*databases)]


def sentence(message_id: str, *databases: str) -> str:
    """Return the only message, which has this id."""
    (message,) = found(*databases)
    assert message.id == message_id
    assert message.level == (checks.ERROR if ".E" in message_id else checks.WARNING)
    return f"{message.msg} {message.hint}" if message.hint else str(message.msg)


def test_a_sound_project_has_nothing_to_say(database: Database) -> None:
    assert ids("default") == []


class TestSettings:
    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"RETENTOIN": 5}, "has an unknown key 'RETENTOIN': did you mean RETENTION?"),
            ({"WORKERS": "4"}, "PGNOTIFY_GQL['WORKERS'] must be a whole number above 0, not '4'"),
            (["WORKERS"], "PGNOTIFY_GQL must be a dictionary"),
        ],
    )
    def test_e001_is_a_mistake_in_the_settings(self, values: Any, message: str) -> None:
        with override_settings(PGNOTIFY_GQL=values):
            assert message in sentence("pgnotify_gql.E001")

    def test_e001_does_not_end_the_checks_of_the_database_in_a_traceback(self, database: Database) -> None:
        with override_settings(PGNOTIFY_GQL={"WORKERS": 0}):
            assert ids("default") == ["pgnotify_gql.E001"]

    def test_e002_is_a_database_that_is_not_there(self) -> None:
        with override_settings(PGNOTIFY_GQL=following("default", "nowhere")):
            assert sentence("pgnotify_gql.E002") == (
                "PGNOTIFY_GQL['DATABASES'] names 'nowhere', which the project's DATABASES does not have: it has default"
            )

    def test_e002_is_each_database_that_is_not_there(self) -> None:
        with override_settings(PGNOTIFY_GQL=following("default", "nowhere", "elsewhere")):
            assert ids() == ["pgnotify_gql.E002", "pgnotify_gql.E002"]

    def test_e002_is_an_alias_that_leads_where_another_does(self, second: dict[str, Any]) -> None:
        second["NAME"] = connections.databases["default"]["NAME"]
        second["PORT"] = int(connections.databases["default"]["PORT"])
        with override_settings(PGNOTIFY_GQL=following("default", "second")):
            assert sentence("pgnotify_gql.E002") == (
                "PGNOTIFY_GQL['DATABASES'] names 'default' and 'second', which lead to the same database: "
                "name the one to which the router writes"
            )

    @pytest.mark.parametrize(
        "parameters",
        [
            {},
            {"NAME": "no_database_fixture_was_requested", "PORT": "5433"},
            {"NAME": "no_database_fixture_was_requested", "HOST": "elsewhere"},
            {"NAME": "no_database_fixture_was_requested", "OPTIONS": {"service": "second"}},
            {"NAME": "no_database_fixture_was_requested", "TEST": {"MIRROR": "default"}},
        ],
        ids=["another name", "another port", "another host", "a service", "a mirror"],
    )
    def test_e002_is_not_an_alias_that_leads_elsewhere(
        self, second: dict[str, Any], parameters: dict[str, Any]
    ) -> None:
        assert connections.databases["default"]["NAME"] == "no_database_fixture_was_requested"
        second.update(parameters)
        with override_settings(PGNOTIFY_GQL=following("default", "second")):
            assert ids() == []

    def test_e005_is_a_channel_layer_that_is_not_there(self) -> None:
        with override_settings(CHANNEL_LAYERS={}):
            message = sentence("pgnotify_gql.E005")
        assert message.startswith("CHANNEL_LAYERS has no 'default' For one process: CHANNEL_LAYERS = {")
        with override_settings(PGNOTIFY_GQL={"CHANNEL_LAYER": "feed"}):
            assert sentence("pgnotify_gql.E005").startswith("CHANNEL_LAYERS has no 'feed'")

    def test_w001_is_an_in_memory_layer_without_an_inline_listener(self) -> None:
        with override_settings(CHANNEL_LAYERS=IN_MEMORY, PGNOTIFY_GQL={}):
            message = sentence("pgnotify_gql.W001")
        assert message.startswith(
            "the channel layer is in-memory, so what run_listener relays reaches no other process"
        )
        assert "'INLINE_LISTENER': True" in message

    @pytest.mark.parametrize(("layers", "inline"), [(IN_MEMORY, True), (REDIS, False), (REDIS, True)])
    def test_w001_is_about_nothing_else(self, layers: Any, inline: bool) -> None:
        with override_settings(CHANNEL_LAYERS=layers, PGNOTIFY_GQL={"INLINE_LISTENER": inline}):
            assert ids() == []


class TestServer:
    @pytest.mark.parametrize("application", ["django.core", "django.contrib.staticfiles"])
    def test_w008_is_a_runserver_that_speaks_no_websocket(
        self, monkeypatch: pytest.MonkeyPatch, application: str
    ) -> None:
        running(monkeypatch, "runserver", application)
        message = sentence("pgnotify_gql.W008")
        assert message.startswith("this runserver is Django's own, which speaks no WebSocket")
        assert 'Put "daphne" first in INSTALLED_APPS' in message

    @pytest.mark.parametrize(
        ("command", "application"), [("runserver", "daphne"), ("check", "django.core"), ("migrate", "django.core")]
    )
    def test_w008_is_about_nothing_else(self, monkeypatch: pytest.MonkeyPatch, command: str, application: str) -> None:
        running(monkeypatch, command, application)
        assert ids() == []

    def test_w009_is_an_application_that_takes_no_sockets(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with override_settings(ASGI_APPLICATION="tests.test_checks.PLAIN_APPLICATION"):
            assert ids() == []  # it is not known what is being started
            running(monkeypatch, "runserver", "daphne")
            message = sentence("pgnotify_gql.W009")
        assert message.startswith("tests.test_checks.PLAIN_APPLICATION is Django's own ASGI application")
        assert "GraphqlSubscriptionConsumer.as_asgi(schema=schema)" in message

    @pytest.mark.parametrize("application", [None, "example.asgi.application", "tests.nowhere.application"])
    def test_w009_is_about_nothing_else(self, monkeypatch: pytest.MonkeyPatch, application: str | None) -> None:
        running(monkeypatch, "runserver", "daphne")
        with override_settings(ASGI_APPLICATION=application):
            assert ids() == []


def running(monkeypatch: pytest.MonkeyPatch, command: str, runserver_of: str) -> None:
    """Let this process be that of a command, in a project whose ``runserver`` an application has."""
    monkeypatch.setattr("sys.argv", ["manage.py", command])
    monkeypatch.setattr("pgnotify_gql.checks.get_commands", lambda: {"runserver": runserver_of})


class TestInstalled:
    def test_e009_is_a_watch_without_the_application(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(apps, "is_installed", lambda name: name != "pgnotify_gql")
        message = sentence("pgnotify_gql.E009")
        assert message.startswith("stock.item: watched, but pgnotify_gql is not in INSTALLED_APPS")
        assert 'Add "pgnotify_gql" to INSTALLED_APPS' in message

    def test_e009_is_not_about_a_project_that_watches_nothing(
        self, monkeypatch: pytest.MonkeyPatch, registry: Registry
    ) -> None:
        registry.remove("stock.item")
        monkeypatch.setattr(apps, "is_installed", lambda name: name != "pgnotify_gql")
        assert ids() == []

    def test_e009_is_registered_by_the_first_watch_and_not_by_the_application(self) -> None:
        """Or it would be missing where it is needed."""
        program = (
            "import django; from django.conf import settings; settings.configure(); django.setup();"
            "import pgnotify_gql.capture; from django.core.checks.registry import registry;"
            "print([check.__name__ for check in registry.registered_checks if 'pgnotify_gql' in check.__module__])"
        )
        output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
        assert output.stdout == "['check_installed']\n"


class TestWatches:
    def test_e003_is_a_watch_of_unknown_columns(self, registry: Registry) -> None:
        registry.add(Watch(make_model("Box", "box"), ("colour",)))
        assert sentence("pgnotify_gql.E003").startswith("the watch of stock.box names the column 'colour'")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"update_of": ["colour"]}, "names the column 'colour', which its table does not have"),
            ({"condition": Q(colour="red")}, "cannot be evaluated in a trigger: Cannot resolve keyword 'colour'"),
        ],
    )
    def test_e003_is_a_watch_whose_options_name_unknown_columns(
        self, registry: Registry, options: dict[str, Any], message: str
    ) -> None:
        registry.add(make_watch(make_model("Box", "box"), **options))
        assert message in sentence("pgnotify_gql.E003")

    @pytest.mark.parametrize("name", ["password", "passwd", "client_secret", "reset_token", "apikey", "private_key"])
    def test_w005_is_a_watch_that_copies_a_secret(self, registry: Registry, name: str) -> None:
        model = make_model("Account", "account", **{name: models.TextField()})
        for columns in ([name], "__all__"):
            registry.add(make_watch(model, columns=columns))
            assert sentence("pgnotify_gql.W005").startswith(
                f"the watch of stock.account copies {name} into the journal and through the channel layer"
            )
            registry.remove("stock.account")

    @pytest.mark.parametrize(
        "options",
        [{}, {"columns": ["id"]}, {"columns": "__all__", "exclude": ["password"]}, {"update_of": ["password"]}],
    )
    def test_w005_is_about_what_is_copied_only(self, registry: Registry, options: dict[str, Any]) -> None:
        registry.add(make_watch(make_model("Account", "account", password=models.TextField()), **options))
        assert [message for message in checks.run_checks() if message.id == "pgnotify_gql.W005"] == []

    def test_e004_is_a_watched_model_that_is_not_on_postgresql(self, sqlite: str) -> None:
        with override_settings(DATABASE_ROUTERS=[EverythingIn(sqlite)]):
            message = sentence("pgnotify_gql.E004")
        assert message.startswith("stock.item is watched, but its database 'sqlite' is sqlite")
        assert "or remove notify_on_model_changes()" in message

    def test_a_database_that_is_not_postgresql_is_not_asked_for_triggers(self, sqlite: str) -> None:
        with CaptureQueriesContext(connections[sqlite]) as asked:
            assert ids(sqlite) == []
        assert asked.captured_queries == []

    @pytest.fixture
    def sqlite(self) -> Iterator[str]:
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

    def test_e006_is_a_watched_model_whose_database_is_not_followed(self, second: dict[str, Any]) -> None:
        with override_settings(DATABASE_ROUTERS=[EverythingIn("second")]):
            assert sentence("pgnotify_gql.E006") == (
                "stock.item is watched, but its database 'second', to which the router writes it, is not followed "
                "Add 'second' to PGNOTIFY_GQL['DATABASES'], or remove notify_on_model_changes() from this model."
            )
            with override_settings(PGNOTIFY_GQL=following("default", "second")):
                assert ids() == []

    def test_e006_is_a_watched_model_whose_database_is_not_there(self) -> None:
        with override_settings(DATABASE_ROUTERS=[EverythingIn("nowhere")]):
            assert "stock.item is watched, but its database 'nowhere'" in sentence("pgnotify_gql.E006")


def following(*aliases: str) -> dict[str, Any]:
    """Settings that follow these databases."""
    return {"DATABASES": aliases, "INLINE_LISTENER": True}


class EverythingIn:
    """A router that puts every model into one database."""

    def __init__(self, alias: str) -> None:
        self.alias = alias

    def db_for_write(self, model: type[models.Model], **hints: Any) -> str:
        return self.alias


class TestTriggers:
    def test_w002_is_a_missing_journal(self, database: Database) -> None:
        database.connect().execute("drop schema pgnotify_gql cascade")
        assert sentence("pgnotify_gql.W002", "default") == (
            "database 'default' has no journal: run `manage.py migrate pgnotify_gql --database default` first"
        )

    def test_w003_is_a_table_without_triggers(self, database: Database) -> None:
        call_command("uninstall_triggers", stdout=StringIO())
        assert sentence("pgnotify_gql.W003", "default") == (
            "the triggers of stock.item are MISSING in database 'default' Run `manage.py install_triggers`."
        )

    def test_w003_is_a_table_with_triggers_of_another_watch(self, database: Database, registry: Registry) -> None:
        registry.remove("stock.item")
        registry.add(Watch(Item))
        assert "stock.item are OUTDATED" in sentence("pgnotify_gql.W003", "default")

    def test_w003_is_a_table_whose_watch_is_gone(self, database: Database, registry: Registry) -> None:
        registry.remove("stock.item")
        database.connect().execute("create table box (id bigint primary key)")
        registry.add(Watch(make_model("Box", "box")))
        assert [str(message.msg) for message in found("default")] == [
            "the triggers of stock.box are MISSING in database 'default'",
            "the triggers of stock.item are ORPHANED in database 'default'",
        ]

    def test_w003_is_what_wake_says_otherwise(self, database: Database) -> None:
        with override_settings(PGNOTIFY_GQL={"WAKE": "poll", "INLINE_LISTENER": True}):
            assert "stock.item are OUTDATED" in sentence("pgnotify_gql.W003", "default")

    def test_w004_is_a_watch_that_cannot_be_captured(self, database: Database, registry: Registry) -> None:
        database.connect().execute("create view box as select 1 as id")
        registry.add(Watch(make_model("Box", "box")))
        assert sentence("pgnotify_gql.W004", "default") == (
            'stock.box cannot be watched: "box" is a view: watch the tables behind it'
        )

    def test_a_table_that_a_migration_has_yet_to_make_is_no_warning(
        self, database: Database, registry: Registry
    ) -> None:
        """`migrate` runs the checks before it makes the table."""
        registry.add(Watch(make_model("Box", "box")))
        assert ids("default") == []

    def test_a_database_that_was_never_migrated_is_no_warning(self, empty_database: Database) -> None:
        with used_by_django(empty_database):
            assert ids("default") == []

    @override_settings(SILENCED_SYSTEM_CHECKS=[])
    def test_w006_is_two_phase_commit_where_writers_ring(self, database: Database) -> None:
        assert sentence("pgnotify_gql.W006", "default") == (
            "database 'default' allows prepared transactions (max_prepared_transactions = 20), but a transaction that "
            "has rung cannot be prepared Set PGNOTIFY_GQL['WAKE'] = \"poll\" if the application uses two-phase commit "
            "(PREPARE TRANSACTION); if it does not, put pgnotify_gql.W006 into SILENCED_SYSTEM_CHECKS."
        )

    @override_settings(SILENCED_SYSTEM_CHECKS=[])
    def test_w006_is_not_about_writers_who_never_ring(self, database: Database) -> None:
        with override_settings(PGNOTIFY_GQL={"WAKE": "poll", "INLINE_LISTENER": True}):
            call_command("install_triggers", stdout=StringIO())
            assert ids("default") == []

    @override_settings(SILENCED_SYSTEM_CHECKS=[])
    def test_w006_is_not_about_a_server_without_two_phase_commit(self, own_database: Database) -> None:
        call_command("install_triggers", stdout=StringIO())
        assert ids("default") == ["pgnotify_gql.W006"]
        own_database.connect().execute("alter system set max_prepared_transactions = 0")
        restart(own_database.server)
        assert ids("default") == []

    @override_settings(SILENCED_SYSTEM_CHECKS=[])
    def test_a_server_in_recovery_is_no_warning(self, own_database: Database) -> None:
        """It has what its primary has: without triggers there, all that could be said is said there."""
        assert ids("default") == ["pgnotify_gql.W003", "pgnotify_gql.W006"]
        standby = own_database.server.data_directory / "standby.signal"
        standby.touch()
        restart(own_database.server)
        try:
            assert own_database.connect().execute("select pg_is_in_recovery()").fetchone() == (True,)
            assert ids("default") == []
        finally:
            # Nothing can be dropped while it is one.
            standby.unlink()
            restart(own_database.server)

    def test_no_database_is_asked_unless_it_is_named(self) -> None:
        """The settings of the test run lead to no database: asking it would fail."""
        assert ids() == []

    def test_within_tests_nothing_is_said_of_triggers(
        self, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Their database has none until a test installs them; Django's test environment is known by its outbox."""
        call_command("uninstall_triggers", stdout=StringIO())
        assert ids("default") == ["pgnotify_gql.W003"]
        monkeypatch.setattr(mail, "outbox", [], raising=False)
        assert ids("default") == []

    def test_nothing_is_said_of_a_list_of_documents_that_can_be_read(self, tmp_path: Path) -> None:
        (tmp_path / "documents.json").write_text('{"a hash": "{ __typename }"}')
        with override_settings(PGNOTIFY_GQL={"ALLOWED_DOCUMENTS": str(tmp_path / "documents.json")}):
            assert "pgnotify_gql.E008" not in ids()

    def test_a_database_that_is_down_is_left_to_the_checks_of_django(self) -> None:
        from pgnotify_gql.checks import check_triggers

        assert check_triggers(databases=["default"]) == []


def test_warnings_do_not_keep_migrate_from_mending_what_they_are_about(database: Database) -> None:
    database.connect().execute("drop schema pgnotify_gql cascade; delete from django_migrations")
    database.connect().execute("insert into django_migrations (app, name, applied) values ('none', 'none', now())")
    call_command("migrate", "pgnotify_gql", verbosity=0, stderr=StringIO())
    assert ids("default") == ["pgnotify_gql.W003"]
