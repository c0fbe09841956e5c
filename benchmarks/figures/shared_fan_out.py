"""
One change for everybody: 1,000 sockets that ask the same, and share an execution.

A row is updated by raw SQL, each time in a transaction, as fast as one connection can; the figure is how many results
arrive in a second, from before the first update until the last socket has its last result.  Every socket must have
exactly one for each update.  Writing is not what takes the time: it is over long before.

The baseline is a loop, on the same server, that sends every socket a ready frame of the same length, with a turn of the
event loop for each change.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from benchmarks.benchmark import AtLeast, Benchmark, Comparison, Plan, Variant, World
from benchmarks.support.asgi import SERVERS, Start
from benchmarks.support.messages import SITE, Conversations, make_conversations
from benchmarks.support.postgres import conditions, database, server
from benchmarks.support.receivers import Receivers, receivers
from benchmarks.support.subscribers import Dialogue
from tests.support.databases import Database

TARGETS = {"Daphne": AtLeast(0.8), "Uvicorn": AtLeast(0.5)}

FRAME_SIZE = 445
"""Characters of a result of ours, most of which are its cursor."""

BARE = "benchmarks.support.bare_fan_out:application"


@dataclass(frozen=True)
class FanOut:
    """Sockets on one process of a server, and a row that changes."""

    database: Database
    conversations: Conversations
    start: Start
    sockets: int
    changes: int

    def ours(self, field: str) -> float:
        """Return results a second."""
        with self.start(self.environment, f"{SITE}:consumer") as process, receivers() as crowd:
            assert process.port is not None
            crowd.open([process.port], self.sockets, self.conversations.same(field))
            self._until_live(crowd)
            return self.measure(crowd)

    def bare(self) -> float:
        """Return frames a second."""
        with self.start(self.environment, BARE) as process, receivers() as crowd:
            assert process.port is not None
            crowd.open([process.port], self.sockets, Dialogue())
            for changes in (1, self.changes):
                crowd.expect(changes)
                begun = time.perf_counter()
                crowd.say(f"{changes} {FRAME_SIZE}")
                taken = crowd.complete() - begun
            return self.sockets * self.changes / taken

    def measure(self, crowd: Receivers) -> float:
        """Change the row so many times, and return results a second."""
        crowd.expect(self.changes)
        begun = time.perf_counter()
        for _ in range(self.changes):
            self.conversations.messages.change()
        return self.sockets * self.changes / (crowd.complete() - begun)

    @property
    def environment(self) -> dict[str, str]:
        return {"DATABASE_URL": self.database.url, "DEBUG": "0", "PGNOTIFY_INLINE": "1"}

    def _until_live(self, crowd: Receivers) -> None:
        # Answered to a ping behind the subscription, which is live once its subscribe() has been run.
        count = 0
        while count < self.sockets:
            crowd.expect(1)
            self.conversations.messages.change()
            time.sleep(0.5)
            count = crowd.counted()


@contextmanager
def fan_outs(plan: Plan, changes: int) -> Iterator[tuple[dict[str, FanOut], dict[str, str]]]:
    """Make the database; gives a fan-out for each server, and the conditions."""
    sockets = plan.pick(1_000, 50)
    with server(plan) as postgres, database(postgres) as made:
        conversations = make_conversations(made)
        found = {name: FanOut(made, conversations, start, sockets, changes) for name, start in SERVERS.items()}
        load = f"{sockets} sockets, {changes} updates of one row, each a transaction; inline listener, in-memory layer"
        yield found, {**conditions(postgres), "load": load}


@contextmanager
def world(plan: Plan) -> Iterator[World]:
    with fan_outs(plan, plan.pick(400, 20)) as (found, load):
        comparisons = [
            Comparison(
                f"{fan_out.sockets:,} sockets",
                Variant(f"{name}, shared", partial(fan_out.ours, "captured")),
                Variant(f"{name}, a ready frame", fan_out.bare),
                "results/s",
                TARGETS[name],
            )
            for name, fan_out in found.items()
        ]
        yield World(comparisons, load)


BENCHMARK = Benchmark("shared-fan-out", "Shared fan-out: one change for everybody", world)
