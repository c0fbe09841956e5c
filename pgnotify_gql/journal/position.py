"""
A position: what somebody has taken from the journal, exactly, wherever he stopped.

Between two batches a cursor says it all.  Inside one, rows are taken in the order of their ids, and so the last id
taken says how far; but only of the rows that the snapshot of that batch sees, since one that commits later may have a
smaller id.  Who begins a batch anew, under a later snapshot, may be stopped once more, in front of where he was: then
both count.  Hence a cursor, and any number of parts, each of one snapshot; there are rarely two.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import CursorError
from .snapshot import Snapshot

_SNAPSHOT = r"[0-9]{1,20}:[0-9]{1,20}:(?:[0-9]{1,20}(?:,[0-9]{1,20})*)?"
_POSITION = re.compile(rf"{_SNAPSHOT}(?:/{_SNAPSHOT}/[0-9]{{1,19}}/[0-9]{{1,9}})*")


@dataclass(frozen=True)
class Part:
    """Of what `after` sees: the rows below `id`, and of row `id` the first `taken` changes."""

    after: Snapshot
    id: int
    taken: int = 0

    def covers(self, other: Part) -> bool:
        """Return whether all of another part is in this one as well."""
        return (other.id, other.taken) <= (self.id, self.taken) and self.after.covers(other.after)

    def __str__(self) -> str:
        return f"{self.after}/{self.id}/{self.taken}"


@dataclass(frozen=True)
class Position:
    """
    What has been taken: all that `before` sees, and besides it the `parts`.

    Written as ``before``, or as ``before/after/id/taken`` with three more for each further part.
    """

    before: Snapshot
    parts: tuple[Part, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Position:
        """Return the position that was written.  Raises CursorError."""
        if _POSITION.fullmatch(text) is None:
            raise CursorError(f"not a cursor: {text[:80]!r}")
        before, *rest = text.split("/")
        parts = zip(rest[::3], rest[1::3], rest[2::3], strict=True)
        return cls(
            _snapshot(before), tuple(Part(_snapshot(after), int(row_id), int(taken)) for after, row_id, taken in parts)
        )

    def __str__(self) -> str:
        return "/".join(map(str, (self.before, *self.parts)))

    def includes(self, xid: int, row_id: int) -> bool:
        """Return whether the whole journal row has been taken."""
        return self.before.sees(xid) or any(row_id < part.id and part.after.sees(xid) for part in self.parts)

    def begun(self, xid: int, row_id: int) -> int:
        """Return how many changes of a row that is not included have been taken."""
        return max((part.taken for part in self.parts if part.id == row_id and part.after.sees(xid)), default=0)

    def taking(self, after: Snapshot, row_id: int, taken: int = 0) -> Position:
        """Return where he stands who then takes what `after` sees, up to before `row_id` or in the middle of it."""
        new = Part(after, row_id, taken)
        if any(part.covers(new) for part in self.parts):
            return self
        return Position(self.before, (*(part for part in self.parts if not new.covers(part)), new))

    def within(self, snapshot: Snapshot) -> bool:
        """Return whether a snapshot sees all that has been taken."""
        return snapshot.covers(self.before) and all(snapshot.covers(part.after) for part in self.parts)


def _snapshot(text: str) -> Snapshot:
    snapshot = Snapshot.parse(text)
    if snapshot.xmin > snapshot.xmax or any(not snapshot.xmin <= xid < snapshot.xmax for xid in snapshot.xip):
        raise CursorError(f"not a snapshot: {text[:80]!r}")
    return snapshot
