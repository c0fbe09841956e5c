"""The parts of ``pgnotify_gql.testing`` by themselves: calling thread, loop that tells when it rests, journal."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from contextvars import ContextVar

import pytest
from asgiref.sync import sync_to_async

from pgnotify_gql.journal import JournalRow, Position
from pgnotify_gql.testing.calling_thread import CallingThread
from pgnotify_gql.testing.journal import Journal, JournalReader
from pgnotify_gql.testing.loop_thread import LoopThread
from pgnotify_gql.testing.serving import serving

SOON = 0.05
"""Seconds after which a wait in vain is over."""

WAIT = 10.0
"""Seconds until what must come is missed."""

language: ContextVar[str] = ContextVar("language", default="en")


@pytest.fixture
def thread() -> CallingThread:
    return CallingThread(nullcontext, lambda: None)


class TestCallingThread:
    def test_calls_are_made_by_who_waits(self, thread: CallingThread) -> None:
        done: Future[str] = Future()

        def ask() -> None:
            done.set_result(thread.submit(lambda: threading.current_thread().name).result(WAIT))

        asking = threading.Thread(target=ask)
        asking.start()
        assert thread.wait(done, WAIT) == threading.current_thread().name
        asking.join()
        assert thread.outstanding == 0

    def test_what_a_call_raises_is_for_who_has_asked(self, thread: CallingThread) -> None:
        with pytest.raises(ZeroDivisionError):
            thread.wait(thread.submit(lambda: 1 // 0), WAIT)

    def test_what_ends_a_test_ends_the_wait(self, thread: CallingThread) -> None:
        def interrupted() -> None:
            raise KeyboardInterrupt

        call = thread.submit(interrupted)
        with pytest.raises(KeyboardInterrupt):
            thread.wait(Future(), WAIT)
        assert isinstance(call.exception(), KeyboardInterrupt)

    def test_nothing_of_the_context_of_who_waits_is_known_to_a_call(self, thread: CallingThread) -> None:
        token = language.set("de")
        try:
            assert thread.wait(thread.submit(language.get), WAIT) == "en"
        finally:
            language.reset(token)

    def test_a_call_may_wait_itself(self, thread: CallingThread) -> None:
        outer = thread.submit(lambda: thread.wait(thread.submit(lambda: "inner"), WAIT))
        assert thread.wait(outer, WAIT) == "inner"

    def test_a_call_that_was_given_up_is_not_made(self, thread: CallingThread) -> None:
        made: list[int] = []
        given_up = thread.submit(made.append, 1)
        given_up.cancel()
        thread.wait(thread.submit(made.append, 2), WAIT)
        assert (made, thread.outstanding) == ([2], 0)

    def test_waiting_has_an_end(self, thread: CallingThread) -> None:
        with pytest.raises(TimeoutError):
            thread.wait(Future(), SOON)

    def test_closing_cancels_what_waits(self, thread: CallingThread) -> None:
        call = thread.submit(lambda: 1)
        thread.close()
        assert call.cancelled()
        with pytest.raises(RuntimeError, match="nobody"):
            thread.submit(lambda: 1)


class TestLoopThread:
    @pytest.fixture
    def busy(self) -> threading.Event:
        return threading.Event()

    @pytest.fixture
    def loop(self, busy: threading.Event) -> Iterator[LoopThread]:
        loop = LoopThread(busy.is_set)
        yield loop
        loop.stop()

    def test_it_has_settled_when_nothing_waits_for_its_turn(self, loop: LoopThread) -> None:
        turns = 0

        async def turn() -> None:
            nonlocal turns
            for _ in range(500):
                await asyncio.sleep(0)
                turns += 1

        loop.start(turn)
        loop.settled().result(WAIT)
        assert turns == 500

    def test_it_has_not_while_it_is_busy(self, loop: LoopThread, busy: threading.Event) -> None:
        busy.set()
        settled = loop.settled()
        with pytest.raises(TimeoutError):
            settled.result(SOON)
        busy.clear()
        loop.wake()
        settled.result(WAIT)

    def test_a_timer_does_not_keep_it_from_settling(self, loop: LoopThread) -> None:
        loop.start(lambda: asyncio.sleep(3_600))
        loop.settled().result(WAIT)

    def test_what_a_coroutine_raises_is_raised(self, loop: LoopThread) -> None:
        async def fail() -> None:
            raise LookupError

        with pytest.raises(LookupError):
            loop.start(fail).result(WAIT)

    def test_nothing_of_the_context_of_a_test_is_known_to_it(self, loop: LoopThread) -> None:
        async def ask() -> str:
            return language.get()

        token = language.set("de")
        try:
            assert loop.start(ask).result(WAIT) == "en"
        finally:
            language.reset(token)


def test_thread_sensitive_functions_are_called_in_the_thread_of_the_test() -> None:
    """Which Django's asynchronous queries are; where asgiref looks for that thread is not documented."""
    with serving() as server:
        name = server.run(sync_to_async(lambda: threading.current_thread().name))
    assert name == threading.current_thread().name


