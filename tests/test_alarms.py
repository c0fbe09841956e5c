"""Alarms: the same delay for many, with one timer."""

import asyncio
import gc
from typing import Any
from weakref import ref

import pytest

from pgnotify_gql.hub.alarms import Alarms, alarms
from tests.support.feed import EVENT_TIMEOUT, NEVER

DELAY = 0.02


class Bell:
    """Notes who was called, and when."""

    def __init__(self) -> None:
        self.rung: list[tuple[Any, float]] = []
        self._rang = asyncio.Event()

    def __call__(self, sleeper: Any) -> None:
        self.rung.append((sleeper, asyncio.get_running_loop().time()))
        self._rang.set()
        if sleeper == "fails":
            raise ValueError("it fails")

    async def until(self, count: int) -> list[Any]:
        async with asyncio.timeout(EVENT_TIMEOUT):
            while len(self.rung) < count:
                self._rang.clear()
                await self._rang.wait()
        return [sleeper for sleeper, _ in self.rung]


@pytest.fixture
def bell() -> Bell:
    return Bell()


@pytest.fixture
def alarm(bell: Bell) -> Alarms[Any]:
    return Alarms(DELAY, bell)


async def test_each_is_called_once_when_it_is_due_and_not_before(bell: Bell, alarm: Alarms[Any]) -> None:
    begun = asyncio.get_running_loop().time()
    alarm.set("first")
    await asyncio.sleep(DELAY / 2)
    alarm.set("second")
    assert await bell.until(2) == ["first", "second"]
    (_, first), (_, second) = bell.rung
    # The clock of a loop has a resolution, within which it calls too soon.
    assert first >= begun + DELAY - 0.001
    assert second >= begun + DELAY * 1.5 - 0.001
    await asyncio.sleep(DELAY * 2)
    assert len(bell.rung) == 2


async def test_one_that_was_cleared_is_not_called_and_the_others_are(bell: Bell, alarm: Alarms[Any]) -> None:
    for sleeper in ("first", "second", "third"):
        alarm.set(sleeper)
    alarm.clear("first")
    alarm.clear("third")
    alarm.clear("nobody")
    assert ["first" in alarm, "second" in alarm] == [False, True]
    assert await bell.until(1) == ["second"]
    await asyncio.sleep(DELAY * 2)
    assert len(bell.rung) == 1


async def test_one_that_is_set_again_is_called_once_and_later(bell: Bell, alarm: Alarms[Any]) -> None:
    for sleeper in ("again", "other", "again"):
        alarm.set(sleeper)
    assert await bell.until(2) == ["other", "again"]
    await asyncio.sleep(DELAY * 2)
    assert len(bell.rung) == 2


async def test_what_is_left_when_all_are_cleared_does_not_keep_an_event_loop_alive() -> None:
    def run() -> ref[asyncio.AbstractEventLoop]:
        async def come_and_go() -> ref[asyncio.AbstractEventLoop]:
            kept = alarms(NEVER, repr)
            for sleeper in ("first", "second"):
                kept.set(sleeper)
            for sleeper in ("first", "second"):
                kept.clear(sleeper)
            return ref(asyncio.get_running_loop())

        return asyncio.run(come_and_go())

    ended = await asyncio.to_thread(run)
    gc.collect()
    assert ended() is None


async def test_one_that_fails_keeps_no_other_waiting(bell: Bell, alarm: Alarms[Any]) -> None:
    failures: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context["exception"]))
    for sleeper in ("first", "fails", "last"):
        alarm.set(sleeper)
    assert await bell.until(3) == ["first", "fails", "last"]
    assert [str(failure) for failure in failures] == ["it fails"]


async def test_thousands_have_one_timer(bell: Bell, alarm: Alarms[Any]) -> None:
    scheduled: Any = asyncio.get_running_loop()
    before = len(scheduled._scheduled)
    for sleeper in range(5_000):
        alarm.set(sleeper)
    assert len(scheduled._scheduled) == before + 1
    assert await bell.until(5_000) == list(range(5_000))


def test_those_of_a_loop_that_are_alike_are_the_same() -> None:
    async def kinds() -> list[Alarms[Any]]:
        return [alarms(1.0, repr), alarms(1.0, repr), alarms(2.0, repr), alarms(1.0, hash)]

    one, same, slower, another = asyncio.run(kinds())
    assert one is same
    assert len({one, slower, another}) == 3
    assert asyncio.run(kinds())[0] is not one
