"""
What our triggers cost writers: transactions per second with and without them, our leader awake.

One client waits for its own commits, many for each other and for the processor.  Beside ours, the least that any
trigger costs on the same machine (see floors).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from benchmarks.benchmark import AtLeast, Benchmark, Comparison, Plan, Variant, World
from benchmarks.support.floors import FLOORS
from benchmarks.support.listener import leader
from benchmarks.support.writing import PLAIN_TABLE, WATCHED_TABLE, Writing, writing

CLIENTS = (1, 16, 64)

TARGET = AtLeast(0.85)

UNIT = "transactions/s"

MANY = 16
"""Clients from which on the target holds."""


@contextmanager
def world(plan: Plan) -> Iterator[World]:
    with writing(plan) as load, leader(load.database):
        comparisons = [comparison for clients in CLIENTS for comparison in _compare(load, clients)]
        yield World(comparisons, load.conditions)


def _compare(load: Writing, clients: int) -> Iterator[Comparison]:
    figure = f"{clients} clients" if clients > 1 else "1 client"
    plain = Variant("no trigger", partial(load.speed, PLAIN_TABLE, clients))
    ours = Variant("triggers, keys only", partial(load.speed, WATCHED_TABLE, clients))
    yield Comparison(figure, ours, plain, UNIT, TARGET if clients >= MANY else None, size=clients)
    for what, table in FLOORS.items():
        yield Comparison(figure, Variant(what, partial(load.speed, table, clients)), plain, UNIT)


BENCHMARK = Benchmark("write-cost", "Write cost: what triggers cost writers", world, scale="clients")
