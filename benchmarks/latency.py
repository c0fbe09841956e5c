"""
From commit to frame: how long one subscriber waits for a change.

`python -m benchmarks.latency [--changes N]` starts the demo, writes with psycopg, and receives with the library
websockets, all on this machine and with fsync on. A change is one UPDATE by raw SQL, its own transaction; for every
change the feed asks whether the subscriber may see it, and fetches the row: two queries through the ORM.

The rows of the table:

- bell: the database is idle and the listener asleep before each change, so it must be rung;
- 20/s: changes come at random times, 20 a second on average, as from a few people typing.

The columns: from just before the UPDATE is sent until its frame is there, and from the moment the writer knows that
it is committed. `bare` is the least that could do the job, see `benchmarks/bare.py`, measured alternately with the
feed, so that both meet the same weather.
"""

import argparse
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import psycopg
from websockets.sync.client import connect
from websockets.sync.connection import Connection
from websockets.typing import Origin, Subprotocol

from benchmarks import bare
from pgnotify_gql import names
from tests.acceptance.demo import Demo, empty_directory
from tests.acceptance.room import Room
from tests.acceptance.site import Visitor
from tests.support.ports import free_port
from tests.support.processes import ProjectServer

SLEEP = 0.2, 0.4
"""Seconds before a change that finds the listener asleep; it falls asleep after a twentieth of a second."""

RATE = 20
"""Changes a second of the busy measurement."""

WARM_UP = 30
"""Changes that are not counted."""

SUBSCRIPTION = "subscription ($conversationId: ID!) { messages(conversationId: $conversationId) { id text } }"

AWAKE = "select count(*) from pg_locks where locktype = 'advisory' and classid = %s and objid = %s and granted"


class Delay(NamedTuple):
    """Seconds until the frame was there."""

    from_update: float
    from_commit: float


@dataclass
class Feed:
    """One way to a subscriber: `write` changes a row to a text and commits, `socket` brings a frame with the text."""

    name: str
    write: Callable[[str], Any]
    socket: Connection
    delays: list[Delay] = field(default_factory=list)

    def measure(self, text: str) -> None:
        begun = time.perf_counter()
        self.write(text)
        committed = time.perf_counter()
        while text not in self.socket.recv(timeout=10):
            pass
        arrived = time.perf_counter()
        self.delays.append(Delay(arrived - begun, arrived - committed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--changes", type=int, default=300, help="how many of each kind (default 300)")
    changes: int = parser.parse_args().changes
    load_before = os.getloadavg()[0]
    with running() as (conninfo, feeds), psycopg.connect(conninfo, autocommit=True) as looking:
        asleep = measure_asleep(looking, feeds, changes)
        bell = taken(feeds)
        for feed in feeds:
            busy(feed, changes)
        flowing = taken(feeds)
        version = looking.info.server_version
    say(f"PostgreSQL {version // 10_000}, fsync on; Python {platform.python_version()}, Daphne; inline listener,")
    say(f"in-memory layer; {os.cpu_count()} CPUs, load {load_before:.1f} before and {os.getloadavg()[0]:.1f} after;")
    say(f"{changes} changes each; the listener was asleep before {asleep:.0%} of the changes under 'bell'.")
    say()
    say(f"{'milliseconds':16}{'from UPDATE sent':^26}{'from commit known':^26}")
    say(f"{'':16}" + f"{'median':>8}{'p90':>8}{'p99':>8}  " * 2)
    for label, measured in (("bell", bell), (f"{RATE}/s", flowing)):
        for name, delays in measured.items():
            say(f"{label + ', ' + name:16}" + "  ".join(figures(column) for column in zip(*delays, strict=True)))


@contextmanager
def running() -> Iterator[tuple[str, list[Feed]]]:
    """Start everything and subscribe; gives the database's conninfo too."""
    with ExitStack() as started:
        directory = started.enter_context(empty_directory())
        demo = started.enter_context(Demo(directory))
        yield demo.conninfo, [served_by_the_feed(started, demo), served_bare(started, demo.conninfo)]


def served_by_the_feed(started: ExitStack, demo: Demo) -> Feed:
    room = Room(started.enter_context(psycopg.connect(demo.conninfo, autocommit=True)))
    pk = room.insert("")
    visitor = Visitor.logged_in(demo.site, "alice")
    headers = visitor.headers
    socket = started.enter_context(
        connect(
            visitor.socket_url,
            origin=Origin(headers.pop("Origin")),
            additional_headers=headers,
            subprotocols=[Subprotocol("graphql-transport-ws")],
            compression=None,
        )
    )
    socket.send(json.dumps({"type": "connection_init"}))
    socket.recv(timeout=10)
    payload = {"query": SUBSCRIPTION, "variables": {"conversationId": str(room.id)}}
    socket.send(json.dumps({"type": "subscribe", "id": "1", "payload": payload}))

    def write(text: str) -> None:
        room.update(pk, text)

    wait_until_live(socket, write)
    return Feed("feed", write, socket)


def served_bare(started: ExitStack, conninfo: str) -> Feed:
    connection = started.enter_context(psycopg.connect(conninfo, autocommit=True))
    connection.execute(bare.SETUP)
    port = free_port()
    command = [sys.executable, "-m", "daphne", "-p", str(port), "benchmarks.bare:application"]
    server = started.enter_context(ProjectServer(command, port=port, environment={"DATABASE_URL": conninfo}))
    socket = started.enter_context(connect(server.ws_url, compression=None))

    def write(text: str) -> None:
        connection.execute("update bare_message set text = %s where id = 1", [text])

    wait_until_live(socket, write)
    return Feed("bare", write, socket)


def wait_until_live(socket: Connection, write: Callable[[str], Any]) -> None:
    """Write until a change arrives, since no message tells when a subscription has taken effect."""
    for attempt in range(100):
        write(f"attempt {attempt}")
        try:
            socket.recv(timeout=0.1)
        except TimeoutError:
            continue
        return
    raise SystemExit("no change arrives")


def measure_asleep(looking: psycopg.Connection, feeds: Sequence[Feed], changes: int) -> float:
    """Measure with pauses; return the share of changes before which the listener was asleep."""
    asleep = 0
    for number in range(WARM_UP + changes):
        for feed in feeds:
            time.sleep(random.uniform(*SLEEP))  # noqa: S311 (no secret)
            if feed is feeds[0] and number >= WARM_UP:
                found = looking.execute(AWAKE, [names.LOCK_CLASS, names.AWAKE_LOCK]).fetchone()
                asleep += found == (0,)
            feed.measure(f"asleep {number}.")
    return asleep / changes


def busy(feed: Feed, changes: int) -> None:
    due = time.perf_counter()
    for number in range(WARM_UP + changes):
        due += random.expovariate(RATE)
        time.sleep(max(0.0, due - time.perf_counter()))
        feed.measure(f"busy {number}.")


def taken(feeds: Sequence[Feed]) -> dict[str, list[Delay]]:
    """Take what was measured, without the warm-up."""
    measured = {feed.name: feed.delays[WARM_UP:] for feed in feeds}
    for feed in feeds:
        feed.delays = []
    return measured


def figures(seconds: Sequence[float]) -> str:
    hundredths = statistics.quantiles(seconds, n=100, method="inclusive")
    return "".join(f"{value * 1000:8.2f}" for value in (statistics.median(seconds), hundredths[89], hundredths[98]))


def say(text: str = "") -> None:
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
