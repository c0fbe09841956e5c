"""
Migration operations that install and remove triggers.

``InstallTriggers`` and ``UninstallTriggers`` are written by hand, with the options of ``notify_on_model_changes``.
They see the model as the migrations before them left it, so they go into the same migration as whatever alters it,
after that: then there is no moment without capture.  ``RunTriggerSql`` is what ``install_triggers --migration`` writes;
its SQL is as it was then.

A table is locked as ``locking`` describes, so that nobody queues behind a migration that waits.  Each operation is a
transaction of its own where its migration has ``atomic = False``.  In an atomic one, the lock of a table is kept until
the migration ends, and so is the one by which installations take turns: put few and quick operations beside them.

All of them leave alone what is no PostgreSQL database, is a replica, or is closed to the model by a router.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from django.db import router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.operations.base import Operation, OperationCategory
from django.db.migrations.state import ProjectState
from django.db.models import Model, Q
from psycopg import sql

from ..conf import get_settings
from ..errors import InstallError, ReadOnlyDatabaseError, TableMissingError
from . import catalog
from .kinds import Kind
from .locking import ATTEMPTS, LOCK_TIMEOUT, LockMode, lock_tables, try_again
from .registry import make_watch
from .script import imagined, make_script, removal
from .watch import Columns, Watch, table_of

logger = logging.getLogger("pgnotify_gql.capture")

FAMILY = """
    with recursive family (oid) as (
        select to_regclass(%s)::oid
        union
        select i.inhrelid from family join pg_inherits i on i.inhparent = family.oid
    )
    select oid from family where oid is not null
"""


class TriggerOperation(Operation):
    """Runs statements, or prints them for ``sqlmigrate``; the state of the models is none of its business."""

    category = OperationCategory.SQL

    def state_forwards(self, app_label: str, state: ProjectState) -> None:
        pass


class RunTriggerSql(TriggerOperation):
    """
    Runs the statements of one model's triggers as they were when the migration was written.

    `label` is the model's, as in ``chat.message``; `table` the quoted name of its table, which is locked first.
    """

    serialization_expand_args = ["forward", "backward"]

    def __init__(self, label: str, table: str, forward: Sequence[str], backward: Sequence[str]) -> None:
        self.label = label
        self.table = table
        self.forward = list(forward)
        self.backward = list(backward)

    @property
    def installs(self) -> bool:
        """Return whether there are triggers afterwards."""
        return makes_triggers(self.forward)

    def deconstruct(self) -> tuple[str, Sequence[Any], dict[str, Any]]:
        arguments = {"label": self.label, "table": self.table, "forward": self.forward, "backward": self.backward}
        return type(self).__name__, [], arguments

    def database_forwards(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, from_state: ProjectState, to_state: ProjectState
    ) -> None:
        self._run(schema_editor, self.forward)

    def database_backwards(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, from_state: ProjectState, to_state: ProjectState
    ) -> None:
        self._run(schema_editor, self.backward)

    def _run(self, schema_editor: BaseDatabaseSchemaEditor, statements: Sequence[str]) -> None:
        app_label, _, model_name = self.label.partition(".")
        alias = schema_editor.connection.alias
        if is_capturing(schema_editor) and router.allow_migrate(alias, app_label, model_name=model_name):
            run(schema_editor, self.label, self.table, statements)

    def describe(self) -> str:
        return f"{'Install' if self.installs else 'Remove'} the triggers of {self.label}"

    @property
    def migration_name_fragment(self) -> str:
        return f"{'install' if self.installs else 'remove'}_triggers_{self.label.partition('.')[2]}"

    def references_model(self, name: str, app_label: str) -> bool:
        return f"{app_label}.{name}".lower() == self.label.lower()


class ModelTriggerOperation(TriggerOperation):
    """Has a model of the migration's own application, and the options of a watch."""

    def __init__(
        self,
        name: str,
        columns: Columns = None,
        exclude: Iterable[str] = (),
        kinds: Iterable[Kind | str] | None = None,
        update_of: Iterable[str] = (),
        condition: Q | None = None,
        replicated: bool = False,
    ) -> None:
        self.name = name
        self.options: dict[str, Any] = {
            "columns": columns if columns is None or isinstance(columns, str) else list(columns),
            "exclude": exclude if isinstance(exclude, str) else list(exclude),
            "kinds": kinds if kinds is None or isinstance(kinds, str) else [str(kind) for kind in kinds],
            "update_of": update_of if isinstance(update_of, str) else list(update_of),
            "condition": condition,
            "replicated": replicated,
        }

    def deconstruct(self) -> tuple[str, Sequence[Any], dict[str, Any]]:
        given = {option: value for option, value in self.options.items() if value}
        return type(self).__name__, [self.name], given

    def references_model(self, name: str, app_label: str) -> bool:
        return name.lower() == self.name.lower()

    def _install(self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, state: ProjectState) -> None:
        model = self._model(app_label, schema_editor, state)
        if model is not None:
            watch = make_watch(model, **self.options)
            relation = _relation(schema_editor, watch)
            script = make_script(schema_editor.connection, watch, relation, rings=get_settings().WAKE == "notify")
            run(schema_editor, script.label, script.table, script.install)

    def _uninstall(self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, state: ProjectState) -> None:
        model = self._model(app_label, schema_editor, state)
        if model is not None:
            label = model._meta.label_lower
            table = table_of(model, schema_editor.connection)
            run(schema_editor, label, table, removal(label, table))

    def _model(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, state: ProjectState
    ) -> type[Model] | None:
        """Return the model as it is in a state, or None where its triggers are not wanted."""
        model = state.apps.get_model(app_label, self.name)
        wanted = is_capturing(schema_editor) and router.allow_migrate_model(schema_editor.connection.alias, model)
        return model if wanted and not model._meta.swapped else None


