"""``manage.py run_listener``: relay changes until told to stop."""

from __future__ import annotations

import asyncio
import logging
import signal
from argparse import ArgumentParser
from collections.abc import Sequence
from typing import Any

import psycopg
from django.core.management.base import BaseCommand, CommandError

from ...conf import get_settings
from ...errors import ConfigurationError, PgnotifyGqlError
from ...listener import Listener
from ...relay.worker import build_listener


class Command(BaseCommand):
    """
    Any number may run: of each database one leads, the others stand by.

    A database that is down is waited for, and keeps no other waiting; one that can never be listened to (it has no
    journal, it refuses the listener) ends the command with status 1.  SIGTERM and SIGINT finish the batch, store the
    cursor and end with status 0.
    """

    help = "Relays committed changes to the channel layer; run one, or several of which one leads."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--database", action="append", dest="databases", metavar="ALIAS",
            help="listen to this database only (may be repeated; default: all of PGNOTIFY_GQL['DATABASES'])",
        )  # fmt: skip

    def handle(self, *args: Any, **options: Any) -> None:
        self._show_log(options["verbosity"])
        try:
            asyncio.run(self._run(_chosen(options["databases"])))
        except PgnotifyGqlError as error:
            raise CommandError(str(error)) from error

    async def _run(self, aliases: Sequence[str]) -> None:
        listeners = {alias: build_listener(alias) for alias in aliases}

        def stop() -> None:
            for listener in listeners.values():
                listener.stop()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        tasks = [
            asyncio.create_task(_listen(alias, listener), name=f"pgnotify_gql listener {alias}")
            for alias, listener in listeners.items()
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            # One has failed for good: the others end in good order.
            stop()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _show_log(self, verbosity: int) -> None:
        # An operator who has configured logging has decided where it goes.
        logger = logging.getLogger("pgnotify_gql")
        if verbosity and not logger.hasHandlers():
            handler = logging.StreamHandler()
            handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
            logger.addHandler(handler)
            logger.setLevel(logging.DEBUG if verbosity > 1 else logging.INFO)


def _chosen(databases: Sequence[str] | None) -> Sequence[str]:
    """Return the aliases to listen to, each once.  Raises ConfigurationError."""
    followed = get_settings().DATABASES
    for alias in databases or ():
        if alias not in followed:
            raise ConfigurationError(
                f"--database {alias}: PGNOTIFY_GQL['DATABASES'] does not name it, so no hub follows it; "
                f"it names {', '.join(followed)}"
            )
    return list(dict.fromkeys(databases or followed))


async def _listen(alias: str, listener: Listener) -> None:
    try:
        await listener.run()
    except psycopg.ProgrammingError as error:
        what = "refuses the listener" if error.sqlstate else "cannot be addressed, LISTENER_CONNINFO is malformed"
        raise CommandError(f"database '{alias}' {what}: {error}".rstrip()) from error
