"""
What our triggers add to statements that write many rows at once.

One statement of one client, which commits at once, on a table that was made anew before; our leader runs, and relays
what it finds meanwhile.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from benchmarks.benchmark import AtMost, Benchmark, Comparison, Plan, Variant, World
from benchmarks.support.listener import leader
from benchmarks.support.postgres import (
    conditions,
    database,
    empty_journal,
    fill,
    make_table,
    server,
    settle,
    watch_table,
)
from tests.support.watched import Connection

WATCHED_TABLE = "watched"
PLAIN_TABLE = "plain"
SOURCE_TABLE = "source"

TARGET = AtMost(1.15)


@dataclass(frozen=True)
class Statements:
    """The statements that are measured; `executions` of one make a run."""

    session: Connection
    rows: int
    executions: int

    def update(self, table: str) -> float:
        return self._milliseconds(table, self.rows, partial(self._execute, f"update {table} set version = version + 1"))

    def insert(self, table: str) -> float:
        return self._milliseconds(table, 0, partial(self._execute, f"insert into {table} select * from {SOURCE_TABLE}"))

    def copy(self, table: str) -> float:
        lines = "".join(f"{number}\titem {number}\t0\n" for number in range(self.rows))

        def copy() -> None:
            with self.session.cursor() as cursor, cursor.copy(f"copy {table} from stdin") as out:
                out.write(lines)

        return self._milliseconds(table, 0, copy)

    def _execute(self, statement: str) -> None:
        self.session.execute(statement)

    def _milliseconds(self, table: str, rows: int, statement: Callable[[], None]) -> float:
        taken = []
        for _ in range(self.executions):
            self._prepare(table, rows)
            begun = time.perf_counter()
            statement()
            taken.append((time.perf_counter() - begun) * 1000)
        return statistics.median(taken)

    def _prepare(self, table: str, rows: int) -> None:
        # No triggers fire meanwhile.
        self.session.execute("set session_replication_role = replica")
        fill(self.session, table, rows)
        self.session.execute("reset session_replication_role")
        empty_journal(self.session)
        settle(self.session, table)


@contextmanager
def world(plan: Plan) -> Iterator[World]:
    rows = plan.pick(50_000, 5_000)
    with server(plan) as postgres, database(postgres) as made:
        session = made.connect()
        for table in (WATCHED_TABLE, PLAIN_TABLE, SOURCE_TABLE):
            make_table(session, table, rows)
        watch_table(WATCHED_TABLE)
        statements = Statements(session, rows, plan.pick(5, 1))
        comparisons = [
            _compare(f"UPDATE of {rows:,} rows", statements.update),
            _compare(f"INSERT ... SELECT of {rows:,} rows", statements.insert),
            _compare(f"COPY of {rows:,} rows", statements.copy),
        ]
        with leader(made):
            yield World(comparisons, conditions(postgres))


def _compare(name: str, statement: Callable[[str], float]) -> Comparison:
    return Comparison(
        name,
        Variant("triggers, keys only", partial(statement, WATCHED_TABLE)),
        Variant("no trigger", partial(statement, PLAIN_TABLE)),
        "ms",
        TARGET,
    )


BENCHMARK = Benchmark("bulk", "Bulk: what triggers add to statements that write many rows", world)
