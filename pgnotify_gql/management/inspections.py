"""
What ``manage.py journal`` prints of an inspection: lines for people, or an object of JSON for programs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime

from django.core.serializers.json import DjangoJSONEncoder
from django.utils import timezone

from ..journal.inspection import MOST_COUNTED, Inspection, OpenWriter, Slot
from ..journal.reader import BATCH_ROWS

UNITS = (("d", 86_400.0), ("h", 3_600.0), ("min", 60.0), ("s", 1.0))

SIZES = ("bytes", "kB", "MB", "GB", "TB")

WIDTH = 15
"""Characters of the column with what a line is about."""


def as_json(inspection: Inspection, *, database: str, retention: float) -> str:
    """
    Return one line of JSON.

    Times are ISO 8601, sizes bytes, durations seconds; rows are counted up to ``counted_at_most``.
    """
    described = asdict(inspection) | {
        "database": database,
        "relayed": str(inspection.relayed),
        "now": str(inspection.now),
        "bytes": inspection.bytes,
        "oldest": inspection.oldest,
        "lag": round(inspection.lag, 3),
        "retention": retention,
        "counted_at_most": MOST_COUNTED,
    }
    return json.dumps(described, cls=DjangoJSONEncoder)


def as_text(inspection: Inspection, *, database: str, retention: float, lease: float, inline: bool = False) -> str:
    """
    Return the lines.

    `lease` is for how many seconds a leader behind a pooler is believed to be there, `inline` whether listeners run
    inside server processes.
    """
    lines = [f"Journal of database '{database}' at {_local(inspection.at)}"]
    lines += [f"{what:<{WIDTH}} {text}".rstrip() for what, text in _lines(inspection, retention, lease, inline)]
    return "\n".join(lines)


def _lines(inspection: Inspection, retention: float, lease: float, inline: bool) -> Iterator[tuple[str, str]]:
    yield "listener", _listener(inspection, lease, inline)
    stored = f", stored {_ago(inspection, inspection.relayed_at)}" if inspection.relayed_at else ""
    yield "relayed", f"snapshot {inspection.relayed}{stored}"
    yield "lag", _lag(inspection)
    yield "size", _size(inspection.bytes)
    for slot in inspection.slots:
        yield f"  slot {slot.number}", _slot(inspection, slot)
    yield (
        "oldest row",
        f"{_local(inspection.oldest)}, {_ago(inspection, inspection.oldest)}" if inspection.oldest else "-",
    )
    yield "retention", f"{duration(retention)} at least; at most twice that while a listener runs"
    if inspection.replica:
        return
    count = len(inspection.writers)
    yield "open writers", f"{count:,}, in all databases of this server" if count else "none"
    if inspection.writers:
        yield "  the oldest", _writer(inspection, inspection.writers[0])


def _listener(inspection: Inspection, lease: float, inline: bool) -> str:
    leader = inspection.leader
    if inspection.replica:
        return "this is a replica; who leads is known to its primary"
    if leader is not None:
        place = f" from {leader.host}" if leader.host else ""
        state = "awake" if leader.awake else "asleep"
        silent = f"; STUCK? it has stored nothing for {duration(inspection.silence)}"
        stuck = silent if inspection.is_stuck(lease) else ""
        return f"backend {leader.pid}{place} leads, {state}, in epoch {inspection.epoch}{stuck}"
    if inspection.is_leased(lease):
        return f"one leads through a pooler, or has just gone, in epoch {inspection.epoch}"
    if inline:
        return "nobody leads: with INLINE_LISTENER one does while somebody subscribes, and changes wait meanwhile"
    return "nobody leads: changes wait in the journal until `manage.py run_listener` runs"


def _lag(inspection: Inspection) -> str:
    if not inspection.unrelayed:
        return "none"
    # The cursor moves on when all of a backlog has been handed over: the number then falls at once, not bit by bit.
    backlog = "; they count until the last of them is relayed" if inspection.unrelayed > BATCH_ROWS else ""
    return f"{_count(inspection.unrelayed)} not relayed, the oldest for {duration(inspection.lag)}{backlog}"


def _slot(inspection: Inspection, slot: Slot) -> str:
    words = [_size(slot.bytes), _count(slot.rows)] if slot.rows else ["empty"]
    words += [f"the oldest {_ago(inspection, slot.oldest)}"] if slot.oldest else []
    words += ["written now"] if slot.current else []
    return ", ".join(words)


def _writer(inspection: Inspection, writer: OpenWriter) -> str:
    who = f"prepared transaction {writer.gid!r}" if writer.pid is None else f"backend {writer.pid}"
    details = [f"{writer.application!r}" if writer.application else "", writer.state]
    details += [f"role {writer.role}" if writer.role else "", f"database {writer.database}" if writer.database else ""]
    known = ", ".join(detail for detail in details if detail)
    since = duration(_age(inspection, writer.since)) if writer.since else "a time that members of pg_read_all_stats see"
    return f"{who} ({known}), open for {since}" if known else f"{who}, open for {since}"


def duration(seconds: float) -> str:
    """Return a duration in the largest unit of which it has one at least."""
    for unit, size in UNITS:
        if seconds >= size:
            return f"{seconds / size:.1f}".removesuffix(".0") + f" {unit}"
    return f"{max(0.0, seconds):.1f} s"


def _size(size: float) -> str:
    place = 0
    # Compared as they are printed: 999,600 bytes are 1.0 MB, and 9,960 are 10 kB.
    while size >= 999.5 and place < len(SIZES) - 1:
        size, place = size / 1000, place + 1
    return f"{size:.0f} {SIZES[place]}" if size >= 9.95 or place == 0 else f"{size:.1f} {SIZES[place]}"


def _count(rows: int) -> str:
    more = " or more" if rows >= MOST_COUNTED else ""
    return f"{rows:,}{more} row{'' if rows == 1 else 's'}"


def _ago(inspection: Inspection, time: datetime | None) -> str:
    assert time is not None
    return f"{duration(_age(inspection, time))} ago"


def _age(inspection: Inspection, time: datetime) -> float:
    return (inspection.at - time).total_seconds()


def _local(time: datetime | None) -> str:
    assert time is not None
    return timezone.localtime(time).isoformat(" ", "seconds")
