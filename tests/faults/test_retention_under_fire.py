"""
The journal while writers go on: slots that are emptied in turn, backlogs, and transactions that stay open.

A backlog is slowed down on its way to the channel layer, so that it takes longer than a session may be silent.
"""

from __future__ import annotations

import asyncio
import logging
import re
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from datetime import datetime, timedelta
from functools import partial
from io import StringIO
from typing import Any, LiteralString

import psycopg
import pytest
from channels.layers import InMemoryChannelLayer
from channels_redis.core import RedisChannelLayer
from django.core.management import call_command
from django.test import override_settings

from pgnotify_gql.journal import Snapshot
from pgnotify_gql.journal.reader import BATCH_ROWS, PART_ROWS, Batch, Connection, current_snapshot, read_new
from pgnotify_gql.journal.state import Era, begin_epoch
from pgnotify_gql.listener import Listener, Timing
from pgnotify_gql.relay import Relay
from pgnotify_gql.relay.messages import CHANGES
from tests.faults.cluster import Witness, quiet_hub, unprivileged
from tests.faults.load import Load
from tests.support.databases import Database
from tests.support.feed import (
    Notebook,
    Recorder,
    Room,
    eventually,
    leading,
    opened,
    opener,
    running,
    sessions,
    transaction,
)
from tests.support.operations import Subscriber
from tests.support.processes import Process, RedisServer
from tests.support.receivers import receiving

RETENTION = 0.5
"""Seconds. Nothing is younger when it is emptied; slots are emptied some twice a second."""

SESSION_TIMEOUT = 6.0
"""Seconds after which a silent session ends, and a standby suspects its leader."""

PATIENCE = 40.0
"""Seconds for what takes some of them even if nobody else uses the machine."""

MOVED = r"the journal of database default is written in slot (\d)"
EMPTIED = r"slot (\d) of the journal of database default emptied"
IN_USE = r"slot (\d) of the journal of database default is in use"
ALONE = "no second connection to database default for a backlog"
ENDED = "its session was ended"

LEADER = "test leader"

TURNS = 3
"""How often each slot is emptied at least."""

WRITE = """
    do $$ begin
        for number in 1..{count} loop
            insert into conversations_message (conversation_id, author_id, text)
            values ({conversation}, {author}, '{prefix}' || number);
        end loop;
    end $$
"""


class Brisk(Timing):
    """Looks at the slots many times within the retention."""

    @property
    def rotation_interval(self) -> float:
        return 0.05


BRISK = Brisk(safety_poll=0.2, session_timeout=600.0, retention=RETENTION)

SHORT = Brisk(safety_poll=0.2, session_timeout=SESSION_TIMEOUT, retention=RETENTION)


@pytest.fixture
def room(database_triggers: Database) -> Room:
    return Room(database_triggers)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Said:
    """Give what the log says so far of what matches a regular expression: its groups, or all of it."""
    caplog.set_level(logging.INFO, "pgnotify_gql")
    return lambda pattern: re.findall(pattern, "\n".join(caplog.messages))


class Slowed(Notebook):
    """Hands on to another sink what it is handed, a batch of changes after a pause; counts the rows of each epoch."""

    def __init__(self, sink: Relay | Recorder, pause: float) -> None:
        super().__init__()
        self._sink = sink
        self.pause = pause
        self.relayed: dict[int, int] = {}
        self.beats = 0

    def __str__(self) -> str:
        return f"rows by epoch {self.relayed}, {self.beats} heartbeats"

    @property
    def epochs(self) -> list[int]:
        return list(self.relayed)

    def begin(self, epoch: int, era: Era) -> None:
        self.relayed[epoch] = 0
        self._sink.begin(epoch, era)
        self.noted()

    async def relay(self, batch: Batch) -> None:
        self.relayed[self.epochs[-1]] += len(batch.rows)
        self.noted()
        await asyncio.sleep(self.pause)
        await self._sink.relay(batch)

    async def heartbeat(self, cursor: Snapshot) -> None:
        self.beats += 1
        await self._sink.heartbeat(cursor)


Said = Callable[[str], list[str]]

Connect = Callable[[], Awaitable[Connection]]


