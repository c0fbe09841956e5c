"""
What travels through the channel layer, between the leader of each database and every hub.

Two messages: changes of one model, and a heartbeat; both name the database, by its Django alias.  Rows travel as the
JSON text that PostgreSQL wrote; it is decoded once, in the hub.  Values are what every layer can carry: strings,
integers, lists and dictionaries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, TypedDict

from ..journal.change import ROWS, Columns, JournalRow
from ..journal.snapshot import Snapshot
from ..journal.state import Era

CHANGES: Literal["pgnotify_gql.changes"] = "pgnotify_gql.changes"
HEARTBEAT: Literal["pgnotify_gql.heartbeat"] = "pgnotify_gql.heartbeat"

MESSAGE_BYTES = 500_000
"""Row text in one message; a single larger journal row travels alone. Redis and its clients bear far more, but a
message is held in memory once for every process."""


class ChangesMessage(TypedDict):
    """
    Changes of one model: number `seq` of an epoch, in the era `era`, which began at the cursor `began`.

    `before` and `after` are the cursors of the batch they are of, and `labels` all models that the batch is of.
    """

    type: Literal["pgnotify_gql.changes"]
    database: str
    label: str
    epoch: int
    era: str
    began: str
    seq: int
    before: str
    after: str
    labels: Sequence[str]
    rows: Sequence[Columns]


class HeartbeatMessage(TypedDict):
    """Up to `cursor` everything of the database was sent; `seqs` has the number of each model's last message."""

    type: Literal["pgnotify_gql.heartbeat"]
    database: str
    epoch: int
    era: str
    began: str
    cursor: str
    seqs: dict[str, int]


Message = ChangesMessage | HeartbeatMessage


def changes_message(
    database: str,
    label: str,
    epoch: int,
    era: Era,
    seq: int,
    before: Snapshot,
    after: Snapshot,
    rows: Sequence[Columns],
    labels: Sequence[str] = (),
) -> ChangesMessage:
    """Return the message that carries journal rows of one model."""
    return {
        "type": CHANGES,
        "database": database,
        "label": label,
        "epoch": epoch,
        "era": era.id,
        "began": str(era.began),
        "seq": seq,
        "before": str(before),
        "after": str(after),
        "labels": list(labels),
        "rows": [*rows],
    }


def heartbeat_message(database: str, epoch: int, era: Era, cursor: Snapshot, seqs: dict[str, int]) -> HeartbeatMessage:
    """Return a heartbeat."""
    return {
        "type": HEARTBEAT,
        "database": database,
        "epoch": epoch,
        "era": era.id,
        "began": str(era.began),
        "cursor": str(cursor),
        "seqs": dict(seqs),
    }


def journal_rows(message: ChangesMessage) -> list[JournalRow]:
    """Return the journal rows of a message."""
    return [JournalRow(*columns) for columns in message["rows"]]


def split(rows: Sequence[Columns], limit: int = MESSAGE_BYTES) -> Iterator[Sequence[Columns]]:
    """Yield the rows in parts of at most `limit` characters of text; a larger row makes a part of its own."""
    if rows and sum([len(row[ROWS]) for row in rows]) <= limit:
        yield rows
        return
    part: list[Columns] = []
    size = 0
    for row in rows:
        if part and size + len(row[ROWS]) > limit:
            yield part
            part, size = [], 0
        part.append(row)
        size += len(row[ROWS])
    if part:
        yield part
