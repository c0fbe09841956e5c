"""
A stretch: journal rows of one model that follow each other, and where their reader stands at each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..journal.change import JournalRow
from ..journal.position import Part, Position
from ..journal.snapshot import Snapshot

EVERY_ID = 2**63
"""Above every id of the journal."""


@dataclass(frozen=True)
class Stretch:
    """
    Rows in the order of their ids, of which none is included in `start`.

    They are all that the `limits` have, and `start` has not, up to the last of them.
    """

    label: str
    rows: Sequence[JournalRow]
    start: Position
    limits: tuple[Part, ...]

    @classmethod
    def of_batch(cls, label: str, rows: Sequence[JournalRow], start: Position, after: Snapshot) -> Stretch:
        """Return a stretch of what a snapshot sees."""
        return cls(label, rows, start, (Part(after, EVERY_ID),))

    @classmethod
    def up_to(cls, label: str, rows: Sequence[JournalRow], start: Position, end: Position) -> Stretch:
        """Return a stretch of what a position includes."""
        return cls(label, rows, start, (Part(end.before, EVERY_ID), *end.parts))

    def position(self, row: JournalRow, taken: int) -> Position:
        """Return where one stands who has taken so many changes of a row."""
        return self._before(row.id, taken)

    def behind(self, row: JournalRow) -> Position:
        """Return where one stands who has taken all of a row."""
        return self._before(row.id + 1, 0)

    @property
    def end(self) -> Position:
        """Return where one stands who has taken all of it."""
        return self.behind(self.rows[-1]) if self.rows else self.start

    def _before(self, row_id: int, taken: int) -> Position:
        position = self.start
        for limit in self.limits:
            position = position.taking(limit.after, *min((row_id, taken), (limit.id, limit.taken)))
        return position
