"""The writer: one task for all that is ready, until something waits; then another goes on with the rest."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from pgnotify_gql.hub import writer
from pgnotify_gql.hub.outbox import Outbox
from pgnotify_gql.hub.payloads import Payloads
from tests.support.feed import EVENT_TIMEOUT, NEVER, Notebook


class Sockets(Notebook):
    """Notes who was sent what, in order; those that are `blocked` do not return from `send` until they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[str, str]] = []
        self.tasks: list[asyncio.Task[None] | None] = []
        self.blocked: dict[str, asyncio.Event] = {}
        self.ended: list[tuple[str, Exception | None]] = []

    def outbox(self, name: str) -> Outbox:
        outbox = Outbox(self._send_to(name), messages=100, size=1000, patience=NEVER, stuck=lambda: None)
        outbox.start(self._end_of(name))
        return outbox

    def block(self, name: str) -> None:
        self.blocked[name] = asyncio.Event()

    def _send_to(self, name: str) -> Callable[[str], Awaitable[None]]:
        async def send(frame: str) -> None:
            self.tasks.append(asyncio.current_task())
            self.noted()
            if name in self.blocked:
                await self.blocked[name].wait()
            self.sent.append((name, frame))
            self.noted()

        return send

    def _end_of(self, name: str) -> Callable[[Exception | None], None]:
        def ended(error: Exception | None) -> None:
            self.ended.append((name, error))
            self.noted()

        return ended


NAMES = [f"socket {number}" for number in range(50)]


async def test_all_that_is_ready_is_written_in_one_task() -> None:
    sockets = Sockets()
    for outbox in map(sockets.outbox, NAMES):
        outbox.offer(Payloads("one", "two").framed(str))
    await sockets.until(lambda: len(sockets.sent) == 2 * len(NAMES))
    assert sockets.sent == [(name, frame) for name in NAMES for frame in ("one", "two")]
    assert len(set(sockets.tasks)) == 1


async def test_whoever_waits_keeps_his_task_and_holds_up_nobody() -> None:
    sockets = Sockets()
    waiting = NAMES[::10]
    for name in waiting:
        sockets.block(name)
    outboxes = {name: sockets.outbox(name) for name in NAMES}
    for outbox in outboxes.values():
        outbox.put("one")
    others = [name for name in NAMES if name not in waiting]
    await sockets.until(lambda: len(sockets.sent) == len(others))
    assert [name for name, _ in sockets.sent] == others
    for outbox in outboxes.values():
        outbox.put("two")
    await sockets.until(lambda: len(sockets.sent) == 2 * len(others))
    for event in sockets.blocked.values():
        event.set()
    await sockets.until(lambda: len(sockets.sent) == 2 * len(NAMES))
    for name in NAMES:
        assert [frame for to, frame in sockets.sent if to == name] == ["one", "two"]


async def test_to_discard_one_that_waits_ends_no_other() -> None:
    sockets = Sockets()
    sockets.block("first")
    first, second = sockets.outbox("first"), sockets.outbox("second")
    first.put("lost")
    second.put("one")
    # In the same turn of the loop in which it begins to wait, and so before another task has taken over.
    asyncio.get_running_loop().call_soon(first.discard)
    await sockets.until(lambda: bool(sockets.sent))
    async with asyncio.timeout(EVENT_TIMEOUT):
        await first.stop()
    assert (sockets.sent, sockets.ended) == ([("second", "one")], [("first", None)])


async def test_when_the_task_itself_is_cancelled_another_writes_what_is_left() -> None:
    sockets = Sockets()
    sockets.block("first")
    first, second = sockets.outbox("first"), sockets.outbox("second")
    first.put("lost")
    second.put("one")

    def cancel() -> None:
        (task,) = sockets.tasks
        assert task is not None
        task.cancel()

    # In the same turn of the loop in which it begins to wait.
    asyncio.get_running_loop().call_soon(cancel)
    await sockets.until(lambda: bool(sockets.sent))
    (task, _) = sockets.tasks
    assert task is not None
    assert task.cancelled()
    assert sockets.sent == [("second", "one")]


async def test_when_the_task_is_cancelled_between_two_another_goes_on_with_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Everybody else has a turn behind each.
    monkeypatch.setattr(writer, "TURN", -1.0)
    sockets = Sockets()
    for outbox in map(sockets.outbox, NAMES):
        outbox.put("one")
    await sockets.until(lambda: bool(sockets.sent))
    (task,) = sockets.tasks
    assert task is not None
    task.cancel()
    await sockets.until(lambda: len(sockets.sent) == len(NAMES))
    assert task.cancelled()
    assert sockets.sent == [(name, "one") for name in NAMES]


async def test_one_that_cannot_be_written_to_ends_no_other() -> None:
    sockets = Sockets()

    async def broken(frame: str) -> None:
        raise ConnectionResetError("gone")

    first = Outbox(broken, messages=10, size=100, patience=NEVER, stuck=lambda: None)
    first.start(sockets._end_of("first"))
    second = sockets.outbox("second")
    first.put("one")
    second.put("one")
    await sockets.until(lambda: bool(sockets.sent))
    ((name, error),) = sockets.ended
    assert (name, str(error)) == ("first", "gone")


async def test_who_has_much_to_write_lets_the_event_loop_have_its_turn() -> None:
    sockets, turns = Sockets(), list[int]()
    outboxes = [sockets.outbox(name) for name in NAMES * 100]

    async def notice() -> None:
        while len(sockets.sent) < len(outboxes):
            turns.append(len(sockets.sent))
            await asyncio.sleep(0)

    noticing = asyncio.create_task(notice())
    await asyncio.sleep(0)
    for outbox in outboxes:
        outbox.put("x" * 100)
    async with asyncio.timeout(EVENT_TIMEOUT):
        await noticing
    assert any(0 < count < len(outboxes) for count in turns)
