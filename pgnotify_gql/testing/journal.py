"""
A journal in memory, read by hubs in place of the one in the database.

It has the rows that the test has made so far, from its own open transaction or by hand, in batches.  Each batch takes
the place of a transaction: its rows are labelled with the number of the batch as their transaction id, and a cursor is
the snapshot that sees all batches before.  So everything that counts with cursors works as it does with transactions:
joining, gaps, catching up, resuming.

A batch ends where somebody joins, or when it is delivered.  What was rolled back before it was delivered is gone.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Protocol
from uuid import uuid4

from ..journal.change import JournalRow
from ..journal.position import Position
from ..journal.reader import BATCH_ROWS, Batch
from ..journal.snapshot import Snapshot
from ..journal.state import Era, Joined
from .errors import NotCapturedError

EPOCH = 1
"""There is one leader, the test."""


class Source(Protocol):
    """Where rows come from; asked in the thread of the test."""

    def read(self, delivered: Collection[int]) -> Sequence[JournalRow]:
        """Return the rows that there are now, in order, but for those whose ids are given."""

    def is_captured(self, label: str) -> bool:
        """Return whether changes of a model would be among them."""


class Journal:
    """The rows of one database; may be used in any thread."""

    def __init__(self, database: str, source: Source) -> None:
        self.database = database
        self.source = source
        self.era = Era(uuid4().hex, _snapshot(1))
        self._lock = threading.Lock()
        self._delivered: list[JournalRow] = []
        self._waiting: list[JournalRow] = []
        self._batch = 1
        self._begun = 1

    def refresh(self) -> int:
        """Take what the source has now, in the thread of the test; return how many rows wait to be delivered."""
        with self._lock:
            batches = {row.id: row.xid for row in self._waiting}
            found = self.source.read({row.id for row in self._delivered})
            self._waiting = [row._replace(xid=batches.get(row.id, self._batch)) for row in found]
            return len(self._waiting)

    def deliver(self) -> list[Batch]:
        """Return what waits, as batches, and count it as delivered."""
        with self._lock:
            self._end_batch()
            rows = sorted(self._waiting)
            self._delivered += rows
            self._waiting = []
            begun, self._begun = self._begun, self._batch
            return [
                Batch(_snapshot(batch), _snapshot(batch + 1), [row for row in rows if row.xid == batch])
                for batch in range(begun, self._batch)
            ]

    def standing(self) -> Joined:
        """Return the cursor of all rows so far."""
        with self._lock:
            cursor = self._end_batch()
        return Joined(cursor, EPOCH, datetime.now(UTC), self.era.id, self.era.began, self.era.id)

    def after(self, position: Position, label: str) -> Batch:
        """Return what a model has after a position."""
        with self._lock:
            cursor = self._end_batch()
            rows = [*self._delivered, *self._waiting]
        new = [row for row in rows if row.label == label and not position.includes(row.xid, row.id)]
        return Batch(position.before, cursor, sorted(new))

    def _end_batch(self) -> Snapshot:
        if any(row.xid == self._batch for row in self._waiting):
            self._batch += 1
        return _snapshot(self._batch)


class JournalReader:
    """
    What a hub reads a journal with; see ``hub.reader.Reader``.

    `call` has a function called in the thread of the test, and `missing` is told of a model without triggers.
    """

    def __init__(
        self,
        journal: Journal,
        call: Callable[[Callable[[], object]], Awaitable[object]],
        missing: Callable[[NotCapturedError], None],
    ) -> None:
        self.database = journal.database
        self._journal = journal
        self._call = call
        self._missing = missing

    async def current(self) -> Joined:
        # What was changed before somebody joins is not delivered to him.
        await self._call(self._journal.refresh)
        return self._journal.standing()

    async def is_captured(self, label: str) -> bool:
        if await self._call(lambda: self._journal.source.is_captured(label)):
            return True
        self._missing(NotCapturedError(label, self.database))
        return False

    async def require_complete(self, position: Position) -> None:
        """Nothing ever leaves it."""

    async def missed(self, position: Position, label: str, batch_rows: int = BATCH_ROWS) -> AsyncGenerator[Batch, None]:
        missed = self._journal.after(position, label)
        rows = missed.columns
        for begin in range(0, len(rows) if len(rows) > batch_rows else 0, batch_rows):
            yield Batch(missed.before, missed.after, rows[begin : begin + batch_rows], last=False)
        yield missed if len(rows) <= batch_rows else Batch(missed.before, missed.after, [])

    @contextmanager
    def snapshot(self) -> Iterator[Joined]:
        # The test's transaction is what everybody sees, and no other can be begun in it.
        self._journal.refresh()
        yield self._journal.standing()

    def another(self) -> JournalReader:
        return JournalReader(self._journal, self._call, self._missing)

    async def close(self) -> None:
        """Nothing is held."""


def _snapshot(batch: int) -> Snapshot:
    return Snapshot(batch, batch)