class Observer:
    """
    Looks at the journal again and again, and knows what has vanished from it.

    It asks what is relayed, and what time it is, after it has seen that a row is gone: it is fair to the leader.
    """

    def __init__(self, connection: Connection, retention: float) -> None:
        self._connection = connection
        self._retention = timedelta(seconds=retention)
        self._known: dict[int, tuple[int, datetime]] = {}
        self.vanished: set[int] = set()
        self.too_early: list[str] = []
        self.rows = self.most_rows = self.size = self.largest = 0
        self.stored: set[datetime] = set()
        """When the leader has stored its cursor."""

    async def look(self) -> None:
        rows = {number: (xid, at) for number, xid, at in await self._fetch(ROWS)}
        ((relayed, stored, now, self.size),) = await self._fetch(STATE)
        for number in self._known.keys() - rows.keys():
            xid, at = self._known[number]
            self.vanished.add(number)
            if not Snapshot.parse(relayed).sees(xid):
                self.too_early.append(f"row {number} was not relayed")
            if now - at < self._retention:
                self.too_early.append(f"row {number} was {now - at} old")
        self._known, self.rows = rows, len(rows)
        self.most_rows, self.largest = max(self.most_rows, self.rows), max(self.largest, self.size)
        self.stored |= {stored} - {None}

    async def _fetch(self, statement: LiteralString) -> list[tuple[Any, ...]]:
        result = await self._connection.execute(statement)
        return await result.fetchall()


ROWS: LiteralString = "select id, xid::text::bigint, at from pgnotify_gql.journal"

STATE: LiteralString = """
    select relayed::text, nullif(relayed_at, '-infinity'), clock_timestamp(),
           (select sum(pg_total_relation_size('pgnotify_gql.journal_' || slot))::bigint from generate_series(0, 2) slot)
    from pgnotify_gql.journal_state
"""


@asynccontextmanager
async def observing(database: Database, interval: float = 0.02) -> AsyncIterator[Observer]:
    """An observer that has looked once already, and looks once more at the end; none of it may have been too early."""
    async with opened(database.conninfo) as connection:
        observer = Observer(connection, RETENTION)
        await observer.look()
        stopping = asyncio.Event()

        async def look_on() -> None:
            while not stopping.is_set():
                await asyncio.sleep(interval)
                await observer.look()

        looking = asyncio.create_task(look_on())
        try:
            yield observer
        finally:
            stopping.set()
            await looking
    assert observer.too_early == []


def write(room: Room, count: int, prefix: str = "") -> list[str]:
    """Write so many messages in one transaction, with a statement and a row of the journal each; return their texts."""
    room.connection.execute(
        WRITE.format(count=count, conversation=room.conversation, author=room.author, prefix=prefix)
    )
    return [f"{prefix}{number}" for number in range(1, count + 1)]


def row_count(room: Room) -> int:
    ((count,),) = room.connection.execute("select count(*) from pgnotify_gql.journal")
    return int(count)


@asynccontextmanager
async def subscribed(database: Database, layer: Any, dsn: str | None = None) -> AsyncIterator[Subscriber]:
    """Somebody who waits for messages, at a hub that does not look at the journal unless it missed something."""
    subscriber = Witness()
    async with quiet_hub(layer, dsn or database.conninfo) as hub:
        await hub.join(subscriber.operation)
        yield subscriber


def roomy_layer() -> InMemoryChannelLayer:
    """A layer that loses nothing: what it lost, a hub that is late could not read from so brief a journal."""
    return InMemoryChannelLayer(capacity=100_000)


# Slots in turn


async def test_slots_are_emptied_in_turn_while_changes_flow_and_nothing_is_lost(
    database_triggers: Database, room: Room, said: Said
) -> None:
    layer, load = roomy_layer(), Load(room, database_triggers.connect)
    async with (
        observing(database_triggers) as observer,
        subscribed(database_triggers, layer) as subscriber,
        leading(database_triggers, Relay(layer, send_timeout=60.0), timing=BRISK),
    ):
        nearly_empty = observer.size
        with load.running():
            await eventually(lambda: len(said(EMPTIED)) >= 3 * TURNS, PATIENCE)
        await subscriber.until(lambda: load.arrived(subscriber.received, room.connection))
        await eventually(lambda: observer.rows == 0)
        await eventually(lambda: observer.size <= nearly_empty)
    moves = [int(slot) for slot in said(MOVED)]
    assert moves == [(1 + number) % 3 for number in range(len(moves))]
    assert {int(slot) for slot in said(EMPTIED)} == {0, 1, 2}
    # Each time at most what was written while two or three slots were: after three turns a third of it all, at most.
    assert observer.most_rows < 0.6 * len(observer.vanished)
    load.check(subscriber.received, room.connection)
    assert subscriber.resyncs == []


