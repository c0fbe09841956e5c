"""
The executor: runs cohorts in worker threads, many in one hop, each cohort's changes in order.

Threads of its own, because Django's ORM is synchronous and the thread that asgiref shares for it is a single one.
Each thread keeps its database connection.  A cohort runs in one hop at a time, so its results leave in the order of
its changes.  What happens now does not wait for those who catch up (see ``turns``).

Somebody else may lend a pool, whose threads and connections are then his own: tests run executions in the test's
transaction.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ParamSpec, Protocol, TypeVar

from django.db import connections

from .. import metrics
from ..tracing import EXECUTE, tracing
from .calls import Calls
from .lanes import Lanes
from .operations import Batch, Cohort, Due, Marker, Taken
from .trace import Trace
from .turns import Turns

logger = logging.getLogger("pgnotify_gql.hub")

P = ParamSpec("P")
R = TypeVar("R")

HOP_CHANGES = 100
"""Changes of one cohort in one hop, at most, so that one busy cohort does not keep the others waiting."""

HOP_EXECUTIONS = 250
"""Executions in one hop to a thread, at most: a hop costs about 100 us, a small execution 15."""

HOP_TIME = 0.02
"""Seconds after which a hop starts nothing more: results leave when their hop ends.  What a hop costs beside (a turn of
the event loop, hand-overs between threads, a write to each socket) is shared by all that is executed in it: queries, of
which there is time for few, come a fifth faster than with 5 ms."""

OVERDUE = 0.05
"""Seconds after which a hop is left to wait for whatever it waits for, and another thread is used beside its own."""

MOST_PENDING = 10_000
"""Changes waiting for execution in a cohort; with more, the hub reads no further until they are worked off."""

MOST_PENDING_OF_MANY = 15_000
"""The same for all cohorts together, which may have HOP_CHANGES more for each but the first: each is executed for as
many changes at once as possible, with one query and one write to its socket.  Where all ask something else, one that
waits takes a kilobyte, and that for clients who may not even read."""

LONG_HOP_TIME = 0.05
"""Seconds after which a hop breaks off a cohort that asks for all changes of a batch together: what it has been given
would be asked for again."""

GIVE_WAY_AFTER = 0.001
"""Seconds for which a thread executes for those who catch up before it gives way; or as many as others took last time,
so that it has its half of a process in which everybody computes."""

GIVE_WAY = 0.000_01
"""
Seconds, at least, for which it lets go of the interpreter: the system makes 60 us of it.

Unasked, Python's threads hold on to it for 5 ms each time the event loop has let go of it, which it does with every
frame that it writes.  With a hundred clients that caught up, one that did read waited 38 ms for a change, and so 21.
A shorter switch interval of the interpreter does the same for all threads, and cost what is executed live a fourteenth.
"""

FAILED_PAUSE = 1.0
"""Seconds after which what a thread failed at, other than at an execution, is tried again."""

PING_AFTER = 1.0
"""Seconds after which a thread's idle connection is tried before it is used: the server may have restarted."""

CLOSE_TIMEOUT = 5.0
"""Seconds to wait for a thread that is in the middle of a query when the hub closes."""

Outcome = str | None | Awaitable[str | None]

Work = list[tuple[Cohort, Taken]]
"""Cohorts, and what is to be executed of each."""


@dataclass(eq=False, slots=True)
class Hop:
    """
    What a thread is given to execute, and what came of it; for how many of the seconds that it took it has computed.

    There are fewer outcomes than changes where the hop's time was up, and none (not even for a cohort) where it failed.
    """

    work: Work
    outcomes: list[list[Outcome]] = field(default_factory=list)
    computed: float = 0.0
    taken: float = 0.0
    executions: int = 0
    failed: bool = False
    overdue: asyncio.TimerHandle | None = None

    @property
    def replays(self) -> bool:
        """Return whether it is of those who catch up."""
        return self.work[0][0].replays


class Pool(Protocol):
    """Threads that functions are run in, as ``concurrent.futures`` has it."""

    def submit(self, function: Callable[..., R], /, *args: Any) -> Future[R]: ...


