"""
What the doorbell spares writers: the same updates with a trigger that calls pg_notify for every row.

Everybody who listens is there: our leader, awake as long as there are changes for it, and a session that LISTENs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from benchmarks.benchmark import AtLeast, Benchmark, Comparison, Plan, Variant, World
from benchmarks.support.listener import hearing, leader
from benchmarks.support.writing import NOTIFY_CHANNEL, NOTIFYING_TABLE, WATCHED_TABLE, writing

CLIENTS = 16


@contextmanager
def world(plan: Plan) -> Iterator[World]:
    with writing(plan) as load, leader(load.database), hearing(load.database, NOTIFY_CHANNEL):
        comparison = Comparison(
            f"{CLIENTS} clients",
            Variant("triggers, keys only", partial(load.speed, WATCHED_TABLE, CLIENTS)),
            Variant("pg_notify for every row", partial(load.speed, NOTIFYING_TABLE, CLIENTS)),
            "transactions/s",
            AtLeast(3.5),
        )
        yield World([comparison], load.conditions)


BENCHMARK = Benchmark("write-gain", "Write gain: against a trigger that always notifies", world)
