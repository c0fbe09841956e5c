"""
An application of a test's own, with any number of models: their tables, their watches, and what the journal is told.

The models are known to nobody else, so the next test may make others of the same names.  Watches are installed and
removed by the commands that operators run.
"""

from __future__ import annotations

from io import StringIO
from typing import Any

from django.core.management import CommandError, call_command
from django.db import connection, models
from django.db.migrations.state import StateApps

from pgnotify_gql.capture.registry import Registry, make_watch
from pgnotify_gql.journal.change import Change
from tests.support.databases import Database
from tests.support.watched import journal_rows

APP = "stock"

COMMANDS = ("install_triggers", "uninstall_triggers")

# A row of a catalog that belongs to another object is told by its owner's entry in pg_depend.
OBJECTS = """
    select 'trigger', t.tgrelid::regclass::text, t.tgname::text, t.tgenabled::text from pg_trigger t
    where not t.tgisinternal
    union all select 'function', n.nspname::text, p.proname::text, '' from pg_proc p
    join pg_namespace n on n.oid = p.pronamespace where n.nspname !~ '^pg_|^information_schema$'
    union all select 'comment', classoid::regclass::text, objoid::text, description from pg_description
    where objoid >= 16384
    union all select 'dependency', classid::regclass::text, objid::text, refclassid::regclass::text || refobjid
    from pg_depend where objid >= 16384
    order by 1, 2, 3, 4
"""


class Stock:
    """Models of an application, the tables that Django or a test makes for them, and their watches."""

    def __init__(self, database: Database, registry: Registry) -> None:
        self.apps = StateApps([], {})
        self.registry = registry
        self.connection = database.connect()
        self._last = 0

    def model(
        self,
        name: str,
        table: str = "",
        /,
        *bases: type[models.Model],
        meta: dict[str, Any] | None = None,
        **fields: Any,
    ) -> type[Any]:
        """Make a model; its table is named by Django unless a name is given."""
        named = {"db_table": table} if table else {}
        options = {"app_label": APP, "apps": self.apps, **named, **(meta or {})}
        return type(
            name, bases or (models.Model,), {**fields, "__module__": __name__, "Meta": type("Meta", (), options)}
        )

    def create(self, *made: type[models.Model]) -> None:
        """Let Django make the tables of models, as `migrate` would."""
        with connection.schema_editor() as editor:
            for model in made:
                editor.create_model(model)

    def run(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Run a statement, or several, of some program and return its rows; it commits at once."""
        result = self.connection.execute(statement, parameters or None)
        return result.fetchall() if result.description else []

    def copy(self, statement: str, *rows: tuple[Any, ...]) -> None:
        """Write rows with COPY."""
        with self.connection.cursor() as cursor, cursor.copy(statement) as copy:
            for row in rows:
                copy.write_row(row)

    def watch(self, *watched: type[models.Model], **options: Any) -> None:
        """Declare watches, in place of what was declared before, and install them."""
        for model in watched:
            self.registry.remove(model._meta.label_lower)
            self.registry.add(make_watch(model, **options))
        self.install()

    def forget(self, *watched: type[models.Model]) -> None:
        """Take the declaration of watches back; their triggers stay."""
        for model in watched:
            self.registry.remove(model._meta.label_lower)

    def install(self) -> list[str]:
        """Install what is declared and return what was done; afterwards all must be INSTALLED, and stay so."""
        said = command("install_triggers")
        differing = [line for line in self.check() if not line.startswith("INSTALLED ")]
        assert differing == [], f"installing again would be needed at once: {differing} after {said}"
        again = command("install_triggers")
        assert again[0].startswith(("All INSTALLED", "No model is watched")), f"it flaps: {again}"
        return [line for line in said if line.startswith(f"{APP}.")]

    def uninstall(self, *labels: str) -> list[str]:
        """Remove triggers and return what was said."""
        return command("uninstall_triggers", *labels)

    def check(self) -> list[str]:
        """Return what ``install_triggers --check`` lists, and after it what it ends with when it fails."""
        return command("install_triggers", "--check")

    def refusal(self) -> str:
        """Return the sentences with which installing fails."""
        output = StringIO()
        try:
            call_command("install_triggers", stdout=output, stderr=output)
        except CommandError as error:
            return str(error)
        raise AssertionError(f"nothing was refused: {output.getvalue()}")

    def changes(self) -> list[Change]:
        """Return the changes that were not returned before, of all watches, in the order of the journal."""
        rows = journal_rows(self.connection, after=self._last)
        self._last = rows[-1].id if rows else self._last
        found = []
        for row in rows:
            watch = self.registry.get(row.label)
            assert watch is not None, f"a change of {row.label}, which is not watched"
            found += row.changes(watch)
        return found

    def seen(self) -> list[tuple[str, str, Any]]:
        """Return model, kind and key of each change since the last look."""
        return [(name_of(change), change.kind.value, change.pk) for change in self.changes()]

    def images(self) -> list[tuple[str, str, Any, Any]]:
        """Return model, kind and both images of each change since the last look."""
        return [(name_of(change), change.kind.value, change.old, change.new) for change in self.changes()]

    def objects(self) -> list[tuple[Any, ...]]:
        """Return every trigger, function, comment and dependency of the database, to compare."""
        return self.run(OBJECTS)


def name_of(change: Change) -> str:
    """Return the name of a change's model."""
    return change.model_label.removeprefix(f"{APP}.")


def command(name: str, *arguments: str) -> list[str]:
    """Run a command and return the lines it prints, those of the error it ends with included."""
    output = StringIO()
    try:
        call_command(name, *arguments, stdout=output, stderr=output)
    except CommandError as error:
        output.write(str(error))
    return output.getvalue().splitlines()
