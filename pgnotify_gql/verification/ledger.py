"""
The ledger: every change that was committed, in the order in which each row was changed.

A writer adds an entry in the transaction of the change, and behind it: the row is locked then, so that ids of entries
are in the order of its changes.  What was rolled back is not in it; what was committed is, even if nobody was told.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..journal.snapshot import Snapshot


def change_number(version: int, *, deleted: bool) -> int:
    """Return what identifies a change: versions are given once, and a DELETE carries that of the row as it was."""
    return 2 * version + deleted


@dataclass(frozen=True, slots=True)
class Entry:
    """A committed change of a row; its buckets, before and after, say which topics it matches."""

    id: int
    xid: int
    key: int
    version: int
    deleted: bool
    old_bucket: int
    new_bucket: int

    @property
    def change(self) -> int:
        """What identifies the change."""
        return change_number(self.version, deleted=self.deleted)


class Ledger:
    """All entries, by id and by change."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.entries: Sequence[Entry] = sorted(entries, key=lambda entry: entry.id)
        self.by_change = {entry.change: entry for entry in self.entries}

    def __len__(self) -> int:
        return len(self.entries)

    def expected(self, *, bucket: int | None = None, start: Snapshot | None = None) -> list[Entry]:
        """Return what a subscriber of a bucket (None: of all) must be sent who begins behind a snapshot."""
        return [
            entry
            for entry in self.entries
            if (bucket is None or bucket in {entry.old_bucket, entry.new_bucket})
            and (start is None or not start.sees(entry.xid))
        ]

    def rows_at(self, snapshot: Snapshot) -> dict[int, int]:
        """Return the version of each row that was in the table as a snapshot sees it."""
        rows: dict[int, int] = {}
        for entry in self.entries:
            if not snapshot.sees(entry.xid):
                continue
            if entry.deleted:
                rows.pop(entry.key, None)
            else:
                rows[entry.key] = entry.version
        return rows
