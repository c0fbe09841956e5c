"""
What one read of the journal costs, whatever the journal holds and whoever holds a transaction open.

The leader's own read, over a connection like its own: rows are written and committed, then the read that finds them is
timed.  Three servers, since a transaction that is open in one database shows in the snapshots of all.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import dataclass
from functools import partial

from benchmarks.benchmark import AtMost, Benchmark, Comparison, Plan, Variant, World
from benchmarks.support.journals import fill_journal, write_batch
from benchmarks.support.postgres import conditions, database, server, settle
from pgnotify_gql.journal.reader import current_snapshot, read_new
from pgnotify_gql.listener import Timing, connect
from pgnotify_gql.listener.listener import PREPARE_THRESHOLD
from tests.support.databases import Database

BATCHES = (1, 100)
"""Journal rows of a batch: a change now and then, and many writers."""

WARM_UP = 20
"""Reads that are not counted: until the statement is prepared, and its plan kept."""

TARGET = AtMost(1.2)


@dataclass(frozen=True)
class Journal:
    """One that is read; each run makes it larger by what it reads."""

    database: Database
    reads: int

    def microseconds(self, rows: int) -> float:
        """Return how long one read of a new batch takes, the median of a run."""
        return asyncio.run(self._microseconds(rows))

    async def _microseconds(self, rows: int) -> float:
        timing = Timing()
        writing = self.database.connect()
        reading = await connect(self.database.conninfo, session_timeout=timing.session_timeout)
        reading.prepare_threshold = PREPARE_THRESHOLD
        try:
            cursor = await current_snapshot(reading)
            taken = []
            for _ in range(WARM_UP + self.reads):
                write_batch(writing, rows)
                begun = time.perf_counter()
                async with aclosing(read_new(reading, cursor)) as batches:
                    batch = await anext(batches)
                taken.append((time.perf_counter() - begun) * 1_000_000)
                if len(batch.rows) != rows:
                    raise AssertionError(f"{rows} rows were written and {len(batch.rows)} read")
                cursor = batch.after
            return statistics.median(taken[WARM_UP:])
        finally:
            await reading.close()
            writing.close()


@contextmanager
def world(plan: Plan) -> Iterator[World]:
    rows = plan.pick(5_000_000, 100_000)
    with ExitStack() as opened:
        empty, full, beside = (Journal(_database(opened, plan), plan.pick(500, 50)) for _ in range(3))
        plan.tell(f"writing {rows:,} journal rows")
        fill_journal(full.database.connect(), rows)
        plan.tell(f"writing {rows:,} journal rows beside an open transaction")
        writer = beside.database.connect()
        opened.enter_context(writer.transaction())
        write_batch(writer, 1)
        fill_journal(beside.database.connect(), rows)
        for journal in (empty, full, beside):
            settle(journal.database.connect())
        others = {f"{rows:,} rows": full, f"a transaction open for {rows:,} rows": beside}
        comparisons = []
        for batch in BATCHES:
            name = f"new batch of {batch}"
            baseline = Variant("empty", partial(empty.microseconds, batch))
            comparisons += [
                Comparison(name, Variant(what, partial(journal.microseconds, batch)), baseline, "µs", TARGET)
                for what, journal in others.items()
            ]
        yield World(comparisons, conditions(empty.database.server))


def _database(opened: ExitStack, plan: Plan) -> Database:
    return opened.enter_context(database(opened.enter_context(server(plan))))


BENCHMARK = Benchmark("journal", "Journal: reading one new batch", world)
