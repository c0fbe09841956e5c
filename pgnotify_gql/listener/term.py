"""
A term of leadership: how the leader reads, and when it may sleep.

States of a leader::

    awake      holds the awake lock, reads every few milliseconds; writers are silent
    drowsy     has released the lock, reads on until every transaction that might have seen it taken has ended
    asleep     waits for a bell, or for the safety poll; wakes up when bells come one right behind the other

Why no change is left waiting.  A writer inserts its journal row, so that its transaction has an id, and then tests the
lock.  If it found the lock free, it rings when it commits.  If it found it taken, it had its id before the lock was
released.  Then the leader ends a transaction of its own, with a later id: a snapshot lists what is in progress only up
to the newest id that has ended, and so every snapshot from then on knows the writer.  Either it has ended in the first
of them, and that read returns its row, or it is listed, and the leader reads on until it has ended.

A single bell does not wake the leader: it reads what is new and goes on waiting, without the lock, so that the next
writer rings as well.  Ringing slows down nobody who writes now and then; but waking up and falling asleep again takes
some fifteen statements, which would get in the way of what the change has just set off.

A backlog is streamed over a second connection, however long that takes, while the first goes on to store the cursor and
to send heartbeats: so standbys and hubs see a leader that works, and it sees when it has been replaced.

Whatever fails ends the term by an exception; a batch handed over but not yet stored is handed over again in the next.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractContextManager, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

import psycopg

from ..errors import one_line
from ..journal.reader import Batch, Connection, read_new
from ..journal.retention import rotate
from ..journal.snapshot import Snapshot
from ..journal.state import Era, store_relayed
from .deadline import answered_within
from .doorbell import Doorbell
from .leadership import mark_backlog
from .measures import Measures

logger = logging.getLogger("pgnotify_gql.listener")

AWAKE_INTERVAL = 0.001
"""Seconds between two reads while awake: half of it is what being awake adds to the delay of a change."""

LONGEST_AWAKE_INTERVAL = 0.01
"""Seconds between two reads under full load: a read costs 0.3 ms of two processors, which the writers need."""

INTERVAL_PER_ROW = 0.0002
"""Seconds: from 5,000 journal rows a second on the pauses grow, from the first to the second."""

TOGETHER = 0.01
"""Seconds within which a second bell wakes the leader up."""

SETTLING = 0.003
"""Seconds after the read for a single bell in which nothing is done.  A change needs about as long to a subscriber of
this process; with 1 ms, the leader turned to its bell when a thread had the row."""

LINGER = 0.03
"""Seconds without a change after which the leader begins to fall asleep.  Under full load nobody commits for 10 ms now
and then, while the disk flushes; a leader that falls asleep in such a moment has all writers ring, and wait for each
other: with 10 ms in place of these, 16 writers had a fifth less throughput."""

DROWSY_INTERVAL = 0.001
LONGEST_DROWSY_INTERVAL = 0.05
"""Seconds between two reads while a transaction that may be silent is still open; doubled from first to second."""

STORE_INTERVAL = 0.1
"""Seconds between two stored cursors, at least; what is relayed twice after a crash is bounded by it."""

HEARTBEAT_INTERVAL = 1.0
"""Seconds between two heartbeats while changes flow."""

REMIND_INTERVAL = 30.0
"""Seconds after which it is logged again that a second connection is not to be had."""


class Sink(Protocol):
    """
    Where batches go.

    Neither method raises for a layer that fails, nor takes long: what is lost there is healed by the hubs.
    """

    def begin(self, epoch: int, era: Era) -> None: ...

    async def relay(self, batch: Batch) -> None: ...

    async def heartbeat(self, cursor: Snapshot) -> None: ...


@dataclass(frozen=True)
class Timing:
    """Seconds; see the settings of the same names."""

    safety_poll: float = 5.0
    poll_interval: float = 0.1
    session_timeout: float = 15.0
    retention: float = 3600.0

    @property
    def longest_silence(self) -> float:
        """Return for how long a leader asks the database nothing, and stores nothing, at most; or soon loses it."""
        return self.session_timeout / 3

    @property
    def longest_sleep(self) -> float:
        """Return how long to wait for a bell: the read after it also keeps the session alive."""
        return min(self.safety_poll, self.longest_silence)

    @property
    def rotation_interval(self) -> float:
        """Return the seconds between two looks at the slots of the journal."""
        return min(60.0, max(1.0, self.retention / 10))


class Term:
    """
    One term of leadership, on one connection; `epoch` and `cursor` are those it began with.

    `connect` opens another connection; `database` is its alias, for the log.
    """

    def __init__(
        self,
        connection: Connection,
        doorbell: Doorbell,
        sink: Sink,
        epoch: int,
        cursor: Snapshot,
        timing: Timing,
        stopping: asyncio.Event,
        *,
        connect: Callable[[], Awaitable[Connection]],
        database: str,
        direct: bool = True,
    ) -> None:
        self._connection = connection
        self._connect = connect
        self._database = database
        self._direct = direct
        self._aside = False
        self._spare: Connection | None = None
        self._refused_at: float | None = None
        self._doorbell = doorbell
        self._sink = sink
        self._epoch = epoch
        self._cursor = cursor
        self._stored = cursor
        self._relayed = False
        self._timing = timing
        self._stopping = stopping
        self._clock = asyncio.get_running_loop().time
        self._stored_at = self._beat_at = self._rotated_at = self._asked_at = self._answered_at = self._clock()
        self._measures = Measures(database)
        # Of the wait for a bell, while there is one.
        self._until_stopped: asyncio.Timeout | None = None

    @property
    def silent_for(self) -> float:
        """Return for how many seconds the database has not answered; may be asked in any thread."""
        return self._clock() - self._answered_at

    async def run(self) -> None:
        stop = asyncio.create_task(self._wait_for_stop(), name="pgnotify_gql stop")
        try:
            await self._sink.heartbeat(self._cursor)
            while not self._stopping.is_set():
                await self._stay_awake()
                if not self._stopping.is_set() and await self._fall_asleep():
                    await self._sleep()
            await self._store()
        finally:
            stop.cancel()
            self._measures.end()
            await self._close_spare()

    async def _stay_awake(self) -> None:
        idle_since = self._clock()
        while not self._stopping.is_set() and self._clock() - idle_since < LINGER:
            if found := await self._drain():
                idle_since = self._clock()
            with self._answered():
                await self._doorbell.silence()
            await self._keep_books()
            await asyncio.sleep(max(AWAKE_INTERVAL, min(LONGEST_AWAKE_INTERVAL, found * INTERVAL_PER_ROW)))

    async def _fall_asleep(self) -> bool:
        """Return True when it is safe to wait for a bell, False when one rang before."""
        with self._answered():
            await self._doorbell.unsilence()
        # A transaction with an id, which ends at once. Without it a writer with the newest id of all would be in
        # progress and yet not be listed: xmax of a snapshot is the newest id that has *ended*, plus one.
        with self._answered():
            await self._connection.execute("select pg_current_xact_id()")
        await self._drain()
        # Who may be silent had its id before the release, so it is committed in this snapshot or listed in it.
        silent = self._cursor.xip
        pause = DROWSY_INTERVAL
        while not self._stopping.is_set() and not all(self._cursor.sees(xid) for xid in silent):
            if await self._doorbell.wait(pause):
                return False
            await self._drain()
            await self._keep_books()
            pause = min(pause * 2, LONGEST_DROWSY_INTERVAL)
        return not self._stopping.is_set()

    async def _sleep(self) -> None:
        await self._close_spare()
        while not self._stopping.is_set():
            await self._store()
            await self._beat()
            await self._rotate()
            await self._measure()
            if await self._bell_or_stop(self._timing.longest_sleep):
                await self._drain()
                # What the change has set off, in this process or another, goes first.
                await asyncio.sleep(SETTLING)
                if await self._bell_or_stop(TOGETHER):
                    return
            elif await self._drain():
                return

    async def _bell_or_stop(self, timeout: float) -> bool:  # noqa: ASYNC109
        # Not as a task of its own beside one that waits for the end: a bell would come three turns of the loop later.
        try:
            async with asyncio.timeout(None) as self._until_stopped:
                return not self._stopping.is_set() and await self._doorbell.wait(timeout)
        except TimeoutError:
            if not self._stopping.is_set():
                raise
            return False
        finally:
            self._until_stopped = None

    async def _wait_for_stop(self) -> None:
        await self._stopping.wait()
        if self._until_stopped is not None:
            self._until_stopped.reschedule(self._clock())

    async def _drain(self) -> int:
        """Hand everything new to the sink, or parts of a backlog until stopped; return how many rows that were."""
        self._asked_at = self._clock()
        # Closed at once when left early: the transaction of a backlog must have ended before the next statement.
        async with aclosing(read_new(self._connection, self._cursor, aside=self._backlog_connection)) as batches:
            with self._answered():
                batch = await anext(batches)
            self._answered_at = self._clock()
            if not batch.last:
                return await self._drain_backlog(batch, batches)
            await self._hand_over(batch)
            self._cursor = batch.after
            self._measures.note_relayed()
            return len(batch.columns)

    async def _drain_backlog(self, batch: Batch, batches: AsyncGenerator[Batch, None]) -> int:
        """Hand over each part while the next is read; keep the books while another connection reads or sorts."""
        found = 0
        while not batch.last:
            asked_at = self._clock()
            async with self._reading(batches) as reading:
                await self._hand_over(batch)
                found += len(batch.columns)
                if self._stopping.is_set():
                    return found
                # Of the part that is handed over next: it may be there since long, if we were frozen meanwhile.
                self._asked_at = asked_at
                done = False
                # Once at least: where it is read faster than handed over, it is there already.
                while not done:
                    await asyncio.wait({reading}, timeout=STORE_INTERVAL)
                    done = reading.done()
                    if self._aside:
                        await self._keep_books()
                batch = reading.result()
                self._answered_at = self._clock()
        self._cursor = batch.after
        self._measures.note_relayed()
        return found

    @asynccontextmanager
    async def _reading(self, batches: AsyncGenerator[Batch, None]) -> AsyncGenerator[asyncio.Task[Batch], None]:
        reading = asyncio.create_task(anext(batches), name="pgnotify_gql backlog")
        try:
            yield reading
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _hand_over(self, batch: Batch) -> None:
        if batch.columns:
            self._measures.note_read(batch.columns)
            self._note_relayed()
            await self._confirm_session()
            await self._sink.relay(batch)

    @asynccontextmanager
    async def _backlog_connection(self) -> AsyncGenerator[Connection, None]:
        connection = await self._second_connection()
        if connection is None:
            yield self._connection
            return
        self._aside = True
        try:
            yield connection
        except BaseException:
            await self._close_spare()
            raise
        finally:
            self._aside = False

    async def _second_connection(self) -> Connection | None:
        """Return one that is kept until the leader sleeps: under load a backlog follows the other."""
        if self._spare is not None and not self._spare.broken and not self._spare.closed:
            return self._spare
        try:
            self._spare = await self._connect()
            if self._direct:
                await mark_backlog(self._spare)
        except psycopg.OperationalError as error:
            await self._close_spare()
            if self._refused_at is None or self._clock() - self._refused_at >= REMIND_INTERVAL:
                self._refused_at = self._clock()
                logger.warning(
                    "no second connection to database %s for a backlog (%s): it is read over the first, without "
                    "heartbeats",
                    self._database,
                    one_line(error),
                )
        return self._spare

    async def _close_spare(self) -> None:
        spare, self._spare = self._spare, None
        if spare is not None:
            with suppress(psycopg.Error):
                await spare.close()

    async def _confirm_session(self) -> None:
        """
        Ask the database whether the session is still there, if it could have been ended since the last question.

        A leader that was frozen holds a batch, or is about to send a heartbeat, while another leads already.
        """
        if self._clock() - self._asked_at > self._timing.longest_silence:
            with self._answered():
                await self._connection.execute("select")
            self._asked_at = self._clock()

    def _answered(self) -> AbstractContextManager[None]:
        return answered_within(self._connection, self._timing.session_timeout)

    def _note_relayed(self) -> None:
        # The interval begins with the first batch: a store right behind it would compete with what it sets off.
        if not self._relayed:
            self._relayed = True
            self._stored_at = self._clock()

    async def _keep_books(self) -> None:
        now = self._clock()
        # Stored often only after changes; and now and then in any case, which is the lease of a leader behind a pooler.
        if now - self._stored_at >= (STORE_INTERVAL if self._relayed else self._timing.longest_sleep):
            await self._store()
        if now - self._beat_at >= min(HEARTBEAT_INTERVAL, self._timing.longest_sleep):
            await self._beat()
        await self._rotate()
        await self._measure()

    async def _store(self) -> None:
        self._stored_at = self._clock()
        self._relayed = False
        with self._answered():
            await store_relayed(self._connection, self._epoch, self._cursor)
        self._stored = self._cursor
        self._answered_at = self._clock()

    async def _beat(self) -> None:
        self._beat_at = self._clock()
        await self._confirm_session()
        await self._sink.heartbeat(self._cursor)

    async def _rotate(self) -> None:
        if self._clock() - self._rotated_at >= self._timing.rotation_interval:
            self._rotated_at = self._clock()
            await rotate(self._connection, self._stored, self._timing.retention, self._database)

    async def _measure(self) -> None:
        if self._measures.are_due(self._clock()):
            with self._answered():
                await self._measures.ask(self._connection)
