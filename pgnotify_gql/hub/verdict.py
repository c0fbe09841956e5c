"""
The verdict: what became of a change for each operation on its model, and why.

It is found out when somebody asks, from the trace (see there), from where operations stand, and by evaluating their
topics once more, on the change that the question brings along.  What cannot be known any more is said to be unknown.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from ..capture.registry import registry
from ..journal.change import Change, JournalRow
from ..journal.position import Position
from .trace import SENT, Delivered, Found

if TYPE_CHECKING:
    from .cursor import Model
    from .hub import Hub
    from .operations import Mark, Operation

MOST_CHANGES = 20
"""Changes of one question that are answered, the last of them."""

MOST_VERDICTS = 500
"""Operations that an answer names, for all its changes together; it counts all.  500 of them are 150 kB."""

PART = 100
"""Operations that are looked at in one turn of the event loop: a millisecond, or two."""

LONGEST = 300
"""Characters of a reason, which holds a subscriber's own values."""


class Outcome(StrEnum):
    """What became of a change for one operation; in the order in which they are named where not all can be."""

    BEHIND = "behind"
    WAITING = "waiting"
    UNKNOWN = "unknown"
    NOTHING = "nothing to send"
    SENT = "sent"
    JOINED_LATER = "joined later"
    NOT_MATCHED = "not matched"


RANKS = {outcome: rank for rank, outcome in enumerate(Outcome)}


class Verdict(NamedTuple):
    """An outcome, when it came to it (if at one moment), and why."""

    outcome: Outcome
    at: float | None = None
    why: str = ""


async def explained(hub: Hub, question: Mapping[str, Any]) -> list[dict[str, Any]]:
    """
    Return what became of each of the changes of a question; the event loop has its turns meanwhile.

    A question has a `database`, a `label`, and `changes`, each with the `id`, `xid`, `kind` and `micros` of its journal
    row, its `index` in that, and as `rows` what the row would have if it were of this change alone.  Raises ValueError
    and LookupError for another one.
    """
    model: Model = (question["database"], question["label"])
    source, asked = registry.get(model[1]), list(question["changes"])[-MOST_CHANGES:]
    if source is None or model[0] not in {feed.database for feed in hub.feeds}:
        text = f"this process does not follow {model[1]} in database '{model[0]}'"
        return [{"received_at": None, "text": text, "operations": []} for _ in asked]
    changes: list[tuple[Mark, Change]] = []
    for one in asked:
        row = JournalRow(one["id"], one["xid"], model[1], one["kind"], one["rows"], one["micros"])
        (change,) = row.changes(source)
        changes.append(((model[1], one["xid"], one["id"], one["index"]), change))
    found = await hub.trace.find([mark for mark, _ in changes])
    most = MOST_VERDICTS // max(1, len(changes))
    return [await _Case(hub, model, mark, change, found).told(most) for mark, change in changes]