class InstallTriggers(ModelTriggerOperation):
    """
    Installs the triggers of a watch, in place of those that the model's table has.

    ``InstallTriggers("message", columns=["text"])`` takes the options of ``notify_on_model_changes`` and installs what
    ``install_triggers`` would for a watch with the same.  Reversed, it removes the triggers.

    Raises WatchError for options that do not fit the model as it is at this place among the migrations, and
    InstallError when its table stays locked.
    """

    def database_forwards(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, from_state: ProjectState, to_state: ProjectState
    ) -> None:
        self._install(app_label, schema_editor, to_state)

    def database_backwards(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, from_state: ProjectState, to_state: ProjectState
    ) -> None:
        self._uninstall(app_label, schema_editor, from_state)

    def describe(self) -> str:
        return f"Install the triggers of {self.name}"

    @property
    def migration_name_fragment(self) -> str:
        return f"install_triggers_{self.name.lower()}"


class UninstallTriggers(ModelTriggerOperation):
    """Removes a model's triggers, whatever watch they were made for; reversed, it installs those of its options."""

    def database_forwards(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, from_state: ProjectState, to_state: ProjectState
    ) -> None:
        self._uninstall(app_label, schema_editor, from_state)

    def database_backwards(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, from_state: ProjectState, to_state: ProjectState
    ) -> None:
        self._install(app_label, schema_editor, to_state)

    def describe(self) -> str:
        return f"Remove the triggers of {self.name}"

    @property
    def migration_name_fragment(self) -> str:
        return f"remove_triggers_{self.name.lower()}"


def makes_triggers(statements: Iterable[str]) -> bool:
    """Return whether there are triggers after these statements."""
    return any("create or replace trigger" in statement for statement in statements)


def is_capturing(schema_editor: BaseDatabaseSchemaEditor) -> bool:
    """Return whether a database is one in which triggers are installed."""
    connection = schema_editor.connection
    if connection.vendor != "postgresql":
        return False
    if schema_editor.collect_sql:
        return True
    try:
        catalog.require_primary(connection)
    except ReadOnlyDatabaseError:
        return False
    return True


def run(schema_editor: BaseDatabaseSchemaEditor, label: str, table: str, statements: Sequence[str]) -> None:
    """
    Run statements about the triggers of a table in one transaction, with the table locked; or collect them.

    Raises TableMissingError, JournalMissingError, and InstallError when the table stays locked.
    """
    if schema_editor.collect_sql:
        for statement in statements:
            schema_editor.execute(statement, params=None)
        return
    if makes_triggers(statements):
        catalog.require_journal(schema_editor.connection)
    try:
        try_again(
            lambda: _run_once(schema_editor, label, table, statements),
            table=table, lock_timeout=LOCK_TIMEOUT, attempts=ATTEMPTS, waiting=lambda attempt: _waiting(table, attempt),
        )  # fmt: skip
    except InstallError as error:
        raise InstallError(
            f"the triggers of {label} are as they were before this operation, because {table} was locked by other "
            f"transactions in each of {ATTEMPTS} tries of {LOCK_TIMEOUT:g} s: run `manage.py migrate` again when it "
            "is less busy"
        ) from error
    logger.info("triggers of %s on %s brought in step by a migration", label, table)


def _run_once(schema_editor: BaseDatabaseSchemaEditor, label: str, table: str, statements: Sequence[str]) -> None:
    connection = schema_editor.connection
    with transaction.atomic(using=connection.alias):
        family = _family(connection, table)
        if not family and makes_triggers(statements):
            raise TableMissingError(
                f"the table {table} of {label} does not exist in database '{connection.alias}': let this operation "
                "come after the one that creates or renames it"
            )
        with connection.cursor() as cursor:
            cursor.execute("select current_setting('lock_timeout')")
            (before,) = cursor.fetchone()
        lock_tables(connection, family, _lock_mode(connection, family, statements), LOCK_TIMEOUT)
        for statement in statements:
            schema_editor.execute(statement, params=None)
        with connection.cursor() as cursor:
            # The rest of an atomic migration is not ours to limit.
            cursor.execute("select set_config('lock_timeout', %s, true)", [before])


def _family(connection: BaseDatabaseWrapper, table: str) -> list[int]:
    """Return the oids of a table and of all that descend from it; none when it does not exist."""
    with connection.cursor() as cursor:
        cursor.execute(FAMILY, [table])
        return [oid for (oid,) in cursor.fetchall()]


def _lock_mode(connection: BaseDatabaseWrapper, family: Sequence[int], statements: Sequence[str]) -> LockMode:
    """Return the strongest lock that the statements need: those of our triggers that they do not name are dropped."""
    text = "\n".join(statements)
    present = [t for t in catalog.installed_triggers(connection) if t.table_oid in family]
    dropped = any(sql.Identifier(t.name).as_string(None) not in text for t in present)
    return LockMode.ACCESS_EXCLUSIVE if dropped else LockMode.SHARE_ROW_EXCLUSIVE


def _relation(schema_editor: BaseDatabaseSchemaEditor, watch: Watch) -> catalog.Relation:
    connection = schema_editor.connection
    try:
        return catalog.find_relation(connection, watch)
    except TableMissingError:
        if not schema_editor.collect_sql:
            raise
        return imagined(table_of(watch.model, connection))


def _waiting(table: str, attempt: int) -> None:
    logger.warning("%s is locked (try %s); trying again", table, attempt)
