"""
The intake of one model: takes messages in, knows what has been taken, and notices a gap.

Messages of an epoch are numbered.  The next number is taken; an old epoch is ignored; anything else (a number that is
missing, a new epoch, the first message after joining, a heartbeat that is ahead) is a gap, and whoever owns the intake
must heal it from the journal, from ``position``.  What arrives a second time, or was healed before, is dropped by its
position.  Order is kept: nothing is taken past a gap.

With a new epoch there may come a new era: the database has lost its memory, after a failover to a replica that lagged,
or a crash under ``synchronous_commit = off``.  Ids of lost transactions are given out again, and a position from before
would take their new bearers for seen.  So the first thing of a new era is to go back to where it began, which is a
cursor that the database itself has kept.  What was taken since is recognised row by row, by id, transaction and time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from ..journal.change import JournalRow
from ..journal.position import Position
from ..journal.reader import Batch
from ..journal.snapshot import Snapshot
from ..journal.state import Era, Joined
from ..relay.messages import ChangesMessage, HeartbeatMessage, journal_rows
from .stretch import Stretch

RECENT_ROWS = 10_000
"""Journal rows that are recognised in a new era; where it begins at a cursor from before more rows of a model than
this, the surplus comes a second time."""


class Intake:
    """What one hub has taken of one model, since it joined."""

    def __init__(self, label: str, joined: Joined) -> None:
        self.label = label
        self.position = Position(joined.cursor)
        self._joined = joined
        self._recent: OrderedDict[int, None] = OrderedDict()
        self._epoch = joined.epoch
        self._era = joined.era
        self._seq: int | None = None

    def meet(self, epoch: int, era: Era) -> bool:
        """
        Count from the beginning of a new epoch; in a new era go back to where it began, if this is further.

        Return whether it has gone back, and must be healed.
        """
        if epoch == self._epoch:
            self._era = era.id  # was not known yet, to a hub that joined while the term began
            return False
        goes_back = era.id != self._era and not self.position.within(era.began)
        if goes_back:
            self.position = Position(era.began)
        self._epoch, self._seq, self._era = epoch, None, era.id
        return goes_back

    @property
    def counts(self) -> bool:
        """Return whether it has met a number of this epoch: what does not follow it then is known to be lost."""
        return self._seq is not None

    def follows(self, message: ChangesMessage) -> bool:
        """Return whether nothing is missing between what was taken and this message."""
        return message["epoch"] == self._epoch and self._seq is not None and message["seq"] <= self._seq + 1

    def agrees(self, heartbeat: HeartbeatMessage) -> bool:
        """Return whether everything was taken that had been sent before the heartbeat."""
        if heartbeat["epoch"] == self._epoch and self._seq is not None:
            return heartbeat["seqs"].get(self.label, 0) <= self._seq
        # Another leader cuts its batches elsewhere: a position in the middle of one of the old ones would not do.
        return not self.position.parts and self.position.before.covers(Snapshot.parse(heartbeat["cursor"]))

    def take(self, message: ChangesMessage) -> Stretch:
        """Return the rows of a message that are new, and move on past it."""
        before, after = Snapshot.parse(message["before"]), Snapshot.parse(message["after"])
        # Read before it is counted: a message that cannot be read is a gap.
        rows = self._new(journal_rows(message))
        self._number(message["epoch"], message["seq"])
        # What was healed reaches further than the batch's beginning; forgetting it would take it twice.
        reaches = self.position.before.covers(before)
        stretch = Stretch.of_batch(self.label, rows, self.position if reaches else Position(before), after)
        if rows:
            self.position = stretch.end
        return stretch

    def unseen(self, rows: Sequence[JournalRow]) -> list[JournalRow]:
        """Return the rows that have not been taken."""
        return [row for row in rows if not (self._includes(row) or _mark(row) in self._recent)]

    def heal(self, batch: Batch) -> Stretch:
        """
        Return the rows of a batch read from the journal after `position` that are new, and move on past it.

        When reading breaks off in the middle of a backlog and begins anew, what was taken of it is not taken again.
        """
        stretch = Stretch.of_batch(self.label, self._new(batch.rows), self.position, batch.after)
        if batch.last:
            self.position = Position(batch.after)
        else:
            self.position = self.position.taking(batch.after, batch.rows[-1].id + 1)
        return stretch

    def note(self, heartbeat: HeartbeatMessage) -> None:
        """Move on to a heartbeat with which this intake agrees, or up to which it was healed."""
        cursor = Snapshot.parse(heartbeat["cursor"])
        self._number(heartbeat["epoch"], heartbeat["seqs"].get(self.label, 0))
        if self.position.within(cursor):
            self.position = Position(cursor)

    def healed(self, epoch: int, seq: int) -> None:
        """Count from this message on: what came before it was read from the journal."""
        self._number(epoch, seq)

    def _new(self, rows: Sequence[JournalRow]) -> list[JournalRow]:
        new = self.unseen(rows)
        self._recent.update((_mark(row), None) for row in new)
        while len(self._recent) > RECENT_ROWS:
            self._recent.popitem(last=False)
        return new

    def _includes(self, row: JournalRow) -> bool:
        if self._joined.cursor.sees(row.xid) and row.at <= self._joined.at:
            return True  # a new leader may begin at a cursor from before
        return self.position.includes(row.xid, row.id)

    def _number(self, epoch: int, seq: int) -> None:
        self._seq = max(seq, self._seq) if epoch == self._epoch and self._seq is not None else seq
        self._epoch = epoch


def _mark(row: JournalRow) -> int:
    return hash((row.id, row.xid, row.micros))
