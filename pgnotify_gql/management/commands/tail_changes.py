"""``manage.py tail_changes``: print changes as they are journaled."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import stat
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from datetime import datetime, timedelta
from difflib import get_close_matches
from functools import partial
from types import FrameType
from typing import Any

import psycopg
from django.apps import apps
from django.core.management.base import BaseCommand, CommandError
from django.db import connections, router
from django.utils import timezone

from ...capture.kinds import ALL_KINDS, Kind
from ...capture.registry import registry
from ...conf import NAME, database_conninfo, get_settings
from ...errors import CursorError, PgnotifyGqlError, one_line
from ...journal.position import Position
from ...journal.sighting import Sighting
from ...journal.tail import Since, Tail
from ...listener import connect
from ..options import add_database
from ..sightings import as_json, as_text

APPLICATION_NAME = "pgnotify_gql tail"

AGO = re.compile(r"([0-9]{1,9})([smhd])")

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

TIME_OF_DAY = re.compile(r"[0-9]{1,2}:[0-9]{1,2}:[0-9]{1,2}")
"""Also has the form of a cursor, of a moment that every database has passed before it is first used."""

ACCEPTED = (
    "a time (2026-01-31T14:30, 2026-01-31 14:30:00+02:00; without a zone it is of TIME_ZONE), how long ago "
    '(30s, 10m, 2h, 1d), or a cursor (the "cursor" that --json prints, or a pg_snapshot such as 812:815:812)'
)


class StoppedWhileWritingError(Exception):
    """We are to end while nobody takes what is being written."""


class Command(BaseCommand):
    """
    Reads the journal beside the listener, if any, and disturbs nobody.

    SIGTERM, SIGINT and a reader of its output that has gone away end it with status 0.
    """

    help = "Prints changes live as they are journaled, whether or not a listener runs."
    requires_system_checks: list[str] = []

    _writing = False

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("models", nargs="*", metavar="APP.MODEL", help="only these models (default: all)")
        add_database(parser)
        parser.add_argument("--since", metavar="TIME|CURSOR", help=f"begin there, not now: {ACCEPTED}")
        parser.add_argument(
            "--kind", type=_kind, action="append", dest="kinds", metavar="KIND",
            help=f"only this kind, of {', '.join(Kind)} (may be repeated)",
        )  # fmt: skip
        parser.add_argument("--values", action="store_true", help="print the captured values too, old -> new")
        parser.add_argument("--json", action="store_true", help="print an object of JSON a line")
        parser.add_argument("--limit", type=_count, metavar="N", help="end after so many changes")
        parser.add_argument("--no-follow", action="store_true", help="print what there is since --since, and end")

    def handle(self, *args: Any, **options: Any) -> None:
        alias, labels = options["database"], [_label(name) for name in options["models"]]
        if connections[alias].vendor != "postgresql":
            raise CommandError(f"database '{alias}' is {connections[alias].vendor}: the journal needs PostgreSQL")
        if options["no_follow"] and options["since"] is None:
            raise CommandError("--no-follow prints what there is since --since: give that as well")
        self._as_json, self._with_values = options["json"], options["values"]
        try:
            tail = self._tail(
                alias,
                since=None if options["since"] is None else _since(options["since"]),
                labels=labels,
                kinds=options["kinds"] or ALL_KINDS,
                follow=not options["no_follow"],
            )
            asyncio.run(self._run(tail, alias, labels, options["limit"]))
        except asyncio.CancelledError:
            pass
        except (BrokenPipeError, StoppedWhileWritingError):
            self._give_up_output()
        except PgnotifyGqlError as error:
            raise CommandError(str(error)) from error
        except psycopg.Error as error:
            reason = one_line(error)
            raise CommandError(f"database '{alias}' cannot be used: {reason}") from error

    def _tail(self, alias: str, **options: Any) -> Tail:
        settings = get_settings()
        # A session timeout, so that no transaction stays open while a pager shows the middle of a long backlog.
        opening = partial(
            connect, database_conninfo(settings, alias),
            session_timeout=settings.SESSION_TIMEOUT, application_name=APPLICATION_NAME, replica=True,
        )  # fmt: skip
        return Tail(opening, registry.get, self._remark, database=alias, retention=settings.RETENTION, **options)

    async def _run(self, tail: Tail, alias: str, labels: list[str], limit: int | None) -> None:
        printed = 0
        with self._ended_from_outside():
            async with tail, aclosing(tail.sightings()) as sightings:
                for warning in await _warnings(tail, alias, labels):
                    self._remark(warning)
                what = ", ".join(labels) or "every model"
                self._remark(f"showing changes of {what} in database '{alias}' (Ctrl-C ends)", warns=False)
                async for sighting in sightings:
                    self._print(sighting)
                    printed += 1
                    if printed == limit:
                        break

    def _print(self, sighting: Sighting) -> None:
        if self._as_json:
            text = as_json(sighting, values=self._with_values)
        else:
            text = as_text(sighting, self.style, values=self._with_values)
            encoding = getattr(self.stdout, "encoding", None) or "utf-8"
            text = text.encode(encoding, "backslashreplace").decode(encoding)
        self._writing = True
        try:
            self.stdout.write(text)
            self.stdout.flush()
        finally:
            self._writing = False

    def _remark(self, sentence: str, *, warns: bool = True) -> None:
        style = self.style.WARNING if warns and self.stderr.isatty() else str
        self.stderr.write(sentence, style)
        self.stderr.flush()

    @contextmanager
    def _ended_from_outside(self) -> Iterator[None]:
        """Let signals cancel the task, and the end of whoever reads our output through a pipe."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def stop(number: int, frame: FrameType | None) -> None:
            # While nobody takes what we write, the loop does not run, and would never hear of a cancellation.
            if self._writing:
                raise StoppedWhileWritingError
            loop.call_soon_threadsafe(task.cancel)

        def abandoned() -> None:
            loop.remove_reader(pipe)
            task.cancel()

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        pipe = self._output_pipe()
        if pipe >= 0:
            # Nothing can be read from this end; the loop calls when the other one is closed.
            loop.add_reader(pipe, abandoned)
        try:
            yield
        finally:
            if pipe >= 0:
                loop.remove_reader(pipe)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _output_pipe(self) -> int:
        """Return the descriptor of our output if it is a pipe, or -1."""
        try:
            descriptor = self.stdout.fileno()
        except (AttributeError, OSError):
            return -1
        return descriptor if stat.S_ISFIFO(os.fstat(descriptor).st_mode) else -1

    def _give_up_output(self) -> None:
        # What is still buffered would be written at exit, and fail or block again.
        try:
            descriptor = self.stdout.fileno()
        except (AttributeError, OSError):
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


