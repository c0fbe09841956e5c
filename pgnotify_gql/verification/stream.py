"""
A stream: what a subscriber was sent from where it began, across as many sockets as it took.

Kept in arrays: a long run makes millions of deliveries.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..journal.snapshot import Snapshot


@dataclass(eq=False)
class Stream:
    """
    What one subscriber received, in order.

    `start` is the snapshot of its initial state, None for a stream that began before the first change did; `state` has
    the version of each row in it, and is whole once `state_is_whole`.  A stream is `abandoned` when its subscriber
    began anew: what came after its last change is not missed.
    """

    subscriber: str
    bucket: int | None = None
    start: Snapshot | None = None
    state: dict[int, int] = field(default_factory=dict)
    state_is_whole: bool = False
    abandoned: bool = False
    keys: array[int] = field(default_factory=lambda: array("q"))
    changes: array[int] = field(default_factory=lambda: array("q"))
    times: array[float] = field(default_factory=lambda: array("d"))
    resyncs: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def add(self, key: int, change: int, at: float) -> None:
        """Note a change of a row, received `at` a monotonic time in seconds."""
        self.keys.append(key)
        self.changes.append(change)
        self.times.append(at)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Iterate over keys and changes."""
        return zip(self.keys, self.changes, strict=True)

    def __len__(self) -> int:
        return len(self.keys)
