"""
System checks: what can be known to be wrong before anything runs.

Ids are stable.  Those that ask the database run with ``manage.py check --database NAME`` and with ``migrate``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from django.conf import settings as django_settings
from django.core import mail
from django.core.checks import CheckMessage, Error, Tags, register
from django.core.checks import Warning as CheckWarning
from django.core.handlers.asgi import ASGIHandler
from django.core.management import get_commands
from django.db import Error as DatabaseError
from django.db import connections, router
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.recorder import MigrationRecorder
from django.utils.module_loading import import_string

from . import conf
from .capture.catalog import Status
from .capture.condition import resolve_condition
from .capture.installer import Plan, plan_install
from .capture.registry import registry
from .capture.watch import Watch
from .errors import ConfigurationError, JournalMissingError, ReadOnlyDatabaseError, TableMissingError, WatchError

IN_MEMORY_LAYER = "channels.layers.InMemoryChannelLayer"

WITHOUT_SOCKETS = {"django.core", "django.contrib.staticfiles"}
"""Applications whose ``runserver`` is a WSGI server."""

SECRET = re.compile(r"passw|passphrase|secret|token|credential|(api|private)_?key", re.IGNORECASE)
"""Names of fields whose values should not be copied; Django's users have a ``password``."""


@register()
def check_settings(**kwargs: Any) -> list[Error]:
    """
    E001: a mistake in PGNOTIFY_GQL. E002: an alias in it does not exist, or leads where another does.

    E008: its list of documents cannot be read.
    """
    values = getattr(django_settings, conf.NAME, {})
    mistakes = conf.find_mistakes(values)
    if mistakes:
        return [Error(mistake, id="pgnotify_gql.E001") for mistake in mistakes]
    settings = conf.read(values)
    aliases = settings.DATABASES
    unknown = [conf.unknown_alias(alias) for alias in aliases if alias not in connections]
    found = [Error(mistake, id="pgnotify_gql.E002") for mistake in unknown + _same_database(aliases)]
    return found + _check_documents(settings.ALLOWED_DOCUMENTS)


def _check_documents(path: str) -> list[Error]:
    if not path:
        return []
    # Of the layers that serve subscriptions nothing is loaded where a process only migrates.
    from .transport.allowed_documents import AllowedDocuments

    try:
        AllowedDocuments.read(path)
    except ConfigurationError as error:
        return [Error(str(error), id="pgnotify_gql.E008")]
    return []


def _same_database(aliases: Sequence[str]) -> list[str]:
    """
    Return a sentence for each alias that leads where one before it does.

    A listener would lead there under one of the names only, and changes of the other's models would reach nobody.  A
    mirror leads to the database it mirrors only while tests run, and is left alone.
    """
    mistakes = []
    known: dict[tuple[str, ...], str] = {}
    for alias in aliases:
        if alias not in connections or connections[alias].settings_dict["TEST"].get("MIRROR"):
            continue
        place = _place(connections[alias].settings_dict)
        first = known.setdefault(place, alias)
        if first != alias:
            mistakes.append(
                f"{conf.NAME}['DATABASES'] names '{first}' and '{alias}', which lead to the same database: name the "
                "one to which the router writes"
            )
    return mistakes


def _place(database: Mapping[str, Any]) -> tuple[str, ...]:
    service = database.get("OPTIONS", {}).get("service")
    return tuple(str(part or "") for part in (database["NAME"], database["HOST"], database["PORT"], service))


@register()
def check_watches(**kwargs: Any) -> list[CheckMessage]:
    """
    E003: a watch that names unknown columns.  W005: one that would copy a secret into the journal.

    E004: a watched model whose database is not PostgreSQL.  E006: one whose database is not followed.
    """
    found: list[CheckMessage] = []
    for watch in registry:
        try:
            found += _check_secrets_of(watch)
            watch.decisive_fields  # noqa: B018  (resolves the names)
            if watch.condition is not None:
                resolve_condition(watch)
        except WatchError as error:
            found.append(Error(str(error), obj=watch.model, id="pgnotify_gql.E003"))
        found += _check_database_of(watch)
    return found


def _check_secrets_of(watch: Watch) -> list[CheckMessage]:
    secrets = [field.name for field in watch.fields if SECRET.search(field.name)]
    if not secrets:
        return []
    return [
        CheckWarning(
            f"the watch of {watch.label} copies {', '.join(secrets)} into the journal and through the channel layer",
            hint=f'Leave it out of columns=, or add exclude={secrets!r} to columns="__all__"; '
            "if it is no secret, put pgnotify_gql.W005 into SILENCED_SYSTEM_CHECKS.",
            obj=watch.model,
            id="pgnotify_gql.W005",
        )
    ]


