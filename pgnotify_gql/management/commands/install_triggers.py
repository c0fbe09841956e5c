"""``manage.py install_triggers``: bring the triggers in step with the watches."""

from __future__ import annotations

import json
import sysconfig
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import Error as DatabaseError
from django.db import connections

from ...capture.catalog import Status
from ...capture.installer import Plan
from ...capture.registry import registry
from ...capture.writer import TriggerMigration, plan_migration
from ...conf import get_settings
from ...errors import PgnotifyGqlError, one_line
from ..installing import install, make_plan
from ..options import add_database, add_lock_timeout


class Command(BaseCommand):
    """Compare digests, then create, replace and remove what differs; or write it into a migration."""

    help = "Installs the triggers of every watched model; touches only what differs."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        add_database(parser)
        parser.add_argument(
            "--dry-run", action="store_true", help="print the SQL that would be run, or the migration, and do nothing"
        )
        parser.add_argument("--check", action="store_true", help="exit 1 and list what differs, change nothing")
        parser.add_argument("--json", action="store_true", help="print the status of each table afterwards as JSON")
        parser.add_argument(
            "--migration", metavar="APP",
            help="run nothing, but write a migration of this application with the SQL of its watches",
        )  # fmt: skip
        parser.add_argument("--name", help="name of the migration (default: install_triggers)")
        add_lock_timeout(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        self.verbosity: int = options["verbosity"]
        connection = connections[options["database"]]
        if connection.vendor != "postgresql":
            raise CommandError(f"database '{connection.alias}' is {connection.vendor}: triggers need PostgreSQL")
        try:
            problems = self._migration(options) if options["migration"] else self._triggers(options)
        except PgnotifyGqlError as error:
            raise CommandError(str(error)) from error
        except DatabaseError as error:
            reason = one_line(error)
            raise CommandError(f"database '{connection.alias}' cannot be used: {reason}") from error
        if problems:
            raise CommandError("\n".join(problems))

    def _triggers(self, options: dict[str, Any]) -> list[str]:
        """Install, or tell about it; return what is wrong."""
        if options["name"]:
            raise CommandError("--name is that of a migration: say --migration APP as well")
        if options["json"] and options["dry_run"]:
            raise CommandError("--json tells about triggers, --dry-run prints SQL: choose one")
        plan = make_plan(connections[options["database"]], registry)
        problems = [str(error) for error in plan.errors]
        if options["dry_run"]:
            self._print_sql(plan)
        elif options["check"]:
            self._report(plan, as_json=options["json"])
            problems += self._differing(plan)
        else:
            problems += self._install(plan, options["lock_timeout"], as_json=options["json"])
        return problems

    def _print_sql(self, plan: Plan) -> None:
        if not plan.pending:
            self.stdout.write("-- nothing to do")
        for step in plan.pending:
            self.stdout.write(f"-- {step.label} on {step.table}: {step.status}")
            for statement in step.statements:
                self.stdout.write(f"{statement.rstrip()};\n")

    def _differing(self, plan: Plan) -> list[str]:
        count = sum(step.status is not Status.INSTALLED for step in plan.steps)
        return [f"{count} of {len(plan.steps)} tables differ: run `manage.py install_triggers`"] if count else []

    def _install(self, plan: Plan, lock_timeout: float, *, as_json: bool) -> list[str]:
        say = self._nothing if as_json else self._say
        failures = install(plan, lock_timeout, say=say, warn=self.stderr.write)
        if as_json:
            self._report(make_plan(connections[plan.database], registry), as_json=True)
        elif not plan.steps and not plan.errors:
            self._say("No model is watched: call notify_on_model_changes() on the models to capture.")
        elif plan.steps and not plan.pending:
            self._say(f"All INSTALLED ({len(plan.steps)}), nothing to do.")
        return [str(error) for error in failures]

    def _report(self, plan: Plan, *, as_json: bool) -> None:
        if as_json:
            rows = [{"model": s.label, "table": s.table, "status": s.status, "detail": s.detail} for s in plan.steps]
            self.stdout.write(
                json.dumps({"database": plan.database, "tables": rows, "errors": [str(e) for e in plan.errors]})
            )
            return
        for step in plan.steps:
            detail = f" ({step.detail})" if step.detail else ""
            self.stdout.write(f"{step.status:<9} {step.label} on {step.table}{detail}")

    def _migration(self, options: dict[str, Any]) -> list[str]:
        """Write a migration, or tell about it; return what is wrong."""
        name = options["name"] or "install_triggers"
        if not name.isidentifier():
            raise CommandError(f"--name={name} is not a valid Python identifier")
        if options["json"]:
            raise CommandError("--json tells about triggers, not about migrations: leave it out")
        rings = get_settings().WAKE == "notify"
        migration = plan_migration(connections[options["database"]], options["migration"], registry, rings=rings)
        for label in migration.assumed:
            self.stderr.write(
                f"The table of {label} is not in database '{options['database']}': assumed to be one without "
                "partitions and children. If it has any, migrate first, or choose its --database."
            )
        if not migration.operations:
            self._say(f"No changes, {', '.join(dict.fromkeys(migration.present))} has them")
            return []
        path = migration.path(name)
        if any(path.is_relative_to(sysconfig.get_path(scheme)) for scheme in ("purelib", "platlib")):
            raise CommandError(
                f"the migrations of {migration.app_label} are installed in {path.parent} and not yours to write: bring "
                "its triggers in step with `manage.py install_triggers`, or with INSTALL_ON_MIGRATE"
            )
        if options["dry_run"]:
            self.stdout.write(migration.text())
        else:
            self._describe(migration, path)
        if options["check"]:
            return [
                f"the migrations of {migration.app_label} differ from its watches: run "
                f"`manage.py install_triggers --migration {migration.app_label}`"
            ]
        if not options["dry_run"]:
            path.write_text(migration.text(), encoding="utf-8")
        return []

    def _describe(self, migration: TriggerMigration, path: Path) -> None:
        shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
        self._say(f"Migrations for '{migration.app_label}':\n  {shown}")
        for operation in migration.operations:
            self._say(f"    {operation.formatted_description()}")

    def _say(self, sentence: str) -> None:
        if self.verbosity > 0:
            self.stdout.write(sentence)

    def _nothing(self, sentence: str) -> None:
        pass
