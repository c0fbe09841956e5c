"""What is still to come, once writers have ended and the ledger is known."""

from __future__ import annotations

from collections.abc import Sequence

from .ledger import Ledger
from .stream import Stream
from .subscriber import Subscriber


class Arrival:
    """Counts deliveries down."""

    def __init__(self, subscribers: Sequence[Subscriber], ledger: Ledger) -> None:
        self._awaited = [_Awaited(subscriber, ledger) for subscriber in subscribers]

    def missing(self) -> int:
        """Return how many deliveries are still to come."""
        return sum(awaited.missing() for awaited in self._awaited)


class _Awaited:
    """Of one subscriber, who may begin anew meanwhile."""

    def __init__(self, subscriber: Subscriber, ledger: Ledger) -> None:
        self._subscriber = subscriber
        self._ledger = ledger
        self._stream: Stream | None = None
        self._changes: set[int] = set()
        self._looked = 0

    def missing(self) -> int:
        stream = self._subscriber.streams[-1]
        if stream is not self._stream:
            entries = self._ledger.expected(bucket=stream.bucket, start=stream.start)
            self._stream, self._changes, self._looked = stream, {entry.change for entry in entries}, 0
        self._changes.difference_update(stream.changes[self._looked :])
        self._looked = len(stream)
        # A state that is still on its way is one more.
        return len(self._changes) + (stream.start is not None and not stream.state_is_whole)