def _check_database_of(watch: Watch) -> list[CheckMessage]:
    alias = router.db_for_write(watch.model)
    if alias in connections and connections[alias].vendor != "postgresql":
        return [
            Error(
                f"{watch.label} is watched, but its database '{alias}' is {connections[alias].vendor}",
                hint="Triggers and the journal need PostgreSQL: use django.db.backends.postgresql, "
                "or remove notify_on_model_changes() from this model.",
                obj=watch.model,
                id="pgnotify_gql.E004",
            )
        ]
    values = getattr(django_settings, conf.NAME, {})
    if conf.find_mistakes(values) or alias in conf.read(values).DATABASES:
        return []
    return [
        Error(
            f"{watch.label} is watched, but its database '{alias}', to which the router writes it, is not followed",
            hint=f"Add '{alias}' to {conf.NAME}['DATABASES'], or remove notify_on_model_changes() from this model.",
            obj=watch.model,
            id="pgnotify_gql.E006",
        )
    ]


@register()
def check_channel_layer(**kwargs: Any) -> list[CheckMessage]:
    """E005: the channel layer is not configured. W001: it is in-memory, and no listener runs in this process."""
    if conf.find_mistakes(getattr(django_settings, conf.NAME, {})):
        return []
    settings = conf.get_settings()
    layers = getattr(django_settings, "CHANNEL_LAYERS", {})
    if settings.CHANNEL_LAYER not in layers:
        return [
            Error(
                f"CHANNEL_LAYERS has no '{settings.CHANNEL_LAYER}'",
                hint='For one process: CHANNEL_LAYERS = {"default": {"BACKEND": "'
                f'{IN_MEMORY_LAYER}"}}}}; for several: channels_redis.',
                id="pgnotify_gql.E005",
            )
        ]
    if layers[settings.CHANNEL_LAYER].get("BACKEND") == IN_MEMORY_LAYER and not settings.INLINE_LISTENER:
        return [
            CheckWarning(
                "the channel layer is in-memory, so what run_listener relays reaches no other process",
                hint=f"Set {conf.NAME} = {{'INLINE_LISTENER': True}}, or use channels_redis.",
                id="pgnotify_gql.W001",
            )
        ]
    return []


@register()
def check_server(**kwargs: Any) -> list[CheckMessage]:
    """
    W008: the server that is being started speaks no WebSocket.  W009: its application takes no sockets.

    Of ``runserver`` alone it is known what is being started; that of Daphne imports the application in any case.
    """
    if sys.argv[1:2] != ["runserver"]:
        return []
    if get_commands().get("runserver") not in WITHOUT_SOCKETS:
        return _check_asgi_application(getattr(django_settings, "ASGI_APPLICATION", None))
    return [
        CheckWarning(
            "this runserver is Django's own, which speaks no WebSocket: it answers subscribers with 404",
            hint='Put "daphne" first in INSTALLED_APPS (pip install "pgnotify_gql[daphne]") and name your '
            "ASGI_APPLICATION, or start another ASGI server in its place.",
            id="pgnotify_gql.W008",
        )
    ]


def _check_asgi_application(path: str | None) -> list[CheckMessage]:
    try:
        application = import_string(path) if path else None
    except Exception:
        return []  # the server says so, with a traceback
    if not isinstance(application, ASGIHandler):
        return []
    return [
        CheckWarning(
            f"{path} is Django's own ASGI application, which takes HTTP only: subscribers get an error",
            hint='Wrap it: ProtocolTypeRouter({"http": get_asgi_application(), "websocket": ...}), with '
            "GraphqlSubscriptionConsumer.as_asgi(schema=schema) in the place of the dots.",
            id="pgnotify_gql.W009",
        )
    ]