@pytest.mark.parametrize("ending", ["committed", "prepared"])
async def test_a_transaction_that_stays_open_across_rotations_under_load_loses_nothing(
    database: Database, said: Said, ending: str
) -> None:
    """The slot that it has written into stays; the others go on to be emptied, until it is its turn again."""
    wake = "poll" if ending == "prepared" else "notify"
    with override_settings(PGNOTIFY_GQL={"WAKE": wake}):
        await asyncio.to_thread(call_command, "install_triggers", stdout=StringIO())
    room, layer = Room(database), roomy_layer()
    load, gid = Load(room, database.connect), f"pending {database.name}"
    async with (
        observing(database) as observer,
        subscribed(database, layer) as subscriber,
        leading(database, Relay(layer, send_timeout=60.0), timing=BRISK, polls=wake == "poll"),
    ):
        with load.running(), transaction(database) as slow:
            room.say("slow 1", connection=slow)
            await eventually(lambda: "1" in said(MOVED), PATIENCE)
            room.say("slow 2", connection=slow)
            if ending == "prepared":
                slow.execute(f"prepare transaction '{gid}'")
            await eventually(lambda: "0" in said(IN_USE) and "2" in said(MOVED), PATIENCE)
            emptied = len(said(EMPTIED))
            await eventually(load.grown_by(50), PATIENCE)
            assert "slow 1" not in subscriber.received
            if ending == "prepared":
                room.connection.execute(f"commit prepared '{gid}'")
            else:
                slow.commit()
            await subscriber.has("slow 1", "slow 2")
            await eventually(lambda: len(said(EMPTIED)) >= emptied + 3, PATIENCE)
        await subscriber.until(lambda: load.arrived(subscriber.received, room.connection))
        await eventually(lambda: observer.rows == 0)
    assert [text for text in subscriber.received if text.startswith("slow")] == ["slow 1", "slow 2"]
    load.check(subscriber.received, room.connection)
    assert subscriber.resyncs == []


# Backlogs


@asynccontextmanager
async def led(
    sink: Slowed, dsn: str, *, timing: Timing = SHORT, connect: Connect | None = None
) -> AsyncIterator[Listener]:
    """A leader whose sessions end when they are silent for too long."""
    listener = Listener(connect or opener(dsn, timing.session_timeout, LEADER), sink, timing=timing)
    async with running(listener):
        await sink.until(lambda: bool(sink.epochs))
        yield listener


BACKLOG = 15_000

SLOW = 1.5
"""Seconds for each part: a backlog takes eight, more than twice what a session may be silent."""