async def _warnings(tail: Tail, alias: str, labels: list[str]) -> list[str]:
    """Return a sentence for each thing that keeps changes from arriving."""
    watched = [watch.label for watch in registry]
    of_alias = [watch.label for watch in registry if router.allow_migrate_model(alias, watch.model)]
    found = []
    if not watched and not labels:
        found.append(
            "no model is watched, so nothing will arrive: call notify_on_model_changes() on the models to capture, "
            f"then run `manage.py install_triggers --database {alias}`"
        )
    uncaptured = await tail.uncaptured(labels or of_alias)
    for label in uncaptured:
        if label not in watched:
            found.append(
                f"{label} is not watched, so nothing of it will arrive: call notify_on_model_changes() on it, "
                f"then run `manage.py install_triggers --database {alias}`"
            )
        elif label not in of_alias:
            other = router.db_for_write(apps.get_model(label))
            found.append(f"{label} is not in database '{alias}', so nothing of it will arrive: try --database {other}")
        else:
            found.append(
                f"{label} has no triggers in database '{alias}', so nothing of it will arrive: "
                f"run `manage.py install_triggers --database {alias}`"
            )
    if alias not in get_settings().DATABASES:
        found.append(f"{NAME}['DATABASES'] does not name '{alias}': no listener relays its changes to subscribers")
    return found


def _label(name: str) -> str:
    """Return the label of a model given in any case.  Raises CommandError."""
    label = name.lower()
    known = {model._meta.label_lower for model in apps.get_models(include_auto_created=True)}
    known |= {watch.label for watch in registry}
    if label in known:
        return label
    model = label.rpartition(".")[2]
    close = sorted(other for other in known if other.rpartition(".")[2] == model)
    close = close or get_close_matches(label, sorted(known), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else "give it as app.Model"
    raise CommandError(f"there is no model '{name}': {hint}")


def _since(text: str) -> Since:
    """Return where to begin.  Raises CommandError."""
    if ago := AGO.fullmatch(text):
        return timedelta(**{UNITS[ago[2]]: int(ago[1])})
    try:
        if not TIME_OF_DAY.fullmatch(text):
            return Position.parse(text)
    except CursorError:
        pass
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise CommandError(f"--since {text}: it takes {ACCEPTED}") from None
    return time if timezone.is_aware(time) else timezone.make_aware(time, timezone.get_default_timezone())


def _kind(text: str) -> Kind:
    try:
        return Kind(text.upper())
    except ValueError:
        raise ArgumentTypeError(f"one of {', '.join(Kind)}, not {text!r}") from None


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"a whole number above 0, not {text!r}")
    return int(text)
