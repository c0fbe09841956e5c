"""``manage.py explain_change``: say why the changes of a row did, or did not, arrive."""

from __future__ import annotations

import asyncio
import json
from argparse import ArgumentParser, ArgumentTypeError
from typing import Any, cast

import psycopg
from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError, InterfaceError, connections, router

from ...conf import get_settings
from ...errors import PgnotifyGqlError, one_line
from ...hub.roll_call import AskerLayer
from ...relay.worker import channel_layer
from ..explaining import MOST_MINUTES, explain
from ..explanations import as_text
from ..row_keys import find_watch


class Command(BaseCommand):
    """
    Reads the journal beside the listener, if any, and asks the hubs through the channel layer.

    Ends with status 0 whatever it finds, and with 1 for what it cannot be asked.
    """

    help = "Says of the last changes of a row, stage by stage, what became of them, and for whom."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("model", metavar="APP.MODEL")
        parser.add_argument("pk", metavar="PK", help="the primary key; a composite one as a JSON list")
        parser.add_argument(
            "--database", choices=tuple(connections),
            help="alias of the database (default: the one that the model is written to)",
        )  # fmt: skip
        parser.add_argument(
            "--minutes", type=_minutes, default=10.0, metavar="N", help="how far to look back (default: 10)"
        )
        parser.add_argument("--json", action="store_true", help="print one object of JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            watch = find_watch(options["model"])
            alias = options["database"] or router.db_for_write(watch.model)
            if connections[alias].vendor != "postgresql":
                raise CommandError(f"database '{alias}' is {connections[alias].vendor}: the journal needs PostgreSQL")
            # Both Protocols describe the same channel layer, each the part it needs.
            layer = cast(AskerLayer, channel_layer(get_settings()))
            explanation = asyncio.run(
                explain(watch.label, options["pk"], database=alias, minutes=options["minutes"], layer=layer)
            )
        except PgnotifyGqlError as error:
            raise CommandError(str(error)) from error
        except (psycopg.Error, DatabaseError, InterfaceError) as error:
            raise CommandError(f"the database cannot be used: {one_line(error)}") from error
        self.stdout.write(json.dumps(explanation.as_json()) if options["json"] else as_text(explanation))


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0
    if not 0 < minutes <= MOST_MINUTES:
        raise ArgumentTypeError(f"a number of minutes above 0, {MOST_MINUTES:,.0f} at most, not {text!r}")
    return minutes
