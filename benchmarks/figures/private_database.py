"""
A query for each subscriber: 1,000 sockets that share with nobody, and each asks the database in `next`.

As in `private-fan-out`, but what a subscriber is sent is found by the ORM, in a query that only it makes.  The baseline
is the same queries and nothing else: no execution, no sockets, one loop for each of as many threads as a hub has.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

from benchmarks.benchmark import AtLeast, Benchmark, Comparison, Plan, Variant, World
from benchmarks.support.fan_out import INLINE, FanOut, fan_outs
from pgnotify_gql.conf import Settings

TARGET = AtLeast(0.7)

QUERIES = 20_000


def queried(fan_out: FanOut, workers: int, queries: int) -> float:
    """Return queries a second, of all threads together."""
    from benchmarks.support.messages_site import message_of

    pk, conversation = fan_out.conversations.messages.keys[0], str(fan_out.conversations.first)

    def loop() -> None:
        for _ in range(queries // workers):
            assert message_of(conversation, pk) is not None

    with ThreadPoolExecutor(workers, initializer=_connect) as threads:
        # Each thread connects before the first query that counts.
        for connected in [threads.submit(time.sleep, 0.1) for _ in range(workers)]:
            connected.result()
        begun = time.perf_counter()
        for finished in [threads.submit(loop) for _ in range(workers)]:
            finished.result()
        taken = time.perf_counter() - begun
        for closed in [threads.submit(_close) for _ in range(workers)]:
            closed.result()
    return queries // workers * workers / taken


def _connect() -> None:
    from django.db import connection

    connection.ensure_connection()


def _close() -> None:
    from django.db import connection

    connection.close()
    # So that the next call is for a thread that has not closed its own.
    time.sleep(0.1)


@contextmanager
def world(plan: Plan) -> Iterator[World]:
    changes, workers = plan.pick(10, 2), Settings.WORKERS
    with fan_outs(plan, f"{changes} a run; {workers} worker threads, {INLINE}") as (found, conditions):
        loop = Variant(
            f"{workers} threads that query",
            partial(queried, next(iter(found.values())), workers, plan.pick(QUERIES, 400)),
        )
        comparisons = [
            Comparison(
                f"{fan_out.sockets:,} sockets",
                Variant(f"{name}, private, a query each", partial(fan_out.ours, "queried", changes)),
                loop,
                "results/s",
                TARGET,
            )
            for name, fan_out in found.items()
        ]
        yield World(comparisons, conditions)


BENCHMARK = Benchmark("private-database", "Private with database: a query for each socket", world)
