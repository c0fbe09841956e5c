"""
Journal: the truth, and how to read it.

Guarantees that a reader who goes on from the cursor it was given sees every committed change once, whatever the
order of commits, however long other transactions stay open, and changes of the same row in the order they happened.
Rows stay until they have been relayed and are older than the retention.

Does not guarantee an order between different rows beyond that.

On failure a reader loses nothing but time: it reads again from its last cursor.  A cursor older than what the journal
still holds is told so (``CursorTooOldError``), never answered with less than everything.
"""

from .change import Change, JournalRow, Source
from .position import Position
from .snapshot import Snapshot

__all__ = ["Change", "JournalRow", "Position", "Snapshot", "Source"]
