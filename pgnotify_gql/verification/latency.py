"""
Latency: from the moment in which a writer sends its COMMIT until a subscriber has the change.

It includes the commit itself, and whatever this program needs to read what has come: all is on one machine, and one
clock.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .ledger import Ledger
from .stream import Stream


@dataclass(frozen=True)
class Window:
    """A time, in monotonic seconds, in which a fault was felt."""

    began: float
    ended: float


@dataclass(frozen=True)
class Distribution:
    """Of `count` deliveries, in milliseconds; None without any."""

    count: int
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None
    max: float | None = None

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Distribution:
        """Return the distribution of delays in seconds."""
        ordered = sorted(seconds)
        if not ordered:
            return cls(0)

        def quantile(part: float) -> float:
            return round(ordered[min(int(part * len(ordered)), len(ordered) - 1)] * 1000, 1)

        return cls(len(ordered), quantile(0.5), quantile(0.95), quantile(0.99), round(ordered[-1] * 1000, 1))


def delays(
    streams: Iterable[Stream], ledger: Ledger, commits: Mapping[int, float], windows: Sequence[Window] = ()
) -> tuple[list[float], list[float]]:
    """
    Return the delays of all deliveries in seconds, and of those whose change was committed in no window.

    `commits` says when each transaction sent its COMMIT; those that are not in it do not count.
    """
    every, quiet = [], []
    outside = _Outside(windows)
    is_quiet = {xid: outside(sent) for xid, sent in commits.items()}
    for stream in streams:
        first: set[int] = set()
        for change, at in zip(stream.changes, stream.times, strict=True):
            entry = ledger.by_change.get(change)
            if entry is None or change in first or entry.xid not in commits:
                continue
            first.add(change)
            delay = at - commits[entry.xid]
            every.append(delay)
            if is_quiet[entry.xid]:
                quiet.append(delay)
    return every, quiet


class _Outside:
    """Whether a time is in no window."""

    def __init__(self, windows: Iterable[Window]) -> None:
        self._began: list[float] = []
        self._ended: list[float] = []
        for window in sorted(windows, key=lambda window: window.began):
            if self._ended and window.began <= self._ended[-1]:
                self._ended[-1] = max(self._ended[-1], window.ended)
            else:
                self._began.append(window.began)
                self._ended.append(window.ended)

    def __call__(self, at: float) -> bool:
        place = bisect(self._began, at) - 1
        return place < 0 or at > self._ended[place]
