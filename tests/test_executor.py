"""The executor: cohorts in worker threads, each in order."""

import asyncio
import inspect
import logging
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection

from pgnotify_gql.hub import executor as executor_module
from pgnotify_gql.hub.cursor import Cursor
from pgnotify_gql.hub.executor import GIVE_WAY_AFTER, HOP_CHANGES, Executor, _give_way
from pgnotify_gql.hub.operations import Cohort, Interest, Operation
from pgnotify_gql.hub.payloads import Payloads
from tests.support.databases import Database
from tests.support.feed import EVENT_TIMEOUT, NEVER, Notebook, eventually


@dataclass
class Numbered:
    """All that an executor knows of what is due."""

    number: int
    cursor: Any = None

    def executed(self, execution: Any, batch: Any) -> Any:
        return execution(self)


Change: Any = Numbered


CURSOR = Cursor({}, {})


class Receiver(Notebook):
    """One cohort with one member."""

    def __init__(self, execution: Callable[..., Any], *, replays: bool = False) -> None:
        super().__init__()
        self.received: list[str] = []
        self.cohort = Cohort(Interest(()), execution, CURSOR, replays=replays)
        self.cohort.add(Operation(Interest(()), execution, self))

    def __str__(self) -> str:
        return f"{len(self.received)} results"

    def offer(self, payloads: Payloads) -> int:
        self.received.extend(payloads)
        self.noted()
        return len(payloads)

    async def room(self) -> None:
        pass

    async def has(self, count: int) -> None:
        await self.until(lambda: len(self.received) >= count)


def number(change: Any) -> str:
    return str(change.number)


def slowly(change: Any) -> str:
    time.sleep(0.002)
    return str(change.number)


@pytest.fixture
async def executor() -> AsyncIterator[Executor]:
    executor = Executor(4)
    yield executor
    async with asyncio.timeout(EVENT_TIMEOUT):
        await executor.close()


async def test_results_leave_in_the_order_of_the_changes_however_long_each_takes(executor: Executor) -> None:
    def execution(change: Any) -> str:
        time.sleep(random.random() * 0.002)
        return str(change.number)

    receivers = [Receiver(execution) for _ in range(20)]
    for change in range(30):
        for receiver in receivers:
            executor.submit(receiver.cohort, Change(change))
        await asyncio.sleep(0)
    for receiver in receivers:
        await receiver.has(30)
        assert receiver.received == [str(change) for change in range(30)]


async def test_a_change_waits_for_the_one_before_it_though_threads_are_free(executor: Executor) -> None:
    entered, open_ = threading.Event(), threading.Event()

    def execution(change: Any) -> str:
        if change.number == 0:
            entered.set()
            open_.wait(EVENT_TIMEOUT)
        return str(change.number)

    slow, other = Receiver(execution), Receiver(number)
    executor.submit(slow.cohort, Change(0))
    await asyncio.to_thread(entered.wait, EVENT_TIMEOUT)
    for change in range(1, 4):
        executor.submit(slow.cohort, Change(change))
        executor.submit(other.cohort, Change(change))
        await other.has(change)
    assert slow.received == []
    open_.set()
    await slow.has(4)
    assert slow.received == ["0", "1", "2", "3"]


async def test_a_thread_is_free_while_what_it_has_begun_is_awaited(executor: Executor) -> None:
    answer = asyncio.Event()

    async def later(change: Any) -> str:
        await answer.wait()
        return str(change.number)

    waiting, other = [Receiver(later) for _ in range(8)], Receiver(number)
    for receiver in waiting:
        executor.submit(receiver.cohort, Change(0))
        await asyncio.sleep(0.01)
    executor.submit(other.cohort, Change(1))
    await other.has(1)
    assert not any(receiver.received for receiver in waiting)
    answer.set()
    for receiver in waiting:
        await receiver.has(1)


async def test_more_changes_than_a_hop_takes_are_executed_in_order(executor: Executor) -> None:
    receiver = Receiver(number)
    count = 5 * HOP_CHANGES + 3
    for change in range(count):
        executor.submit(receiver.cohort, Change(change))
    await receiver.has(count)
    assert receiver.received == [str(change) for change in range(count)]


async def test_a_hop_whose_time_is_up_leaves_the_rest_to_the_next_in_order(
    executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor_module, "HOP_TIME", 0.001)
    receivers = [Receiver(number) for _ in range(3)]
    slow = Receiver(slowly)
    for change in range(20):
        for receiver in (*receivers, slow):
            executor.submit(receiver.cohort, Change(change))
    for receiver in (*receivers, slow):
        await receiver.has(20)
        assert receiver.received == [str(change) for change in range(20)]