class _Case:
    """One change."""

    def __init__(self, hub: Hub, model: Model, mark: Mark, change: Change, found: Found) -> None:
        self._hub = hub
        self._model = model
        self._mark = mark
        self._change = change
        self._found = found
        self._received_at = found.dispatched.get(mark[:3])
        feed = hub.feed(model[0])
        self._waited_for = model[1] in feed.labels
        # Whether the feed has gone past it, whatever is remembered of that.
        self._passed = self._waited_for and self._includes(feed.position(model[1]))

    async def told(self, most: int) -> dict[str, Any]:
        """Return what became of it, and for so many operations by name."""
        counts: Counter[Outcome] = Counter()
        verdicts: list[tuple[Operation, Verdict]] = []
        operations = [operation for operation in self._hub.operations if self._model in operation.interest.models]
        for place, operation in enumerate(operations):
            if place % PART == 0:
                await asyncio.sleep(0)
            if operation in self._hub.operations:
                verdict = self._verdict(operation)
                counts[verdict.outcome] += 1
                verdicts.append((operation, verdict))
        verdicts.sort(key=lambda item: RANKS[item[1].outcome])
        return {
            "received_at": self._received_at,
            "text": self._text(counts, most),
            "operations": [_described(operation, verdict) for operation, verdict in verdicts[:most]],
        }

    def _verdict(self, operation: Operation) -> Verdict:
        alone, delivered = self._delivered(operation)
        if not alone and self._came_before(operation):
            return Verdict(Outcome.JOINED_LATER, operation.since, "it waits for what commits after it has subscribed")
        if delivered is None:
            mismatches = self._mismatches(operation)
            if mismatches:
                return Verdict(Outcome.NOT_MATCHED, self._received_at, mismatches)
        if not self._was_given(operation):
            return self._still_to_come(operation)
        if delivered is None:
            return Verdict(Outcome.UNKNOWN, None, self._forgotten())
        return _by_result(delivered)

    def _delivered(self, operation: Operation) -> tuple[bool, Delivered | None]:
        """Return what was delivered to an operation, or its cohort, and whether to it alone."""
        delivered = self._found.delivered.get((self._mark, operation))
        if delivered is None and operation.cohort is not None:
            return False, self._found.delivered.get((self._mark, operation.cohort))
        return delivered is not None, delivered

    def _came_before(self, operation: Operation) -> bool:
        """Return whether it was dispatched before an operation joined."""
        if self._received_at is not None:
            return self._received_at < operation.since
        return self._passed and self._change.at.timestamp() < operation.since

    def _mismatches(self, operation: Operation) -> str:
        """Return why no topic of an operation matches, or nothing when one does."""
        reasons: dict[str, None] = {}
        for topic in operation.interest.topics:
            if (topic.database, topic.label) == self._model:
                reason = topic.mismatch(self._change)
                if reason is None:
                    return ""
                reasons[reason] = None
        return "; ".join(reasons)

    def _was_given(self, operation: Operation) -> bool:
        cursor = self._hub.sent(operation)
        position = None if cursor is None else cursor.positions.get(self._model)
        return position is not None and self._includes(position)

    def _still_to_come(self, operation: Operation) -> Verdict:
        cohort = operation.cohort
        if operation.behind.is_open:
            return Verdict(
                Outcome.BEHIND, None,
                "its client reads too slowly, or it is asked anew whether it may go on; then it is given this from the "
                "journal",
            )  # fmt: skip
        if cohort is None or operation not in cohort.members:
            return Verdict(Outcome.WAITING, None, "it is sent the current state, or what it has missed, before this")
        if not self._passed and self._received_at is None:
            return Verdict(Outcome.WAITING, None, "the change has not come to this process yet")
        queued = len(cohort.pending)
        return Verdict(Outcome.WAITING, None, f"it is executed, or waits for it: {queued:,} changes are queued")

    def _forgotten(self) -> str:
        lost = self._hub.trace.lost_since(self._change.at.timestamp(), self._model[1])
        if lost is not None:
            return f"changes were lost, and it was told to read the state anew: {lost[1]}"
        if self._received_at is not None and self._received_at >= self._found.complete_since:
            return "it was given everything up to here, live or when it caught up; its results are not remembered"
        return "this process does not remember it: TRACE_SECONDS have passed, or too much has happened since"

    def _includes(self, position: Position) -> bool:
        _, xid, row_id, index = self._mark
        return position.includes(xid, row_id) or position.begun(xid, row_id) > index

    def _text(self, counts: Counter[Outcome], most: int) -> str:
        total = sum(counts.values())
        if self._received_at is not None:
            words = ["received"]
        elif not self._waited_for:
            words = ["nobody waits for the model in this process"]
        elif self._passed:
            words = ["not among what this process remembers: nobody had subscribed yet, or it was too long ago"]
        else:
            words = ["not received yet"]
        if total:
            told = ", ".join(f"{counts[outcome]:,} {outcome}" for outcome in Outcome if counts[outcome])
            plural = "operation" if total == 1 else "operations"
            words.append(f"of {total:,} {plural} on the model: {told}")
        if total > most:
            words.append(f"{most:,} are listed")
        at = self._received_at or self._change.at.timestamp()
        if ended := self._hub.trace.ended_since(at, self._model):
            words.append(f"{ended:,} of that time {'has' if ended == 1 else 'have'} ended since")
        return "; ".join(words)


def _by_result(delivered: Delivered) -> Verdict:
    at, _, result = delivered
    if result is None:
        return Verdict(
            Outcome.NOTHING, at,
            "it matches, and its execution returned nothing: hidden from this subscriber, filtered out by next(), or "
            "it failed (see the log)",
        )  # fmt: skip
    return Verdict(Outcome.SENT, at, "" if result == SENT else f"as an error: {result}")


def _described(operation: Operation, verdict: Verdict) -> dict[str, Any]:
    description = operation.description
    return {
        "number": operation.number,
        "user": description.user[:LONGEST],
        "field": description.field[:LONGEST],
        "outcome": str(verdict.outcome),
        "at": verdict.at,
        "why": verdict.why[:LONGEST],
    }
