"""``manage.py journal``: show how large the journal is, up to where it was relayed, and what holds it up."""

from __future__ import annotations

import asyncio
from argparse import ArgumentParser
from typing import Any

import psycopg
from django.core.management.base import BaseCommand, CommandError
from django.db import connections

from ...conf import database_conninfo, get_settings
from ...errors import PgnotifyGqlError, one_line
from ...journal.inspection import Inspection, inspect
from ...journal.reader import require_journal
from ...listener import connect
from ..inspections import as_json, as_text, duration
from ..options import add_database, seconds

APPLICATION_NAME = "pgnotify_gql journal"


class Command(BaseCommand):
    """Reads only, and at bounded cost, however large the journal is."""

    help = "Shows the journal: size, oldest row, relayed position, lag, retention, and the oldest open writer."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        add_database(parser)
        parser.add_argument("--json", action="store_true", help="print one object of JSON")
        parser.add_argument(
            "--max-lag", type=seconds, metavar="SECONDS",
            help="end with status 1 if a change has been waiting for longer to be relayed",
        )  # fmt: skip

    def handle(self, *args: Any, **options: Any) -> None:
        alias, most = options["database"], options["max_lag"]
        if connections[alias].vendor != "postgresql":
            raise CommandError(f"database '{alias}' is {connections[alias].vendor}: the journal needs PostgreSQL")
        try:
            settings = get_settings()
            inspection = asyncio.run(_inspect(database_conninfo(settings, alias), alias))
        except PgnotifyGqlError as error:
            raise CommandError(str(error)) from error
        except psycopg.Error as error:
            reason = one_line(error)
            raise CommandError(f"database '{alias}' cannot be used: {reason}") from error
        if options["json"]:
            self.stdout.write(as_json(inspection, database=alias, retention=settings.RETENTION))
        else:
            self.stdout.write(
                as_text(
                    inspection,
                    database=alias,
                    retention=settings.RETENTION,
                    lease=settings.SESSION_TIMEOUT,
                    inline=settings.INLINE_LISTENER,
                )
            )
        if most is not None and inspection.lag > most:
            raise CommandError(
                f"a change has been waiting for {duration(inspection.lag)} to be relayed, more than {duration(most)}"
            )


async def _inspect(dsn: str, alias: str) -> Inspection:
    # A session like the listener's: its plans are those of probes, whatever the planner believes of a slot's size.
    connection = await connect(dsn, session_timeout=0, application_name=APPLICATION_NAME, replica=True)
    async with connection:
        await require_journal(connection, alias)
        return await inspect(connection)
