"""Leadership: one listener leads, others stand by, and an old leader changes nothing."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any, cast

import psycopg
import pytest
from psycopg.errors import InsufficientPrivilege

from pgnotify_gql import names
from pgnotify_gql.journal.reader import BATCH_ROWS, Batch, Connection, read_new
from pgnotify_gql.journal.snapshot import Snapshot
from pgnotify_gql.journal.state import LeadershipLostError, begin_epoch, resign, store_relayed
from pgnotify_gql.listener import Listener, Timing, leadership
from pgnotify_gql.listener import listener as listener_module
from pgnotify_gql.listener import term as term_module
from pgnotify_gql.listener.leadership import Guard, end_left_over, mark_backlog, try_to_lead
from tests.support.databases import Database
from tests.support.feed import (
    EVENT_TIMEOUT,
    RARELY,
    Notebook,
    Recorder,
    Room,
    eventually,
    leading,
    lock_holders,
    opened,
    opener,
    running,
    sessions,
    terminate,
    transaction,
)


@pytest.fixture(autouse=True)
def shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pgnotify_gql")


def standby(database: Database, recorder: Recorder, timing: Timing = RARELY) -> Listener:
    return Listener(opener(database.conninfo, 0, "test standby"), recorder, timing=timing)


async def tried(connection: Connection, *, direct: bool = True, lease: float = 60) -> tuple[int, Snapshot] | None:
    return await try_to_lead(connection, direct=direct, lease=lease)


async def test_one_session_at_a_time_leads(database: Database) -> None:
    async with opened(database.conninfo) as one, opened(database.conninfo) as two:
        assert await tried(one)
        assert not await tried(two)
        await one.close()
        await eventually(lambda: not lock_holders(database, names.LEADER_LOCK))
        assert await tried(two)


async def test_each_term_has_a_later_epoch_and_the_cursor_stored_last(database: Database) -> None:
    async with opened(database.conninfo) as connection:
        first, _ = await begin_epoch(connection)
        cursor = Snapshot(5, 9, (5, 7))
        await store_relayed(connection, first, cursor)
        second, stored = await begin_epoch(connection)
        assert second > first
        assert stored == cursor


async def test_a_leader_with_a_lease_is_followed_when_it_resigns_or_its_lease_has_run_out(database: Database) -> None:
    async with opened(database.conninfo) as one, opened(database.conninfo) as two:
        led = await tried(one, direct=False)
        assert led is not None
        assert await tried(two, direct=False) is None
        await resign(one, led[0])
        assert await tried(two, direct=False) is not None
        assert await tried(one, direct=False) is None
        assert await tried(one, direct=False, lease=0) is not None


async def test_a_leader_that_has_been_followed_resigns_for_nobody(database: Database) -> None:
    async with opened(database.conninfo) as one, opened(database.conninfo) as two:
        old = await tried(one, direct=False)
        assert old is not None
        assert await tried(two, direct=False, lease=0) is not None
        await resign(one, old[0])
        assert await tried(one, direct=False) is None


async def test_a_leader_frozen_between_reading_and_relaying_relays_nothing(
    database_triggers: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen: list[Batch] = []

    async def freezing(connection: Connection, cursor: Snapshot, **options: Any) -> AsyncGenerator[Batch, None]:
        async for batch in read_new(connection, cursor, **options):
            if batch.rows and not frozen:
                frozen.append(batch)
                time.sleep(1)  # noqa: ASYNC251  (the whole process stands still)
            yield batch

    monkeypatch.setattr(term_module, "read_new", freezing)
    recorder = Recorder()
    timing = Timing(session_timeout=0.4)
    listener = Listener(opener(database_triggers.conninfo, 0.4, "test leader"), recorder, timing=timing)
    async with running(listener):
        await recorder.until(lambda: recorder.led(1))
        Room(database_triggers).say("hello")
        await recorder.has("hello")
    assert frozen
    assert recorder.texts == ["hello"]
    assert recorder.led(2)
    assert [batch.rows for batch in recorder.batches if batch is frozen[0]] == []


async def test_a_leader_of_an_older_epoch_stores_nothing_and_is_told(database: Database) -> None:
    async with opened(database.conninfo) as old, opened(database.conninfo) as new:
        old_epoch, _ = await begin_epoch(old)
        new_epoch, _ = await begin_epoch(new)
        await store_relayed(new, new_epoch, Snapshot(20, 20))
        with pytest.raises(LeadershipLostError, match=f"epoch {old_epoch} is over"):
            await store_relayed(old, old_epoch, Snapshot(10, 10))
        _, cursor = await begin_epoch(new)
    assert cursor == Snapshot(20, 20)


async def test_a_standby_takes_over_when_the_leader_stops_and_goes_on_from_its_cursor(
    database_triggers: Database,
) -> None:
    room, first, second = Room(database_triggers), Recorder(), Recorder()
    other = standby(database_triggers, second)
    async with leading(database_triggers, first) as leader, running(other):
        await eventually(lambda: sessions(database_triggers, "test standby"))
        room.say("one")
        await first.has("one")
        leader.stop()
        async with asyncio.timeout(EVENT_TIMEOUT):
            await other.leading.wait()
        room.say("two")
        await second.has("two")
    assert first.texts == ["one"]
    assert second.texts == ["two"]


async def test_a_standby_leads_within_a_second_when_the_session_of_the_leader_ends(
    database_triggers: Database, caplog: pytest.LogCaptureFixture
) -> None:
    room, first, second = Room(database_triggers), Recorder(), Recorder()
    other = standby(database_triggers, second)

    class Slow(Listener):
        async def _pause(self, seconds: float) -> None:
            """Come back late, so that the standby is first."""
            await second.until(lambda: bool(second.epochs))
            await super()._pause(seconds)

    leader = Slow(opener(database_triggers.conninfo, 0, "test leader"), first, timing=RARELY)
    async with running(leader):
        async with asyncio.timeout(EVENT_TIMEOUT):
            await leader.leading.wait()
        async with running(other):
            await eventually(lambda: "standing by" in caplog.text)
            room.say("one")
            await first.has("one")
            terminate(database_triggers, "test leader")
            clock = asyncio.get_running_loop().time
            ended = clock()
            await second.until(lambda: bool(second.epochs))
            assert clock() - ended < 1
            room.say("two")
            await second.has("two")
            await eventually(lambda: caplog.text.count("standing by") == 2)
    assert "two" not in first.texts


async def test_of_many_listeners_one_leads(database_triggers: Database) -> None:
    recorders = [Recorder() for _ in range(5)]
    listeners = [standby(database_triggers, recorder) for recorder in recorders]
    tasks = [asyncio.create_task(listener.run()) for listener in listeners]
    await eventually(lambda: any(listener.leading.is_set() for listener in listeners))
    Room(database_triggers).say("once")
    await eventually(lambda: any(recorder.texts for recorder in recorders))
    for listener in listeners:
        if not listener.leading.is_set():
            listener.stop()
    await eventually(lambda: sum(not task.done() for task in tasks) == 1)
    for listener in listeners:
        listener.stop()
    await asyncio.gather(*tasks)
    assert sorted(text for recorder in recorders for text in recorder.texts) == ["once"]
    assert sum(bool(recorder.epochs) for recorder in recorders) == 1


async def test_a_leader_that_was_replaced_gives_way(
    database_triggers: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Its lock was lost without its knowing, as behind a pooler: the epoch tells it when it stores its cursor."""
    room, first = Room(database_triggers), Recorder()
    async with leading(database_triggers, first), opened(database_triggers.conninfo) as usurper:
        await first.until(lambda: len(first.heartbeats) >= 2)
        epoch, _ = await begin_epoch(usurper)
        room.say("one")
        await eventually(
            lambda: f"lost the leadership of database default: epoch {first.epochs[0]} is over" in caplog.text
        )
        await first.until(lambda: len(first.epochs) == 2)
        assert first.epochs[1] > epoch


