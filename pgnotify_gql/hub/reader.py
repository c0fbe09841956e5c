"""
What a hub reads a journal with, and its own connections to one: two for each process and database, opened when needed.

Used for what is rare: one for the cursor when a model is joined, and one for healing, which is done in a transaction
that would show the other's questions the database as it was.  A database that is away is waited for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, aclosing, asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Protocol, TypeVar

import psycopg
from django.db import connections, transaction
from psycopg.errors import InvalidSchemaName, UndefinedTable
from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from ..errors import JournalMissingError, one_line
from ..journal.position import Position
from ..journal.reader import BATCH_ROWS, Batch, Connection, is_captured, read_missed, require_complete
from ..journal.state import JOIN, Joined, join

logger = logging.getLogger("pgnotify_gql.hub")

R = TypeVar("R")

REPLAYERS = 2
"""Connections of a process to a database over which operations catch up; more wait for their turn."""

RETRY_FIRST = 0.25
RETRY_MAX = 5.0
"""Seconds: the scale of the first pause before the database is tried again, and the longest; both with jitter."""

ISOLATION = "set transaction isolation level repeatable read, read only"


class Reader(Protocol):
    """Reads the journal of one database, given by its alias."""

    database: str

    async def current(self) -> Joined:
        """Return the cursor from which only later changes are new."""

    async def is_captured(self, label: str) -> bool:
        """Return whether the database has triggers for a model."""

    async def require_complete(self, position: Position) -> None:
        """Raise CursorTooOldError unless the journal holds everything after a position."""

    def missed(self, position: Position, label: str, batch_rows: int = ...) -> AsyncGenerator[Batch, None]:
        """Yield what a model has after a position.  Raises psycopg.Error to be asked again, and CursorTooOldError."""

    def snapshot(self) -> AbstractContextManager[Joined]:
        """Show the calling thread's connection of Django the database as it is now; yield where that is."""

    def another(self) -> Reader:
        """Return a reader of the same journal that does not wait for this one."""

    async def close(self) -> None:
        """Put away what it holds; the next use opens it again."""


class HubReader:
    """Reads the journal of a database, given by its alias, over connections that `connect` opens."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]], database: str = "default") -> None:
        self.database = database
        self._asking = _Line(connect)
        self._healing = _Line(connect)

    async def current(self) -> Joined:
        """Return the cursor from which only later changes are new; waits for the database."""
        return await self._answer(join)

    async def is_captured(self, label: str) -> bool:
        """Return whether the database has triggers for a model; waits for the database."""
        return await self._answer(partial(is_captured, label=label))

    async def require_complete(self, position: Position) -> None:
        """Raise CursorTooOldError unless the journal holds everything after a position; waits for the database."""
        await self._answer(partial(require_complete, cursor=position.before))

    async def missed(self, position: Position, label: str, batch_rows: int = BATCH_ROWS) -> AsyncGenerator[Batch, None]:
        """
        Yield what a model has after a position, so many journal rows at a time.

        Raises psycopg.Error when the database is lost meanwhile, and CursorTooOldError.
        """
        connection = await self._healing.opened()
        try:
            async with aclosing(read_missed(connection, position, label, batch_rows)) as batches:
                async for batch in batches:
                    yield batch
        except psycopg.Error:
            await self._healing.close()
            raise

    @contextmanager
    def snapshot(self) -> Iterator[Joined]:
        """Hold the calling thread's connection of Django in a transaction that shows the database as it is now."""
        with transaction.atomic(using=self.database, durable=True), connections[self.database].cursor() as cursor:
            cursor.execute(ISOLATION)
            cursor.execute(JOIN)
            yield Joined.of(cursor.fetchone())

    def another(self) -> HubReader:
        """Return a reader of the same database, with a connection of its own."""
        return HubReader(self._asking.connect, self.database)

    async def close(self) -> None:
        """Close the connections; the next use opens others."""
        await self._asking.close()
        await self._healing.close()

    async def _answer(self, question: Callable[[Connection], Awaitable[R]]) -> R:
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(psycopg.Error),
            wait=wait_random_exponential(multiplier=RETRY_FIRST, max=RETRY_MAX),
        )
        return await retrying(self._ask, question)

    async def _ask(self, question: Callable[[Connection], Awaitable[R]]) -> R:
        try:
            return await question(await self._asking.opened())
        except psycopg.Error as error:
            missing = isinstance(error, UndefinedTable | InvalidSchemaName)
            logger.warning(
                "the journal of database %s cannot be read for subscribers (%s); trying again",
                self.database,
                one_line(JournalMissingError(self.database) if missing else error),
            )
            await self._asking.close()
            raise


class _Line:
    """One connection, opened when it is needed."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]]) -> None:
        self.connect = connect
        self._connection: Connection | None = None
        self._opening = asyncio.Lock()

    async def opened(self) -> Connection:
        # Several may ask at once: one connection for all of them.
        async with self._opening:
            if self._connection is None or self._connection.closed:
                self._connection = await self.connect()
            return self._connection

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(psycopg.Error):
                await connection.close()


class Replayers:
    """A few readers, each lent to one operation at a time."""

    def __init__(self, reader: Reader, count: int = REPLAYERS) -> None:
        self._readers = [reader.another() for _ in range(count)]
        self._free = asyncio.Queue[Reader]()
        self._waiting = 0
        for other in self._readers:
            self._free.put_nowait(other)

    @asynccontextmanager
    async def one(self) -> AsyncIterator[Reader]:
        """Wait for a reader that nobody else uses."""
        self._waiting += 1
        try:
            reader = await self._free.get()
        finally:
            self._waiting -= 1
        try:
            yield reader
        finally:
            self._free.put_nowait(reader)

    @property
    def wanted(self) -> bool:
        """Return whether somebody waits for one."""
        return self._waiting > 0

    async def close(self) -> None:
        """Close all connections."""
        for reader in self._readers:
            await reader.close()