@register()
def check_subscriptions(**kwargs: Any) -> list[CheckMessage]:
    """
    E007: a subscription that cannot work.  W007: one that tells nobody of rows that have gone.

    Those of the schema that GRAPHENE names.  W010: it names one that is not there.
    """
    found: list[CheckMessage] = []
    try:
        subscriptions = _model_subscriptions()
    except ConfigurationError as error:
        # Raised by the class statement: the schema cannot be imported.
        return [Error(str(error), id="pgnotify_gql.E007")]
    except ImportError as error:
        return [
            CheckWarning(
                f"the schema that GRAPHENE['SCHEMA'] names cannot be imported: {error}",
                hint='It is a path such as "chat.schema.schema"; without it subscriptions are not checked.',
                id="pgnotify_gql.W010",
            )
        ]
    for subscription in subscriptions:
        found += [
            Error(f"{subscription.__name__}: {mistake}", obj=subscription, id="pgnotify_gql.E007")
            for mistake in subscription.mistakes()
        ]
        found += _check_can_see_of(subscription)
    return found


def _check_can_see_of(subscription: Any) -> list[CheckMessage]:
    if not subscription.withholds():
        return []
    return [
        CheckWarning(
            f"{subscription.__name__} has no can_see(), so nobody is told of a row that was deleted, has left or is "
            "hidden now",
            hint="Add a classmethod can_see(cls, change, info) that returns whether the subscriber could see the row "
            "as it was, from change.old; for rows that everybody may see, return True. Where nobody needs to be told, "
            "put pgnotify_gql.W007 into SILENCED_SYSTEM_CHECKS.",
            obj=subscription,
            id="pgnotify_gql.W007",
        )
    ]


def _model_subscriptions() -> list[Any]:
    """Return those of the schema that GRAPHENE names.  Raises ImportError, and ConfigurationError."""
    name = conf.schema()
    if not name:
        return []
    schema = import_string(name) if isinstance(name, str) else name
    # Its resolvers are methods of what it was mounted from.
    graphql_schema = getattr(schema, "graphql_schema", schema)
    fields = graphql_schema.subscription_type.fields.values() if graphql_schema.subscription_type else ()
    mounted = [getattr(field.subscribe, "__self__", None) for field in fields]
    return [each for each in mounted if hasattr(each, "withholds")]


@register(Tags.database)
def check_triggers(*, databases: Sequence[str] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """
    W002: the journal is missing. W003: triggers out of step. W004: a watch that cannot be captured.

    W006: writers ring, on a server that has two-phase commit.  A replica has what its primary has: nothing is said of
    it.  Warnings, because `migrate` runs this check before it mends what it finds, and errors would stop it.
    """
    found: list[CheckMessage] = []
    if conf.find_mistakes(getattr(django_settings, conf.NAME, {})):
        return found  # check_settings reports them
    if hasattr(mail, "outbox"):
        return found  # within tests, which install triggers where they need them
    rings = conf.get_settings().WAKE == "notify"
    for alias in databases or ():
        connection = connections[alias]
        watches = [watch for watch in registry if router.allow_migrate_model(alias, watch.model)]
        if connection.vendor != "postgresql" or not watches:
            continue
        try:
            if not MigrationRecorder(connection).has_table():
                continue  # a new database, about to be migrated
            found += _check_plan(plan_install(connection, watches, rings=rings))
            found += _check_two_phase_commit(connection) if rings else []
        except JournalMissingError as error:
            found.append(CheckWarning(str(error), id="pgnotify_gql.W002"))
        except ReadOnlyDatabaseError:
            continue  # what is said of its primary is enough
        except DatabaseError:
            continue  # Django's own checks report a database that is down
    return found


def _check_plan(plan: Plan) -> list[CheckMessage]:
    found: list[CheckMessage] = [
        CheckWarning(str(error), id="pgnotify_gql.W004")
        for error in plan.errors
        if not isinstance(error, TableMissingError)
    ]
    found += [
        CheckWarning(
            f"the triggers of {step.label} are {step.status} in database '{plan.database}'",
            hint="Run `manage.py install_triggers`.",
            id="pgnotify_gql.W003",
        )
        for step in plan.steps
        if step.status is not Status.INSTALLED
    ]
    return found


def _check_two_phase_commit(connection: BaseDatabaseWrapper) -> list[CheckMessage]:
    with connection.cursor() as cursor:
        cursor.execute("show max_prepared_transactions")
        allowed = int(cursor.fetchone()[0])
    if not allowed:
        return []
    return [
        CheckWarning(
            f"database '{connection.alias}' allows prepared transactions (max_prepared_transactions = {allowed}), but "
            "a transaction that has rung cannot be prepared",
            hint=f"Set {conf.NAME}['WAKE'] = \"poll\" if the application uses two-phase commit (PREPARE TRANSACTION); "
            "if it does not, put pgnotify_gql.W006 into SILENCED_SYSTEM_CHECKS.",
            id="pgnotify_gql.W006",
        )
    ]