async def test_a_standby_does_not_hold_back_vacuum(database_triggers: Database) -> None:
    async with leading(database_triggers, Recorder()), running(standby(database_triggers, Recorder())):
        await eventually(lambda: sessions(database_triggers, "test standby"))
        with database_triggers.server.connect() as admin:
            for _ in range(50):
                found = admin.execute(
                    "select state, backend_xmin, xact_start from pg_stat_activity"
                    " where application_name = 'test standby' and state = 'idle'"
                ).fetchall()
                assert all((xmin, started) == (None, None) for _, xmin, started in found)
                await asyncio.sleep(0.01)
            waiting = admin.execute("select count(*) from pg_locks where not granted and locktype = 'advisory'")
            assert waiting.fetchone() == (0,)


async def test_a_standby_does_not_keep_bells_it_has_no_use_for(
    database_triggers: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It listens for weeks; psycopg keeps every bell until somebody takes it."""
    tried = Notebook()
    tries = []

    async def trying(connection: Connection, **options: Any) -> tuple[int, Snapshot] | None:
        led = await try_to_lead(connection, **options)
        if led is None:
            tries.append(len(connection._notifies_backlog or ()))
            tried.noted()
        return led

    monkeypatch.setattr(listener_module, "try_to_lead", trying)
    room = Room(database_triggers)
    # A leader that polls silences nobody: every writer rings.
    async with leading(database_triggers, Recorder(), polls=True), running(standby(database_triggers, Recorder())):
        await tried.until(lambda: bool(tries))
        for number in range(200):
            room.say(str(number))
        before = len(tries)
        await tried.until(lambda: len(tries) > before + 1 and tries[-1] == 0)


async def test_a_standby_can_be_stopped(database_triggers: Database) -> None:
    async with leading(database_triggers, Recorder()):
        other = standby(database_triggers, Recorder())
        async with running(other):
            await eventually(lambda: sessions(database_triggers, "test standby"))
        assert not other.leading.is_set()
        assert len(lock_holders(database_triggers, names.LEADER_LOCK)) == 1


async def test_nothing_is_handed_to_the_sink_between_two_terms(database_triggers: Database) -> None:
    class Strict(Recorder):
        async def relay(self, batch: Batch) -> None:
            assert leader.leading.is_set()
            await super().relay(batch)

    room, recorder = Room(database_triggers), Strict()
    async with leading(database_triggers, recorder) as leader:
        for number in range(3):
            room.say(f"message {number}")
            await recorder.has(f"message {number}")
            terminate(database_triggers, "test leader")
            await recorder.until(partial(recorder.led, number + 2))


# A leader that holds the lock and does nothing.


@pytest.fixture
def watchful(monkeypatch: pytest.MonkeyPatch) -> None:
    """A standby looks whenever it is asked to."""
    monkeypatch.setattr(leadership, "LOOK_INTERVAL", 0)


STORED = "update pgnotify_gql.journal_state set relayed_at = clock_timestamp() - make_interval(secs => %s)"


TIMEOUT = 0.3
"""Seconds of a guard that is tested; it suspects a leader after two thirds of them."""


@pytest.mark.usefixtures("watchful")
async def test_a_leader_that_stores_nothing_is_ended_at_the_second_look(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    guard = Guard(TIMEOUT, "default")
    async with opened(database.conninfo) as leader, opened(database.conninfo) as other:
        assert await tried(leader)
        await other.execute(STORED, [11])
        await asyncio.sleep(TIMEOUT)
        await guard.look(other)
        assert lock_holders(database, names.LEADER_LOCK)
        await guard.look(other)
        await eventually(lambda: not lock_holders(database, names.LEADER_LOCK))
        with pytest.raises(psycopg.OperationalError):
            await leader.execute("select 1")
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert record.getMessage().endswith("has stored nothing for more than 0.2 s: its session was ended")


@pytest.mark.usefixtures("watchful")
async def test_a_leader_that_stores_is_left_alone(database: Database) -> None:
    guard = Guard(TIMEOUT, "default")
    async with opened(database.conninfo) as leader, opened(database.conninfo) as other:
        assert await tried(leader)
        await asyncio.sleep(TIMEOUT)
        for _ in range(3):
            await other.execute(STORED, [0])
            await guard.look(other)
        await leader.execute("select 1")


@pytest.mark.usefixtures("watchful")
async def test_a_leader_that_asks_the_database_is_left_alone(database: Database) -> None:
    """As one does that reads a backlog over its only connection, and stores nothing meanwhile."""
    guard = Guard(100 * TIMEOUT, "default")
    async with opened(database.conninfo) as leader, opened(database.conninfo) as other:
        assert await tried(leader)
        await other.execute(STORED, [3600])
        for _ in range(3):
            await leader.execute("select 1")
            await guard.look(other)
        await leader.execute("select 1")


@pytest.mark.usefixtures("watchful")
async def test_a_new_leader_is_not_taken_for_the_one_before_it(database: Database) -> None:
    """It may have the lock, and not yet have stored anything: the time is that of the last one."""
    guard = Guard(TIMEOUT, "default")
    async with opened(database.conninfo) as other:
        for _ in range(3):
            async with opened(database.conninfo) as leader:
                assert await tried(leader)
                await other.execute(STORED, [3600])
                await asyncio.sleep(TIMEOUT)
                await guard.look(other)
                await leader.execute("select 1")
            await eventually(lambda: not lock_holders(database, names.LEADER_LOCK))


async def test_a_term_begins_with_a_stored_time(database: Database) -> None:
    async with opened(database.conninfo) as leader:
        await leader.execute(STORED, [3600])
        assert await tried(leader)
        result = await leader.execute("select clock_timestamp() - relayed_at from pgnotify_gql.journal_state")
        ((age,),) = await result.fetchall()
    assert age.total_seconds() < 60


@pytest.mark.usefixtures("watchful")
async def test_a_standby_that_may_not_end_the_leader_says_who_has_to(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    guard = Guard(15, "default")
    with database.server.connect() as admin:
        admin.execute("drop role if exists stranger")
        admin.execute("create role stranger login")
    with database.connect() as owner:
        owner.execute("grant usage on schema pgnotify_gql to stranger")
        owner.execute("grant select on pgnotify_gql.journal_state to stranger")
    try:
        async with (
            opened(database.conninfo) as leader,
            opened(psycopg.conninfo.make_conninfo(database.conninfo, user="stranger")) as other,
        ):
            assert await tried(leader)
            await leader.execute(STORED, [11])
            for _ in range(4):
                await guard.look(other)
            await leader.execute("select 1")
    finally:
        with database.connect() as owner:
            owner.execute("drop owned by stranger")
            owner.execute("drop role stranger")
    (message,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert "may not be ended by this standby" in message
    assert "call pg_terminate_backend(), and let all listeners connect as one role" in message


@pytest.mark.usefixtures("watchful")
async def test_a_leader_whose_statement_takes_long_is_left_alone(database: Database) -> None:
    """As the first one in a database that was restored, which removes all that the journal held."""
    guard = Guard(TIMEOUT, "default")
    async with opened(database.conninfo) as leader, opened(database.conninfo) as other:
        assert await tried(leader)
        await other.execute(STORED, [3600])
        with database.connect() as holder:
            holder.execute("select pg_advisory_lock(1)")
            working = asyncio.create_task(leader.execute("select pg_advisory_lock(1)"))
            await eventually(lambda: waits_for_a_lock(holder, leader.info.backend_pid))
            await asyncio.sleep(TIMEOUT)
            for _ in range(3):
                await guard.look(other)
        await working


def waits_for_a_lock(admin: psycopg.Connection, pid: int) -> bool:
    ((waits,),) = admin.execute("select wait_event_type = 'Lock' from pg_stat_activity where pid = %s", [pid])
    return bool(waits)


# A server that hangs, and what a leader leaves behind.


async def test_a_server_that_no_longer_answers_is_given_up_and_stopping_is_obeyed(
    database_triggers: Database, caplog: pytest.LogCaptureFixture
) -> None:
    timing = Timing(session_timeout=1.0)
    listener = Listener(opener(database_triggers.conninfo, 1.0, "test leader"), Recorder(), timing=timing)
    backend = 0
    try:
        async with running(listener):
            async with asyncio.timeout(EVENT_TIMEOUT):
                await listener.leading.wait()
            # Not every session of it: the one that its own bell came from may be ending.
            await eventually(lambda: lock_holders(database_triggers, names.LEADER_LOCK))
            (backend,) = lock_holders(database_triggers, names.LEADER_LOCK)
            os.kill(backend, signal.SIGSTOP)
            await eventually(lambda: "the server has not answered for 1 s" in caplog.text)
            await eventually(lambda: "lost the database default" in caplog.text)
            # It tries again, over another connection; the lock is still with the frozen one.
            await eventually(lambda: len(sessions(database_triggers, "test leader")) > 1)
    finally:
        os.kill(backend, signal.SIGCONT)


async def test_a_new_leader_ends_the_session_in_which_an_earlier_one_reads_a_backlog(
    database_triggers: Database,
) -> None:
    async with opened(database_triggers.conninfo) as left_over:
        await mark_backlog(left_over)
        async with leading(database_triggers, Recorder()):
            with pytest.raises(psycopg.OperationalError):
                await left_over.execute("select 1")


async def test_the_backlog_of_a_leader_is_read_in_a_session_that_the_next_one_would_end(
    database_triggers: Database,
) -> None:
    room, recorder = Room(database_triggers), Recorder()
    marked: list[int] = []

    class Looking(Recorder):
        async def relay(self, batch: Batch) -> None:
            marked.extend(lock_holders(database_triggers, names.BACKLOG_LOCK, "ShareLock"))
            await recorder.relay(batch)

    with transaction(database_triggers) as writer:
        for number in range(BATCH_ROWS + 1):
            room.say(str(number), connection=writer)
        writer.commit()
        async with leading(database_triggers, Looking()):
            await recorder.has(str(BATCH_ROWS))
            await eventually(lambda: len(sessions(database_triggers, "test leader")) == 1)
    assert marked


async def test_a_leader_that_may_not_end_sessions_says_so_and_leads_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Unprivileged:
        async def execute(self, *_: Any) -> None:
            raise InsufficientPrivilege("permission denied to terminate process")

    await end_left_over(cast(Connection, Unprivileged()))
    assert "a session of an earlier leader could not be ended: permission denied" in caplog.text
