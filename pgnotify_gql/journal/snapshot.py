"""
A snapshot in Python: which transactions had ended when it was taken.

PostgreSQL writes a ``pg_snapshot`` as ``xmin:xmax:xip,xip,...``: every transaction below xmin has ended, none from
xmax on has begun, and of those between, the listed ones are still in progress.  A snapshot is our cursor, because a
sequence number loses rows that commit late, and waiting for xmin stalls behind the oldest open transaction.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

from ..errors import CursorError


@dataclass(frozen=True)
class Snapshot:
    """Transactions that had ended: below `xmin`, or below `xmax` and not in `xip` (ascending)."""

    xmin: int
    xmax: int
    xip: tuple[int, ...] = ()

    # The cursor behind one batch is that before the next, and a message is asked for both more than once.
    @classmethod
    @lru_cache(maxsize=16)
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
