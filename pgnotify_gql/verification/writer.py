"""
A writer: one connection, and one transaction after the other, of every kind that applications make.

Single rows and many, upserts, deletions, savepoints and transactions that are rolled back, transactions that are held
open; some rows are everybody's, so that writers wait for each other.  A writer that loses its connection opens another
one; whether its last transaction was committed the ledger knows.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import AsyncConnection
from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from . import writes

SHARED_KEYS = range(1, 31)
"""Rows that every writer changes."""

OWN_KEYS = 1_000_000_000
"""Keys of a writer that are nobody else's: those from this, times its number, on."""

MOST_ROWS = 100
"""Rows of an ordinary statement, at most; most have fewer."""

FLOOD_ROWS = 1_500
"""Rows of a statement that is larger than a message through the channel layer may be, and than an outbox is long."""

MOST_BLOCKS = 6
"""Ranges of own rows that a writer keeps before it deletes the oldest."""

LOCK_TIMEOUT = "3s"

HOLD_LIMIT = 2.0
"""Seconds for which a transaction is held open, at most."""

MOST_DEBT, MOST_REST = 2.0, 5.0
"""Seconds that a writer may be late, and rest: a flood is not paid for in full."""

ROLLED_BACK = 0.08
"""Part of the transactions, and of the savepoints, that are rolled back."""


@dataclass
class Commits:
    """When each transaction sent its COMMIT, in monotonic seconds by transaction id, and what writers have met."""

    sent: dict[int, float] = field(default_factory=dict)
    transactions: int = 0
    changes: int = 0
    rolled_back: int = 0
    failed: int = 0
    """Transactions that the server ended: deadlocks, lost connections and the like."""


@dataclass
class _Transaction:
    """What a transaction has done so far."""

    xid: int | None = None
    changes: int = 0