class Executor:
    """
    Worker threads of one hub; every method but the threads' own is called on the event loop.

    A `pool` that is given has so many workers; neither it nor its connections are looked after, or closed, here.
    """

    def __init__(self, workers: int, pool: Pool | None = None) -> None:
        self._own = ThreadPoolExecutor(workers, thread_name_prefix="pgnotify_gql") if pool is None else None
        self._pool: Pool = pool or self._own  # type: ignore[assignment]  # one of the two
        self._calls = Calls(self._pool.submit)
        self._idle = workers
        self._workers = workers
        self._lanes = Lanes(workers)
        self._turns = Turns()
        self._pending = 0
        # Cohorts with something that waits, or is under way.
        self._busy = 0
        # Looked at for each cohort and change, and so not counted out each time.
        self._most_pending = MOST_PENDING
        # Seconds that an execution takes, about. A hop is given no more than there is time for: what it must hand back
        # costs as much as if it had not been given.
        self._pace = HOP_TIME / HOP_EXECUTIONS
        self._room = asyncio.Event()
        self._room.set()
        # Under way in threads, but for those that are overdue.
        self._punctual: set[Hop] = set()
        # Of those who catch up, overdue or not.
        self._replays = 0
        # Those of which something is awaited.
        self._awaited: set[asyncio.Task[None]] = set()
        self._closed = False
        self._used = threading.local()
        metrics.show(metrics.PENDING_CHANGES, self, Executor._count_pending)
        self.trace: Trace | None = None
        """Where it is noted what became of changes, if anywhere."""

    def submit(self, cohort: Cohort, due: Due | Marker) -> None:
        """Queue what is due in a cohort."""
        cohort.queue(due)
        self._pending += 1
        if not cohort.scheduled:
            self._count_busy(1)
            self._schedule(cohort)
        if self._pending >= self._most_pending:
            self._room.clear()

    @property
    def pending(self) -> int:
        """Return how many changes wait for execution, or are executed, counted for each cohort."""
        return self._pending

    async def room(self) -> None:
        """Wait until not too much is pending."""
        await self._room.wait()

    def _count_busy(self, difference: int) -> None:
        self._busy += difference
        others = max(0, self._busy - 1)
        self._most_pending = min(MOST_PENDING_OF_MANY, MOST_PENDING + others * HOP_CHANGES)

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a synchronous function in a worker thread, with the connections looked after."""

        def call() -> R:
            self._look_after_connections()
            return function(*args, **kwargs)

        if self._own is None:
            # Whoever lends a pool may have something of his own around each call.
            return await asyncio.wrap_future(self._pool.submit(call))
        return await self._calls.make(call)

    async def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call what an application wrote: asynchronous functions on the event loop, plain ones in a worker thread."""
        asynchronous = inspect.iscoroutinefunction(function)
        result = function(*args, **kwargs) if asynchronous else await self.run(function, *args, **kwargs)
        # A decorated function may not look asynchronous.
        return await result if inspect.isawaitable(result) else result

    def wait(self, future: Future[R]) -> R:
        """Wait, in a worker thread, for what the event loop makes."""
        return future.result()

    async def close(self) -> None:
        """End the threads; what is pending is dropped."""
        self._closed = True
        awaited = list(self._awaited)
        for task in awaited:
            task.cancel()
        await asyncio.gather(*awaited, return_exceptions=True)
        if self._own is None:
            return
        # The barrier hands one call to each thread, since a connection is closed by the thread that opened it.
        barrier = threading.Barrier(self._workers)
        for _ in range(self._workers):
            self._own.submit(_close_connections, barrier)
        # Without blocking the event loop, and not for ever: a thread may be in the middle of a long query.
        ending = asyncio.create_task(asyncio.to_thread(self._own.shutdown), name="pgnotify_gql threads")
        await asyncio.wait({ending}, timeout=CLOSE_TIMEOUT)

    def _schedule(self, cohort: Cohort) -> None:
        cohort.scheduled = True
        # At the end of this turn of the loop, so that all that is dispatched in it shares hops.
        if self._turns.add(cohort):
            asyncio.get_running_loop().call_soon(self._start_hops)

    def _start_hops(self) -> None:
        while not self._closed and (free := self._free) > 0:
            free_to_replay = self._free_to_replay
            ready = self._turns.next(may_replay=free_to_replay > 0)
            if not ready:
                return
            threads = free_to_replay if ready[0].replays else free
            self._begin(Hop(self._take(ready, share=-(-len(ready) // threads))))

    def _take(self, ready: deque[Cohort], share: int) -> Work:
        left = max(1, min(HOP_EXECUTIONS, int(HOP_TIME / self._pace)))
        work: Work = []
        while len(work) < share and left > 0:
            cohort = ready.popleft()
            taken = cohort.take(HOP_CHANGES if cohort.asks_together else min(HOP_CHANGES, left))
            work.append((cohort, taken))
            left -= len(taken.dues)
        return work

    @property
    def _free(self) -> int:
        # Those who catch up may have every lane; then there is one more beside them.
        lanes = max(self._lanes.open, 1 + sum(hop.replays for hop in self._punctual))
        return min(self._idle, lanes - len(self._punctual))

    @property
    def _free_to_replay(self) -> int:
        # Not every thread: one that is overdue has left its lane, and has its thread still.
        threads = max(1, self._workers - 1) - self._replays
        return min(self._idle, self._lanes.open - len(self._punctual), threads)

    def _begin(self, hop: Hop) -> None:
        loop = asyncio.get_running_loop()
        self._idle -= 1
        self._replays += hop.replays
        self._punctual.add(hop)
        hop.overdue = loop.call_later(OVERDUE, self._let_pass, hop)
        # Not as a future of the loop, which would take two turns of it more: they are a tenth of a single change's way.
        self._pool.submit(self._run, hop, loop)

    def _run(self, hop: Hop, loop: asyncio.AbstractEventLoop) -> None:
        try:
            with tracing.span(EXECUTE, cohorts=len(hop.work)) as span:
                self._execute(hop)
                span.set_attribute("executions", hop.executions)
        except Exception:
            logger.exception("a worker thread failed; what it was given is tried again")
            _close_coroutines(hop)
            hop.outcomes, hop.failed = [], True
        try:
            loop.call_soon_threadsafe(self._note_executed, hop)
        except RuntimeError:
            _close_coroutines(hop)  # the loop has been closed meanwhile

    def _let_pass(self, hop: Hop) -> None:
        self._punctual.discard(hop)
        self._start_hops()

    def _note_executed(self, hop: Hop) -> None:
        assert hop.overdue is not None
        hop.overdue.cancel()
        # The thread is free as soon as it is, and not only when what has to be awaited has been.
        self._idle += 1
        self._replays -= hop.replays
        self._let_pass(hop)
        if self._closed:
            _close_coroutines(hop)
            return
        if hop.failed:
            none: list[list[str | None]] = [[] for _ in hop.work]
            asyncio.get_running_loop().call_later(FAILED_PAUSE, self._finish, hop, none)
            return
        self._lanes.note(hop.computed, hop.taken)
        metrics.EXECUTIONS.inc(hop.executions)
        metrics.HOP_SECONDS.observe(hop.taken)
        # Whatever is neither: inspect.isawaitable() asks for more than one thing, of every result.
        if all(outcome is None or isinstance(outcome, str) for outcomes in hop.outcomes for outcome in outcomes):
            self._finish(hop, hop.outcomes)  # type: ignore[arg-type]  # none of them is awaitable
            return
        task = asyncio.create_task(self._await(hop), name="pgnotify_gql hop")
        self._awaited.add(task)
        task.add_done_callback(self._awaited.discard)

    async def _await(self, hop: Hop) -> None:
        settled: list[list[str | None]] = []
        try:
            settled = await _all_settled(hop.outcomes)
        finally:
            _close_coroutines(hop)
            self._finish(hop, settled)

    def _finish(self, hop: Hop, settled: list[list[str | None]]) -> None:
        """Deliver what has come of a hop, and queue again what has not been executed."""
        self._pending -= sum(len(taken.dues) for _, taken in hop.work)
        at, sent = time.time(), 0
        for (cohort, taken), results in zip(hop.work, settled, strict=False):
            left = taken.dues[len(results) :]
            cohort.put_back(left)
            self._pending += len(left)
            sent += _deliver(cohort, taken, results, self.trace, at)
        if sent:
            _count_sent(hop, sent)
        for cohort, _ in hop.work:
            cohort.scheduled = False
            if cohort.pending:
                self._schedule(cohort)
            else:
                self._count_busy(-1)
                cohort.settled.open()
        if self._pending < self._most_pending:
            self._room.set()
        self._start_hops()

    def _execute(self, hop: Hop) -> None:
        computed = time.thread_time()
        self._look_after_connections()
        begun = now = time.monotonic()
        # Not in a pool that was lent, whose thread has nobody to give way to.
        gives_way = hop.replays and self._own is not None
        # What is given away counts for nothing: it is not how long an execution takes.
        given, give_way_at = 0.0, begun + GIVE_WAY_AFTER
        for cohort, taken in hop.work:
            results: list[Outcome] = []
            hop.outcomes.append(results)
            if now > begun + HOP_TIME:
                continue
            until = now + LONG_HOP_TIME if cohort.asks_together else begun + HOP_TIME
            batch = Batch([due.change for due in taken.dues if isinstance(due, Due)])
            for due in taken.dues:
                if self._closed or now > until:
                    break
                results.append(_executed(cohort, due, batch))
                now = time.monotonic() - given
                if gives_way and now > give_way_at:
                    took = _give_way()
                    given += took
                    give_way_at = now + max(GIVE_WAY_AFTER, took)
            cohort.asks_together = batch.has_kept
        hop.executions = sum(map(len, hop.outcomes))
        if hop.executions:
            self._pace = (self._pace + (now - begun) / hop.executions) / 2
        hop.computed, hop.taken = time.thread_time() - computed, now - begun

    def _count_pending(self) -> float:
        return 0.0 if self._closed else self._pending

    def _look_after_connections(self) -> None:
        if self._own is None:
            return
        now = time.monotonic()
        idle = now - getattr(self._used, "at", now) >= PING_AFTER
        self._used.at = now
        for connection in connections.all(initialized_only=True):
            # Django looks at the second at the end of a request, which there is none of here.
            suspect = idle or connection.errors_occurred
            if suspect and connection.connection is not None:
                connection.errors_occurred = False
                if not connection.is_usable():
                    connection.close()


def _executed(cohort: Cohort, due: Due | Marker, batch: Batch) -> Outcome:
    if not cohort.members:
        return None
    try:
        return due.executed(cohort.execution, batch)
    except (Exception, asyncio.CancelledError):
        # Nobody cancels a thread: it is of something that a resolver has waited for.
        logger.exception("an execution failed for %s", due)
        return None


def _give_way() -> float:
    """Let others have the interpreter; return for how many seconds they had it."""
    before = time.monotonic()
    time.sleep(GIVE_WAY)
    return time.monotonic() - before


def _deliver(cohort: Cohort, taken: Taken, results: Sequence[str | None], trace: Trace | None, at: float) -> int:
    """Return how many results that were."""
    sent = 0
    try:
        sent = cohort.deliver(taken, results)
        if trace is not None:
            trace.delivered(at, cohort, taken, results)
    except Exception:
        logger.exception("results could not be delivered")
    return sent


def _count_sent(hop: Hop, sent: int) -> None:
    metrics.RESULTS.inc(sent)
    cohort, taken = hop.work[0]
    first = next(iter(taken.dues), None)
    # What is replayed to somebody who was away is as old as it is, and says nothing of how fast this process is.
    if isinstance(first, Due) and not cohort.replays:
        metrics.DELIVERY_DELAY.observe(max(0.0, (datetime.now(UTC) - first.change.at).total_seconds()))


async def _all_settled(outcomes: list[list[Outcome]]) -> list[list[str | None]]:
    """Await those of a hop that are asynchronous, all at once: so a dataloader finds what they ask together."""
    async with asyncio.TaskGroup() as group:
        settling = [[group.create_task(_settled(outcome)) for outcome in results] for results in outcomes]
    return [[task.result() for task in tasks] for tasks in settling]


async def _settled(outcome: Outcome) -> str | None:
    try:
        return await outcome if inspect.isawaitable(outcome) else outcome
    except (Exception, asyncio.CancelledError):
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        # Also where a resolver awaited what somebody else has cancelled: nobody meant this hop.
        logger.exception("an asynchronous execution failed")
        return None


def _close_coroutines(hop: Hop) -> None:
    """Close what nobody has awaited."""
    for outcomes in hop.outcomes:
        for outcome in outcomes:
            if inspect.iscoroutine(outcome):
                outcome.close()


def _close_connections(barrier: threading.Barrier) -> None:
    connections.close_all()
    with suppress(threading.BrokenBarrierError):
        barrier.wait(CLOSE_TIMEOUT)
