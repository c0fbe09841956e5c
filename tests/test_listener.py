"""The listener: everything committed reaches the sink, in order, whatever happens to the connection."""

import asyncio
import logging
import random
from functools import partial
from typing import cast

import psycopg
import pytest

from pgnotify_gql import names
from pgnotify_gql.errors import JournalMissingError
from pgnotify_gql.journal.reader import BATCH_ROWS, PART_ROWS, Batch, Connection
from pgnotify_gql.listener import Listener, Timing, connect
from pgnotify_gql.listener import term as term_module
from pgnotify_gql.listener.doorbell import Doorbell
from tests.support.databases import Database
from tests.support.feed import (
    EVENT_TIMEOUT,
    MESSAGE,
    NEVER,
    RARELY,
    Bells,
    Recorder,
    Room,
    eventually,
    leading,
    lock_holders,
    opener,
    running,
    terminate,
    transaction,
)
from tests.support.postgres import StopMode

FULL = "sorry, too many clients already"


@pytest.fixture(autouse=True)
def shown(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.INFO, "pgnotify_gql")
    # One that stays awake for longer, on a busy machine, does not send heartbeats either.
    monkeypatch.setattr(term_module, "HEARTBEAT_INTERVAL", NEVER)


async def test_what_is_committed_is_relayed_in_the_order_of_the_journal(database_triggers: Database) -> None:
    room, recorder = Room(database_triggers), Recorder()
    async with leading(database_triggers, recorder):
        for number in range(50):
            room.say(f"first {number}", f"second {number}")
        await recorder.has("second 49")
    assert recorder.texts == [f"{place} {number}" for number in range(50) for place in ("first", "second")]
    assert [row.id for row in recorder.rows] == sorted(row.id for row in recorder.rows)


async def test_a_change_of_a_sleeping_listener_is_relayed_without_the_safety_poll(
    database_triggers: Database,
) -> None:
    room, recorder = Room(database_triggers), Recorder()
    async with leading(database_triggers, recorder):
        # One heartbeat at the beginning, one before it sleeps.
        await recorder.until(lambda: len(recorder.heartbeats) >= 2)
        assert lock_holders(database_triggers, names.AWAKE_LOCK) == []
        room.say("ring")
        await recorder.has("ring", timeout=RARELY.safety_poll / 3)


