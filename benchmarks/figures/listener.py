"""
Whether the leader keeps up with writers at full speed, and how far behind it is if not.

Sixteen writers update single rows as fast as they can, each change a journal row; the lag is what they have written
less what the layer was given.  Of the rows written up to 16 may not be committed yet.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from benchmarks.benchmark import AtLeast, Benchmark, Comparison, Plan, Variant, World
from benchmarks.support.listener import leader
from benchmarks.support.pgbench import running, update_script
from benchmarks.support.postgres import ROWS, empty_journal, settle
from benchmarks.support.redis import redis
from benchmarks.support.writing import WATCHED_TABLE, Writing, writing
from tests.support.watched import Connection

CLIENTS = 16

LOOK_INTERVAL = 0.25
"""Seconds between two looks at the lag."""

POINTS = 5
"""Places in time for which the lag is reported."""

TARGET = AtLeast(0.99)
"""Of the changes written: a leader that keeps up has relayed all but the last few milliseconds'."""

CATCH_UP_TIMEOUT = 120
"""Seconds until a leader that fell behind must have caught up, before the next run."""

WRITTEN = "select last_value from pgnotify_gql.journal_id_seq"


@dataclass(frozen=True)
class Look:
    """How many rows had been written and relayed so many seconds after the first."""

    seconds: float
    written: int
    relayed: int

    @property
    def lag(self) -> int:
        return self.written - self.relayed


@dataclass(frozen=True)
class Load:
    """Writers and a leader; `seconds` is how long they write."""

    load: Writing
    seconds: float

    def measure(self, redis_url: str = "") -> dict[str, float]:
        """Return changes written and relayed per second, and the lag in rows over time."""
        session = self.load.session
        empty_journal(session)
        settle(session, WATCHED_TABLE)
        with leader(self.load.database, redis_url) as relayed:
            before = _written(session)
            with running(self.load.database, update_script(WATCHED_TABLE, ROWS), CLIENTS, self.seconds + 60):
                looks = list(self._looks(session, relayed, before))
            _wait_until(lambda: relayed() >= _written(session) - before)
        first, last = looks[0], looks[-1]
        passed = last.seconds - first.seconds
        later = [look for look in looks if look.seconds >= passed / 2]
        return {
            "written": (last.written - first.written) / passed,
            "relayed": (last.relayed - first.relayed) / passed,
            "lag": last.lag,
            "trend": statistics.linear_regression([look.seconds for look in later], [look.lag for look in later]).slope,
            "worst": max(look.lag for look in looks),
            **{_after(seconds): _lag_at(looks, seconds) for seconds in points(self.seconds)},
        }

    def _looks(self, session: Connection, relayed: Callable[[], int], before: int) -> Iterator[Look]:
        # From the first relayed row on: pgbench connects, and the leader wakes.
        _wait_until(lambda: relayed() > 0)
        begun = time.perf_counter()
        seconds = 0.0
        while seconds < self.seconds:
            time.sleep(LOOK_INTERVAL)
            count = relayed()
            seconds = time.perf_counter() - begun
            yield Look(seconds, _written(session) - before, count)


def points(seconds: float) -> list[float]:
    """Return the places in time for which the lag is reported."""
    return [seconds * number / POINTS for number in range(1, POINTS + 1)]


@contextmanager
def world(plan: Plan) -> Iterator[World]:
    with writing(plan) as load, redis(plan) as redis_server:
        measured = Load(load, plan.pick(20, 2))
        variants = [Variant("leader, to nowhere", measured.measure)]
        if redis_server is not None:
            variants.append(Variant("leader, to Redis", partial(measured.measure, redis_server.url)))
        comparisons = [each for variant in variants for each in _compare(variant, measured.seconds)]
        conditions = load.conditions | {"load": f"pgbench, {CLIENTS} clients, prepared, {measured.seconds:g} s a run"}
        yield World(comparisons, conditions)


def _compare(leader: Variant, seconds: float) -> list[Comparison]:
    written = Comparison(
        "relayed, against written", leader, leader, "changes/s", TARGET, figure="relayed", baseline_figure="written"
    )
    return [
        written,
        Comparison("lag at the end", leader, None, "rows", figure="lag"),
        Comparison("largest lag", leader, None, "rows", figure="worst"),
        Comparison("trend of the lag, second half", leader, None, "rows/s", figure="trend"),
        *(
            Comparison(f"lag after {point:g} s", leader, None, "rows", figure=_after(point), size=point)
            for point in points(seconds)
        ),
    ]


def _after(seconds: float) -> str:
    return f"after {seconds:g} s"


def _lag_at(looks: list[Look], seconds: float) -> int:
    return min(looks, key=lambda look: abs(look.seconds - seconds)).lag


def _written(session: Connection) -> int:
    found = session.execute(WRITTEN).fetchone()
    assert found is not None
    return int(found[0])


def _wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + CATCH_UP_TIMEOUT
    while not happened():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the leader has not caught up within {CATCH_UP_TIMEOUT} s")
        time.sleep(0.01)


BENCHMARK = Benchmark("listener", "Listener: changes relayed at full write load", world, scale="seconds of full load")
