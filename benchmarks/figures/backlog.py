"""
How fast a backlog leaves: changes that were journaled while no listener ran, from the journal to the layer.

The whole listener is measured, from before it connects until the layer has the last row.  The baseline asks for the
same rows in the same order and makes nothing of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from benchmarks.benchmark import AtLeast, Benchmark, Comparison, Plan, Variant, World
from benchmarks.support.journals import fill_journal
from benchmarks.support.layers import CountingLayer, redis_layer
from benchmarks.support.listener import make_listener
from benchmarks.support.postgres import conditions, database, server, settle
from benchmarks.support.redis import redis
from pgnotify_gql.journal.reader import BATCH_ROWS, COLUMNS
from tests.support.databases import Database
from tests.support.processes import RedisServer

TARGET = AtLeast(0.5)

# As if the last leader had ended in good order, long ago.
FORGET = "update pgnotify_gql.journal_state set relayed = %s::pg_snapshot, relayed_at = '-infinity'"


@dataclass(frozen=True)
class Backlog:
    """Journal rows that the stored cursor, once it is put back to `cursor`, does not see."""

    database: Database
    rows: int
    cursor: str

    def relay(self, redis_server: RedisServer | None = None) -> float:
        """Return rows per second that the listener relays, to nowhere or to Redis."""
        if redis_server is not None:
            redis_server.flush()
        session = self.database.connect()
        session.execute(FORGET, [self.cursor])
        settle(session, "pgnotify_gql.journal_state")
        return asyncio.run(self._relay("" if redis_server is None else redis_server.url))

    def read(self) -> float:
        """Return rows per second that psycopg reads with a server-side cursor."""
        with self.database.connect() as session:
            begun = time.perf_counter()
            count = 0
            with session.transaction(), session.cursor(name="backlog") as cursor:
                cursor.execute(f"select {COLUMNS} from pgnotify_gql.journal order by id")
                while found := cursor.fetchmany(BATCH_ROWS):
                    count += len(found)
            return count / (time.perf_counter() - begun)

    async def _relay(self, redis_url: str) -> float:
        inner = await redis_layer(redis_url) if redis_url else None
        everything = asyncio.Event()

        def note(rows: int) -> None:
            if rows >= self.rows:
                everything.set()

        listener = make_listener(self.database.conninfo, CountingLayer(inner, note))
        begun = time.perf_counter()
        running = asyncio.create_task(listener.run(), name="listener")
        await everything.wait()
        taken = time.perf_counter() - begun
        listener.stop()
        await running
        if inner is not None:
            await inner.close_pools()
        return self.rows / taken


@contextmanager
def world(plan: Plan) -> Iterator[World]:
    rows = plan.pick(1_000_000, 50_000)
    with server(plan) as postgres, database(postgres) as made, redis(plan) as redis_server:
        session = made.connect()
        found = session.execute("select pg_current_snapshot()::text").fetchone()
        assert found is not None
        plan.tell(f"writing {rows:,} journal rows")
        fill_journal(session, rows)
        session.execute("vacuum analyze pgnotify_gql.journal")
        backlog = Backlog(made, rows, found[0])
        reading = Variant("psycopg, server-side cursor", backlog.read)
        name = f"{rows:,} journal rows"
        comparisons = [
            Comparison(name, Variant("listener, to nowhere", backlog.relay), reading, "rows/s", TARGET),
        ]
        if redis_server is not None:
            ours = Variant("listener, to Redis", partial(backlog.relay, redis_server))
            comparisons.append(Comparison(name, ours, reading, "rows/s", TARGET))
        yield World(comparisons, {**conditions(postgres), "rows": f"one change each, read {BATCH_ROWS} at a time"})


BENCHMARK = Benchmark("backlog", "Backlog: what was journaled while no listener ran", world)
