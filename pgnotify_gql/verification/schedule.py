"""
The schedule: which fault is injected when, and for how long it was felt.

Each kind once, in random order, and then any; at random intervals, some at the same time.  All of it follows from the
seed, but for what happens at the same time.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator

import psycopg

from .faults import FAULTS, Fault
from .latency import Window
from .world import NothingToBreakError, World

MOST_AT_ONCE = 3
"""Faults that may be under way at the same time."""

BEFORE = 1.0
"""Seconds before a fault that count as a part of its window: what committed then may have been on its way."""

RECOVERY_LIMIT = 60.0
"""Seconds after which a window ends, although some subscriber has not been sent anything that committed behind it."""

LOOK_INTERVAL = 0.05


class Schedule:
    """Injects faults until the world ends; `windows` and `injected` have what was done."""

    def __init__(self, world: World, say: Callable[[str], None]) -> None:
        self.windows: list[Window] = []
        self.injected: Counter[str] = Counter(dict.fromkeys(world.options.faults, 0))
        self.current: list[str] = []
        self._world = world
        self._say = say
        self._room = asyncio.Semaphore(MOST_AT_ONCE)

    async def run(self) -> None:
        """Inject; returns when every fault has been undone."""
        world, every = self._world, self._world.options.fault_every
        async with asyncio.TaskGroup() as injecting:
            for fault in self._order():
                await world.hold(0.5 * every, 1.5 * every)
                await self._room.acquire()
                if world.ending.is_set():
                    return
                task = injecting.create_task(self._inject(fault), name=f"pgnotify_gql {fault.name}")
                task.add_done_callback(lambda _: self._room.release())

    def _order(self) -> Iterator[Fault]:
        names = list(self._world.options.faults)
        chance = self._world.chance
        chance.shuffle(names)
        yield from (FAULTS[name] for name in names)
        while names:
            yield FAULTS[chance.choice(names)]

    async def _inject(self, fault: Fault) -> None:
        began: list[float] = []

        def begin(target: str) -> None:
            began.append(time.monotonic() - BEFORE)
            self.injected[fault.name] += 1
            self.current.append(fault.name)
            self._say(f"{fault.name}: {target}")

        try:
            await fault.inject(self._world, begin)
        except NothingToBreakError:
            return
        except psycopg.Error as error:
            self._say(f"{fault.name} could not be done: {error}")
            return
        await self._recovered()
        self.current.remove(fault.name)
        self.windows.append(Window(began[0], time.monotonic()))

    async def _recovered(self) -> None:
        """Wait until every subscriber has been sent a change that committed after now."""
        undone = time.monotonic()
        while time.monotonic() < undone + RECOVERY_LIMIT and not self._world.ending.is_set():
            if all(subscriber.latest > undone for subscriber in self._world.subscribers):
                return
            await asyncio.sleep(LOOK_INTERVAL)
