"""
Lanes: how many of a hub's worker threads are worth using at once.

Python runs one thread at a time.  Threads that wait for a database do not hinder each other; threads that compute do,
and the event loop with them: each hand-over costs, and it is due whenever one of them talks to its database.  With a
query for each subscriber and the database on the same machine, two threads served 1,375 results a second where four
served 1,130.  So all are used at first, and it is measured how much of a core those under way use together: one less
when they are in each other's way, and one more while there is room for it.
"""

from __future__ import annotations

FEWEST = 2
"""So that one that computes never has to wait for one that waits."""

ROOM = 0.75
"""Of a core, that all together may use with one more thread.  The rest is the event loop's."""

CROWDED = 0.78
"""Of a core; with more in use, threads have waited for each other."""

WEIGHT = 0.1
"""Of the last hop, in what is known of them all."""


class Lanes:
    """Of `workers` threads, `open` are used."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self.open = workers
        self._use: float | None = None

    def note(self, computed: float, taken: float) -> None:
        """Note for how many seconds a thread has computed, of those that its hop took, with all lanes in use."""
        if taken <= 0.0:
            return
        use = computed / taken * self.open
        self._use = use if self._use is None else self._use + (use - self._use) * WEIGHT
        if self._use > CROWDED and self.open > FEWEST:
            self._set(self.open - 1)
        elif self._use * (self.open + 1) / self.open < ROOM and self.open < self._workers:
            self._set(self.open + 1)

    def _set(self, number: int) -> None:
        assert self._use is not None
        # What is to be expected; the next hops say what is.
        self._use *= number / self.open
        self.open = number
