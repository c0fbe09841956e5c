"""``manage.py verify_delivery``: write, break what was started for it, and count what arrives."""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from secrets import randbelow
from typing import Any

import psycopg
from django.core.management.base import BaseCommand, CommandError
from django.db import Error as DatabaseError

from ...errors import PgnotifyGqlError, one_line
from ...verification.errors import VerificationError
from ...verification.faults import FAULTS
from ...verification.options import SERVERS, Options
from ...verification.site import Site
from ..options import add_database, seconds


class Command(BaseCommand):
    """Everything that it breaks it has started: servers, listeners, sessions, sockets.  Exit status 1 on violations."""

    help = (
        "Proves that delivery is exact: writes into a table of its own, injects faults into servers and listeners of "
        "its own, and reports each change that subscribers lost, or were sent twice or out of order."
    )
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        add_database(parser)
        parser.add_argument(
            "--duration", type=seconds, default=60.0, metavar="SECONDS", help="write for so long (default: 60)"
        )
        parser.add_argument("--servers", type=_count, metavar="N", help="server processes (default: 2)")
        parser.add_argument(
            "--listeners", type=_count_or_none, metavar="N",
            help="processes of run_listener (default: 2; 0: a listener of the site's does it)",
        )  # fmt: skip
        parser.add_argument("--writers", type=_count, default=4, metavar="N", help="connections (default: 4)")
        parser.add_argument(
            "--subscribers", type=_count, default=8, metavar="N",
            help="sockets, of four kinds in turn: private, shared, topic, with an initial state (default: 8)",
        )  # fmt: skip
        parser.add_argument("--rate", type=_rate, default=300.0, metavar="N", help="changes a second (default: 300)")
        parser.add_argument("--server", choices=tuple(SERVERS), help="ASGI server (default: the one installed)")
        faults = parser.add_mutually_exclusive_group()
        faults.add_argument(
            "--fault", action="append", dest="faults", choices=tuple(FAULTS), metavar="NAME",
            help="inject this fault (may be repeated; default: all). "
            + "; ".join(f"{fault.name}: {fault.summary}" for fault in FAULTS.values()),
        )  # fmt: skip
        faults.add_argument("--no-faults", action="store_const", const=[], dest="faults", help="break nothing")
        parser.add_argument(
            "--fault-every", type=seconds, default=5.0, metavar="SECONDS",
            help="time between two faults, on average (default: 5)",
        )  # fmt: skip
        parser.add_argument(
            "--wait", type=seconds, default=60.0, metavar="SECONDS",
            help="what has not arrived so long after the last write is lost (default: 60)",
        )  # fmt: skip
        parser.add_argument("--seed", type=int, metavar="N", help="of all that is random (default: any)")
        parser.add_argument(
            "--json",
            action="store_true",
            help="print the report as one object of JSON, with progress on standard error",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            site = Site.found(options["database"])
            self._verify(
                site, site.options(**_chosen(options)), as_json=options["json"], quiet=not options["verbosity"]
            )
        except PgnotifyGqlError as error:
            raise CommandError(str(error)) from error
        except (DatabaseError, psycopg.Error) as error:
            raise CommandError(f"database '{options['database']}' cannot be used: {one_line(error)}") from error
        except (asyncio.CancelledError, KeyboardInterrupt) as error:
            raise CommandError("interrupted: nothing is verified") from error

    def _verify(self, site: Site, options: Options, *, as_json: bool, quiet: bool) -> None:
        try:
            from ...verification.progress import Silence, progress
            from ...verification.run import Run
        except ImportError as error:
            missing = (error.name or "").partition(".")[0]
            raise VerificationError(f"{missing} is not installed: pip install 'pgnotify_gql[verify]'") from error
        from ...verification.table import tables

        asyncio.run(site.require_layer())
        logs = Path(tempfile.mkdtemp(prefix="verify_delivery_"))
        stream = self.stderr if as_json else self.stdout
        shown = nullcontext(Silence()) if quiet else progress(stream, partial(stream.write, style_func=str))
        report = None
        try:
            with tables(site.alias, site.direct_conninfo, rings=site.settings.WAKE == "notify"), shown as told:
                run = Run(
                    options, told, conninfo=site.conninfo, direct_conninfo=site.direct_conninfo,
                    session_timeout=site.settings.SESSION_TIMEOUT, logs=logs, conditions=site.conditions(options),
                )  # fmt: skip
                with _muted("psycopg", "websockets"):
                    report = asyncio.run(run.run())
        finally:
            if report is None or report.logs is None:
                shutil.rmtree(logs, ignore_errors=True)
        self.stdout.write(report.as_json() if as_json else report.as_text())
        if report.violations:
            raise CommandError(f"{report.violations:,} violations")


@contextmanager
def _muted(*names: str) -> Iterator[None]:
    """Keep warnings of libraries about connections that are broken on purpose out of the log."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _chosen(options: dict[str, Any]) -> dict[str, Any]:
    names = (
        "duration", "servers", "listeners", "writers", "subscribers", "rate", "server", "faults", "fault_every", "wait",
    )  # fmt: skip
    seed = options["seed"] if options["seed"] is not None else randbelow(1_000_000)
    return {name: options[name] for name in names} | {"seed": seed}


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"a whole number above 0, not {text!r}")
    return int(text)


def _rate(text: str) -> float:
    try:
        return seconds(text)
    except ArgumentTypeError:
        raise ArgumentTypeError(f"a number above 0, not {text!r}") from None


def _count_or_none(text: str) -> int:
    return 0 if text == "0" else _count(text)