async def test_a_journal_that_has_grown_for_long_is_worked_off_by_one_leader_and_emptied_afterwards(
    database_triggers: Database, room: Room, said: Said
) -> None:
    layer = roomy_layer()
    sink, standby = Slowed(Relay(layer, send_timeout=60.0), SLOW), Recorder()
    async with observing(database_triggers, 0.1) as observer, subscribed(database_triggers, layer) as subscriber:
        nearly_empty = observer.size
        texts = [text for part in range(3) for text in write(room, BACKLOG // 3, f"part {part} number ")]
        for table in ("journal set at = at", "journal_state set rotated_at = rotated_at"):
            room.connection.execute(f"update pgnotify_gql.{table} - interval '1 day'")
        await observer.look()
        assert observer.rows == row_count(room) >= BACKLOG
        assert observer.stored == set()
        written = observer.rows
        async with led(sink, database_triggers.conninfo):
            first = asyncio.get_running_loop().time()
            connect = opener(database_triggers.conninfo, SESSION_TIMEOUT, "test standby")
            async with running(Listener(connect, standby, timing=SHORT)):
                await subscriber.has(texts[0])
                stored, beats = len(observer.stored), sink.beats
                room.say("meanwhile")
                await subscriber.until(lambda: texts[-1] in subscriber.received, PATIENCE)
                assert asyncio.get_running_loop().time() - first > 2 * SESSION_TIMEOUT
                assert len(observer.stored) - stored > 5
                assert sink.beats - beats > 5
                await subscriber.has("meanwhile")
                await eventually(lambda: observer.rows == 0)
                await eventually(lambda: observer.size <= nearly_empty)
    assert subscriber.received == [*texts, "meanwhile"]
    assert subscriber.resyncs == []
    assert len(sink.epochs) == 1, "one term for all of it"
    assert standby.epochs == []
    assert len(observer.vanished) == written + 1
    assert said(ENDED) == []


async def test_a_leader_that_was_replaced_in_the_middle_of_a_backlog_stops_and_says_so(
    database_triggers: Database, room: Room, said: Said
) -> None:
    recorder = Recorder()
    sink = Slowed(recorder, 0.5)
    texts = write(room, BACKLOG)
    async with led(sink, database_triggers.conninfo), opened(database_triggers.conninfo) as usurper:
        await sink.until(lambda: sink.relayed[sink.epochs[0]] > BATCH_ROWS)
        usurped, _ = await begin_epoch(usurper)
        relayed = sink.relayed[sink.epochs[0]]
        await sink.until(lambda: len(sink.epochs) == 2)
        old, new = sink.epochs
        assert said(r"lost the leadership of database default: epoch (\d+) is over") == [str(old)]
        # It looks after each batch, and stores its cursor ten times a second.
        assert sink.relayed[old] - relayed <= 4 * PART_ROWS * BATCH_ROWS
        assert sink.relayed[old] < BACKLOG
        assert old < usurped < new
        sink.pause = 0
        await recorder.until(lambda: recorder.texts[-BACKLOG:] == texts)
    assert sessions(database_triggers, LEADER) == []


async def test_a_backlog_whose_connection_is_lost_in_the_middle_is_begun_again_and_arrives_once(
    database_triggers: Database, room: Room, said: Said
) -> None:
    layer = roomy_layer()
    sink = Slowed(Relay(layer, send_timeout=60.0), 0.05)
    async with subscribed(database_triggers, layer) as subscriber:
        texts = write(room, BACKLOG)
        async with led(sink, database_triggers.conninfo):
            await sink.until(lambda: sink.relayed[sink.epochs[0]] > BATCH_ROWS)
            ended = room.connection.execute(
                "select pg_terminate_backend(pid, 10000) from pg_stat_activity"
                " where datname = current_database() and application_name = %s and backend_xmin is not null",
                [LEADER],
            ).fetchall()
            assert ended == [(True,)], "one session streams, the other asks nothing for long"
            await sink.until(lambda: len(sink.epochs) == 2)
            sink.pause = 0
            await subscriber.until(lambda: texts[-1] in subscriber.received, PATIENCE)
    assert subscriber.received == texts
    assert len(said("lost the database default .* connecting again")) == 1
    assert sessions(database_triggers, LEADER) == []


async def test_without_room_for_a_second_connection_a_backlog_is_read_over_the_first_and_said_once(
    database_triggers: Database, room: Room, said: Said
) -> None:
    role, recorder = f"leader_{database_triggers.name}", Recorder()
    dsn = unprivileged(database_triggers, role)
    try:
        # The leader's own, and one more, with which it looks at the start whether it can hear.
        room.connection.execute(f"alter role {role} connection limit 2")
        sink = Slowed(recorder, 0)
        async with led(sink, dsn, timing=BRISK):
            with taken(dsn) as place:
                texts = write(room, 3 * BATCH_ROWS, "alone ")
                await recorder.has(texts[-1])
                assert len(said(ALONE)) == 1
                texts += write(room, 3 * BATCH_ROWS, "alone again ")
                await recorder.has(texts[-1])
                assert len(said(ALONE)) == 1, "again after half a minute only"
                place.close()
            await eventually(lambda: len(sessions(database_triggers, LEADER)) == 1)
            texts += write(room, 3 * BATCH_ROWS, "aside ")
            await recorder.has(texts[-1])
            assert len(said(ALONE)) == 1
        assert recorder.texts == texts
        assert len(sink.epochs) == 1
    finally:
        terminate_role(room, role)


@contextmanager
def taken(dsn: str) -> Iterator[psycopg.Connection]:
    """Take a connection that somebody else has just given back; it may take the server a moment to notice."""
    for attempt in range(100):
        try:
            connection = psycopg.connect(dsn)
        except psycopg.OperationalError:
            assert attempt < 99
            time.sleep(0.05)
        else:
            break
    with connection:
        yield connection


def terminate_role(room: Room, role: str) -> None:
    room.connection.execute("select pg_terminate_backend(pid, 10000) from pg_stat_activity where usename = %s", [role])
    room.connection.execute(f"drop owned by {role}")
    room.connection.execute(f"drop role {role}")


@pytest.mark.postgres("18")
async def test_after_a_leader_was_killed_in_the_middle_of_a_backlog_the_next_one_brings_the_rest(
    database_triggers: Database, redis_server: RedisServer, run_listener: Callable[..., Process], room: Room
) -> None:
    layer, written = RedisChannelLayer(hosts=[redis_server.url], capacity=100_000), []
    start = partial(asyncio.to_thread, run_listener, database_triggers, redis_server)
    async with receiving(redis_server) as received, subscribed(database_triggers, layer) as subscriber:
        leader = await start()
        for attempt in range(10):
            standby = await start(banner="standing by")
            before = len(received.messages)
            written += await asyncio.to_thread(write, room, BACKLOG, f"{attempt}.")
            last = written[-1]
            await received.until(lambda: any(m["type"] == CHANGES for m in received.messages[before:]), PATIENCE)  # noqa: B023
            leader.send_signal(signal.SIGKILL)
            leader.wait()
            await subscriber.until(lambda: last in subscriber.received, PATIENCE)  # noqa: B023
            epochs = [m["epoch"] for m in received.messages[before:] if m["type"] == CHANGES]
            leader = standby
            if len(set(epochs)) == 2:
                break
        else:
            raise AssertionError("a leader was never killed in the middle of a backlog")
        assert epochs == sorted(epochs)
        room.say("afterwards")
        await subscriber.has("afterwards")
    assert subscriber.received == [*written, "afterwards"]
    assert subscriber.resyncs == []


# What a backlog must not do to its leader


@pytest.mark.postgres("18")
async def test_a_backlog_that_the_database_sorts_for_longer_than_a_session_may_be_silent_is_led_by_one(
    database_triggers: Database, room: Room, said: Said
) -> None:
    """A lock that the second connection waits for stands for the sorting of many millions of rows."""
    recorder = Recorder()
    sorted_once: list[bool] = []
    open_session = opener(database_triggers.conninfo, SESSION_TIMEOUT, LEADER)
    with transaction(database_triggers) as sorting:

        async def connect() -> Connection:
            connection = await open_session()
            if recorder.epochs and not sorted_once:
                sorted_once.append(True)
                sorting.execute("lock table pgnotify_gql.journal_2 in access exclusive mode")
            return connection

        sink = Slowed(recorder, 0)
        texts = write(room, 3 * BATCH_ROWS)
        # With the default retention: nothing but the backlog has to do with the slots.
        timing = Timing(safety_poll=0.2, session_timeout=SESSION_TIMEOUT)
        async with led(sink, database_triggers.conninfo, timing=timing, connect=connect):
            await eventually(lambda: len(sessions(database_triggers, LEADER)) == 2)
            await asyncio.sleep(2 * SESSION_TIMEOUT)
            sorting.rollback()
            await recorder.has(texts[-1])
    assert len(recorder.epochs) == 1
    assert recorder.texts == texts
    assert said("lost the database") == []
    assert sink.beats > 3


@pytest.mark.postgres("18")
async def test_to_find_that_there_is_a_backlog_the_leader_reads_little_of_it(
    database: Database,
) -> None:
    """Meanwhile it stores nothing and sends no heartbeat, and the next leader would begin with the same."""
    async with opened(database.conninfo) as leader:
        cursor = await current_snapshot(leader)
        with database.server.connect(database.name) as writer:
            writer.execute(
                "insert into pgnotify_gql.journal (label, kind, rows)"
                " select 'some.model', 'INSERT', '[[[1]]]' from generate_series(1, %s)",
                [20 * BATCH_ROWS],
            )
        async with aclosing(read_new(leader, cursor, aside=lambda: given_up())) as batches:
            assert (await anext(batches)).rows == []
            with pytest.raises(GivenUpError):
                await anext(batches)
        assert await rows_read(leader) < 3 * BATCH_ROWS


class GivenUpError(Exception):
    """In place of a backlog's second connection."""


@asynccontextmanager
async def given_up() -> AsyncIterator[Connection]:
    raise GivenUpError
    yield


async def rows_read(connection: Connection) -> int:
    """How many rows of the journal a session has read by its index."""
    await connection.execute("select pg_stat_force_next_flush()")
    result = await connection.execute(
        "select sum(idx_tup_fetch)::bigint from pg_stat_user_tables where schemaname = 'pgnotify_gql'"
        " and relname like 'journal__'"
    )
    ((count,),) = await result.fetchall()
    return int(count)
