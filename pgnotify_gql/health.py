"""
Health: whether a listener process is alive, and whether it is ready.

Alive: its event loop has turned lately, and none of its listeners has ended.  Who is not alive must be started again.

Ready: each of its listeners leads or stands by, and where it leads, the database has answered within the time after
which a leader loses its session.  Who is not ready may mend by itself: a database that is down is waited for.

The event loop notes that it turns; questions may come from any thread, above all while it does not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from .listener.stage import Stage, State

BEAT_INTERVAL = 1.0
"""Seconds between two notes that the event loop turns."""

ALIVE_WITHIN = 10.0
"""Seconds without a note after which the event loop counts as stuck."""


class Watched(Protocol):
    """What is asked of a listener; both may be read in any thread."""

    @property
    def state(self) -> State: ...

    @property
    def silent_for(self) -> float: ...


@dataclass(frozen=True)
class Report:
    """An answer, with a sentence for each thing that is wrong."""

    states: Mapping[str, State]
    problems: Sequence[str]

    @property
    def is_good(self) -> bool:
        """Return whether nothing is wrong."""
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        """Return what JSON can carry; times are ISO 8601."""
        databases = {
            alias: {
                "state": str(state.stage),
                "since": datetime.fromtimestamp(state.since, UTC).isoformat(timespec="milliseconds"),
                "epoch": state.epoch,
            }
            for alias, state in self.states.items()
        }
        return {"ok": self.is_good, "problems": list(self.problems), "databases": databases}


class Health:
    """
    Watches the listeners of a process, one for each database.

    `patience` is for how many seconds a database may not answer its leader; `clock` is monotonic.
    """

    def __init__(
        self, listeners: Mapping[str, Watched], *, patience: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._listeners = listeners
        self._patience = patience
        self._clock = clock
        self._turned_at = clock()
        self._ended: set[str] = set()

    async def beat(self) -> None:
        """Note, until cancelled, that the event loop turns."""
        while True:
            self._turned_at = self._clock()
            await asyncio.sleep(BEAT_INTERVAL)

    def note_ended(self, alias: str) -> None:
        """Note that the listener of a database has ended."""
        self._ended.add(alias)

    def liveness(self) -> Report:
        """Return whether the process is alive."""
        return Report(self._states(), list(self._deaths()))

    def readiness(self) -> Report:
        """Return whether the process is ready, which it can only be alive."""
        states = self._states()
        return Report(states, [*self._deaths(), *self._delays(states)])

    def _states(self) -> dict[str, State]:
        return {alias: listener.state for alias, listener in self._listeners.items()}

    def _deaths(self) -> Iterator[str]:
        still = self._clock() - self._turned_at
        if still > ALIVE_WITHIN:
            yield f"the event loop has not turned for {still:.0f} s"
        for alias in sorted(self._ended):
            yield f"the listener of database {alias} has ended"

    def _delays(self, states: Mapping[str, State]) -> Iterator[str]:
        for alias, state in states.items():
            silent = self._listeners[alias].silent_for
            if state.stage is Stage.CONNECTING:
                yield f"the listener of database {alias} is connecting"
            elif state.stage is Stage.LEADING and silent > self._patience:
                yield f"database {alias} has not answered its leader for {silent:.0f} s"
