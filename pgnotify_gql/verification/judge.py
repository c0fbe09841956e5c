"""
The judge: compares what subscribers were sent with the ledger.

A subscriber must be sent each change that is its own: once, and in the order of its row.  Nothing that was rolled back
may reach anybody, a state must be that of its snapshot, and nobody may be told to begin anew, since nothing that is
done here takes anything out of the journal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from .ledger import Entry, Ledger
from .stream import Stream


class ViolationKind(StrEnum):
    """What can be wrong with what a subscriber was sent."""

    LOST = "lost"
    """Committed, and never received."""

    DOUBLED = "doubled"
    """Received once more."""

    OUT_OF_ORDER = "out_of_order"
    """Received behind a later change of the same row."""

    INVENTED = "invented"
    """Received, and never committed."""

    UNWANTED = "unwanted"
    """Committed and received, but of another topic, or in the initial state already."""

    STATE = "state"
    """A row of an initial state that is not as its snapshot has it."""

    RESYNC = "resync"
    """Told that changes are lost."""

    ERROR = "error"
    """Refused, or sent a result with errors."""


@dataclass(frozen=True)
class Violation:
    """One thing that is wrong; `key` is that of the row, `version` that of its change."""

    kind: ViolationKind
    subscriber: str
    key: int | None = None
    version: int | None = None
    deleted: bool = False
    detail: str = ""

    def __str__(self) -> str:
        row = "" if self.key is None else f"row {self.key} version {self.version}{' (deleted)' * self.deleted}, "
        return f"{self.kind.replace('_', ' ')}: {row}{self.subscriber}{': ' * bool(self.detail)}{self.detail}"


@dataclass
class Verdict:
    """How many deliveries there should have been and were, and what is wrong with them."""

    expected: int = 0
    received: int = 0
    violations: list[Violation] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """How many violations there are of each kind."""
        counted = Counter(violation.kind for violation in self.violations)
        return {kind.value: counted[kind] for kind in ViolationKind}


def judge(streams: Iterable[Stream], ledger: Ledger) -> Verdict:
    """Return the verdict over all streams, which have ended."""
    verdict = Verdict()
    for stream in streams:
        _Case(stream, ledger).decide(verdict)
    return verdict


class _Case:
    """One stream before the judge."""

    def __init__(self, stream: Stream, ledger: Ledger) -> None:
        self._stream = stream
        self._ledger = ledger
        self._expected = {entry.change: entry for entry in ledger.expected(bucket=stream.bucket, start=stream.start)}
        self._seen: set[int] = set()
        # By row: the entry of the latest change that was received.
        self._latest: dict[int, int] = {}

    def decide(self, verdict: Verdict) -> None:
        received = list(self._judge_received())
        lost = list(self._judge_missing())
        verdict.received += sum(key > 0 for key in self._stream.keys)
        verdict.expected += len(self._seen & self._expected.keys()) + len(lost)
        verdict.violations += [*self._judge_state(), *received, *lost, *self._judge_messages()]

    def _judge_received(self) -> Iterator[Violation]:
        for key, change in self._stream:
            # Rows without a positive key were written before anything counted, to find out who is connected.
            if key > 0 and (kind := self._fault_of(key, change)) is not None:
                yield self._violation(kind, key, change)

    def _fault_of(self, key: int, change: int) -> ViolationKind | None:
        entry = self._ledger.by_change.get(change)
        if entry is None or entry.key != key:
            return ViolationKind.INVENTED
        if change in self._seen:
            return ViolationKind.DOUBLED
        self._seen.add(change)
        if change not in self._expected:
            return ViolationKind.UNWANTED
        if entry.id < self._latest.get(key, 0):
            return ViolationKind.OUT_OF_ORDER
        self._latest[key] = entry.id
        return None

    def _judge_missing(self) -> Iterator[Violation]:
        for change, entry in self._expected.items():
            if change not in self._seen and self._is_missed(entry):
                yield self._violation(ViolationKind.LOST, entry.key, change)

    def _is_missed(self, entry: Entry) -> bool:
        # Who has begun anew misses what lies between changes that it had been sent, and not what came behind them.
        return not self._stream.abandoned or entry.id < self._latest.get(entry.key, 0)

    def _judge_state(self) -> Iterator[Violation]:
        stream = self._stream
        if stream.start is None or not stream.state_is_whole:
            return
        rows = self._ledger.rows_at(stream.start)
        for key in sorted(rows.keys() | stream.state.keys()):
            wanted, sent = rows.get(key), stream.state.get(key)
            if wanted != sent and key > 0:
                detail = f"version {sent} was sent" if sent is not None else "was not sent"
                detail += f", it had version {wanted}" if wanted is not None else ", it was not there"
                yield Violation(ViolationKind.STATE, stream.subscriber, key, wanted or sent, detail=detail)

    def _judge_messages(self) -> Iterator[Violation]:
        name = self._stream.subscriber
        yield from (Violation(ViolationKind.RESYNC, name, detail=reason) for reason in self._stream.resyncs)
        yield from (Violation(ViolationKind.ERROR, name, detail=error) for error in self._stream.errors)

    def _violation(self, kind: ViolationKind, key: int, change: int) -> Violation:
        version, deleted = divmod(change, 2)
        return Violation(kind, self._stream.subscriber, key, version, bool(deleted))
