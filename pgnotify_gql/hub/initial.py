"""
The initial state: what a subscriber is sent before the live stream.

It is read in a transaction of its own, read only and REPEATABLE READ, in each database of the operation's topics, and
with it the cursor of its snapshot.  From there the operation catches up from the journal: so nothing that happens
between the state and the stream is missed, and nothing is sent twice.

The transaction lasts as long as the state is executed, and not until the client has read it.  What is executed waits
in a file, beyond a size, and leaves it as fast as the client reads.  A database that is lost is tried again, for a
while; nothing has been sent by then.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from tempfile import SpooledTemporaryFile
from typing import IO, TYPE_CHECKING, Any

from django.db import InterfaceError, OperationalError, connections, router
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_delay, wait_random_exponential

from ..capture.registry import registry
from ..errors import ConfigurationError, PgnotifyGqlError, one_line
from ..journal.position import Position
from ..journal.state import Joined
from .cursor import Cursor, Journal
from .operations import Interest, Operation, State
from .payloads import Payloads
from .reader import RETRY_FIRST, RETRY_MAX

if TYPE_CHECKING:
    from .hub import Hub

logger = logging.getLogger("pgnotify_gql.hub")

MOST_IN_MEMORY = 1_000_000
"""Bytes of a state that wait for the client in memory; what is longer waits in a file."""

RETRY_TIME = 60.0
"""Seconds after which a database that fails is the subscriber's error."""

AWAIT_TIMEOUT = 60.0
"""Seconds that a thread waits for an asynchronous resolver."""


class _NotLedError(PgnotifyGqlError):
    """The database has forgotten its last changes, and no listener leads yet, which begins a new era."""

    def __init__(self) -> None:
        super().__init__("the database was restored, and no listener has led since: start `manage.py run_listener`")


async def send_state(hub: Hub, operation: Operation, state: State) -> Cursor:
    """
    Send the current state to an operation's outlet; return the cursor of what it shows.

    Raises ConfigurationError, and what the state raises.
    """
    outlet = operation.outlet
    with SpooledTemporaryFile(MOST_IN_MEMORY) as spool:
        retrying = AsyncRetrying(
            retry=retry_if_exception_type((OperationalError, InterfaceError, _NotLedError)),
            wait=wait_random_exponential(multiplier=RETRY_FIRST, max=RETRY_MAX),
            stop=stop_after_delay(RETRY_TIME),
            before_sleep=_tell,
            reraise=True,
        )
        cursor: Cursor = await retrying(_Reading(hub, state, operation.interest, spool).run)
        spool.seek(0)
        for line in spool:
            payload = Payloads(line.decode())
            while not outlet.offer(payload):
                await outlet.room()
    return cursor


def _tell(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    logger.warning("an initial state cannot be read (%s); trying again", one_line(error))


@dataclass
class _Reading:
    """Reads a state into a file of lines, in a worker thread."""

    hub: Hub
    state: State
    interest: Interest
    lines: IO[bytes]
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    given_up: threading.Event = field(default_factory=threading.Event)
    awaited: Future[str] | None = None

    async def run(self) -> Cursor:
        # Of a state without an era nobody can tell whether the database has forgotten it since: when one begins, it
        # would be sent a second time, with a resync.  After a crash a listener is about to begin one.
        for database in {database for database, _ in self.interest.models}:
            await self.hub.feed(database).led()
        known = self.hub.journals(self.interest)
        cursor = await self._executed()
        if any(known[database].era and not journal.era for database, journal in cursor.journals.items()):
            raise _NotLedError
        return cursor

    async def _executed(self) -> Cursor:
        self.given_up.clear()
        reading = asyncio.ensure_future(self.hub.executor.run(self._read))
        try:
            # Shielded, and waited for: a thread cannot be stopped, and the file is its own as long as it runs.
            return await asyncio.shield(reading)
        finally:
            self.given_up.set()
            if self.awaited is not None:
                self.awaited.cancel()
            await asyncio.wait({reading})

    def _read(self) -> Cursor:
        if self.given_up.is_set():
            return Cursor({}, {})  # nobody waits for it: it was cancelled before a thread was free
        self.lines.seek(0)
        self.lines.truncate()
        databases = {database for database, _ in self.interest.models}
        with _snapshots(self.hub, databases) as joined, _replicas_refused(self.interest):
            for outcome in self.state():
                if self.given_up.is_set():
                    break
                self.lines.write(self._settled(outcome).encode() + b"\n")
        journals = {database: Journal.of(found) for database, found in joined.items()}
        positions = {model: Position(joined[model[0]].cursor) for model in self.interest.models}
        return Cursor(positions, journals, self.interest.subject)

    def _settled(self, outcome: str | Awaitable[str]) -> str:
        if not inspect.isawaitable(outcome):
            return outcome

        async def settle() -> str:
            async with asyncio.timeout(AWAIT_TIMEOUT):
                return await outcome

        self.awaited = asyncio.run_coroutine_threadsafe(settle(), self.loop)
        # Whoever gives up sets the event, and then cancels what there is: one of the two is seen.
        if self.given_up.is_set():
            self.awaited.cancel()
        return self.hub.executor.wait(self.awaited)


@contextmanager
def _snapshots(hub: Hub, databases: set[str]) -> Iterator[dict[str, Joined]]:
    """Read each database as it is now, and yield where that is."""
    with ExitStack() as held:
        yield {database: held.enter_context(hub.feed(database).snapshot()) for database in sorted(databases)}


@contextmanager
def _replicas_refused(interest: Interest) -> Iterator[None]:
    """Fail what is asked of a database that a router reads a topic's model from, if it is not the one followed."""
    elsewhere = {}
    for database, label in interest.models:
        watch = registry.get(label)
        if watch is not None and (alias := router.db_for_read(watch.model)) != database:
            elsewhere[alias] = database, label

    def refuse(alias: str) -> Callable[..., Any]:
        def wrapper(*query: Any) -> Any:
            database, label = elsewhere[alias]
            raise ConfigurationError(
                f"the initial state was read from database '{alias}', but changes of {label} are captured in "
                f"'{database}', and what the one lags behind the other would be missed: "
                f"read it with .using('{database}')"
            )

        return wrapper

    with ExitStack() as held:
        for alias in elsewhere:
            held.enter_context(connections[alias].execute_wrapper(refuse(alias)))
        yield
