"""
What our triggers add to statements that write many rows at once.

One statement of one client, which commits at once, on a table that was filled anew before; our leader runs, and relays
what it finds meanwhile.  Two kinds of table: the barest there is, where nothing hides what a trigger adds, and one as
Django makes it for a model with two foreign keys.  Beside ours on the bare table, the least that any trigger adds (see
floors).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from benchmarks.benchmark import AtMost, Benchmark, Comparison, Plan, Variant, World
from benchmarks.support.floors import FLOORS, empty_floors, make_floors
from benchmarks.support.listener import leader
from benchmarks.support.postgres import (
    conditions,
    database,
    empty_journal,
    fill,
    make_django_table,
    make_table,
    server,
    settle,
    watch_table,
)
from tests.support.watched import Connection

WATCHED_TABLES = {"bare table": "watched", "two foreign keys": "watched_django"}
PLAIN_TABLES = {"bare table": "plain", "two foreign keys": "plain_django"}
SOURCE_TABLE = "source"

COLUMNS = "id, name, version"

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
        return self._milliseconds(
            table, 0, partial(self._execute, f"insert into {table} ({COLUMNS}) select * from {SOURCE_TABLE}")
        )

    def copy(self, table: str) -> float:
        lines = "".join(f"{number}\titem {number}\t0\n" for number in range(self.rows))

        def copy() -> None:
            with self.session.cursor() as cursor, cursor.copy(f"copy {table} ({COLUMNS}) from stdin") as out:
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
        empty_floors(self.session)
        settle(self.session, table)


@contextmanager
def world(plan: Plan) -> Iterator[World]:
    rows = plan.pick(50_000, 5_000)
    with server(plan) as postgres, database(postgres) as made:
        session = made.connect()
        for table in (WATCHED_TABLES["bare table"], PLAIN_TABLES["bare table"], SOURCE_TABLE, *FLOORS.values()):
            make_table(session, table, rows)
        make_floors(session)
        for table in (WATCHED_TABLES["two foreign keys"], PLAIN_TABLES["two foreign keys"]):
            make_django_table(session, table)
        for table in WATCHED_TABLES.values():
            watch_table(table)
        statements = Statements(session, rows, plan.pick(5, 1))
        comparisons = [
            comparison
            for kind in WATCHED_TABLES
            for name, statement in (
                ("UPDATE", statements.update),
                ("INSERT ... SELECT", statements.insert),
                ("COPY", statements.copy),
            )
            for comparison in _compare(f"{name}, {rows:,} rows, {kind}", kind, statement)
        ]
        with leader(made):
            yield World(comparisons, conditions(postgres))


def _compare(name: str, kind: str, statement: Callable[[str], float]) -> Iterator[Comparison]:
    plain = Variant("no trigger", partial(statement, PLAIN_TABLES[kind]))
    ours = Variant("triggers, keys only", partial(statement, WATCHED_TABLES[kind]))
    yield Comparison(name, ours, plain, "ms", TARGET)
    if kind == "bare table":
        for what, table in FLOORS.items():
            yield Comparison(name, Variant(what, partial(statement, table)), plain, "ms")


BENCHMARK = Benchmark("bulk", "Bulk: what triggers add to statements that write many rows", world)
