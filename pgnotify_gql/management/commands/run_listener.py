"""``manage.py run_listener``: relay changes until told to stop."""

from __future__ import annotations

import asyncio
import logging
import signal
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import psycopg
from django.core.management.base import BaseCommand, CommandError

from ...conf import Settings, get_settings
from ...errors import ConfigurationError, PgnotifyGqlError
from ...health import Health
from ...listener import Listener
from ...relay.worker import build_listener
from ..health_server import serving


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
        parser.add_argument(
            "--http", metavar="ADDRESS",
            help="serve /healthz, /readyz and /metrics at HOST:PORT, or at PORT for this machine alone "
            "(default: PGNOTIFY_GQL['LISTENER_HTTP']; empty: nowhere)",
        )  # fmt: skip

    def handle(self, *args: Any, **options: Any) -> None:
        self._show_log(options["verbosity"])
        try:
            settings = get_settings()
            address = settings.LISTENER_HTTP if options["http"] is None else options["http"]
            asyncio.run(self._run(_chosen(options["databases"]), settings, address))
        except PgnotifyGqlError as error:
            raise CommandError(str(error)) from error

    async def _run(self, aliases: Sequence[str], settings: Settings, address: str) -> None:
        listeners = {alias: build_listener(alias, settings) for alias in aliases}
        health = Health(listeners, patience=settings.SESSION_TIMEOUT)
        with serving(address, health, token=settings.METRICS_TOKEN):
            await self._listen_to_all(listeners, health)

    async def _listen_to_all(self, listeners: Mapping[str, Listener], health: Health) -> None:
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
        for alias, task in zip(listeners, tasks, strict=True):
            task.add_done_callback(partial(_note_ended, health, alias))
        beating = asyncio.create_task(health.beat(), name="pgnotify_gql heartbeat")
        try:
            await asyncio.gather(*tasks)
        finally:
            # One has failed for good: the others end in good order.
            stop()
            beating.cancel()
            await asyncio.gather(*tasks, beating, return_exceptions=True)

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


def _note_ended(health: Health, alias: str, task: asyncio.Task[None]) -> None:
    health.note_ended(alias)


async def _listen(alias: str, listener: Listener) -> None:
    try:
        await listener.run()
    except psycopg.ProgrammingError as error:
        what = "refuses the listener" if error.sqlstate else "cannot be addressed, LISTENER_CONNINFO is malformed"
        raise CommandError(f"database '{alias}' {what}: {error}".rstrip()) from error