class Writer:
    """Writes `rate` changes of rows a second, on average, until told to stop."""

    def __init__(self, number: int, conninfo: str, commits: Commits, *, rate: float, chance: random.Random) -> None:
        self._conninfo = conninfo
        self._commits = commits
        self._rate = rate
        self._chance = chance
        self._next_key = OWN_KEYS * (number + 1)
        self._blocks: deque[range] = deque()
        self._flood = False
        self._due = time.monotonic()
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """End after the transaction that is under way."""
        self._stopping.set()

    def flood(self) -> None:
        """Write very many rows at once, next time."""
        self._flood = True

    async def run(self) -> None:
        """Write.  Raises psycopg.Error for what no fault explains: the table is gone, the role may not write it."""
        while not self._stopping.is_set():
            try:
                async with await self._connected() as connection:
                    while not self._stopping.is_set():
                        await self._pay(await self._write(connection))
            # The last one where a savepoint that was to be rolled back is lost with its connection.
            except (psycopg.OperationalError, psycopg.InterfaceError, psycopg.Rollback):
                self._commits.failed += 1

    async def _connected(self) -> AsyncConnection:
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(psycopg.OperationalError),
            wait=wait_random_exponential(multiplier=0.05, max=2),
        )
        connection: AsyncConnection = await retrying(
            AsyncConnection.connect, self._conninfo, autocommit=True, prepare_threshold=None
        )
        return connection

    async def _write(self, connection: AsyncConnection) -> int:
        """Run a transaction; return how many rows it has changed, if it was committed."""
        done = _Transaction()
        try:
            if self._chance.random() < 0.2:
                await self._statement_alone(connection, done)
            else:
                await self._transaction(connection, done)
        except psycopg.OperationalError:
            if connection.broken or connection.closed:
                raise
            # A deadlock, a lock that was not to be had, a serialization failure: rolled back.
            self._commits.failed += 1
            return 0
        return done.changes

    async def _statement_alone(self, connection: AsyncConnection, done: _Transaction) -> None:
        sent = time.monotonic()
        await self._change(connection, done)
        self._note(done, sent)

    async def _transaction(self, connection: AsyncConnection, done: _Transaction) -> None:
        committed = False
        async with connection.transaction():
            if self._chance.random() < 0.1:
                await connection.execute("set transaction isolation level repeatable read")
            await connection.execute(f"set local lock_timeout = '{LOCK_TIMEOUT}'")
            for _ in range(self._chance.randint(1, 3)):
                await self._step(connection, done)
                await self._hold()
            if self._chance.random() < ROLLED_BACK:
                self._commits.rolled_back += 1
                done.changes = 0
                raise psycopg.Rollback
            committed = True
            # Before the COMMIT is sent: subscribers may have the change before we have the answer.
            sent = time.monotonic()
            if done.xid is not None:
                self._commits.sent[done.xid] = sent
        if committed:
            self._note(done, sent)

    async def _step(self, connection: AsyncConnection, done: _Transaction) -> None:
        if self._chance.random() > 0.25:
            await self._change(connection, done)
            return
        before = done.changes
        async with connection.transaction():
            await self._change(connection, done)
            if self._chance.random() < 0.4:
                done.changes = before
                raise psycopg.Rollback

    async def _change(self, connection: AsyncConnection, done: _Transaction) -> None:
        statement, parameters = self._chosen()
        cursor = await connection.execute(statement.encode(), parameters)
        found = await cursor.fetchone()
        assert found is not None, "an aggregate has a row"
        done.changes += found[0]
        done.xid = done.xid or found[1]

    def _chosen(self) -> tuple[str, dict[str, Any]]:
        if self._flood:
            self._flood = False
            return self._insert(FLOOD_ROWS)
        if len(self._blocks) > MOST_BLOCKS:
            return writes.DELETE, {"keys": list(self._blocks.popleft())}
        kinds: list[Callable[[], tuple[str, dict[str, Any]]]] = [
            lambda: (writes.UPDATE, {"keys": self._some_shared(1), "shift": self._shift()}),
            lambda: (writes.UPSERT, {"keys": self._some_shared(1)}),
            lambda: (writes.DELETE, {"keys": self._some_shared(1)}),
            lambda: self._insert(1),
            lambda: (writes.UPDATE, {"keys": self._some_shared(5), "shift": self._shift()}),
            lambda: (writes.UPSERT, {"keys": self._some_shared(5)}),
            lambda: (writes.UPDATE, {"keys": self._some_own(), "shift": self._shift()}),
            lambda: self._insert(self._many()),
        ]
        (kind,) = self._chance.choices(kinds, weights=[30, 15, 8, 10, 8, 4, 12, 6])
        return kind()

    def _insert(self, count: int) -> tuple[str, dict[str, Any]]:
        keys = range(self._next_key, self._next_key + count)
        self._next_key += count
        self._blocks.append(keys)
        return writes.INSERT, {"first": keys[0], "last": keys[-1]}

    def _some_shared(self, most: int) -> list[int]:
        return self._chance.sample(SHARED_KEYS, self._chance.randint(1, most))

    def _some_own(self) -> list[int]:
        if not self._blocks:
            return self._some_shared(3)
        keys = self._chance.choice(self._blocks)
        return list(keys[: self._many()])

    def _many(self) -> int:
        # Few more often than many.
        return int(math.exp(self._chance.uniform(math.log(2), math.log(MOST_ROWS))))

    def _shift(self) -> int:
        return self._chance.choice([0, 0, 1, 2])

    async def _hold(self) -> None:
        """Keep the transaction open: mostly for no time, now and then for seconds."""
        if self._chance.random() < 0.1:
            await self._pause(self._chance.random() ** 2 * HOLD_LIMIT)

    def _note(self, done: _Transaction, sent: float) -> None:
        if done.xid is not None:
            self._commits.sent[done.xid] = sent
        self._commits.transactions += 1
        self._commits.changes += done.changes

    async def _pay(self, changes: int) -> None:
        """Wait until so many changes more are due at the rate that was asked for."""
        now = time.monotonic()
        # What was not written while a transaction was held open is made up for, but not after an outage.
        self._due = max(self._due, now - MOST_DEBT) + max(changes, 1) / self._rate * self._chance.expovariate(1)
        await self._pause(min(self._due - now, MOST_REST))

    async def _pause(self, seconds: float) -> None:
        if seconds <= 0:
            return
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass
