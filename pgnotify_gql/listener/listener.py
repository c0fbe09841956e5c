"""
The listener: reads the journal when woken and hands every batch to a sink.

At most one listener of a database leads, the others stand by; what a leader does is its ``Term``.

On failure of anything the connection is closed, which releases both locks, and the listener begins again: connect,
LISTEN, lead, read from the stored cursor.  A batch handed over but not yet stored is handed over again by the next
leader; hubs drop what they have.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import psycopg
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    RetryError,
    retry_if_exception_type,
    retry_if_not_exception_type,
    stop_when_event_set,
    wait_random_exponential,
)

from .. import metrics
from ..errors import JournalMissingError, one_line
from ..journal.reader import Connection, require_journal
from ..journal.snapshot import Snapshot
from ..journal.state import LeadershipLostError, begin_era, resign
from .deadline import answered_within
from .doorbell import LOOPBACK_TIMEOUT, Doorbell, PolledDoorbell
from .leadership import STANDBY_INTERVAL, Guard, end_left_over, try_to_lead
from .session import CONNECT_TIMEOUT, is_direct
from .stage import Stage, State
from .term import Sink, Term, Timing

logger = logging.getLogger("pgnotify_gql.listener")

PREPARE_THRESHOLD = 5
"""Times a statement runs before it is prepared, where no pooler stands in between; psycopg's own default."""

RETRY_FIRST = 0.25
RETRY_MAX = 2.0
"""
Seconds: the scale of the first pause before connecting again, and the longest; both with jitter.

Listeners are few and a refused connection costs little, while whoever subscribes waits for what was written since.
"""

REMIND_INTERVAL = 30.0
"""Seconds after which a reason why the database cannot be used is logged again; one that is new at once."""


