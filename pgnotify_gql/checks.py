"""
System checks: what can be known to be wrong before anything runs.

Ids are stable.  Those that ask the database run with ``manage.py check --database NAME`` and with ``migrate``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Error, Tags, register
from django.core.checks import Warning as CheckWarning
from django.db import Error as DatabaseError
from django.db import connections, router
from django.db.migrations.recorder import MigrationRecorder

from . import conf
from .capture.catalog import Status
from .capture.installer import plan_install
from .capture.registry import registry
from .errors import JournalMissingError, TableMissingError, WatchError

IN_MEMORY_LAYER = "channels.layers.InMemoryChannelLayer"


@register()
def check_settings(**kwargs: Any) -> list[CheckMessage]:
    """E001: a mistake in PGNOTIFY_GQL. E002: an alias in it that does not exist."""
    values = getattr(django_settings, conf.NAME, {})
    mistakes = conf.find_mistakes(values)
    if mistakes:
        return [Error(mistake, id="pgnotify_gql.E001") for mistake in mistakes]
    found: list[CheckMessage] = []
    settings = conf.read(values)
    if settings.DATABASE not in connections:
        found.append(
            Error(
                f"{conf.NAME}['DATABASE'] is '{settings.DATABASE}', which is not in DATABASES",
                id="pgnotify_gql.E002",
            )
        )
    return found


@register()
def check_watches(**kwargs: Any) -> list[CheckMessage]:
    """E003: a watch that names unknown columns. E004: a watched model whose database is not PostgreSQL."""
    found: list[CheckMessage] = []
    for watch in registry:
        try:
            watch.fields  # noqa: B018  (resolves the names)
        except WatchError as error:
            found.append(Error(str(error), obj=watch.model, id="pgnotify_gql.E003"))
        alias = router.db_for_write(watch.model)
        if connections[alias].vendor != "postgresql":
            found.append(
                Error(
                    f"{watch.label} is watched, but its database '{alias}' is {connections[alias].vendor}",
                    hint="Triggers and the journal need PostgreSQL: use django.db.backends.postgresql, "
                    "or remove notify_on_model_changes() from this model.",
                    obj=watch.model,
                    id="pgnotify_gql.E004",
                )
            )
    return found


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


@register(Tags.database)
def check_triggers(*, databases: Sequence[str] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """
    W002: the journal is missing. W003: triggers out of step. W004: a watch that cannot be captured.

    Warnings, because `migrate` runs this check before it mends what it finds, and errors would stop it.
    """
    found: list[CheckMessage] = []
    if conf.find_mistakes(getattr(django_settings, conf.NAME, {})):
        return found  # check_settings reports them
    for alias in databases or ():
        connection = connections[alias]
        watches = [watch for watch in registry if router.allow_migrate_model(alias, watch.model)]
        if connection.vendor != "postgresql" or not watches:
            continue
        try:
            if not MigrationRecorder(connection).has_table():
                continue  # a new database, about to be migrated
            plan = plan_install(connection, watches, rings=conf.get_settings().WAKE == "notify")
        except JournalMissingError as error:
            found.append(CheckWarning(str(error), id="pgnotify_gql.W002"))
            continue
        except DatabaseError:
            continue  # Django's own checks report a database that is down
        found += [
            CheckWarning(str(error), id="pgnotify_gql.W004")
            for error in plan.errors
            if not isinstance(error, TableMissingError)
        ]
        found += [
            CheckWarning(
                f"the triggers of {step.label} are {step.status} in database '{alias}'",
                hint="Run `manage.py install_triggers`.",
                id="pgnotify_gql.W003",
            )
            for step in plan.steps
            if step.status is not Status.INSTALLED
        ]
    return found
