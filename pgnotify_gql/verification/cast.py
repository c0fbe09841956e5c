"""Who takes part in a run: subscribers of every kind, and writers."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from psycopg.conninfo import make_conninfo

from .options import Options
from .row import BUCKETS
from .subscriber import PROTOCOLS, Kind, Subscriber
from .writer import Commits, Writer

FILLER = 3_000
"""Bytes that each result has more, so that a client is behind soon after it has ceased to read: systems buffer much."""

SELECTION = f"key version deleted xid filler(size: {FILLER})"


def make_subscribers(
    options: Options, urls: Sequence[str], commits: Mapping[int, float], chance: random.Random
) -> list[Subscriber]:
    """Return subscribers, of each kind in turn and then of each in the other subprotocol."""
    return [_subscriber(number, urls, commits, random.Random(chance.random())) for number in range(options.subscribers)]  # noqa: S311


def make_writers(options: Options, conninfo: str, commits: Commits, chance: random.Random) -> list[Writer]:
    """Return writers, who share the rate."""
    named = make_conninfo(conninfo, application_name=options.session_name("writer"))
    rate = options.rate / options.writers
    return [
        Writer(number, named, commits, rate=rate, chance=random.Random(chance.random()))  # noqa: S311
        for number in range(options.writers)
    ]


def _subscriber(number: int, urls: Sequence[str], commits: Mapping[int, float], chance: random.Random) -> Subscriber:
    turn = number // 4
    bucket = turn % BUCKETS
    kind = (
        Kind("private", "private", SELECTION),
        Kind("shared", "shared", SELECTION),
        Kind("topic", f"topic(bucket: {bucket})", SELECTION, bucket=bucket),
        Kind("initial", "initial", f"{SELECTION} snapshot", initial=True),
    )[number % 4]
    protocol = list(PROTOCOLS.values())[turn % 2]
    return Subscriber(f"{kind.name} {turn + 1} ({protocol.name})", kind, protocol, urls, commits, chance)
