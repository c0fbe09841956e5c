"""
A run: processes and subscribers, then writers and faults for as long as was asked for, then the wait for the last
delivery, and the judge.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from .. import names
from ..journal.locks import HELD
from . import writes
from .arrival import Arrival
from .cast import make_subscribers, make_writers
from .errors import VerificationError
from .judge import judge
from .latency import Distribution, delays
from .ledger import Ledger
from .options import Options
from .processes import Processes
from .progress import Progress, Status
from .report import Report
from .schedule import Schedule
from .table import read_ledger
from .world import World
from .writer import Commits

CONNECT_LIMIT = 60.0
"""Seconds within which every subscriber must have been sent something, before anything counts."""

SURPLUS_TIME = 1.0
"""Seconds to wait behind the last delivery for what should not come."""

SHOW_INTERVAL = 0.25
PROBE_INTERVAL = 0.2

LEADER = sql.SQL("""
    select l.pid, a.application_name from ({held}) as l join pg_stat_activity a on a.pid = l.pid
    where l.classid = %s and l.objid = %s
""").format(held=HELD)


class Run:
    """One run, in the tables that are there, see ``table.tables``."""

    def __init__(
        self, options: Options, progress: Progress, *, conninfo: str, direct_conninfo: str, session_timeout: float,
        logs: Path, conditions: Mapping[str, Any],
    ) -> None:  # fmt: skip
        """`conninfo` is that of writers; `direct_conninfo` leads past any pooler."""
        chance = random.Random(options.seed)  # noqa: S311  (to be had again from the seed)
        self._options = options
        self._progress = progress
        self._direct = direct_conninfo
        self._logs = logs
        self._conditions = conditions
        self._commits = Commits()
        self._remarks: list[str] = []
        self._processes = Processes(options, logs, self._remark)
        self._subscribers = make_subscribers(options, self._processes.urls, self._commits.sent, chance)
        self._writers = make_writers(options, conninfo, self._commits, chance)
        self._world = World(
            options, self._processes, self._subscribers, self._writers, direct_conninfo, session_timeout, chance
        )
        self._schedule = Schedule(self._world, progress.say)
        self._arrival: Arrival | None = None
        self._phase = "starting"
        self._began = self._ended = time.monotonic()
        self._waited = 0.0
        self._stopping = asyncio.Event()

    async def run(self) -> Report:
        """
        Run to the end, or until SIGINT or SIGTERM; a second signal cancels.

        Raises VerificationError when nothing could be verified, and psycopg.Error when writers may not write.
        """
        try:
            with self._signals():
                async with self._processes.running(), asyncio.TaskGroup() as group:
                    background = [group.create_task(subscriber.run()) for subscriber in self._subscribers]
                    background.append(group.create_task(self._show()))
                    await self._connect()
                    await self._write(group)
                    ledger = await self._wait()
                    for task in background:
                        task.cancel()
        except ExceptionGroup as group_of_errors:
            raise _first(group_of_errors) from group_of_errors
        return self._report(ledger)

    async def _connect(self) -> None:
        """Change rows that do not count until every subscriber has heard of one."""
        until = time.monotonic() + CONNECT_LIMIT
        self._phase = "connecting"
        async with await psycopg.AsyncConnection.connect(self._direct, autocommit=True) as connection:
            while silent := [subscriber.name for subscriber in self._subscribers if not subscriber.heard.is_set()]:
                self._processes.require_alive()
                if self._stopping.is_set():
                    raise VerificationError("interrupted before anything was written: nothing is verified")
                if time.monotonic() > until:
                    raise VerificationError(
                        f"nothing has come to {', '.join(silent)} within {CONNECT_LIMIT:g} s, although nothing was "
                        f"broken yet. What the processes said:\n{self._processes.excerpts}"
                    )
                await connection.execute(writes.PROBE)
                await asyncio.sleep(PROBE_INTERVAL)
            await self._look_at_leader(connection)

    async def _write(self, group: asyncio.TaskGroup) -> None:
        """Let writers write, and faults be injected, for the duration; return when all of them have ended."""
        self._phase, self._began = "running", time.monotonic()
        writing = [group.create_task(writer.run()) for writer in self._writers]
        breaking = group.create_task(self._schedule.run())
        try:
            async with asyncio.timeout(self._options.duration):
                await self._stopping.wait()
        except TimeoutError:
            pass
        self._phase, self._ended = "undoing faults", time.monotonic()
        self._world.ending.set()
        # Behind the last fault there is something to write still, so that what it may have broken shows.
        await breaking
        for writer in self._writers:
            writer.stop()
        await asyncio.gather(*writing)

    async def _wait(self) -> Ledger:
        """Wait until everything has arrived, within the limit."""
        with psycopg.connect(self._direct) as connection:
            ledger = Ledger(read_ledger(connection))
        if not len(ledger):
            raise VerificationError("nothing was committed: nothing is verified")
        self._phase, began = "waiting", time.monotonic()
        self._arrival = Arrival(self._subscribers, ledger)
        until = began + self._options.wait
        while self._arrival.missing() and time.monotonic() < until:  # noqa: ASYNC110  (many small events)
            await asyncio.sleep(SHOW_INTERVAL)
        self._waited = time.monotonic() - began
        await asyncio.sleep(SURPLUS_TIME)
        return ledger

    def _report(self, ledger: Ledger) -> Report:
        streams = [stream for subscriber in self._subscribers for stream in subscriber.streams]
        every, quiet = delays(streams, ledger, self._commits.sent, self._schedule.windows)
        verdict = judge(streams, ledger)
        return Report(
            database=self._options.database,
            seed=self._options.seed,
            duration=self._ended - self._began,
            interrupted=self._stopping.is_set(),
            conditions=self._conditions,
            changes=len(ledger),
            transactions=len({entry.xid for entry in ledger.entries}),
            rolled_back=self._commits.rolled_back,
            failed=self._commits.failed,
            verdict=verdict,
            faults=dict(self._schedule.injected),
            states=sum(stream.start is not None and stream.state_is_whole for stream in streams),
            reconnections=sum(subscriber.reconnections for subscriber in self._subscribers),
            closes=sum((subscriber.closes for subscriber in self._subscribers), Counter()),
            unexpected_exits=self._processes.unexpected_exits,
            waited=self._waited,
            wait_limit=self._options.wait,
            latency=Distribution.of(every),
            quiet_latency=Distribution.of(quiet),
            remarks=self._remarks,
            logs=str(self._logs) if verdict.violations or self._processes.unexpected_exits else None,
        )

    @contextmanager
    def _signals(self) -> Iterator[None]:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def stop() -> None:
            if self._stopping.is_set():
                task.cancel()
            else:
                self._progress.say("interrupted: what was written so far is judged (once more: ends at once)")
            self._stopping.set()

        numbers = (signal.SIGINT, signal.SIGTERM)
        for number in numbers:
            loop.add_signal_handler(number, stop)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    async def _show(self) -> None:
        while True:
            self._progress.show(self._status())
            await asyncio.sleep(SHOW_INTERVAL)

    def _status(self) -> Status:
        return Status(
            phase=self._phase,
            elapsed=time.monotonic() - self._began,
            duration=self._options.duration,
            changes=self._commits.changes,
            deliveries=sum(subscriber.received for subscriber in self._subscribers),
            connected=sum(subscriber.connected for subscriber in self._subscribers),
            subscribers=len(self._subscribers),
            reconnections=sum(subscriber.reconnections for subscriber in self._subscribers),
            faults=self._schedule.injected.total(),
            current=tuple(self._schedule.current),
            missing=None if self._arrival is None else self._arrival.missing(),
        )

    def _remark(self, sentence: str) -> None:
        self._remarks.append(sentence)
        self._progress.say(sentence)

    async def _look_at_leader(self, connection: psycopg.AsyncConnection) -> None:
        """Remark that somebody else's listener leads: what is done to ours is then not felt."""
        found = await connection.execute(LEADER, [names.LOCK_CLASS, names.LEADER_LOCK])
        ours = {self._options.session_name("listener"), self._options.session_name("hub")}
        for pid, application in await found.fetchall():
            if application not in ours:
                self._remark(
                    f"a listener that is not of this run leads (backend {pid}, '{application}'): faults of listeners "
                    "are not felt while it does"
                )


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first error that is not a group."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
