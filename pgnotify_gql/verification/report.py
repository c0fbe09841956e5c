"""The report of a run: for people, and for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .judge import Verdict
from .latency import Distribution

MOST_SHOWN = 20
"""Violations that are shown one by one."""


@dataclass
class Report:
    """What a run gave; times in seconds unless the name says otherwise."""

    database: str
    seed: int
    duration: float
    interrupted: bool
    conditions: Mapping[str, Any]
    changes: int
    transactions: int
    rolled_back: int
    failed: int
    verdict: Verdict
    faults: Mapping[str, int]
    states: int
    reconnections: int
    closes: Mapping[str, int]
    unexpected_exits: int
    waited: float
    wait_limit: float
    latency: Distribution
    quiet_latency: Distribution
    remarks: Sequence[str] = field(default_factory=list)
    logs: str | None = None

    @property
    def violations(self) -> int:
        """How many there are."""
        return len(self.verdict.violations)

    @property
    def all_arrived(self) -> bool:
        """Whether nothing was missing within the limit."""
        return not self.verdict.counts["lost"]

    def as_json(self) -> str:
        """Return one object."""
        shown = [asdict(violation) for violation in self.verdict.violations[:MOST_SHOWN]]
        return json.dumps(
            {
                "database": self.database,
                "seed": self.seed,
                "duration": round(self.duration, 1),
                "interrupted": self.interrupted,
                "conditions": dict(self.conditions),
                "changes": self.changes,
                "transactions": self.transactions,
                "rolled_back": self.rolled_back,
                "failed_transactions": self.failed,
                "expected": self.verdict.expected,
                "received": self.verdict.received,
                "faults": dict(self.faults),
                "states": self.states,
                "reconnections": self.reconnections,
                "closes": dict(self.closes),
                "unexpected_exits": self.unexpected_exits,
                "waited": round(self.waited, 1),
                "wait_limit": self.wait_limit,
                "all_arrived": self.all_arrived,
                "violations": {"total": self.violations, **self.verdict.counts},
                "first_violations": shown,
                "latency_ms": {"all": asdict(self.latency), "quiet": asdict(self.quiet_latency)},
                "remarks": list(self.remarks),
                "logs": self.logs,
            }
        )

    def as_text(self) -> str:
        """Return lines."""
        lines = [
            f"Verification of database '{self.database}', {self.duration:.0f} s"
            f"{', interrupted' * self.interrupted}, seed {self.seed}",
            _line("conditions", ", ".join(f"{name} {value}" for name, value in self.conditions.items())),
            _line("changes", f"{self.changes:,} committed in {self.transactions:,} transactions; "
                             f"{self.rolled_back:,} rolled back, {self.failed:,} failed"),
            _line("deliveries", f"{self.verdict.expected:,} expected, {self.verdict.received:,} received"),
            _line("initial states", f"{self.states:,}"),
            _line("faults", _counts(self.faults) or "none"),
            _line("reconnections", f"{self.reconnections:,}{_closes(self.closes)}"),
            _line("waited", f"{self.waited:.1f} s for the last delivery, {self.wait_limit:g} s at most"),
            _line("latency", _distribution(self.latency)),
            _line("without faults", _distribution(self.quiet_latency)),
            *(_line("remark", remark) for remark in self.remarks),
            _line("violations", _violations(self.verdict)),
            *(f"  {violation}" for violation in self.verdict.violations[:MOST_SHOWN]),
        ]  # fmt: skip
        if self.violations > MOST_SHOWN:
            lines.append(f"  and {self.violations - MOST_SHOWN:,} more")
        if self.logs is not None:
            lines.append(_line("logs", self.logs))
        return "\n".join(lines)


def _line(name: str, value: str) -> str:
    return f"{name:<16}{value}"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items() if count)


def _closes(closes: Mapping[str, int]) -> str:
    listed = ", ".join(f"{count:,} with {code}" for code, count in sorted(closes.items()))
    return f" ({listed})" if listed else ""


def _violations(verdict: Verdict) -> str:
    return f"{len(verdict.violations):,}: {_counts(verdict.counts)}" if verdict.violations else "0"


def _distribution(found: Distribution) -> str:
    if not found.count:
        return "no deliveries"
    return (
        f"p50 {found.p50:,} ms, p95 {found.p95:,} ms, p99 {found.p99:,} ms, max {found.max:,} ms "
        f"({found.count:,} deliveries)"
    )
