"""Calls in worker threads: many in one hop, none held up by another."""

import asyncio
import gc
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any
from weakref import ref

import pytest

from pgnotify_gql.hub import calls as calls_module
from pgnotify_gql.hub.calls import Calls
from tests.support.feed import EVENT_TIMEOUT, NEVER

WORKERS = 4


class Pool:
    """Counts what it is given, and can keep it back."""

    def __init__(self) -> None:
        self.threads = ThreadPoolExecutor(WORKERS)
        self.hops = 0
        self.may_begin = threading.Event()
        self.may_begin.set()

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        self.hops += 1

        def begin() -> Any:
            assert self.may_begin.wait(EVENT_TIMEOUT)
            return function(*args)

        return self.threads.submit(begin)


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool()
    yield pool
    pool.threads.shutdown()


@pytest.fixture
def calls(pool: Pool) -> Calls:
    return Calls(pool.submit)


class Block:
    """A call that blocks until it is let go on."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def __call__(self) -> str:
        self.begun.set()
        assert self.go_on.wait(NEVER)
        return "went on"


@pytest.fixture
def block() -> Iterator[Block]:
    block = Block()
    yield block
    # Whatever has failed: the pool waits for its threads.
    block.go_on.set()


async def gathered(*waiting: Any) -> list[Any]:
    async with asyncio.timeout(EVENT_TIMEOUT):
        return list(await asyncio.gather(*waiting))


async def test_it_returns_and_raises_what_a_call_does(calls: Calls) -> None:
    assert await calls.make(lambda: 10) == 10
    with pytest.raises(ZeroDivisionError):
        await calls.make(lambda: 1 // 0)
    assert await calls.make(threading.get_ident) != threading.get_ident()


async def test_a_stop_iteration_does_not_leave_who_waits_for_it_waiting(calls: Calls) -> None:
    with pytest.raises(RuntimeError, match="raised StopIteration") as raised:
        await gathered(calls.make(lambda: next(iter(()))))
    assert isinstance(raised.value.__cause__, StopIteration)


async def test_calls_that_come_together_share_a_hop_and_are_made_in_order(
    pool: Pool, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls_module, "PATIENCE", NEVER)
    made: list[int] = []
    pool.may_begin.clear()
    waiting = [calls.make(partial(made.append, number)) for number in range(100)]
    await asyncio.sleep(0)
    pool.may_begin.set()
    await gathered(*waiting)
    assert made == list(range(100))
    assert pool.hops == 1


async def test_each_is_answered_though_the_next_one_blocks(
    pool: Pool, calls: Calls, block: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls_module, "PATIENCE", NEVER)
    pool.may_begin.clear()
    quick, slow = calls.make(int), calls.make(block)
    await asyncio.sleep(0)
    pool.may_begin.set()
    assert await gathered(quick) == [0]
    assert not slow.done()
    block.go_on.set()
    assert await gathered(slow) == ["went on"]
    assert pool.hops == 1


async def test_one_that_blocks_holds_up_none_behind_it(calls: Calls, block: Block) -> None:
    slow = calls.make(block)
    others = [calls.make(int) for _ in range(20)]
    assert await gathered(*others) == [0] * 20
    # Neither those that came with it, nor those that come later.
    for _ in range(20):
        assert await gathered(calls.make(int)) == [0]
    assert not slow.done()
    block.go_on.set()
    assert await gathered(slow) == ["went on"]


async def test_one_that_comes_while_another_blocks_need_not_wait_for_help(
    calls: Calls, block: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = calls.make(block)
    await asyncio.to_thread(block.begun.wait, EVENT_TIMEOUT)
    await asyncio.sleep(calls_module.PATIENCE * 2)
    monkeypatch.setattr(Calls, "_send_help", lambda *_: pytest.fail("it waited"))
    assert await gathered(calls.make(int)) == [0]
    block.go_on.set()
    await gathered(slow)


async def test_one_that_comes_behind_the_last_look_of_a_thread_need_not_wait_for_help(
    calls: Calls, block: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls_module, "PATIENCE", NEVER)
    first = calls.make(block)
    await asyncio.to_thread(block.begun.wait, EVENT_TIMEOUT)
    block.go_on.set()
    # Without giving the event loop a turn, in which it would learn that the thread has ended.
    until = time.monotonic() + EVENT_TIMEOUT
    while not calls._made and time.monotonic() < until:
        time.sleep(0.001)  # noqa: ASYNC251  (on purpose)
    async with asyncio.timeout(EVENT_TIMEOUT):
        assert await calls.make(int) == 0
    assert first.result() == "went on"


async def test_as_many_as_there_are_threads_may_need_each_other(calls: Calls) -> None:
    together = threading.Barrier(WORKERS, timeout=EVENT_TIMEOUT)
    assert sorted(await gathered(*(calls.make(together.wait) for _ in range(WORKERS)))) == list(range(WORKERS))


async def test_a_call_for_which_nobody_waits_is_not_begun(pool: Pool, calls: Calls) -> None:
    made: list[str] = []
    pool.may_begin.clear()
    given_up, other = (calls.make(partial(made.append, name)) for name in ("up", "other"))
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.sleep(0)
    pool.may_begin.set()
    await gathered(other)
    assert made == ["other"]
    assert given_up.cancelled()


async def test_one_that_is_given_up_while_it_is_made_disturbs_nobody(calls: Calls, block: Block) -> None:
    given_up = calls.make(block)
    await asyncio.to_thread(block.begun.wait, EVENT_TIMEOUT)
    given_up.cancel()
    await asyncio.sleep(0)
    block.go_on.set()
    assert await gathered(calls.make(int)) == [0]
    assert given_up.cancelled()


async def test_what_is_raised_waits_for_no_garbage_collector(calls: Calls) -> None:
    class Held:
        """Something large, which what is called holds."""

    async def refused() -> ref[Held]:
        held = Held()

        def call() -> None:
            raise ValueError(str(held))

        # By hand: pytest would hold what was raised.
        try:
            await calls.make(call)
        except ValueError:
            return ref(held)
        raise AssertionError("nothing was raised")

    gc.collect()
    gc.disable()
    try:
        left = await refused()
        # The thread has gone on to another, and let go of this one.
        await calls.make(int)
        assert left() is None
    finally:
        gc.enable()


async def test_whatever_else_waits_for_a_thread_has_its_turn(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many calls wait: those of thousands of clients are not made before somebody's result."""
    monkeypatch.setattr(calls_module, "PATIENCE", NEVER)
    pool.threads.shutdown()
    pool.threads = ThreadPoolExecutor(1)
    calls = Calls(pool.submit)
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def call() -> None:
        loop.call_soon_threadsafe(begun.set)
        time.sleep(calls_module.TURN / 10)

    waiting = [calls.make(call) for _ in range(100)]
    async with asyncio.timeout(EVENT_TIMEOUT):
        await begun.wait()
        assert await asyncio.wrap_future(pool.threads.submit(lambda: "result")) == "result"
        assert not waiting[-1].done()
        await asyncio.gather(*waiting)


async def test_a_pool_that_is_closed_is_an_error_of_each_call(pool: Pool, calls: Calls) -> None:
    pool.threads.shutdown()
    refused = await asyncio.gather(calls.make(int), calls.make(int), return_exceptions=True)
    assert [type(error) for error in refused] == [RuntimeError, RuntimeError]


async def test_whatever_comes_whenever_is_answered(calls: Calls) -> None:
    chance = random.Random(1)

    def call(number: int, seconds: float) -> int:
        time.sleep(seconds)
        return number

    async def client(first: int) -> list[int]:
        answers = []
        for number in range(first, first + 100):
            seconds = chance.choice([0, 0, 0, 0.0001, 0.003])
            answers.append(await calls.make(partial(call, number, seconds)))
            await asyncio.sleep(chance.choice([0, 0, 0.0001, 0.001]))
        return answers

    answers = await gathered(*(client(first) for first in range(0, 2_000, 100)))
    assert [number for some in answers for number in some] == list(range(2_000))
