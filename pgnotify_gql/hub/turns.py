"""
Turns: which cohorts are executed next, of those that wait for a thread.

Who catches up has work for as long as it lasts, and there may be hundreds of them; what happens now is there once, and
somebody looks at it.  So those that replay never have all threads: one is left to the others, and where there is a
single one they take it in turns.  Neither ever waits for the other to have nothing left.
"""

from __future__ import annotations

from collections import deque

from .operations import Cohort


class Turns:
    """Two queues of cohorts, live ones and those that replay."""

    def __init__(self) -> None:
        self._live: deque[Cohort] = deque()
        self._replaying: deque[Cohort] = deque()
        self._live_was_last = False

    def add(self, cohort: Cohort) -> bool:
        """Queue a cohort behind others of its kind; return whether there are none."""
        queue = self._replaying if cohort.replays else self._live
        queue.append(cohort)
        return len(queue) == 1

    def next(self, *, may_replay: bool) -> deque[Cohort]:
        """Return the queue whose turn it is, to be taken from; an empty one where it is nobody's."""
        replays = bool(self._replaying) and may_replay and (self._live_was_last or not self._live)
        self._live_was_last = not replays
        return self._replaying if replays else self._live
