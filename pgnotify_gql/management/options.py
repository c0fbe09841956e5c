"""Options that several commands have."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError

from django.db import DEFAULT_DB_ALIAS, connections

from ..capture.locking import LOCK_TIMEOUT

SHORTEST = 0.001
"""Seconds: PostgreSQL counts whole milliseconds, and takes 0 for no limit at all."""


def add_database(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--database", default=DEFAULT_DB_ALIAS, choices=tuple(connections), help="alias of the database"
    )


def add_lock_timeout(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--lock-timeout", type=seconds, default=LOCK_TIMEOUT, metavar="SECONDS",
        help="queue for a busy table at most so long, then try again (default: %(default)s)",
    )  # fmt: skip


def seconds(text: str) -> float:
    """Return what an option means that takes seconds.  Raises ArgumentTypeError."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not SHORTEST <= seconds < float("inf"):
        raise ArgumentTypeError(f"a number of seconds, {SHORTEST:g} at least, not {text!r}")
    return seconds
