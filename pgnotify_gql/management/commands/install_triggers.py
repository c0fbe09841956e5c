"""``manage.py install_triggers``: bring the triggers in step with the watches."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import Error as DatabaseError
from django.db import connections, router

from ...capture.catalog import Status
from ...capture.installer import Plan, drop_unused_functions, execute, plan_install
from ...capture.registry import registry
from ...conf import get_settings
from ...errors import PgnotifyGqlError
from ..options import add_database, add_lock_timeout


class Command(BaseCommand):
    """Compare digests, then create, replace and remove what differs."""

    help = "Installs the triggers of every watched model; touches only what differs."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        add_database(parser)
        parser.add_argument("--dry-run", action="store_true", help="print the SQL that would be run, and run nothing")
        parser.add_argument("--check", action="store_true", help="exit 1 and list what differs, change nothing")
        parser.add_argument("--json", action="store_true", help="print the status of each table as JSON")
        add_lock_timeout(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        connection = connections[options["database"]]
        if connection.vendor != "postgresql":
            raise CommandError(f"database '{connection.alias}' is {connection.vendor}: triggers need PostgreSQL")
        watches = [watch for watch in registry if router.allow_migrate_model(connection.alias, watch.model)]
        try:
            plan = plan_install(connection, watches, rings=get_settings().WAKE == "notify")
            if options["dry_run"]:
                self._print_sql(plan)
            elif options["check"]:
                self._report(plan, as_json=options["json"])
            else:
                self._install(plan, options["lock_timeout"], as_json=options["json"])
        except PgnotifyGqlError as error:
            raise CommandError(str(error)) from error
        except DatabaseError as error:
            reason = " ".join(str(error).split())
            raise CommandError(f"database '{connection.alias}' cannot be used: {reason}") from error
        problems = [str(error) for error in plan.errors]
        if options["check"]:
            problems += self._differing(plan)
        if problems:
            raise CommandError("\n".join(problems))

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

    def _install(self, plan: Plan, lock_timeout: float, *, as_json: bool) -> None:
        connection = connections[plan.database]
        for step in plan.pending:
            execute(connection, step, lock_timeout=lock_timeout, waiting=self._waiting(step.table))
            if not as_json:
                done = "removed" if step.status is Status.ORPHANED else "installed"
                self.stdout.write(f"{step.label}: {done} (was {step.status})")
        drop_unused_functions(connection)
        if as_json:
            self._report(plan, as_json=True)
        elif not plan.steps and not plan.errors:
            self.stdout.write("No model is watched: call notify_on_model_changes() on the models to capture.")
        elif plan.steps and not plan.pending:
            self.stdout.write(f"All INSTALLED ({len(plan.steps)}), nothing to do.")

    def _waiting(self, table: str) -> Any:
        return lambda attempt: self.stderr.write(f"{table} is locked (try {attempt}); trying again")

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
