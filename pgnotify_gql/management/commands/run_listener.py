"""``manage.py run_listener``: relay changes until told to stop."""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import Any

import psycopg
from django.core.management.base import BaseCommand, CommandError

from ...errors import PgnotifyGqlError
from ...relay.worker import build_listener


class Command(BaseCommand):
    """
    Any number may run: one leads, the others stand by.

    SIGTERM and SIGINT finish the batch, store the cursor and end with status 0.
    """

    help = "Relays committed changes to the channel layer; run one, or several of which one leads."

    def handle(self, *args: Any, **options: Any) -> None:
        self._show_log(options["verbosity"])
        try:
            asyncio.run(self._run())
        except PgnotifyGqlError as error:
            raise CommandError(str(error)) from error
        except psycopg.ProgrammingError as error:
            what = "refuses the listener" if error.sqlstate else "cannot be addressed, LISTENER_CONNINFO is malformed"
            raise CommandError(f"the database {what}: {error}".rstrip()) from error

    async def _run(self) -> None:
        listener = build_listener()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, listener.stop)
        await listener.run()

    def _show_log(self, verbosity: int) -> None:
        # An operator who has configured logging has decided where it goes.
        logger = logging.getLogger("pgnotify_gql")
        if verbosity and not logger.hasHandlers():
            handler = logging.StreamHandler()
            handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
            logger.addHandler(handler)
            logger.setLevel(logging.DEBUG if verbosity > 1 else logging.INFO)
