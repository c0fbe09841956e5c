"""
Many writers at once, and a reader that follows: every committed change once, none missing, each row's in order.

This is what the whole feed stands on.  Writers commit in another order than they began in, roll back, use savepoints
and change the same rows; slots of the journal are emptied under them.
"""

from __future__ import annotations

import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import psycopg
import pytest
from psycopg import AsyncConnection

from pgnotify_gql.journal import Snapshot, reader
from pgnotify_gql.journal.reader import BATCH_ROWS, PART_ROWS, Connection, current_snapshot, read_new
from pgnotify_gql.journal.retention import rotate
from tests.support.databases import Database
from tests.support.watched import WatchedTable, watched

WRITERS = 10
TRANSACTIONS = 80
SHARED_ROWS = 30

LONGEST_HOLD = 0.03
"""Seconds that a transaction stays open before it ends."""

RETENTION = 0.2
"""Seconds: slots are emptied a few times in the course of the test."""

Event = tuple[str, int, int]
"""A kind, a key, and the version that the row then has, or had when it was deleted."""


@dataclass
class Writer:
    """A thread that writes, and remembers what it committed."""

    database: Database
    seed: int
    committed: list[Event] = field(default_factory=list)

    def run(self) -> list[Event]:
        source = random.Random(self.seed)
        # Deadlocks are a way to roll back like any other; waiting a second for each would be most of the test.
        options = "-c deadlock_timeout=10ms"
        with psycopg.connect(self.database.conninfo, autocommit=True, options=options) as connection:
            for _ in range(TRANSACTIONS):
                self.transaction(connection, source)
        return self.committed

    def transaction(self, connection: psycopg.Connection, source: random.Random) -> None:
        events: list[Event] = []
        try:
            with connection.transaction(force_rollback=source.random() < 0.2) as block:
                for _ in range(source.randint(1, 3)):
                    events += self.step(connection, source)
                time.sleep(source.uniform(0, LONGEST_HOLD))
        except psycopg.errors.DeadlockDetected:
            return
        if not block.force_rollback:
            self.committed += events

    def step(self, connection: psycopg.Connection, source: random.Random) -> list[Event]:
        """Run a statement, in some cases in a savepoint that may be rolled back; return what it did."""
        statement = source.choice([self.update, self.update, self.insert, self.replace])
        if source.random() < 0.6:
            return statement(connection, source)
        with connection.transaction(force_rollback=source.random() < 0.5) as savepoint:
            events = statement(connection, source)
        return [] if savepoint.force_rollback else events

    def update(self, connection: psycopg.Connection, source: random.Random) -> list[Event]:
        keys = source.sample(range(1, SHARED_ROWS + 1), k=source.choice([1, 1, 2, 5]))
        return self.events(
            "UPDATE", connection, "update item set version = version + 1 where id = any(%s) returning id, version", keys
        )

    def insert(self, connection: psycopg.Connection, source: random.Random) -> list[Event]:
        return self.events(
            "INSERT",
            connection,
            "insert into item (version) select 0 from generate_series(1, %s) returning id, version",
            source.choice([1, 1, 3, 20]),
        )

    def replace(self, connection: psycopg.Connection, source: random.Random) -> list[Event]:
        """Delete a shared row and put it back with the next version."""
        key = source.randint(1, SHARED_ROWS)
        events = self.events("DELETE", connection, "delete from item where id = %s returning id, version", key)
        for _, _, version in events:
            events = events + self.events(
                "INSERT",
                connection,
                "insert into item (id, version) values (%s, %s) returning id, version",
                key,
                version + 1,
            )
        return events

    def events(self, kind: str, connection: psycopg.Connection, statement: str, *parameters: object) -> list[Event]:
        return [(kind, key, version) for key, version in connection.execute(statement, parameters)]


@dataclass
class Follower:
    """Reads the journal over and over, as the leader does."""

    table: WatchedTable
    connection: Connection
    cursor: Snapshot
    batch_rows: int
    seen: list[Event] = field(default_factory=list)
    slots_emptied: int = 0

    async def follow(self, running: Callable[[], bool]) -> None:
        while running():
            await self.read()
            await rotate(self.connection, self.cursor, RETENTION)
        await self.read()

    async def read(self) -> None:
        async for batch in read_new(self.connection, self.cursor, batch_rows=self.batch_rows):
            assert len(batch.rows) <= self.batch_rows * PART_ROWS
            for row in batch.rows:
                for change in row.changes(self.table.watch):
                    image = change.new or change.old
                    assert image is not None
                    self.seen.append((change.kind.value, change.pk, image["version"]))
            if batch.last:
                self.cursor = batch.after


@pytest.fixture
def items(database: Database) -> WatchedTable:
    """The rows that all writers share; rows that they insert have ids above 1,000."""
    table = watched(database, columns=["version"])
    table.run("insert into item (id) select n from generate_series(1, %s) n", SHARED_ROWS)
    table.run("select setval('item_id_seq', 1000)")
    return table


@pytest.mark.parametrize("standing", [reader.STANDING, 0], ids=["usual", "everybody stands"])
@pytest.mark.parametrize("batch_rows", [BATCH_ROWS, 3], ids=["in batches", "in small parts"])
async def test_every_committed_change_is_seen_once_and_in_order(
    database: Database,
    items: WatchedTable,
    batch_rows: int,
    standing: int,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reader, "STANDING", standing)
    caplog.set_level("INFO", "pgnotify_gql.journal")
    async with await AsyncConnection.connect(database.conninfo, autocommit=True) as connection:
        follower = Follower(items, connection, await current_snapshot(connection), batch_rows)
        with ThreadPoolExecutor(WRITERS) as threads:
            writers = [threads.submit(Writer(database, seed).run) for seed in range(WRITERS)]
            await follower.follow(lambda: not all(writer.done() for writer in writers))
        await follower.read()
    committed = Counter(event for writer in writers for event in writer.result())
    seen = Counter(follower.seen)
    assert sorted((committed - seen).elements()) == [], "missing"
    assert sorted((seen - committed).elements()) == [], "seen twice, or never committed"
    assert len(committed) > WRITERS * TRANSACTIONS / 2
    assert_rows_are_in_order(follower.seen)
    assert any("emptied" in message for message in caplog.messages), (
        "no slot was emptied: the test shows less than it says"
    )


def assert_rows_are_in_order(events: list[Event]) -> None:
    """An update and an insert raise the version of their row by one; a delete has the one that was there."""
    versions: defaultdict[int, int] = defaultdict(int)
    for kind, key, version in events:
        expected = versions[key] if kind == "DELETE" or key > 1000 else versions[key] + 1
        assert version == expected, (kind, key, version, expected)
        versions[key] = version


@pytest.mark.postgres("18")
def test_a_sequence_number_for_a_cursor_would_lose_rows(database: Database, items: WatchedTable) -> None:
    """
    The reason for snapshots, in numbers: should this fail, the writers above no longer test anything.

    The same writers, followed by `id > last`.
    """
    ((first,),) = items.run("select max(id) from pgnotify_gql.journal")
    last, seen = first, set[int]()
    with ThreadPoolExecutor(WRITERS) as threads:
        writers = [threads.submit(Writer(database, seed).run) for seed in range(WRITERS)]
        while not all(writer.done() for writer in writers):
            new = [row_id for (row_id,) in items.run("select id from pgnotify_gql.journal where id > %s", last)]
            seen.update(new)
            last = max(new, default=last)
    written = items.run("select id from pgnotify_gql.journal where id > %s and id <= %s", first, last)
    assert {row_id for (row_id,) in written} - seen
