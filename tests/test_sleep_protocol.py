"""
Falling asleep: no change is left waiting for the safety poll.

Every listener here looks by itself only once a minute, so what is relayed at once was rung for or read before it
slept. A writer that is silent and not read is a lost wake-up. First each step of the protocol by itself, with a
writer held at the very point the step is there for; the same with the step left out, to show that the test would
notice; then many writers at random.
"""

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial

import psycopg
import pytest

from pgnotify_gql import names
from pgnotify_gql.journal.reader import current_snapshot
from pgnotify_gql.listener import listener as listener_module
from pgnotify_gql.listener import term as term_module
from pgnotify_gql.listener.doorbell import Doorbell
from pgnotify_gql.listener.term import DROWSY_INTERVAL, LONGEST_DROWSY_INTERVAL, Term
from tests.support.databases import Database
from tests.support.feed import NEVER, RARELY, Bells, Notebook, Recorder, Room, leading, lock_holders, transaction


class Watched(Doorbell, Notebook):
    """A doorbell that notes what a leader does with it; `at_release` runs while the lock is still held."""

    current: "Watched"
    at_release: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self, connection: object) -> None:
        Doorbell.__init__(self, connection)  # type: ignore[arg-type]
        Notebook.__init__(self)
        self.awake = False
        self.asleep = False
        self.released = 0
        self.slept = 0
        self.drowsed = 0
        Watched.current = self

    def __str__(self) -> str:
        return f"released {self.released} times, slept {self.slept} times, {self.drowsed} drowsy waits"

    def lets_go_after(self, released: int) -> bool:
        """Whether it sleeps, or released the lock once more."""
        return self.asleep or self.released > released

    async def silence(self) -> None:
        await super().silence()
        self.awake = True
        self.noted()

    async def unsilence(self) -> None:
        self.at_release()
        await super().unsilence()
        self.awake = False
        self.released += 1
        self.noted()

    async def wait(self, timeout: float) -> bool:  # noqa: ASYNC109
        self.asleep = timeout > LONGEST_DROWSY_INTERVAL
        self.slept += self.asleep
        self.drowsed += not self.asleep
        self.noted()
        rung = await super().wait(timeout)
        self.asleep = False
        return rung


@pytest.fixture(autouse=True)
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "Doorbell", Watched)
    monkeypatch.setattr(Watched, "at_release", staticmethod(lambda: None))
    monkeypatch.setattr(term_module, "HEARTBEAT_INTERVAL", NEVER)


@asynccontextmanager
async def staying_awake(
    database: Database, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Watched]:
    """A leader that stays awake until `fall_asleep`."""
    monkeypatch.setattr(term_module, "LINGER", NEVER)
    async with leading(database, recorder):
        await Watched.current.until(lambda: Watched.current.awake)
        assert len(lock_holders(database, names.AWAKE_LOCK)) == 1
        yield Watched.current


def fall_asleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(term_module, "LINGER", 0.001)


@contextmanager
def silent_writer(database: Database, room: Room, text: str) -> Iterator[psycopg.Connection]:
    """A writer that found the lock taken, and has not committed yet."""
    bells = Bells(database)
    with transaction(database) as writer:
        assert len(lock_holders(database, names.AWAKE_LOCK)) == 1
        room.say(text, connection=writer)
        yield writer
        assert bells.rung() == 0


