"""
Migration files with the SQL of an application's watches.

What earlier files installed is found in the migrations themselves, by their operations, so a new file is written only
for models whose SQL is another one now, and going back restores what was there.  Renamed and deleted models are
followed on the way.  The database is asked one thing, which no migration tells: whether a table has partitions or
children.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from django.apps import apps
from django.db import router
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations import Migration
from django.db.migrations.autodetector import MigrationAutodetector
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.operations import DeleteModel, RenameModel, SeparateDatabaseAndState
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ProjectState
from django.db.migrations.writer import MigrationWriter

from ..errors import InstallError, TableMissingError
from ..version import __version__
from . import catalog
from .catalog import Relation
from .function import named_columns
from .operations import ModelTriggerOperation, RunTriggerSql
from .script import NO_OID, Script, imagined, make_script, removal, retargeted
from .templates import read
from .watch import Watch, column_of, table_of

JOURNAL_APP = "pgnotify_gql"

TEMPLATE = "triggers_migration_v1.py.tmpl"


@dataclass
class TriggerMigration:
    """A migration to be written, unless it has no operations."""

    app_label: str
    number: int = 1
    dependencies: list[tuple[str, str]] = field(default_factory=list)
    operations: list[RunTriggerSql] = field(default_factory=list)
    present: list[str] = field(default_factory=list)
    """The migrations, as ``chat.0005_install_triggers``, whose triggers are to stay as they are."""
    assumed: list[str] = field(default_factory=list)
    """The models whose tables were not there to look at."""

    def path(self, name: str) -> Path:
        """Return where a migration of this name is written."""
        return Path(MigrationWriter(Migration(self._full(name), self.app_label)).path)

    def text(self) -> str:
        """Return the Python code of the migration."""
        return read(TEMPLATE).format(
            version=__version__,
            app=self.app_label,
            dependencies="\n".join(f"        {dependency!r}," for dependency in self.dependencies).replace("'", '"'),
            operations="\n".join(map(_operation_text, self.operations)),
        )

    def _full(self, name: str) -> str:
        return f"{self.number:04}_{name}"


@dataclass(frozen=True)
class _Earlier:
    """The operation that last installed or removed a model's triggers, and its migration."""

    operation: RunTriggerSql
    migration: str


def plan_migration(
    connection: BaseDatabaseWrapper, app_label: str, watches: Iterable[Watch], *, rings: bool
) -> TriggerMigration:
    """
    Return the migration that brings an application's migrations in step with its watches.

    Raises InstallError when the application has no place for it, WatchError.
    """
    loader = MigrationLoader(None, ignore_no_migrations=True)
    leaves = _leaves(loader, app_label)
    state = loader.project_state()
    earlier = _earlier(loader, app_label, leaves)
    own = [watch for watch in watches if watch.model._meta.app_label == app_label]
    if not own and not earlier:
        raise InstallError(
            f"no model of {app_label} is watched: call notify_on_model_changes() on those whose changes to capture"
        )
    numbers = [MigrationAutodetector.parse_number(name) or 0 for _, name in leaves]
    migration = TriggerMigration(app_label, max(numbers) + 1, _dependencies(loader, leaves, own))
    for watch in own:
        last = earlier.pop(watch.label, None)
        _add(migration, _script(connection, watch, state, last, migration.assumed, rings=rings), last)
    for label, last in earlier.items():
        table = table_of(state.apps.get_model(label), connection)
        _add(migration, Script(label, table, removal(label, table), []), last)
    return migration


def _leaves(loader: MigrationLoader, app_label: str) -> list[tuple[str, str]]:
    try:
        apps.get_app_config(app_label)
    except LookupError as error:
        raise InstallError(str(error)) from error
    if app_label not in loader.migrated_apps:
        raise InstallError(f"{app_label} has no migrations: run `manage.py makemigrations {app_label}` first")
    leaves: list[tuple[str, str]] = loader.graph.leaf_nodes(app_label)
    if not leaves:
        raise InstallError(f"{app_label} has no migration yet: run `manage.py makemigrations {app_label}` first")
    if len(leaves) > 1:
        names = ", ".join(name for _, name in leaves)
        raise InstallError(
            f"{app_label} has several last migrations ({names}): run `manage.py makemigrations --merge` first"
        )
    return leaves


def _dependencies(
    loader: MigrationLoader, leaves: Sequence[tuple[str, str]], watches: Iterable[Watch]
) -> list[tuple[str, str]]:
    """Return the last migrations of the application, of the journal, and of those whose tables its proxies have."""
    others = {watch.model._meta.concrete_model._meta.app_label for watch in watches if watch.model._meta.concrete_model}
    others = (others & loader.migrated_apps) - {leaves[0][0]}
    found = list(leaves)
    for app_label in sorted(others | {JOURNAL_APP}):
        found += loader.graph.leaf_nodes(app_label)
    return list(dict.fromkeys(found))


