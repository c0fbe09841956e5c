"""
Where a reader stands that takes one change at a time: a cursor that may lie within a batch, and even within a row.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ..errors import CursorError
from .change import JournalRow
from .snapshot import Position, Snapshot

_SNAPSHOT = r"[0-9]{1,20}:[0-9]{1,20}:(?:[0-9]{1,20}(?:,[0-9]{1,20})*)?"
_BOOKMARK = re.compile(rf"({_SNAPSHOT})(?:/({_SNAPSHOT})/([0-9]{{1,19}})/([0-9]{{1,9}}))?")


@dataclass(frozen=True)
class Bookmark:
    """
    Where a tail stands: at a cursor, or in the middle of the batch that follows it.

    Seen is what `before` sees; and of what `after` sees besides, the rows below `id` and of row `id` the first `taken`
    changes.  Written as ``before``, or as ``before/after/id/taken``.
    """

    before: Snapshot
    after: Snapshot = field(default=Snapshot(0, 0))
    id: int = 0
    taken: int = 0

    @classmethod
    def parse(cls, text: str) -> Bookmark:
        """Return the bookmark that was written.  Raises CursorError."""
        match = _BOOKMARK.fullmatch(text)
        if match is None:
            raise CursorError(f"not a cursor: {text[:80]!r}")
        before, after, row_id, taken = match.groups()
        if after is None:
            return cls(_snapshot(before))
        return cls(_snapshot(before), _snapshot(after), int(row_id), int(taken))

    def __str__(self) -> str:
        inside = f"/{self.after}/{self.id}/{self.taken}" if self.after.xmax else ""
        return f"{self.before}{inside}"

    def includes(self, row: JournalRow) -> bool:
        """Return whether the whole row has been taken."""
        return Position(self.before, self.after, self.id - 1).includes(row.xid, row.id)

    def begun(self, row: JournalRow) -> int:
        """Return how many changes of a row that is not included have been taken."""
        return self.taken if row.id == self.id and self.after.sees(row.xid) else 0


def _snapshot(text: str) -> Snapshot:
    snapshot = Snapshot.parse(text)
    if snapshot.xmin > snapshot.xmax or any(not snapshot.xmin <= xid < snapshot.xmax for xid in snapshot.xip):
        raise CursorError(f"not a snapshot: {text[:80]!r}")
    return snapshot
