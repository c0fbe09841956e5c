"""
What one change costs in a hub, by the number of operations that wait for others.

Each operation waits for another conversation and shares with nobody, as subscribers with an inbox each do.  A change of
one of the conversations is measured from the moment the hub is given its message by the channel layer to the moment the
one result is handed to its socket: gap check, topic index, a thread's execution of the document on the row images, and
JSON.  Microseconds, the median of the changes of a run, which are made one after the other; and their mean, in which
what the garbage collector takes shows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import fmean, median

from benchmarks.benchmark import AtMost, Benchmark, Comparison, Plan, Variant, World
from benchmarks.support.messages import Conversations, make_conversations
from benchmarks.support.postgres import conditions, database, server
from tests.support.databases import Database
from tests.support.processes import CHECKOUT

TARGET = AtMost(1.3)

OPERATIONS = 100
"""With which more are compared."""


@dataclass(frozen=True)
class Routing:
    """Changes of one of many conversations."""

    database: Database
    conversations: Conversations
    changes: int

    def microseconds(self, operations: int) -> dict[str, float]:
        """Return median and mean; in a process of its own, so that each run begins with an empty memory."""
        arguments = (self.database.conninfo, self.conversations.first, operations, self.changes)
        command = [sys.executable, "-m", "benchmarks.support.hub_process", *map(str, arguments)]
        environment = os.environ | {"DATABASE_URL": self.database.url, "DEBUG": "0", "PGNOTIFY_INLINE": "0"}
        finished = subprocess.run(command, cwd=CHECKOUT, env=environment, stdout=subprocess.PIPE, check=True)
        taken = json.loads(finished.stdout)
        return {"median": median(taken), "mean": fmean(taken)}


@contextmanager
def world(plan: Plan) -> Iterator[World]:
    sizes = plan.pick((100, 1_000, 10_000), (100, 200))
    with server(plan) as postgres, database(postgres) as made:
        plan.tell(f"writing {sizes[-1]:,} conversations")
        routing = Routing(made, make_conversations(made, sizes[-1]), plan.pick(1_000, 20))
        few = Variant(f"hub, {OPERATIONS} operations", partial(routing.microseconds, OPERATIONS))
        many = {size: Variant("hub", partial(routing.microseconds, size)) for size in sizes}
        comparisons = [
            Comparison(
                f"{size:,} operations, {figure}",
                ours,
                few,
                "µs",
                TARGET if figure == "median" and size > OPERATIONS else None,
                figure,
                size=size if figure == "median" else None,
            )
            for figure in ("median", "mean")
            for size, ours in many.items()
        ]
        yield World(comparisons, {**conditions(postgres), "changes": f"{routing.changes:,} a run"})


BENCHMARK = Benchmark("routing", "Routing: one change, by how many wait for others", world, "operations")
