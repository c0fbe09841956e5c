"""
A snapshot in Python: which transactions had ended when it was taken.

PostgreSQL writes a ``pg_snapshot`` as ``xmin:xmax:xip,xip,...``: every transaction below xmin has ended, none from
xmax on has begun, and of those between, the listed ones are still in progress.  A snapshot is our cursor, because a
sequence number loses rows that commit late, and waiting for xmin stalls behind the oldest open transaction.

A position is a cursor inside a batch: the batch's cursors before and after, and the last journal id taken from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from ..errors import CursorError


@dataclass(frozen=True)
class Snapshot:
    """Transactions that had ended: below `xmin`, or below `xmax` and not in `xip` (ascending)."""

    xmin: int
    xmax: int
    xip: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Snapshot:
        """Return the snapshot that PostgreSQL wrote.  Raises CursorError."""
        try:
            xmin, xmax, xip = text.split(":")
            return cls(int(xmin), int(xmax), tuple(int(xid) for xid in xip.split(",") if xid))
        except ValueError as error:
            raise CursorError(f"not a snapshot: {text[:80]!r}") from error

    def __str__(self) -> str:
        return f"{self.xmin}:{self.xmax}:{','.join(map(str, self.xip))}"

    def sees(self, xid: int) -> bool:
        """Return whether the transaction had ended."""
        return xid < self.xmin or (xid < self.xmax and xid not in self._running)

    def covers(self, other: Snapshot) -> bool:
        """Return whether every transaction that had ended in `other` had ended in this one as well."""
        return other.xmax <= self.xmax and all(not other.sees(xid) for xid in self.xip)

    @cached_property
    def _running(self) -> frozenset[int]:
        return frozenset(self.xip)


@dataclass(frozen=True)
class Position:
    """
    What has been taken from the journal: all that `before` sees, and of what `after` sees besides, the rows up to `id`.

    Rows of a batch are in the order of their ids, so this is exact also in the middle of one.
    """

    before: Snapshot
    after: Snapshot = field(default=Snapshot(0, 0))
    id: int = 0

    def includes(self, xid: int, row_id: int) -> bool:
        """Return whether the journal row has been taken."""
        return self.before.sees(xid) or (row_id <= self.id and self.after.sees(xid))
