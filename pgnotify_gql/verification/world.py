"""What faults are done to, and nothing else is: what was started by this run."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from psycopg import AsyncConnection

from .options import Options
from .processes import Child, Processes
from .writer import Writer

if TYPE_CHECKING:
    # Only with the extra installed; the names of the faults are told without it.
    from .subscriber import Subscriber

LOOK_INTERVAL = 0.1

END_SESSION = """
    select pg_terminate_backend(pid) from (
        select pid from pg_stat_activity
        where datname = current_database() and application_name = %s order by random() limit %s
    ) as chosen
"""


class NothingToBreakError(Exception):
    """The run ends, or there is nothing that this fault could be done to."""


@dataclass
class World:
    """Everything that was started by a run; `ending` is set when faults are to be undone at once."""

    options: Options
    processes: Processes
    subscribers: Sequence[Subscriber]
    writers: Sequence[Writer]
    conninfo: str
    session_timeout: float
    chance: random.Random
    ending: asyncio.Event = field(default_factory=asyncio.Event)

    async def hold(self, least: float, most: float | None = None) -> None:
        """Wait so many seconds, or for the end."""
        seconds = least if most is None else self.chance.uniform(least, most)
        try:
            async with asyncio.timeout(seconds):
                await self.ending.wait()
        except TimeoutError:
            pass

    @asynccontextmanager
    async def a_listener(self) -> AsyncIterator[Child]:
        """Have a listener in hand that no other fault has.  Raises NothingToBreakError."""
        async with self._one_of(self.processes.listeners) as listener:
            yield listener

    @asynccontextmanager
    async def a_server(self) -> AsyncIterator[Child]:
        """Have a server in hand, one with clients if there is any.  Raises NothingToBreakError."""
        urls = {subscriber.url for subscriber in self.subscribers if subscriber.connected}
        servers = self.processes.servers
        async with self._one_of([server for server in servers if server.url in urls] or servers) as server:
            yield server

    @asynccontextmanager
    async def _one_of(self, children: Sequence[Child]) -> AsyncIterator[Child]:
        while not (free := [child for child in children if child.alive and not child.busy]):
            if not children or self.ending.is_set():
                raise NothingToBreakError
            await asyncio.sleep(LOOK_INTERVAL)
        child = self.chance.choice(free)
        child.busy = True
        try:
            yield child
        finally:
            child.busy = False

    async def end_sessions(self, whose: str, most: int = 1) -> int:
        """End database sessions of this run; return how many there were.  Raises NothingToBreakError without any."""
        async with await AsyncConnection.connect(self.conninfo, autocommit=True) as connection:
            ended = await connection.execute(END_SESSION, [self.options.session_name(whose), most])
            count = ended.rowcount
        if not count:
            raise NothingToBreakError
        return count

    def some_subscribers(self) -> list[Subscriber]:
        """Return one or more of those that are connected.  Raises NothingToBreakError without any."""
        connected = [subscriber for subscriber in self.subscribers if subscriber.connected]
        if not connected:
            raise NothingToBreakError
        return self.chance.sample(connected, self.chance.randint(1, max(1, len(connected) // 2)))
