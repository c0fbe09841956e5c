"""
From commit to frame: how long subscribers wait for a change.

A change is one UPDATE by raw SQL, its own transaction, made at random times, 20 in a second.  Milliseconds from just
before it is sent until its frame has arrived, in another process of the same machine; of all changes and subscribers of
a run.  Nobody waits for a frame before the next change is made.

The baseline is a listening connection, one fetch of the row for each change, and a frame as large as ours to each
socket (`benchmarks.support.bare`), on the same ASGI server.  Ours has the inline listener, and one execution for all
subscribers: `row fetched` by the ORM, once for each change; or `row images`, answered from the captured columns.

`asleep`: one change after the other with pauses, before each of which our listener has fallen asleep, so that it must
be rung; on Daphne alone.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

from benchmarks.benchmark import AtMost, Benchmark, Comparison, Plan, Target, Variant, World
from benchmarks.support.asgi import SERVERS
from benchmarks.support.messages import SITE, Rows, make_bare_messages, make_conversations
from benchmarks.support.postgres import conditions, database, server
from benchmarks.support.subscribers import Dialogue, subscribers
from pgnotify_gql import names
from tests.support.processes import ProjectServer
from tests.support.watched import Connection

RATE = 20
"""Changes a second."""

PAUSE = 0.2, 0.4
"""Seconds, at least and at most, between two changes of which each finds the listener asleep."""

WARM_UP = 20
"""Changes that are not counted."""

MESSAGES = 100
"""Rows that are changed, each in its turn."""

FIGURES = ("p50", "p99")

TARGETS: Mapping[str, Target] = {"p50": AtMost(2), "p99": AtMost(3)}
"""Of what fetches the row, as the baseline does."""

NONE: Mapping[str, Target] = {}

AWAKE = "select count(*) from pg_locks where locktype = 'advisory' and classid = %s and objid = %s and granted"

Way = Callable[[Rows, int], dict[int, float]]
"""Makes so many changes, and returns when each was begun, by its number."""


@dataclass(frozen=True)
class Latency:
    """One way to a subscriber: a server's port, the rows that it tells of, and what subscribers say."""

    port: int
    rows: Rows
    dialogue: Dialogue

    def milliseconds(self, count: int, change: Way, warm_up: int, changes: int) -> dict[str, float]:
        """Return median and 99th percentile, for so many subscribers."""
        with subscribers() as crowd:
            crowd.open(self.port, count, self.dialogue)
            crowd.until_live(self.rows.change)
            change(self.rows, warm_up)
            begun = change(self.rows, changes)
            if not crowd.reached(max(begun)):
                raise AssertionError("not every change has arrived")
            arrivals = crowd.arrivals()
        delays = [(at - begun[number]) * 1000 for number in begun for at in arrivals[number]]
        return {"p50": statistics.median(delays), "p99": statistics.quantiles(delays, n=100, method="inclusive")[98]}


def flowing(rows: Rows, changes: int) -> dict[int, float]:
    """Change at random times, the same in every run."""
    chance = random.Random(RATE)  # noqa: S311  (no secret)
    begun = {}
    due = time.perf_counter()
    for _ in range(changes):
        due += chance.expovariate(RATE)
        time.sleep(max(0.0, due - time.perf_counter()))
        at = time.perf_counter()
        begun[rows.change()] = at
    return begun


@dataclass(frozen=True)
class Asleep:
    """Changes with pauses, in which our listener falls asleep."""

    session: Connection

    def __call__(self, rows: Rows, changes: int) -> dict[int, float]:
        chance = random.Random(RATE)  # noqa: S311  (no secret)
        begun = {}
        for _ in range(changes):
            time.sleep(chance.uniform(*PAUSE))
            while self._awake():
                time.sleep(PAUSE[0])
            at = time.perf_counter()
            begun[rows.change()] = at
        return begun

    def _awake(self) -> bool:
        return self.session.execute(AWAKE, [names.LOCK_CLASS, names.AWAKE_LOCK]).fetchone() != (0,)


@contextmanager
def world(plan: Plan) -> Iterator[World]:
    with server(plan) as postgres, database(postgres) as made, ExitStack() as started:
        ours, bare = make_conversations(made, messages=MESSAGES), make_bare_messages(made, MESSAGES)
        environment = {"DATABASE_URL": made.url, "DEBUG": "0", "PGNOTIFY_INLINE": "1"}
        busy = partial(Latency.milliseconds, change=flowing, warm_up=plan.pick(WARM_UP, 2), changes=plan.pick(200, 10))
        rare = partial(
            Latency.milliseconds, count=1, change=Asleep(made.connect()), warm_up=0, changes=plan.pick(40, 3)
        )
        comparisons: list[Comparison] = []
        for name in plan.pick(tuple(SERVERS), ("Daphne",)):
            plan.tell(f"starting {name}")
            bare_port, port = (
                _port(started.enter_context(SERVERS[name](environment, application)))
                for application in ("benchmarks.support.bare:telling", f"{SITE}:consumer")
            )
            baseline = Latency(bare_port, bare, Dialogue())
            fetched, captured = (Latency(port, ours.messages, ours.same(field)) for field in ("fetched", "captured"))
            for count in plan.pick((1, 100), (2,)):
                against = Variant(f"{name}, bare", partial(busy, baseline, count))
                place = f"subscribers: {count}"
                first = Variant(f"{name}, row fetched", partial(busy, fetched, count))
                comparisons += _compare(place, first, against, TARGETS)
                comparisons += _compare(place, Variant(f"{name}, row images", partial(busy, captured, count)), against)
            if name == "Daphne":
                comparisons += _compare(
                    "asleep, subscribers: 1",
                    Variant(f"{name}, row fetched", partial(rare, fetched)),
                    Variant(f"{name}, bare", partial(rare, baseline)),
                )
        yield World(comparisons, conditions(postgres))


def _port(process: ProjectServer) -> int:
    assert process.port is not None
    return process.port


def _compare(name: str, ours: Variant, baseline: Variant, targets: Mapping[str, Target] = NONE) -> Iterator[Comparison]:
    for figure in FIGURES:
        yield Comparison(f"{name}, {figure}", ours, baseline, "ms", targets.get(figure), figure)


BENCHMARK = Benchmark("latency", "Latency: from before the UPDATE to the frame at the client", world)
