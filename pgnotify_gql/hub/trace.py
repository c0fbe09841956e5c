"""
The trace: what became of the last changes in this process, so that it can be told afterwards.

It is written on the way of every change, and so it keeps little: which journal rows were dispatched, and what was
delivered to a cohort, by the numbers of changes, without them; cohorts weakly.  Who was in a cohort by then follows
from when it joined, see ``verdict``.  Each is a ring of a fixed size, whatever happens in however short a time.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, NamedTuple
from weakref import ref

from ..journal.change import JournalRow

if TYPE_CHECKING:
    from .cursor import Model
    from .operations import Cohort, Mark, Operation, Taken

MOST_ENTRIES = 20_000
"""Journal rows that are remembered, and results of a cohort for a change: 200 bytes each, so 4 MB for all.  Where a
thousand cohorts are told of every change, they are twenty changes."""

TRACE_SECONDS = 600.0
"""Seconds after which what is remembered is not told any more."""

PART = 1_000
"""Entries that are looked at in one turn of the event loop, which takes a millisecond."""

SENT = ""
"""A result without an error; one with an error has its code, and None is nothing to send."""

Entry = tuple[float, "ref[Cohort | Operation]", int, "Mark | None", str | None]
"""A delivery: when, to whom, the number of the change in the cohort, which change, and its result."""


class Delivered(NamedTuple):
    """What was delivered of a change, to a cohort in which it had this number; see SENT for the `result`."""

    at: float
    number: int
    result: str | None


@dataclass
class Found:
    """
    What is remembered of some changes; times are in seconds since 1970.

    `dispatched` is by label, transaction and id of the journal row.  `delivered` has the last delivery of a change to
    an operation alone, or to a cohort.  What was delivered before `complete_since` is forgotten.
    """

    complete_since: float
    dispatched: dict[tuple[str, int, int], float] = field(default_factory=dict)
    delivered: dict[tuple[Mark, Cohort | Operation], Delivered] = field(default_factory=dict)


class Trace:
    """Of one hub; used on its event loop only."""

    def __init__(self, seconds: float = TRACE_SECONDS, most: int = MOST_ENTRIES) -> None:
        self._seconds = seconds
        self._began = time.time()
        self._dispatched: deque[tuple[float, str, int, int]] = deque(maxlen=most)
        self._delivered: deque[Entry] = deque(maxlen=most)
        self._left: deque[tuple[float, float, Sequence[Model]]] = deque(maxlen=most)
        self._lost: deque[tuple[float, str, str]] = deque(maxlen=most)

    def dispatched(self, row: JournalRow) -> None:
        """Note that a journal row is dispatched."""
        self._dispatched.append((time.time(), row.label, row.xid, row.id))

    def delivered(self, at: float, cohort: Cohort, taken: Taken, results: Sequence[str | None]) -> None:
        """Note the results of the first of what was taken of a cohort."""
        # Called for each cohort of a hop, and a private fan-out has a thousand of them, with one result each.
        dues, who = taken.dues, ref(cohort.alone or cohort)
        if len(results) == 1:
            (result,) = results
            told = SENT if type(result) is str else _code(result)
            self._delivered.append((at, who, taken.first, dues[0].mark, told))
        else:
            # Each by itself, so that a ring of them is bounded: there may be a hundred.
            self._delivered.extend(
                (at, who, number, due.mark, SENT if type(result) is str else _code(result))
                for number, due, result in zip(count(taken.first), dues, results, strict=False)
            )

    def left(self, operation: Operation) -> None:
        """Note that an operation has ended."""
        self._left.append((time.time(), operation.since, operation.interest.models))

    def lost(self, label: str, reason: str) -> None:
        """Note that every operation on a model is told that changes are lost."""
        self._lost.append((time.time(), label, reason))

    def ended_since(self, at: float, model: Model) -> int:
        """Return how many operations on a model were there at a time, and have ended since."""
        return sum(began <= at <= ended and model in models for ended, began, models in self._left)

    def lost_since(self, at: float, label: str) -> tuple[float, str] | None:
        """Return when after a time changes of a model were lost, and why; the first of several times."""
        return next(((lost, reason) for lost, of, reason in self._lost if of == label and lost >= at), None)

    async def find(self, marks: Collection[Mark]) -> Found:
        """Return what is remembered of changes; the event loop has its turns meanwhile."""
        since = time.time() - self._seconds
        # Copied: it goes on while we look.
        dispatched, delivered = list(self._dispatched), list(self._delivered)
        forgotten = delivered[0][0] if len(delivered) == self._delivered.maxlen else self._began
        found = Found(max(since, forgotten))
        wanted, rows = frozenset(marks), {mark[:3] for mark in marks}
        for begin in range(0, len(dispatched), PART):
            for at, label, xid, row_id in dispatched[begin : begin + PART]:
                if at >= since and (label, xid, row_id) in rows:
                    found.dispatched.setdefault((label, xid, row_id), at)
            await asyncio.sleep(0)
        for begin in range(0, len(delivered), PART):
            for at, who, number, mark, result in delivered[begin : begin + PART]:
                if mark in wanted and at >= since and (to := who()) is not None:
                    found.delivered[mark, to] = Delivered(at, number, result)
            await asyncio.sleep(0)
        return found


def _code(result: str | None) -> str | None:
    """Return the code of a result that has an error, or None."""
    return None if result is None else getattr(result, "code", SENT)