async def test_a_silent_writer_keeps_the_listener_drowsy_and_is_relayed_when_it_commits(
    database_triggers: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    room, recorder = Room(database_triggers), Recorder()
    async with staying_awake(database_triggers, recorder, monkeypatch) as doorbell:
        with silent_writer(database_triggers, room, "held") as writer:
            fall_asleep(monkeypatch)
            await doorbell.until(lambda: doorbell.drowsed >= 12)
            assert lock_holders(database_triggers, names.AWAKE_LOCK) == []
            assert not doorbell.slept
            writer.commit()
            committed = time.monotonic()
            await recorder.has("held")
            assert time.monotonic() - committed < 1
        await doorbell.until(lambda: doorbell.asleep)


async def test_a_silent_writer_that_rolls_back_lets_the_listener_sleep(
    database_triggers: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    room, recorder = Room(database_triggers), Recorder()
    async with staying_awake(database_triggers, recorder, monkeypatch) as doorbell:
        with silent_writer(database_triggers, room, "given up") as writer:
            fall_asleep(monkeypatch)
            await doorbell.until(lambda: doorbell.drowsed > 2)
            writer.rollback()
            await doorbell.until(lambda: doorbell.asleep)
    assert recorder.texts == []


async def test_a_silent_writer_whose_session_is_killed_lets_the_listener_sleep(
    database_triggers: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    room, recorder = Room(database_triggers), Recorder()
    async with staying_awake(database_triggers, recorder, monkeypatch) as doorbell:
        with silent_writer(database_triggers, room, "killed") as writer:
            fall_asleep(monkeypatch)
            await doorbell.until(lambda: doorbell.drowsed > 2)
            room.connection.execute("select pg_terminate_backend(%s, 10000)", [writer.info.backend_pid])
            await doorbell.until(lambda: doorbell.asleep)


async def test_a_silent_writer_inside_a_savepoint_keeps_the_listener_drowsy(
    database_triggers: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    room, recorder = Room(database_triggers), Recorder()
    async with staying_awake(database_triggers, recorder, monkeypatch) as doorbell:
        with transaction(database_triggers) as writer:
            writer.execute("savepoint one")
            room.say("undone", connection=writer)
            writer.execute("rollback to one")
            room.say("kept", connection=writer)
            writer.execute("savepoint two")
            fall_asleep(monkeypatch)
            await doorbell.until(lambda: doorbell.drowsed > 4)
            assert not doorbell.slept
            writer.commit()
            await recorder.has("kept")
        await doorbell.until(lambda: doorbell.asleep)
    assert recorder.texts == ["kept"]


async def test_a_bell_wakes_a_drowsy_listener_at_once(
    database_triggers: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    room, recorder = Room(database_triggers), Recorder()
    async with staying_awake(database_triggers, recorder, monkeypatch) as doorbell:
        bells = Bells(database_triggers)
        with transaction(database_triggers) as writer:
            room.say("held", connection=writer)
            fall_asleep(monkeypatch)
            await doorbell.until(lambda: doorbell.drowsed > 2)
            monkeypatch.setattr(term_module, "LINGER", NEVER)
            room.say("rings")
            assert bells.rung() == 1
            await doorbell.until(lambda: doorbell.awake)
            await recorder.has("rings")
            # Awake again, so nobody rings; and the one that was held is not forgotten.
            room.say("silent")
            writer.commit()
            assert bells.rung() == 0
            await recorder.has("silent", "held")


async def test_a_writer_that_came_after_the_release_does_not_keep_the_listener_awake_and_rings(
    database_triggers: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    room, recorder = Room(database_triggers), Recorder()
    async with staying_awake(database_triggers, recorder, monkeypatch) as doorbell:
        fall_asleep(monkeypatch)
        await doorbell.until(lambda: doorbell.asleep)
        with transaction(database_triggers) as writer:
            room.say("late", connection=writer)
            slept = doorbell.slept
            room.say("wakes it")
            await recorder.has("wakes it")
            # The late one is in progress in the snapshot that it would fall asleep by: drowsy, which is harmless.
            await doorbell.until(lambda: doorbell.drowsed > 2 or doorbell.slept > slept)
            writer.commit()
            await recorder.has("late")


async def test_a_reader_that_stays_open_does_not_keep_the_listener_drowsy(
    database_triggers: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    async with staying_awake(database_triggers, recorder, monkeypatch) as doorbell:
        with transaction(database_triggers) as reader:
            reader.execute("select count(*) from conversations_message")
            fall_asleep(monkeypatch)
            await doorbell.until(lambda: doorbell.asleep)


# The protocol with one step left out.


async def no_barrier(term: Term) -> bool:
    await term._doorbell.unsilence()
    await end_a_transaction(term)
    await term._drain()
    return True


async def no_transaction_of_its_own(term: Term) -> bool:
    await term._doorbell.unsilence()
    await term._drain()
    return await _drowse(term, term._cursor.xip)


async def release_after_snapshot(term: Term) -> bool:
    await end_a_transaction(term)
    await term._drain()
    silent = term._cursor.xip
    await term._doorbell.unsilence()
    return await _drowse(term, silent)


async def no_drain_after_release(term: Term) -> bool:
    await term._doorbell.unsilence()
    await end_a_transaction(term)
    return await _drowse(term, (await current_snapshot(term._connection)).xip)


async def no_drain_while_drowsy(term: Term) -> bool:
    await term._doorbell.unsilence()
    await end_a_transaction(term)
    await term._drain()
    snapshot, silent = term._cursor, term._cursor.xip
    while not term._stopping.is_set() and not all(snapshot.sees(xid) for xid in silent):
        if await term._doorbell.wait(DROWSY_INTERVAL):
            return False
        snapshot = await current_snapshot(term._connection)
    return True


async def end_a_transaction(term: Term) -> None:
    await term._connection.execute("select pg_current_xact_id()")


async def _drowse(term: Term, silent: tuple[int, ...]) -> bool:
    while not term._stopping.is_set() and not all(term._cursor.sees(xid) for xid in silent):
        if await term._doorbell.wait(DROWSY_INTERVAL):
            return False
        await term._drain()
    return True


Arrival = Callable[[psycopg.Connection, Room], None]


def commits_at_once(writer: psycopg.Connection, room: Room) -> None:
    room.say("silent", connection=writer)
    writer.commit()


def stays_open(writer: psycopg.Connection, room: Room) -> None:
    room.say("silent", connection=writer)


async def left_waiting(database: Database, monkeypatch: pytest.MonkeyPatch, arrival: Arrival) -> bool:
    """
    Let a writer arrive just before the lock is released, and commit once the listener drowses or sleeps.

    Return whether its change was still unread when the listener slept, with nobody left to ring.
    """
    room, recorder = Room(database), Recorder()
    async with staying_awake(database, recorder, monkeypatch) as doorbell:
        bells = Bells(database)
        with transaction(database) as writer:

            def arrive() -> None:
                monkeypatch.setattr(Watched, "at_release", staticmethod(lambda: None))
                arrival(writer, room)

            monkeypatch.setattr(Watched, "at_release", staticmethod(arrive))
            fall_asleep(monkeypatch)
            await doorbell.until(lambda: doorbell.asleep or doorbell.drowsed > 5)
            writer.commit()
            await doorbell.until(lambda: doorbell.asleep)
            assert bells.rung() == 0
            waits = recorder.texts == []
            # What waits is relayed when somebody rings, so nothing else was wrong.
            room.say("rings")
            await recorder.has("silent", "rings")
            return waits


@pytest.mark.parametrize("arrival", [commits_at_once, stays_open])
async def test_a_writer_that_comes_just_before_the_release_is_not_left_waiting(
    database_triggers: Database, monkeypatch: pytest.MonkeyPatch, arrival: Arrival
) -> None:
    assert not await left_waiting(database_triggers, monkeypatch, arrival)


@pytest.mark.parametrize(
    ("broken", "arrival"),
    [
        (no_barrier, stays_open),
        (no_transaction_of_its_own, stays_open),
        (release_after_snapshot, stays_open),
        (release_after_snapshot, commits_at_once),
        (no_drain_after_release, commits_at_once),
        (no_drain_while_drowsy, stays_open),
    ],
)
async def test_with_one_step_left_out_a_writer_is_left_waiting(
    database_triggers: Database,
    monkeypatch: pytest.MonkeyPatch,
    broken: Callable[[Term], bool],
    arrival: Arrival,
) -> None:
    monkeypatch.setattr(Term, "_fall_asleep", broken)
    assert await left_waiting(database_triggers, monkeypatch, arrival)


# At random.

ROUNDS_SECONDS = 8.0
"""How long writers keep arriving at least."""

ROUNDS_SECONDS_AT_MOST = 60.0
"""A busy machine takes longer to meet as many writers on the way to sleep as the test asks for."""

WRITERS = 4

SOON = 1.5
"""Seconds within which a change is relayed on a busy machine; usually it takes milliseconds."""


class Writer(threading.Thread):
    """Writes one message for each round it is told of, after a random pause, and holds it open for a random time."""

    def __init__(self, database: Database, room: Room, number: int) -> None:
        super().__init__(name=f"writer {number}", daemon=True)
        self.number = number
        self.round = ""
        self.go = threading.Event()
        self.committed: dict[str, float] = {}
        self._room = room
        self._connection = database.connect()
        self._random = random.Random(number)

    def write(self, text: str) -> None:
        self.round = text
        self.go.set()

    def run(self) -> None:
        self._connection.autocommit = False
        while True:
            self.go.wait()
            self.go.clear()
            text = self.round
            if not text:
                return
            time.sleep(self._random.random() * 0.003)
            self._room.say(text, connection=self._connection)
            time.sleep(self._random.choice([0, 0, self._random.random() * 0.004]))
            self._connection.commit()
            self.committed[text] = time.monotonic()


class Timed(Recorder):
    """Notes when each message was relayed."""

    def __init__(self) -> None:
        super().__init__()
        self.relayed: dict[str, float] = {}

    def noted(self) -> None:
        for text in self.texts:
            self.relayed[text] = time.monotonic()
        self.rows.clear()
        super().noted()


async def test_writers_arriving_while_the_listener_falls_asleep_never_wait_for_the_safety_poll(
    database_triggers: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Rounds of one to four writers, started as the listener lets go of the lock, over and over.

    The next round begins when all of a round are relayed: nobody comes later and rings for one that was forgotten.
    """
    monkeypatch.setattr(term_module, "LINGER", 0.001)
    room, recorder, chance = Room(database_triggers), Timed(), random.Random(2)
    writers = [Writer(database_triggers, room, number) for number in range(WRITERS)]
    for writer in writers:
        writer.start()
    expected: set[str] = set()
    try:
        async with leading(database_triggers, recorder, timing=RARELY):
            doorbell = Watched.current
            started = time.monotonic()

            def met_enough() -> bool:
                """It did fall asleep, and met writers on the way there."""
                return len(expected) > 1000 and doorbell.slept > 200 and doorbell.drowsed > 50

            while (elapsed := time.monotonic() - started) < ROUNDS_SECONDS or (
                elapsed < ROUNDS_SECONDS_AT_MOST and not met_enough()
            ):
                released = doorbell.released
                await doorbell.until(partial(doorbell.lets_go_after, released))
                chosen = chance.sample(writers, chance.choice([1, 1, 2, WRITERS]))
                texts = {f"{len(expected)} {writer.number}": writer for writer in chosen}
                for text, writer in texts.items():
                    writer.write(text)
                await recorder.until(partial(recorder.relayed.keys().__ge__, texts.keys()))
                expected |= texts.keys()
    finally:
        for writer in writers:
            writer.write("")
            await asyncio.to_thread(writer.join)
    committed = {text: at for writer in writers for text, at in writer.committed.items()}
    assert committed.keys() == recorder.relayed.keys() == expected
    slowest = max(recorder.relayed[text] - at for text, at in committed.items())
    assert slowest < SOON
    assert met_enough()