class Rows:
    """A source that a test writes to."""

    def __init__(self) -> None:
        self.rows: list[JournalRow] = []

    def add(self, row_id: int, label: str = "stock.item") -> None:
        self.rows.append(JournalRow(row_id, 777, label, "INSERT", f"[[[{row_id}]]]", row_id))

    def read(self, delivered: Collection[int]) -> Sequence[JournalRow]:
        return [row for row in self.rows if row.id not in delivered]

    def is_captured(self, label: str) -> bool:
        return True


@pytest.fixture
def rows() -> Rows:
    return Rows()


@pytest.fixture
def journal(rows: Rows) -> Journal:
    return Journal("default", rows)


class TestJournal:
    def test_batches_follow_each_other_without_a_gap(self, journal: Journal, rows: Rows) -> None:
        delivered = []
        for number in range(1, 4):
            rows.add(number)
            journal.refresh()
            delivered += journal.deliver()
        assert [batch.before for batch in delivered[1:]] == [batch.after for batch in delivered[:-1]]
        assert [[row.id for row in batch.rows] for batch in delivered] == [[1], [2], [3]]
        assert all(
            batch.after.sees(row.xid) and not batch.before.sees(row.xid) for batch in delivered for row in batch.rows
        )

    def test_nothing_new_is_no_batch(self, journal: Journal) -> None:
        journal.refresh()
        assert journal.deliver() == []

    def test_a_cursor_sees_what_was_there_and_nothing_else(self, journal: Journal, rows: Rows) -> None:
        rows.add(1)
        journal.refresh()
        position = Position(journal.standing().cursor)
        rows.add(2)
        rows.add(3, "stock.line")
        journal.refresh()
        assert [row.id for row in journal.after(position, "stock.item").rows] == [2]
        journal.deliver()
        assert [row.id for row in journal.after(position, "stock.item").rows] == [2]

    def test_what_is_gone_before_it_is_delivered_has_never_been(self, journal: Journal, rows: Rows) -> None:
        rows.add(1)
        journal.refresh()
        journal.standing()
        rows.rows.clear()
        rows.add(2)
        journal.refresh()
        assert [row.id for batch in journal.deliver() for row in batch.rows] == [2]

    async def test_many_rows_are_read_in_parts_that_end_at_the_cursor(self, journal: Journal, rows: Rows) -> None:
        for number in range(1, 8):
            rows.add(number)
        journal.refresh()

        async def call(function: object) -> object:
            raise AssertionError("it was read before")

        reader = JournalReader(journal, call, lambda error: None)
        start = Position(journal.era.began)
        batches = [batch async for batch in reader.missed(start, "stock.item", 3)]
        assert [len(batch.rows) for batch in batches] == [3, 3, 1, 0]
        assert [batch.last for batch in batches] == [False, False, False, True]
        assert batches[-1].position == Position(journal.standing().cursor)