class Listener:
    """
    Runs until stopped; at most one of a database leads.

    `connect` returns a new connection in autocommit; `database` is its alias, for messages and the log; `polls` is
    True where no bells are rung.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        sink: Sink,
        *,
        database: str = "default",
        polls: bool = False,
        timing: Timing | None = None,
    ) -> None:
        self._connect = connect
        self._sink = sink
        self._database = database
        self._polls = polls
        self._timing = timing or Timing()
        self._stopping = asyncio.Event()
        self._settled = False
        self._told: tuple[str, float] | None = None
        self._term: Term | None = None
        self._leads = metrics.LEADING.labels(database)
        self._terms = metrics.TERMS.labels(database)
        self.state = State(Stage.CONNECTING, time.time())
        """What it does now; may be read in any thread."""
        self.leading = asyncio.Event()
        """Set while this listener leads."""

    def stop(self) -> None:
        """Ask it to finish the batch, store the cursor and end."""
        self._stopping.set()

    @property
    def silent_for(self) -> float:
        """Return for how many seconds the database has not answered; 0 unless it leads.  In any thread."""
        term = self._term
        return 0.0 if term is None else term.silent_for

    async def run(self) -> None:
        """
        Listen until stopped.

        A database that is down or goes down is waited for.  Raises JournalMissingError, and psycopg.ProgrammingError
        for a malformed connection string: waiting does not mend those.
        """
        while not self._stopping.is_set():
            retrying = AsyncRetrying(
                retry=retry_if_exception_type(psycopg.Error) & retry_if_not_exception_type(psycopg.ProgrammingError),
                wait=wait_random_exponential(multiplier=RETRY_FIRST, max=RETRY_MAX),
                stop=stop_when_event_set(self._stopping),  # type: ignore[arg-type]  # asks only for is_set()
                sleep=self._pause,
                before_sleep=self._log_retry,
            )
            with suppress(RetryError):
                await retrying(self._hold_session)
            # A session that leads and is lost at once, again and again, must not become a busy loop.
            await self._pause(RETRY_FIRST)

    async def _hold_session(self) -> None:
        """
        Connect, and serve until the connection is lost.

        Raises psycopg.Error only if it could neither lead nor stand by, so that pauses grow while nothing works.
        """
        connection = await self._connect()
        self._settled = False
        try:
            await self._serve(connection)
        except LeadershipLostError as error:
            logger.warning("lost the leadership of database %s: %s", self._database, error)
        except psycopg.errors.UndefinedTable as error:
            raise JournalMissingError(self._database) from error
        except psycopg.Error as error:
            if not self._settled:
                raise
            logger.warning("lost the database %s (%s); connecting again", self._database, one_line(error))
        finally:
            self.leading.clear()
            self._term = None
            self._enter(Stage.CONNECTING)
            # Closed, not returned to anybody: both locks end with the session.
            with suppress(psycopg.Error):
                await connection.close()

    async def _serve(self, connection: Connection) -> None:
        with answered_within(connection, self._patience):
            await require_journal(connection, self._database)
            direct = await is_direct(connection)
        # Rings over a second connection, and may wait in vain for the bell.
        with answered_within(connection, self._patience + CONNECT_TIMEOUT + LOOPBACK_TIMEOUT):
            doorbell = await self._doorbell(connection, direct)
        led = await self._stand_by(connection, doorbell, direct)
        if led is None:
            return
        epoch, cursor = led
        self._settle()
        with answered_within(connection, self._patience):
            self._sink.begin(epoch, await begin_era(connection))
            if direct:
                await end_left_over(connection)
        term = Term(
            connection, doorbell, self._sink, epoch, cursor, self._timing, self._stopping,
            connect=self._connect, database=self._database, direct=direct,
        )  # fmt: skip
        self._term = term
        self._terms.inc()
        self._enter(Stage.LEADING, epoch)
        logger.info("leading database %s in epoch %d", self._database, epoch)
        self.leading.set()
        await term.run()
        with answered_within(connection, self._patience):
            await resign(connection, epoch)

    async def _stand_by(self, connection: Connection, doorbell: Doorbell, direct: bool) -> tuple[int, Snapshot] | None:
        """Wait until nobody else leads; return the epoch and the cursor of our term, or None once stopped."""
        guard = Guard(self._timing.session_timeout, self._database)
        while not self._stopping.is_set():
            led = await try_to_lead(
                connection, direct=direct, lease=self._timing.session_timeout, database=self._database
            )
            if led is not None:
                return led
            if not self._settled:
                self._enter(Stage.STANDING_BY)
                logger.info("standing by: another listener leads database %s", self._database)
                self._settle()
            if direct:
                with answered_within(connection, self._patience):
                    await guard.look(connection)
            await self._pause(STANDBY_INTERVAL)
            # Bells are for the leader; nobody else taking them, they would pile up for as long as it leads.
            await doorbell.wait(0)
        return None

    @property
    def _patience(self) -> float:
        return self._timing.session_timeout

    def _settle(self) -> None:
        self._settled = True
        self._told = None

    def _enter(self, stage: Stage, epoch: int | None = None) -> None:
        if stage is not self.state.stage:
            self.state = State(stage, time.time(), epoch)
            self._leads.set(stage is Stage.LEADING)

    async def _doorbell(self, connection: Connection, direct: bool) -> Doorbell:
        if self._polls:
            return PolledDoorbell(connection, self._timing.poll_interval)
        doorbell = Doorbell(connection)
        # LISTEN before anything is read: what commits afterwards either rings or is read.
        await doorbell.listen()
        if await self._hears(doorbell, direct):
            # The session is ours alone, and the statement that reads the journal runs hundreds of times a second.
            connection.prepare_threshold = PREPARE_THRESHOLD
            return doorbell
        logger.error(
            "database %s accepted LISTEN, but our own NOTIFY did not come back: a pooler in transaction mode "
            "(PgBouncer?) stands in between. Polling every %g s instead; set LISTENER_CONNINFO to a direct connection.",
            self._database,
            self._timing.poll_interval,
        )
        return PolledDoorbell(connection, self._timing.poll_interval)

    async def _hears(self, doorbell: Doorbell, direct: bool) -> bool:
        try:
            other = await self._connect()
        except psycopg.OperationalError as error:
            # As when the server is full: whoever has one connection must not lose it for want of another. The session
            # is our own, so that no pooler takes its bells; the safety poll covers whatever else does.
            if not direct:
                raise
            logger.warning(
                "no second connection to database %s (%s): whether bells are heard could not be tried",
                self._database,
                one_line(error),
            )
            return True
        async with other:
            return await doorbell.hears(other)

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    def _log_retry(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        pause = state.next_action.sleep if state.next_action else 0
        reason, now = one_line(error), asyncio.get_running_loop().time()
        reminds = self._told is None or self._told[0] != reason or now - self._told[1] >= REMIND_INTERVAL
        if reminds:
            self._told = reason, now
        level = logging.WARNING if reminds else logging.DEBUG
        logger.log(level, "database %s cannot be used (%s); trying again in %.1f s", self._database, reason, pause)
