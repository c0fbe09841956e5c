"""The outbox: what waits for one socket is bounded, and whoever puts something in never waits."""

import asyncio

import pytest

from pgnotify_gql.hub.outbox import Outbox
from pgnotify_gql.hub.payloads import Payloads
from tests.support.feed import EVENT_TIMEOUT, NEVER, Notebook
from tests.support.sockets import quiet


class Socket(Notebook):
    """Keeps what is sent; while `blocked`, `send` does not return, as with a client that does not read."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[str] = []
        self.entered = 0
        self.overflows = 0
        self.open = asyncio.Event()
        self.open.set()

    async def send(self, frame: str) -> None:
        self.entered += 1
        self.noted()
        await self.open.wait()
        self.sent.append(frame)
        self.noted()

    def overflowed(self) -> None:
        self.overflows += 1


@pytest.fixture
async def socket() -> Socket:
    return Socket()


def outbox_of(socket: Socket, messages: int = 3, size: int = 100) -> Outbox:
    return Outbox(socket.send, messages=messages, size=size, patience=NEVER, stuck=socket.overflowed)


async def finished(outbox: Outbox) -> None:
    async with asyncio.timeout(EVENT_TIMEOUT):
        await outbox.run()


async def test_frames_leave_in_the_order_they_were_put_in(socket: Socket) -> None:
    outbox = outbox_of(socket)
    running = asyncio.create_task(outbox.run())
    for frame in ("one", "two", "three"):
        outbox.put(frame)
    await socket.until(lambda: len(socket.sent) == 3)
    outbox.put("four")
    await socket.until(lambda: len(socket.sent) == 4)
    outbox.close()
    await running
    assert socket.sent == ["one", "two", "three", "four"]
    assert socket.overflows == 0


async def test_closing_writes_what_is_queued_and_takes_nothing_more(socket: Socket) -> None:
    outbox = outbox_of(socket)
    outbox.put("one")
    outbox.put("two")
    outbox.close()
    outbox.put("late")
    await finished(outbox)
    assert socket.sent == ["one", "two"]


async def test_an_empty_outbox_that_is_closed_ends(socket: Socket) -> None:
    outbox = outbox_of(socket)
    running = asyncio.create_task(outbox.run())
    await asyncio.sleep(0)
    outbox.close()
    async with asyncio.timeout(EVENT_TIMEOUT):
        await running


@pytest.mark.parametrize(
    ("frames", "fits"),
    [
        (["x"] * 3, True),
        (["x"] * 4, False),
        (["x" * 50, "x" * 50], True),
        (["x", "x" * 50, "x" * 51], False),
        (["x" * 1000], True),
        (["x" * 1000, "x"], True),
        (["x" * 1000, "x" * 100, "x"], False),
        (["x", "x" * 1000], False),
    ],
    ids=[
        "messages",
        "a message more",
        "bytes",
        "a byte more",
        "one large",
        "any behind a large",
        "much behind a large",
        "any, then large",
    ],
)
async def test_limits_hold_in_messages_and_in_bytes(socket: Socket, frames: list[str], fits: bool) -> None:
    outbox = outbox_of(socket)
    for frame in frames:
        outbox.put(frame)
    assert socket.overflows == (not fits)
    outbox.close()
    await finished(outbox)
    assert socket.sent == (frames if fits else [])


async def test_a_slow_client_overflows_once_and_what_waited_is_forgotten(socket: Socket) -> None:
    outbox = outbox_of(socket)
    running = asyncio.create_task(outbox.run())
    socket.open.clear()
    outbox.put("stuck")
    await socket.until(lambda: socket.entered == 1)
    for number in range(10):
        outbox.put(str(number))
    assert socket.overflows == 1
    assert not outbox._frames
    socket.open.set()
    async with asyncio.timeout(EVENT_TIMEOUT):
        await running
    assert socket.sent == []


async def test_room_is_made_by_writing(socket: Socket) -> None:
    outbox = outbox_of(socket)
    running = asyncio.create_task(outbox.run())
    for number in range(50):
        outbox.put("x" * 60)
        await socket.until(lambda number=number: len(socket.sent) == number + 1)  # type: ignore[misc]
    assert socket.overflows == 0
    outbox.close()
    await running


async def test_what_the_socket_raises_ends_the_writing() -> None:
    async def send(frame: str) -> None:
        raise ConnectionResetError(frame)

    outbox = Outbox(send, messages=3, size=100, patience=NEVER, stuck=lambda: None)
    outbox.put("one")
    with pytest.raises(ConnectionResetError):
        await finished(outbox)


async def test_a_tenth_is_kept_from_results_so_that_an_answer_finds_room(socket: Socket) -> None:
    """Results that find no room are read from the journal later; an answer without room closes the socket."""
    for outbox, frame in (
        (outbox_of(socket, messages=20, size=1000), "x"),
        (outbox_of(socket, messages=1000, size=20), "x"),
    ):
        offered = 0
        while outbox.offer(Payloads(frame).framed(str)):
            offered += 1
        # The first frame does not count in bytes.
        assert offered in {18, 19}
        outbox.put("p")
        assert socket.overflows == 0


async def test_an_offer_without_room_changes_nothing(socket: Socket) -> None:
    outbox = outbox_of(socket)
    offered = [Payloads("one"), Payloads("x" * 100), Payloads("two")]
    assert [outbox.offer(each.framed(str)) for each in offered] == [1, 0, 1]
    outbox.close()
    assert outbox.offer(Payloads("late", "later").framed(str)) == 2
    await finished(outbox)
    assert socket.sent == ["one", "two"]
    assert socket.overflows == 0


async def test_of_several_as_many_are_taken_as_there_is_room_for(socket: Socket) -> None:
    for outbox, most in ((outbox_of(socket, messages=10), 9), (outbox_of(socket, messages=100, size=20), 19)):
        many = Payloads(*(str(number % 10) for number in range(30)))
        assert outbox.offer(many.framed(str)) == most
        assert outbox.offer(many.framed(str)) == 0
        outbox.close()
        await finished(outbox)
        assert socket.sent == list(many)[:most]
        socket.sent.clear()


async def test_room_is_waited_for_until_half_has_been_written(socket: Socket) -> None:
    outbox = outbox_of(socket, messages=10)
    running = asyncio.create_task(outbox.run())
    socket.open.clear()
    while outbox.offer(Payloads("x").framed(str)):
        pass
    room = asyncio.create_task(outbox.room())
    await socket.until(lambda: socket.entered == 1)
    assert not room.done()
    socket.open.set()
    async with asyncio.timeout(EVENT_TIMEOUT):
        await room
    assert outbox._count <= 5
    outbox.close()
    await running


async def test_what_is_discarded_is_not_written(socket: Socket) -> None:
    outbox = outbox_of(socket)
    running = asyncio.create_task(outbox.run())
    socket.open.clear()
    for frame in ("under way", "one", "two"):
        outbox.put(frame)
    await socket.until(lambda: socket.entered == 1)
    outbox.discard()
    outbox.put("late")
    socket.open.set()
    async with asyncio.timeout(EVENT_TIMEOUT):
        await running
    assert socket.sent == []
    assert outbox._waiting == 0


async def test_what_is_discarded_before_its_turn_comes_is_not_written_either(socket: Socket) -> None:
    outbox, ended = outbox_of(socket), asyncio.Event()
    outbox.start(lambda error: ended.set())
    outbox.put("one")
    outbox.discard()
    async with asyncio.timeout(EVENT_TIMEOUT):
        await ended.wait()
    assert socket.sent == []


async def test_it_is_written_to_again_after_a_rest(socket: Socket) -> None:
    outbox, errors = outbox_of(socket), list[Exception | None]()

    def ended(error: Exception | None) -> None:
        errors.append(error)
        socket.noted()

    outbox.start(ended)
    for frame in ("one", "two", "three"):
        outbox.put(frame)
        await socket.until(lambda frame=frame: frame in socket.sent)  # type: ignore[misc]
        # Nothing is left of the last time, and no task waits for the next.
        await asyncio.sleep(0)
        assert not outbox._announced
    outbox.put("four")
    outbox.close()
    await socket.until(lambda: bool(errors))
    assert (socket.sent, errors) == (["one", "two", "three", "four"], [None])


async def test_a_client_that_does_not_take_a_frame_for_too_long_is_stuck(socket: Socket) -> None:
    outbox = Outbox(socket.send, messages=3, size=100, patience=0.05, stuck=socket.overflowed)
    running = asyncio.create_task(outbox.run())
    socket.open.clear()
    outbox.put("one")
    outbox.put("two")
    async with asyncio.timeout(EVENT_TIMEOUT):
        await running
    assert socket.overflows == 1
    outbox.put("three")
    assert (outbox._waiting, socket.sent) == (0, [])


class OneByOne(Socket):
    """Takes a frame each time it is opened."""

    async def send(self, frame: str) -> None:
        await super().send(frame)
        self.open.clear()


async def test_a_client_that_takes_frames_slowly_is_not_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    socket, loop, passed = OneByOne(), asyncio.get_running_loop(), 0.0
    begun = loop.time()
    # The test's own clock: on a busy machine a pause may be longer than the patience.
    monkeypatch.setattr(loop, "time", lambda: begun + passed)
    outbox = Outbox(socket.send, messages=10, size=100, patience=0.2, stuck=socket.overflowed)
    socket.open.clear()
    running = asyncio.create_task(outbox.run())
    for number in range(6):
        outbox.put(str(number))
    for number in range(6):
        await socket.until(lambda: socket.entered > number)  # noqa: B023
        passed += 0.15
        await quiet()
        socket.open.set()
        await socket.until(lambda: len(socket.sent) > number)  # noqa: B023
    outbox.close()
    await running
    assert (socket.overflows, len(socket.sent)) == (0, 6)


PING = "ping!"


def asking(socket: Socket) -> Outbox:
    return Outbox(socket.send, messages=10, size=100, patience=NEVER, stuck=socket.overflowed, ping=PING)


async def test_a_client_that_does_not_answer_a_ping_is_not_written_to_any_more(socket: Socket) -> None:
    """As on Daphne, whose send returns at once and keeps everything in memory."""
    outbox = asking(socket)
    running = asyncio.create_task(outbox.run())
    for _ in range(4):
        outbox.put("x" * 30)
    await socket.until(lambda: len(socket.sent) == 4)
    assert socket.sent == ["x" * 30, PING, "x" * 30, "x" * 30]
    for _ in range(4):
        outbox.put("x" * 30)
    assert socket.overflows == 1
    running.cancel()


async def test_writing_goes_on_when_the_client_answers(socket: Socket) -> None:
    outbox = asking(socket)
    running = asyncio.create_task(outbox.run())
    frames = [str(number) * 30 for number in range(8)]
    for frame in frames:
        outbox.put(frame)
        outbox.answered()
        await socket.until(lambda frame=frame: frame in socket.sent)  # type: ignore[misc]
    assert [frame for frame in socket.sent if frame != PING] == frames
    assert socket.sent.count(PING) > 1
    assert socket.overflows == 0
    outbox.close()
    await running


async def test_pongs_answer_pings_in_order_and_one_too_many_is_harmless(socket: Socket) -> None:
    """A pong for a keep-alive says nothing of what was written after that."""
    outbox = asking(socket)
    outbox.answered()
    running = asyncio.create_task(outbox.run())
    for frame in (PING, "x" * 60):
        outbox.put(frame)
    await socket.until(lambda: socket.sent == [PING, "x" * 60])
    outbox.answered()
    outbox.put("y" * 60)
    await socket.until(lambda: socket.sent[2:] == [PING])
    outbox.answered()
    await socket.until(lambda: "y" * 60 in socket.sent)
    outbox.close()
    await running


async def test_a_pong_that_comes_before_its_ping_counts_as_sent_is_heard(socket: Socket) -> None:
    async def send(frame: str) -> None:
        if frame == PING:
            outbox.answered()
        await socket.send(frame)

    outbox = Outbox(send, messages=10, size=100, patience=NEVER, stuck=socket.overflowed, ping=PING)
    running = asyncio.create_task(outbox.run())
    # The first is too small to be asked about, and there is no room for the second behind it.
    for frame in ("x" * 20, "y" * 90):
        outbox.put(frame)
    await socket.until(lambda: "y" * 90 in socket.sent)
    assert socket.sent[:3] == ["x" * 20, PING, "y" * 90]
    outbox.close()
    await running
