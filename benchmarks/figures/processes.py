"""
Whether a second server process adds what it should: the same sockets on one process and on two, behind Redis.

A listener of its own relays to Redis, and every process has a hub that receives from it.  As in `shared-fan-out` and
`private-fan-out`; receivers, PostgreSQL, Redis and listener share the machine with the servers, which on two cores
leaves a second process less than a core.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from benchmarks.benchmark import AtLeast, Benchmark, Comparison, Plan, Variant, World
from benchmarks.support.fan_out import fan_outs
from benchmarks.support.redis import redis

MORE = AtLeast(1)
"""A process that is added is to add something."""

NAMES = {"captured": "shared", "private": "private"}


@contextmanager
def world(plan: Plan) -> Iterator[World]:
    changes = {"captured": plan.pick(400, 20), "private": plan.pick(50, 5)}
    load = ", ".join(f"{count} a run {NAMES[field]}" for field, count in changes.items())
    with fan_outs(plan, f"{load}; run_listener, Redis") as (found, conditions), redis(plan) as redis_server:
        if redis_server is None:
            raise LookupError("redis-server is not installed: processes have no other layer between them")
        comparisons = []
        for name, fan_out in found.items():
            for field, count in changes.items():
                one, two = (
                    Variant(
                        f"{name}, {NAMES[field]}, {processes} process{'es' if processes > 1 else ''}",
                        partial(fan_out.with_redis, field, count, processes, redis_server),
                    )
                    for processes in (1, 2)
                )
                comparisons.append(Comparison(f"{fan_out.sockets:,} sockets", two, one, "results/s", MORE))
        yield World(comparisons, conditions)


BENCHMARK = Benchmark("processes", "Processes: the same sockets on two instead of one", world)
