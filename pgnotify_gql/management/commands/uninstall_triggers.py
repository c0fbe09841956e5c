"""``manage.py uninstall_triggers``: remove the triggers and their functions."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import DEFAULT_DB_ALIAS, OperationalError, connections

from ...capture.installer import LOCK_TIMEOUT, drop_unused_functions, execute, plan_uninstall
from ...errors import PgnotifyGqlError


class Command(BaseCommand):
    """Leave the tables as if they had never been watched; the journal goes with ``migrate pgnotify_gql zero``."""

    help = "Removes every trigger and trigger function of this package, or those of the given models."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("models", nargs="*", metavar="APP.MODEL", help="only these models (default: all)")
        parser.add_argument("--database", default=DEFAULT_DB_ALIAS, help="alias of the database (default: default)")
        parser.add_argument("--dry-run", action="store_true", help="print the SQL that would be run, and run nothing")
        parser.add_argument(
            "--lock-timeout", type=float, default=LOCK_TIMEOUT, metavar="SECONDS",
            help="queue for a busy table at most so long, then try again (default: %(default)s)",
        )  # fmt: skip

    def handle(self, *args: Any, **options: Any) -> None:
        connection = connections[options["database"]]
        if connection.vendor != "postgresql":
            raise CommandError(f"database '{connection.alias}' is {connection.vendor}: it has no triggers of ours")
        try:
            plan = plan_uninstall(connection, [label.lower() for label in options["models"]])
            for step in plan.steps:
                if options["dry_run"]:
                    self.stdout.write("\n".join(f"{statement};" for statement in step.statements))
                    continue
                execute(connection, step, lock_timeout=options["lock_timeout"])
                self.stdout.write(f"{step.label}: removed from {step.table}")
            if not options["dry_run"] and not options["models"]:
                drop_unused_functions(connection)
        except PgnotifyGqlError as error:
            raise CommandError(str(error)) from error
        except OperationalError as error:
            raise CommandError(f"database '{connection.alias}' cannot be used: {error}".rstrip()) from error
        if plan.errors:
            raise CommandError("\n".join(map(str, plan.errors)))
        if not plan.steps:
            self.stdout.write("No triggers are installed, nothing to do.")