def _earlier(loader: MigrationLoader, app_label: str, leaves: Sequence[tuple[str, str]]) -> dict[str, _Earlier]:
    """Return what last happened to the triggers of each model, by the label it has now, as far as it is known."""
    found: dict[str, _Earlier] = {}
    for key in loader.graph.forwards_plan(leaves[0]):
        if key[0] != app_label:
            continue
        for operation in _flat(loader.graph.nodes[key].operations):
            match operation:
                case RunTriggerSql():
                    found[operation.label] = _Earlier(operation, ".".join(key))
                case RenameModel():
                    if moved := found.pop(f"{app_label}.{operation.old_name_lower}", None):
                        found[f"{app_label}.{operation.new_name_lower}"] = moved
                case DeleteModel() | ModelTriggerOperation():
                    found.pop(f"{app_label}.{operation.name.lower()}", None)
    return found


def _flat(operations: Iterable[Operation]) -> Iterator[Operation]:
    for operation in operations:
        if isinstance(operation, SeparateDatabaseAndState):
            yield from _flat([*operation.database_operations, *operation.state_operations])
        else:
            yield operation


def _script(
    connection: BaseDatabaseWrapper,
    watch: Watch,
    state: ProjectState,
    last: _Earlier | None,
    assumed: list[str],
    *,
    rings: bool,
) -> Script:
    _require_migrated(connection, watch, state)
    relation = _relation(connection, watch)
    if relation is not None:
        return make_script(connection, watch, relation, rings=rings)
    table = table_of(watch.model, connection)
    possible = [imagined(table), imagined(table, partitioned=True), imagined(table, has_parent=True)]
    scripts = [make_script(connection, watch, each, rings=rings) for each in possible]
    # Where the table is not there to look at (as when a build checks), an earlier migration knows what it is.
    for script in scripts:
        if last is not None and script.install == last.operation.forward:
            return script
    assumed.append(watch.label)
    return scripts[0]


def _require_migrated(connection: BaseDatabaseWrapper, watch: Watch, state: ProjectState) -> None:
    """Raise InstallError unless the migrations make what the watch names: the file would fail where it is run."""
    missing = ""
    model: Any = None
    try:
        model = state.apps.get_model(watch.model._meta.app_label, watch.model._meta.model_name or "")
    except LookupError:
        missing = "its table"
    if model is not None:
        made = {column_of(each) for each in (model._meta.concrete_model or model)._meta.local_concrete_fields}
        named = [*named_columns(watch), *map(column_of, watch.condition_fields)]
        missing = ", ".join(f"column {column}" for column in dict.fromkeys(named) if column not in made)
        if model._meta.db_table != watch.model._meta.db_table:
            missing = f"the table {table_of(watch.model, connection)}"
    if missing:
        raise InstallError(
            f"the migrations of {watch.model._meta.app_label} do not make {missing} of {watch.label}: "
            f"run `manage.py makemigrations {watch.model._meta.app_label}` first"
        )


def _relation(connection: BaseDatabaseWrapper, watch: Watch) -> Relation | None:
    """Return the watch's table, or None when it is not in this database (yet)."""
    if not router.allow_migrate_model(connection.alias, watch.model):
        return None
    with suppress(TableMissingError):
        return catalog.find_relation(connection, watch)
    with suppress(TableMissingError):
        # Columns come with migrations that were not run here yet; what kind of table it is shows without them.
        return replace(catalog.find_relation(connection, Watch(watch.model)), oid=NO_OID)
    return None


def _add(migration: TriggerMigration, script: Script, last: _Earlier | None) -> None:
    if last is None:
        backward = script.remove
    elif last.operation.forward == script.install:
        migration.present.append(last.migration)
        return
    else:
        backward = retargeted(last.operation.forward, last.operation.table, script.table)
    migration.operations.append(RunTriggerSql(script.label, script.table, script.install, backward))


def _operation_text(operation: RunTriggerSql) -> str:
    lines = [
        "        RunTriggerSql(",
        f"            {_literal(operation.label)},",
        f"            table={_literal(operation.table)},",
        "            forward=[",
        *(f"                {_literal(statement)}," for statement in operation.forward),
        "            ],",
        "            backward=[",
        *(f"                {_literal(statement)}," for statement in operation.backward),
        "            ],",
        "        ),",
    ]
    return "\n".join(lines)


def _literal(text: str) -> str:
    """Return a Python literal, over several lines where the text has several."""
    printable = text.replace("\n", "").isprintable()
    if "\n" not in text or '"""' in text or text.endswith('"') or not printable:
        return repr(text)
    escaped = text.replace("\\", "\\\\")
    return f'"""{escaped}"""'