async def test_writers_ring_one_by_one_until_bells_follow_each_other_and_are_silent_from_then_on(
    database_triggers: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    room, recorder = Room(database_triggers), Recorder()
    async with leading(database_triggers, recorder):
        bells = Bells(database_triggers)
        await recorder.until(lambda: len(recorder.heartbeats) >= 2)
        monkeypatch.setattr(term_module, "LINGER", 3600.0)
        monkeypatch.setattr(term_module, "TOGETHER", 3600.0)
        room.say("rings")
        await recorder.has("rings")
        assert lock_holders(database_triggers, names.AWAKE_LOCK) == []
        assert bells.rung() == 1
        room.say("rings too")
        await eventually(lambda: lock_holders(database_triggers, names.AWAKE_LOCK))
        assert bells.rung() == 1
        for number in range(20):
            room.say(f"silent {number}")
        assert bells.rung() == 0
        await recorder.has("silent 19")


def _beats_beyond(recorder: Recorder, count: int) -> bool:
    return len(recorder.heartbeats) > count


async def test_a_change_now_and_then_is_relayed_and_stored_by_a_leader_that_never_wakes_up(
    database_triggers: Database,
) -> None:
    room, recorder, session = Room(database_triggers), Recorder(), database_triggers.connect()
    async with leading(database_triggers, recorder):
        await recorder.until(lambda: len(recorder.heartbeats) >= 2)
        for number in range(3):
            told = partial(_beats_beyond, recorder, len(recorder.heartbeats))
            room.say(f"change {number}")
            # One heartbeat behind each: the message before it may have been lost.
            await recorder.until(told)
            assert recorder.texts[-1] == f"change {number}"
            assert lock_holders(database_triggers, names.AWAKE_LOCK) == []
            stored = session.execute("select relayed::text from pgnotify_gql.journal_state").fetchone()
            assert stored == (str(recorder.heartbeats[-1]),)


async def test_changes_of_an_open_transaction_are_relayed_when_it_commits_and_hold_up_nobody(
    database_triggers: Database,
) -> None:
    room, recorder = Room(database_triggers), Recorder()
    async with leading(database_triggers, recorder):
        with transaction(database_triggers) as slow:
            room.say("slow", connection=slow)
            room.say("fast", "faster")
            await recorder.has("fast", "faster")
            assert "slow" not in recorder.texts
            slow.commit()
            await recorder.has("slow")
    assert sorted(recorder.texts) == ["fast", "faster", "slow"]


async def test_what_was_committed_while_no_listener_ran_arrives_when_one_starts(
    database_triggers: Database,
) -> None:
    room, recorder = Room(database_triggers), Recorder()
    room.say("one", "two", "three")
    async with leading(database_triggers, recorder):
        await recorder.has("three")
    assert recorder.texts == ["one", "two", "three"]


async def test_a_large_backlog_is_relayed_in_parts_with_one_cursor_at_the_end(database_triggers: Database) -> None:
    room, recorder = Room(database_triggers), Recorder()
    count = 6 * BATCH_ROWS + 7
    texts = [f"message {number}" for number in range(count)]
    with transaction(database_triggers) as writer:
        room.say(*texts, connection=writer)
        writer.commit()
    async with leading(database_triggers, recorder):
        await recorder.has(texts[-1])
        room.say("afterwards")
        await recorder.has("afterwards")
    assert recorder.texts == [*texts, "afterwards"]
    parts = [batch for batch in recorder.batches if batch.rows]
    assert [len(batch.rows) for batch in parts[:2]] == [BATCH_ROWS, PART_ROWS * BATCH_ROWS]
    assert [batch.last for batch in parts[:3]] == [False] * 3
    assert len({batch.after for batch in parts[:3]}) == 1


async def test_a_listener_starts_where_the_one_before_it_stopped(database_triggers: Database) -> None:
    room, first, second = Room(database_triggers), Recorder(), Recorder()
    async with leading(database_triggers, first):
        room.say("one", "two")
        await first.has("one", "two")
    room.say("between")
    async with leading(database_triggers, second):
        room.say("three")
        await second.has("between", "three")
    assert first.texts == ["one", "two"]
    assert second.texts == ["between", "three"]
    assert second.epochs[0] > first.epochs[0]


async def test_the_first_cursor_a_term_tells_is_the_stored_one(database_triggers: Database) -> None:
    first, second = Recorder(), Recorder()
    async with leading(database_triggers, first):
        Room(database_triggers).say("one")
        await first.has("one")
    stored = database_triggers.connect().execute("select relayed::text from pgnotify_gql.journal_state").fetchone()
    async with leading(database_triggers, second):
        await second.until(lambda: bool(second.heartbeats))
    assert stored == (str(second.heartbeats[0]),)


async def test_a_listener_that_is_stopped_hands_over_what_was_committed_before(database_triggers: Database) -> None:
    room, recorder = Room(database_triggers), Recorder()
    async with leading(database_triggers, recorder) as listener:
        await recorder.until(lambda: len(recorder.heartbeats) >= 2)
        room.say("last")
        listener.stop()
    async with leading(database_triggers, Recorder()) as listener:
        assert listener.leading.is_set()
    await eventually(lambda: not lock_holders(database_triggers, names.LEADER_LOCK))


async def test_a_listener_that_is_stopped_in_a_backlog_ends_after_the_batch_it_is_at(
    database_triggers: Database,
) -> None:
    class Stopping(Recorder):
        async def relay(self, batch: Batch) -> None:
            await super().relay(batch)
            listener.stop()

    room, recorder, rest = Room(database_triggers), Stopping(), Recorder()
    texts = [f"message {number}" for number in range(3 * BATCH_ROWS)]
    with transaction(database_triggers) as writer:
        room.say(*texts, connection=writer)
        writer.commit()
    listener = Listener(opener(database_triggers.conninfo), recorder, timing=RARELY)
    async with asyncio.timeout(EVENT_TIMEOUT):
        await listener.run()
    assert len(recorder.batches) == 1
    # It had not got to the end of what its cursor would say: the next one begins again.
    async with leading(database_triggers, rest):
        await rest.has(texts[-1])
    assert rest.texts == texts


async def test_a_listener_can_be_stopped_before_it_has_found_a_database() -> None:
    listener = Listener(opener("postgresql://nobody@127.0.0.1:1/nothing"), Recorder())
    task = asyncio.create_task(listener.run())
    await asyncio.sleep(0)
    listener.stop()
    async with asyncio.timeout(EVENT_TIMEOUT):
        await task
    assert not listener.leading.is_set()


async def test_a_listener_that_was_cancelled_leaves_no_session_behind(database_triggers: Database) -> None:
    room = Room(database_triggers)
    entered = asyncio.Event()

    class Stuck(Recorder):
        async def relay(self, batch: Batch) -> None:
            entered.set()
            await asyncio.sleep(3600)

    room.say(*(f"message {number}" for number in range(BATCH_ROWS + 1)))
    listener = Listener(opener(database_triggers.conninfo, 0, "cancelled"), Stuck(), timing=RARELY)
    task = asyncio.create_task(listener.run())
    async with asyncio.timeout(EVENT_TIMEOUT):
        await entered.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    await eventually(lambda: not lock_holders(database_triggers, names.LEADER_LOCK))


async def test_its_backend_is_terminated_in_the_middle_of_a_burst_and_all_arrives_in_order(
    database_triggers: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """To a sink it may come twice, under a new epoch: hubs drop what they have."""
    room, recorder, chance = Room(database_triggers), Recorder(), random.Random(1)
    keys = room.say(*(f"{number}: 0" for number in range(5)))

    def burst(wave: int) -> None:
        for edit in range(200):
            room.edit(keys[chance.randrange(5)], f"edit {wave}-{edit}")

    async with leading(database_triggers, recorder):
        for wave in range(3):
            writing = asyncio.create_task(asyncio.to_thread(burst, wave))
            await recorder.has(f"edit {wave}-20")
            terminate(database_triggers, "test leader")
            await writing
            await recorder.has(f"edit {wave}-199")
    assert {f"edit {wave}-{edit}" for wave in range(3) for edit in range(200)} <= set(recorder.texts)
    assert len(set(recorder.epochs)) == 4
    assert recorder.epochs == sorted(recorder.epochs)
    assert caplog.text.count("lost the database") >= 3
    # Seen for the first time in the order of the journal; what comes again is the end of the term before.
    ids = [row.id for row in recorder.rows]
    assert list(dict.fromkeys(ids)) == sorted(set(ids))


async def test_a_sleeping_listener_notices_that_its_backend_was_terminated(database_triggers: Database) -> None:
    room, recorder = Room(database_triggers), Recorder()
    async with leading(database_triggers, recorder):
        await recorder.until(lambda: len(recorder.heartbeats) >= 2)
        terminate(database_triggers, "test leader")
        room.say("while it was away")
        await recorder.has("while it was away")
    first, second = recorder.epochs
    assert first < second


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_the_server_is_restarted_and_the_listener_goes_on(
    database_triggers: Database, caplog: pytest.LogCaptureFixture, mode: StopMode
) -> None:
    room, recorder = Room(database_triggers), Recorder()
    dsn = database_triggers.tcp_conninfo
    async with leading(database_triggers, recorder, dsn=dsn):
        room.say("before")
        await recorder.has("before")
        await asyncio.to_thread(database_triggers.server.restart, mode)
        again = database_triggers.connect()
        room.say("after", connection=again)
        await recorder.has("after")
    assert "lost the database" in caplog.text


async def test_a_database_that_is_down_at_start_is_waited_for(
    database_triggers: Database, caplog: pytest.LogCaptureFixture
) -> None:
    room, recorder = Room(database_triggers), Recorder()
    room.say("kept")
    await asyncio.to_thread(database_triggers.server.stop)
    listener = Listener(opener(database_triggers.tcp_conninfo), recorder, timing=RARELY)
    async with running(listener):
        await eventually(lambda: "database default cannot be used" in caplog.text)
        assert "trying again in" in caplog.text
        await asyncio.to_thread(database_triggers.server.start)
        await recorder.has("kept")


async def test_a_missing_journal_ends_the_listener_with_what_to_do(empty_database: Database) -> None:
    listener = Listener(opener(empty_database.conninfo), Recorder(), database="default")
    with pytest.raises(JournalMissingError, match=r"manage\.py migrate pgnotify_gql --database default"):
        await listener.run()


async def test_a_journal_that_is_dropped_ends_the_listener_with_what_to_do(database_triggers: Database) -> None:
    recorder = Recorder()
    listener = Listener(opener(database_triggers.conninfo), recorder, timing=Timing(safety_poll=0.2))
    task = asyncio.create_task(listener.run())
    await recorder.until(lambda: bool(recorder.heartbeats))
    database_triggers.connect().execute("drop schema pgnotify_gql cascade")
    with pytest.raises(JournalMissingError, match="has no journal"):
        async with asyncio.timeout(EVENT_TIMEOUT):
            await task


async def test_a_malformed_connection_string_ends_the_listener() -> None:
    with pytest.raises(psycopg.ProgrammingError):
        await Listener(opener("hots=example"), Recorder()).run()


async def test_a_listener_that_polls_relays_without_a_bell_and_silences_nobody(database_triggers: Database) -> None:
    room, recorder = Room(database_triggers), Recorder()
    timing = Timing(safety_poll=60, poll_interval=0.01, session_timeout=600)
    async with leading(database_triggers, recorder, timing=timing, polls=True):
        for number in range(20):
            room.say(f"message {number}")
            await recorder.has(f"message {number}")
            assert lock_holders(database_triggers, names.AWAKE_LOCK) == []


async def test_an_idle_listener_does_not_fill_the_write_ahead_log(database_triggers: Database) -> None:
    """It stores its cursor when it goes to sleep, and when it looks by itself; not every few milliseconds."""
    recorder = Recorder()
    stores = database_triggers.connect()
    count = "select n_tup_upd from pg_stat_user_tables where relname = 'journal_state'"
    async with leading(database_triggers, recorder):
        await recorder.until(lambda: len(recorder.heartbeats) >= 2)
    found = stores.execute(count).fetchone()
    assert found is not None
    assert found[0] <= 5


async def test_the_application_name_tells_who_it_is(database_triggers: Database) -> None:
    connection: Connection = await connect(database_triggers.conninfo, session_timeout=0)
    try:
        found = await (await connection.execute("show application_name")).fetchone()
        assert found == ("pgnotify_gql listener",)
    finally:
        await connection.close()


async def test_a_label_nobody_watches_any_more_is_handed_on_like_others(database_triggers: Database) -> None:
    recorder = Recorder()
    database_triggers.connect().execute(
        "insert into pgnotify_gql.journal (label, kind, rows) values ('gone.model', 'INSERT', '[[[1]]]')"
    )
    async with leading(database_triggers, recorder):
        await recorder.until(lambda: [row.label for row in recorder.rows] == ["gone.model"])
        Room(database_triggers).say("one")
        await recorder.has("one")
        await recorder.until(partial(labels_include, recorder))


def labels_include(recorder: Recorder) -> bool:
    return MESSAGE in {row.label for row in recorder.rows}


async def test_a_database_that_cannot_be_written_is_waited_for(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """A replica, say: it answers, and no leader can begin a term there."""
    read_only = f"{database.conninfo} options='-c default_transaction_read_only=on'"
    listener = Listener(opener(read_only, 0, "test listener"), Recorder(), timing=RARELY)
    async with running(listener):
        await eventually(lambda: "database default cannot be used" in caplog.text)
        assert "read-only transaction" in caplog.text
        assert not listener.leading.is_set()


async def test_whether_a_bell_comes_through_a_pooler_is_not_believed_untried_where_no_second_connection_is_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def refuse() -> Connection:
        raise psycopg.OperationalError(FULL)

    listener, doorbell = Listener(refuse, Recorder()), cast(Doorbell, None)
    assert await listener._hears(doorbell, direct=True)
    assert FULL in caplog.text
    with pytest.raises(psycopg.OperationalError, match=FULL):
        await listener._hears(doorbell, direct=False)
