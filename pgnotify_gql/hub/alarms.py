"""
Alarms: something that is due the same time after it was asked for, for each of thousands of sockets.

A timer of the event loop for each takes four objects that the garbage collector looks at, and a place in a heap.  Where
the delay is the same for all, whoever asks first is due first: so they stand in a queue, and one timer is enough.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from .loops import of_loop

T = TypeVar("T", bound=Hashable)


class Alarms(Generic[T]):
    """Has `ring` called with whatever an alarm was set for, `seconds` later; used on one event loop only."""

    def __init__(self, seconds: float, ring: Callable[[T], object]) -> None:
        self._seconds = seconds
        self._ring = ring
        # When each is due, the next one first.
        self._due: OrderedDict[T, float] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    def set(self, sleeper: T) -> None:
        """Have somebody called; if he was to be called already, now later."""
        loop = asyncio.get_running_loop()
        self._due.pop(sleeper, None)
        self._due[sleeper] = loop.time() + self._seconds
        if self._timer is None:
            self._timer = loop.call_later(self._seconds, self._ring_due, loop)

    def clear(self, sleeper: T) -> None:
        """Have him called no more, unless that is already under way."""
        self._due.pop(sleeper, None)
        # Otherwise the timer is left as it is: whoever it was for, the next one is not due before.
        if not self._due and self._timer is not None:
            # It holds its event loop, which is not to outlive its last socket.
            self._timer.cancel()
            self._timer = None

    def __contains__(self, sleeper: object) -> bool:
        return sleeper in self._due

    def _ring_due(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        while self._due:
            sleeper, due = next(iter(self._due.items()))
            if due > now:
                self._timer = loop.call_at(due, self._ring_due, loop)
                return
            del self._due[sleeper]
            # By the loop, so that one that fails keeps no other waiting.
            loop.call_soon(self._ring, sleeper)


_alarms: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[float, Any], Alarms[Any]]] = WeakKeyDictionary()


def alarms(seconds: float, ring: Callable[[T], object]) -> Alarms[T]:
    """Return the alarms of this event loop that have the same delay, and call the same."""
    kinds = of_loop(_alarms, dict)
    found = kinds.get((seconds, ring))
    if found is None:
        found = kinds[seconds, ring] = Alarms(seconds, ring)
    return found
