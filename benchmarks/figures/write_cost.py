"""
What our triggers cost writers: transactions per second with and without them, our leader awake.

One client waits for its own commits, many for each other and for the processor.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from benchmarks.benchmark import AtLeast, Benchmark, Comparison, Plan, Variant, World
from benchmarks.support.listener import leader
from benchmarks.support.writing import PLAIN_TABLE, WATCHED_TABLE, Writing, writing

CLIENTS = (1, 16, 64)

TARGET = AtLeast(0.85)

MANY = 16
"""Clients from which on the target holds."""


@contextmanager
def world(plan: Plan) -> Iterator[World]:
    with writing(plan) as load, leader(load.database):
        yield World([_compare(load, clients) for clients in CLIENTS], load.conditions)


def _compare(load: Writing, clients: int) -> Comparison:
    return Comparison(
        f"{clients} clients" if clients > 1 else "1 client",
        Variant("triggers, keys only", partial(load.speed, WATCHED_TABLE, clients)),
        Variant("no trigger", partial(load.speed, PLAIN_TABLE, clients)),
        "transactions/s",
        TARGET if clients >= MANY else None,
        size=clients,
    )


BENCHMARK = Benchmark("write-cost", "Write cost: what triggers cost writers", world, scale="clients")
