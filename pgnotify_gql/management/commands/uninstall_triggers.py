"""``manage.py uninstall_triggers``: remove the triggers and their functions."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import Error as DatabaseError
from django.db import connections

from ...capture.installer import Plan, drop_unused_functions, execute, plan_uninstall
from ...errors import InstallError, PgnotifyGqlError, one_line
from ..options import add_database, add_lock_timeout


class Command(BaseCommand):
    """Leave the tables as if they had never been watched; the journal goes with ``migrate pgnotify_gql zero``."""

    help = "Removes every trigger and trigger function of this package, or those of the given models."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("models", nargs="*", metavar="APP.MODEL", help="only these models (default: all)")
        add_database(parser)
        parser.add_argument("--dry-run", action="store_true", help="print the SQL that would be run, and run nothing")
        add_lock_timeout(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        connection = connections[options["database"]]
        if connection.vendor != "postgresql":
            raise CommandError(f"database '{connection.alias}' is {connection.vendor}: it has no triggers of ours")
        try:
            plan = plan_uninstall(connection, [label.lower() for label in options["models"]])
            problems = [str(error) for error in plan.errors]
            if options["dry_run"]:
                self._print_sql(plan)
            else:
                problems += self._remove(plan, options["lock_timeout"])
        except PgnotifyGqlError as error:
            raise CommandError(str(error)) from error
        except DatabaseError as error:
            reason = one_line(error)
            raise CommandError(f"database '{connection.alias}' cannot be used: {reason}") from error
        if problems:
            raise CommandError("\n".join(problems))
        if not plan.steps:
            self.stdout.write("No triggers are installed, nothing to do.")

    def _print_sql(self, plan: Plan) -> None:
        for step in plan.steps:
            self.stdout.write("\n".join(f"{statement};" for statement in step.statements))

    def _remove(self, plan: Plan, lock_timeout: float) -> list[str]:
        """Remove what can be removed: a table that stays locked holds up no other.  Return what is wrong."""
        connection = connections[plan.database]
        problems = []
        for step in plan.steps:
            try:
                execute(connection, step, lock_timeout=lock_timeout, waiting=self._waiting(step.table))
            except InstallError as error:
                problems.append(str(error))
            else:
                self.stdout.write(f"{step.label}: removed from {step.table}")
        drop_unused_functions(connection)
        return problems

    def _waiting(self, table: str) -> Any:
        return lambda attempt: self.stderr.write(f"{table} is locked (try {attempt}); trying again")
