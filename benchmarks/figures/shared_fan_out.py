"""
One change for everybody: 1,000 sockets that ask the same, and share an execution.

The baseline is a loop, on the same server, that sends every socket a ready frame of the same length, with a turn of the
event loop for each change.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from benchmarks.benchmark import AtLeast, Benchmark, Comparison, Plan, Variant, World
from benchmarks.support.fan_out import INLINE, fan_outs

TARGETS = {"Daphne": AtLeast(0.8), "Uvicorn": AtLeast(0.5)}


@contextmanager
def world(plan: Plan) -> Iterator[World]:
    changes = plan.pick(400, 20)
    with fan_outs(plan, f"{changes} a run; {INLINE}") as (found, conditions):
        comparisons = [
            Comparison(
                f"{fan_out.sockets:,} sockets",
                Variant(f"{name}, shared", partial(fan_out.ours, "captured", changes)),
                Variant(f"{name}, a ready frame", partial(fan_out.bare, changes)),
                "results/s",
                TARGETS[name],
            )
            for name, fan_out in found.items()
        ]
        yield World(comparisons, conditions)


BENCHMARK = Benchmark("shared-fan-out", "Shared fan-out: one change for everybody", world)