async def test_cohorts_are_executed_in_different_threads_at_the_same_time(executor: Executor) -> None:
    meeting = threading.Barrier(4)

    def execution(change: Any) -> str:
        meeting.wait(EVENT_TIMEOUT)
        return threading.current_thread().name

    receivers = [Receiver(execution) for _ in range(4)]
    for receiver in receivers:
        executor.submit(receiver.cohort, Change(1))
    for receiver in receivers:
        await receiver.has(1)
    assert len({receiver.received[0] for receiver in receivers}) == 4


@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("overdue", [NEVER, 0.001])
async def test_what_happens_now_has_a_thread_though_many_catch_up(
    workers: int, overdue: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = threading.Event()

    def until_released(change: Any) -> str:
        held.wait(EVENT_TIMEOUT)
        return str(change.number)

    monkeypatch.setattr(executor_module, "OVERDUE", overdue)
    executor = Executor(workers)
    replaying = [Receiver(until_released, replays=True) for _ in range(10)]
    try:
        for receiver in replaying:
            executor.submit(receiver.cohort, Change(0))
        # Whether they are in the way of others by then, or have been left to wait.
        await eventually(lambda: bool(executor._punctual) == (overdue == NEVER) and executor._idle < workers)
        # Many, since each of them computes, and fewer lanes are open then.
        for change in range(20):
            live = Receiver(number)
            executor.submit(live.cohort, Change(change))
            await live.has(1)
        assert not any(receiver.received for receiver in replaying)
        held.set()
        for receiver in replaying:
            await receiver.has(1)
    finally:
        held.set()
        await executor.close()


def computing(change: Any) -> str:
    until = time.monotonic() + 2 * GIVE_WAY_AFTER
    while time.monotonic() < until:
        pass
    return str(change.number)


@pytest.fixture
def given_way(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When a thread began to give way, for 10 ms each time."""
    given: list[float] = []

    def give_way() -> float:
        given.append(time.monotonic())
        time.sleep(0.01)
        return time.monotonic() - given[-1]

    monkeypatch.setattr(executor_module, "_give_way", give_way)
    monkeypatch.setattr(executor_module, "HOP_TIME", 60.0)
    return given


async def test_who_catches_up_gives_way_and_who_does_not_does_not(executor: Executor, given_way: list[float]) -> None:
    live, replaying = Receiver(computing), Receiver(computing, replays=True)
    for change in range(5):
        executor.submit(live.cohort, Change(change))
    await live.has(5)
    assert not given_way
    for change in range(20):
        executor.submit(replaying.cohort, Change(change))
    await replaying.has(20)
    # As long as others had it, it computes before it gives way again.
    assert len(given_way) >= 2
    assert all(later - earlier >= 0.02 for earlier, later in pairwise(given_way))


def test_to_give_way_takes_as_long_as_it_says() -> None:
    before = time.monotonic()
    assert 0 < _give_way() <= time.monotonic() - before


async def test_none_is_not_delivered(executor: Executor) -> None:
    receiver = Receiver(lambda change: str(change.number) if change.number % 2 else None)
    for change in range(6):
        executor.submit(receiver.cohort, Change(change))
    await receiver.has(3)
    assert receiver.received == ["1", "3", "5"]


async def test_an_asynchronous_execution_is_awaited_on_the_event_loop_and_kept_in_order(executor: Executor) -> None:
    loop = asyncio.get_running_loop()

    async def execution(change: Any) -> str:
        assert asyncio.get_running_loop() is loop
        await asyncio.sleep(0.003 if change.number == 0 else 0)
        return str(change.number)

    receiver = Receiver(execution)
    for change in range(5):
        executor.submit(receiver.cohort, Change(change))
    await receiver.has(5)
    assert receiver.received == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("error", [RuntimeError, asyncio.CancelledError])
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_an_execution_that_raises_hurts_nobody_else(
    executor: Executor, caplog: pytest.LogCaptureFixture, asynchronous: bool, error: type[BaseException]
) -> None:
    def fails(change: Any) -> str:
        raise error("broken on purpose")

    async def fails_later(change: Any) -> str:
        raise error("broken on purpose")

    bad, good = Receiver(fails_later if asynchronous else fails), Receiver(number)
    for change in range(3):
        executor.submit(bad.cohort, Change(change))
        executor.submit(good.cohort, Change(change))
    await good.has(3)
    assert good.received == ["0", "1", "2"]
    await nothing_pending(executor)
    assert "broken on purpose" in caplog.text


async def test_what_a_thread_failed_at_is_tried_again_and_delivered_in_order(
    executor: Executor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    execute, failures = executor._execute, iter([MemoryError("the first"), MemoryError("the second")])

    def fails_twice(hop: Any) -> None:
        for error in failures:
            raise error
        execute(hop)

    monkeypatch.setattr(executor, "_execute", fails_twice)
    monkeypatch.setattr(executor_module, "FAILED_PAUSE", 0.01)
    first, second = Receiver(number), Receiver(number)
    for value in range(3):
        executor.submit(first.cohort, Change(value))
        executor.submit(second.cohort, Change(value))
    await first.has(3)
    await second.has(3)
    assert first.received == second.received == ["0", "1", "2"]
    assert "a worker thread failed; what it was given is tried again" in caplog.text
    await eventually(lambda: executor.pending == 0)


async def test_an_execution_that_awaits_what_somebody_has_cancelled_hurts_nobody_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def cancelled(change: Any) -> str:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future
        return "never"

    # One thread, so that both are in one hop.
    executor, bad, good = Executor(1), Receiver(cancelled), Receiver(number)
    for change in range(3):
        executor.submit(bad.cohort, Change(change))
        executor.submit(good.cohort, Change(change))
    await good.has(3)
    assert good.received == ["0", "1", "2"]
    await nothing_pending(executor)
    assert "an asynchronous execution failed" in caplog.text
    await executor.close()


async def test_closing_does_not_wait_for_ever_for_a_thread_that_is_in_the_middle_of_something(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(executor_module, "CLOSE_TIMEOUT", 0.1)
    entered, go_on = threading.Event(), threading.Event()

    def slow(change: Any) -> str:
        entered.set()
        go_on.wait(EVENT_TIMEOUT)
        return "late"

    executor, receiver = Executor(1), Receiver(slow)
    executor.submit(receiver.cohort, Change(1))
    await asyncio.to_thread(entered.wait, EVENT_TIMEOUT)
    try:
        async with asyncio.timeout(EVENT_TIMEOUT / 2):
            await executor.close()
    finally:
        go_on.set()


async def test_a_subscriber_whose_delivery_raises_hurts_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Receiver):
        def offer(self, payloads: Payloads) -> int:
            raise RuntimeError("the socket is broken")

    # One thread, so that both are in one hop.
    executor, bad, good = Executor(1), Broken(number), Receiver(number)
    for change in range(3):
        executor.submit(bad.cohort, Change(change))
        executor.submit(good.cohort, Change(change))
    await good.has(3)
    await nothing_pending(executor)
    assert "the socket is broken" in caplog.text
    await executor.close()


async def nothing_pending(executor: Executor) -> None:
    """Changes are counted off whatever became of them; otherwise the hub would wait for room for ever."""
    await eventually(lambda: not executor._pending)


@pytest.mark.parametrize(
    ("cohorts", "most", "of_many", "room_for"), [(1, 10, 1_000, 10), (3, 10, 30, 30), (3, 10, 1_000, 210)]
)
async def test_there_is_no_room_while_too_much_is_pending_and_more_of_it_where_many_cohorts_wait(
    executor: Executor, monkeypatch: pytest.MonkeyPatch, cohorts: int, most: int, of_many: int, room_for: int
) -> None:
    monkeypatch.setattr(executor_module, "MOST_PENDING", most)
    monkeypatch.setattr(executor_module, "MOST_PENDING_OF_MANY", of_many)
    open_ = threading.Event()

    def execution(change: Any) -> str:
        open_.wait(EVENT_TIMEOUT)
        return str(change.number)

    receivers = [Receiver(execution) for _ in range(cohorts)]
    for change in range(room_for // cohorts):
        await executor.room()
        for receiver in receivers:
            executor.submit(receiver.cohort, Change(change))
    waiting = asyncio.create_task(executor.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    open_.set()
    async with asyncio.timeout(EVENT_TIMEOUT):
        await waiting
    for receiver in receivers:
        await receiver.has(room_for // cohorts)


async def test_nothing_is_executed_for_a_cohort_that_everybody_has_left(executor: Executor) -> None:
    executed: list[Change] = []
    gone, present = Receiver(executed.append), Receiver(number)
    executor.submit(gone.cohort, Change(1))
    gone.cohort.members.clear()
    executor.submit(present.cohort, Change(1))
    await present.has(1)
    await nothing_pending(executor)
    assert executed == []


async def test_who_joins_a_cohort_late_gets_later_changes_only(executor: Executor) -> None:
    receiver = Receiver(number)
    late = Receiver(number)
    executor.submit(receiver.cohort, Change(1))
    receiver.cohort.add(Operation(Interest(()), late.cohort.execution, late))
    executor.submit(receiver.cohort, Change(2))
    await receiver.has(2)
    assert receiver.received == ["1", "2"]
    assert late.received == ["2"]


async def test_closing_ends_threads_and_tasks_though_much_is_pending(caplog: pytest.LogCaptureFixture) -> None:
    executor = Executor(3)
    entered = threading.Event()

    def execution(change: Any) -> str:
        entered.set()
        time.sleep(0.0005)
        return ""

    receivers = [Receiver(execution) for _ in range(10)]
    for receiver in receivers:
        for change in range(10 * HOP_CHANGES):
            executor.submit(receiver.cohort, Change(change))
    await asyncio.to_thread(entered.wait, EVENT_TIMEOUT)
    async with asyncio.timeout(EVENT_TIMEOUT):
        await executor.close()
    await asyncio.sleep(0)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pgnotify_gql")]
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "pgnotify_gql hop"]
    assert caplog.records == []


async def test_closing_while_asynchronous_executions_wait_leaves_none_unawaited() -> None:
    """An un-awaited coroutine would be a RuntimeWarning, which fails the test."""
    executor = Executor(2)
    started = asyncio.Event()

    async def execution(change: Any) -> str:
        started.set()
        await asyncio.sleep(3600)
        return ""

    receiver = Receiver(execution)
    for change in range(10):
        executor.submit(receiver.cohort, Change(change))
    async with asyncio.timeout(EVENT_TIMEOUT):
        await started.wait()
        await executor.close()
    assert receiver.received == []


async def test_closing_an_executor_that_never_ran_anything_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor_module, "CLOSE_TIMEOUT", NEVER)
    executor = Executor(4)
    async with asyncio.timeout(EVENT_TIMEOUT):
        await executor.close()


async def test_what_is_run_returns_and_raises_like_a_call(executor: Executor) -> None:
    assert await executor.run(int, "12", base=8) == 10
    with pytest.raises(ValueError, match="invalid literal"):
        await executor.run(int, "x")


def count_users(change: Any) -> str:
    return str(User.objects.count())


def backend(change: Any) -> str:
    with connection.cursor() as cursor:
        cursor.execute("select pg_backend_pid()")
        return str(cursor.fetchone()[0])


def terminate(database: Database, pids: list[str]) -> None:
    for pid in pids:
        database.connect().execute("select pg_terminate_backend(%s, 10000)", [int(pid)])


async def test_a_thread_keeps_its_connection(database: Database) -> None:
    executor = Executor(1)
    receiver = Receiver(backend)
    for change in range(3):
        executor.submit(receiver.cohort, Change(change))
        await receiver.has(change + 1)
    await executor.close()
    assert len(set(receiver.received)) == 1


async def test_closing_closes_the_connections_of_all_threads(database: Database) -> None:
    executor = Executor(3)
    meeting = threading.Barrier(3)
    receivers = [Receiver(lambda change: (meeting.wait(EVENT_TIMEOUT), backend(change))[1]) for _ in range(3)]
    for receiver in receivers:
        executor.submit(receiver.cohort, Change(1))
    for receiver in receivers:
        await receiver.has(1)
    await executor.close()
    pids = [int(receiver.received[0]) for receiver in receivers]
    assert len(set(pids)) == 3
    sessions, admin = "select from pg_stat_activity where pid = any(%s)", database.connect()
    await eventually(lambda: not admin.execute(sessions, [pids]).fetchall())


@pytest.mark.parametrize("idle", [True, False])
async def test_a_connection_that_was_lost_is_replaced(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, idle: bool
) -> None:
    """After a pause before it is used, and in a busy thread after the first execution that met it."""
    monkeypatch.setattr(executor_module, "PING_AFTER", 0.0 if idle else 3600.0)
    caplog.set_level(logging.CRITICAL, "pgnotify_gql")
    executor = Executor(1)
    pids, counts = Receiver(backend), Receiver(count_users)
    executor.submit(pids.cohort, Change(1))
    await pids.has(1)
    terminate(database, pids.received)
    if not idle:
        executor.submit(counts.cohort, Change(1))
        await nothing_pending(executor)
    for change in range(3):
        executor.submit(counts.cohort, Change(change))
    await counts.has(3)
    assert counts.received == ["0"] * 3
    await executor.close()


def test_what_a_thread_returns_to_an_event_loop_that_was_closed_is_put_away() -> None:
    """As in a server that ends without waiting."""
    begun, go_on, made = threading.Event(), threading.Event(), list[Coroutine[Any, Any, str]]()

    async def later() -> str:
        return ""

    def execution(change: Any) -> Any:
        begun.set()
        assert go_on.wait(EVENT_TIMEOUT)
        made.append(later())
        return made[-1]

    async def begin() -> None:
        executor.submit(receiver.cohort, Change(1))
        await eventually(begun.is_set)

    executor, receiver = Executor(1), Receiver(execution)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())
    loop.close()
    go_on.set()
    assert executor._own is not None
    executor._own.shutdown()
    assert [inspect.getcoroutinestate(coroutine) for coroutine in made] == [inspect.CORO_CLOSED]
