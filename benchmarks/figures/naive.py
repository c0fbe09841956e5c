"""
Against the usual design: a consumer for each socket in a Channels group, and for each change a fetch and an execution.

Ours as in `shared-fan-out`, where all share an execution, and as in `private-fan-out`, where each has its own.  The
usual design is `benchmarks.support.naive_site`, on the same server, with the same in-memory layer, schema and query.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from benchmarks.benchmark import AtLeast, Benchmark, Comparison, Plan, Variant, World
from benchmarks.support.fan_out import INLINE, fan_outs


@contextmanager
def world(plan: Plan) -> Iterator[World]:
    shared, private, naive = plan.pick((400, 50, 5), (20, 5, 2))
    load = f"{shared} a run shared, {private} private, {naive} of the usual design; {INLINE}"
    with fan_outs(plan, load) as (found, conditions):
        comparisons = []
        for name, fan_out in found.items():
            usual = Variant(f"{name}, the usual design", partial(fan_out.naive, naive))
            for ours, target in (
                (Variant(f"{name}, shared", partial(fan_out.ours, "captured", shared)), AtLeast(100)),
                (Variant(f"{name}, private", partial(fan_out.ours, "private", private)), AtLeast(10)),
            ):
                comparisons.append(Comparison(f"{fan_out.sockets:,} sockets", ours, usual, "results/s", target))
        yield World(comparisons, conditions)


BENCHMARK = Benchmark("naive", "Against the usual design: a consumer, a fetch and an execution for each socket", world)
