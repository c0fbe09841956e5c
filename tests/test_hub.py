"""The hub: every operation is given every change of its topics once, whatever happens to layer, leader or database."""

import asyncio
import gc
import logging
import random
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from channels.layers import BaseChannelLayer, InMemoryChannelLayer
from channels_redis.core import RedisChannelLayer
from channels_redis.pubsub import RedisPubSubChannelLayer
from django.test import override_settings

from example.conversations.models import Conversation, Message
from pgnotify_gql import names
from pgnotify_gql.errors import JournalMissingError
from pgnotify_gql.hub import Operation, Topic, current_hub, open_hub, process
from pgnotify_gql.hub.cursor import Cursor
from pgnotify_gql.hub.executor import Executor
from pgnotify_gql.hub.hub import Hub
from pgnotify_gql.hub.reader import HubReader
from pgnotify_gql.journal import Change, Snapshot
from pgnotify_gql.journal.reader import BATCH_ROWS, Batch, Connection
from pgnotify_gql.journal.state import Joined
from pgnotify_gql.listener import Timing
from pgnotify_gql.listener import term as term_module
from pgnotify_gql.relay import Relay
from pgnotify_gql.relay.messages import CHANGES
from tests.support.databases import Database
from tests.support.feed import (
    EVENT_TIMEOUT,
    MESSAGE,
    RARELY,
    Room,
    eventually,
    feed_of,
    hub_of,
    leading,
    opener,
    sessions,
    terminate,
)
from tests.support.layers import default_layer
from tests.support.operations import Fate, Faulty, Subscriber
from tests.support.processes import RedisServer


@asynccontextmanager
async def fed(
    database: Database, layer: Any, fate: Fate = lambda message: [message], timing: Timing = RARELY
) -> AsyncIterator[tuple[Hub, Faulty]]:
    """A hub, and a leader that sends to it through a layer with faults."""
    relay_side = Faulty(layer, fate)
    async with (
        hub_of(layer, database.conninfo) as hub,
        leading(database, Relay(relay_side, send_timeout=EVENT_TIMEOUT), timing=timing),
    ):
        yield hub, relay_side


def texts(count: int) -> list[str]:
    return [f"message {number}" for number in range(count)]


def nothing(message: dict[str, Any]) -> list[dict[str, Any]]:
    return []


@pytest.fixture
def quick_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(term_module, "HEARTBEAT_INTERVAL", 0.05)


# The way of a change.


async def test_every_change_arrives_once_and_in_order(database_triggers: Database, layer: BaseChannelLayer) -> None:
    room, subscriber = Room(database_triggers), Subscriber(Message)
    async with fed(database_triggers, layer) as (hub, _):
        await hub.join(subscriber.operation)
        room.say(*texts(100))
        await subscriber.has(texts(100)[-1])
        assert subscriber.received == texts(100)


@pytest.mark.postgres("18")
async def test_a_bulk_write_arrives_in_order(database_triggers: Database, layer: BaseChannelLayer) -> None:
    room, subscriber = Room(database_triggers), Subscriber(Message)
    async with fed(database_triggers, layer) as (hub, _):
        await hub.join(subscriber.operation)
        room.say_at_once(2500, "bulk ")
        await subscriber.has("bulk 2500")
        assert subscriber.received == [f"bulk {number}" for number in range(1, 2501)]


@pytest.mark.postgres("18")
async def test_an_operation_gets_the_changes_of_its_topics_only(
    database_triggers: Database, layer: BaseChannelLayer
) -> None:
    room = Room(database_triggers)
    another = room.next_door()
    here, everywhere, conversations = (
        Subscriber(Topic(Message, conversation=room.conversation)),
        Subscriber(Message),
        Subscriber(Conversation, Topic(Message, conversation=another.conversation)),
    )
    async with fed(database_triggers, layer) as (hub, _):
        for subscriber in (here, everywhere, conversations):
            await hub.join(subscriber.operation)
        room.say("here")
        another.say("there")
        room.connection.execute("update conversations_conversation set title = 'x' where id = %s", [room.conversation])
        room.say("end")
        await here.has("end")
        await everywhere.has("end")
        await conversations.has(room.conversation)
    assert here.received == ["here", "end"]
    assert everywhere.received == ["here", "there", "end"]
    assert sorted(map(str, conversations.received)) == [str(room.conversation), "there"]


@pytest.mark.postgres("18")
async def test_who_falls_behind_after_a_long_silence_stands_right_before_the_change_and_not_at_his_last(
    database_triggers: Database,
) -> None:
    room = Room(database_triggers)
    another = room.next_door()
    here, everywhere = Subscriber(Topic(Message, conversation=room.conversation)), Subscriber(Message)
    async with fed(database_triggers, InMemoryChannelLayer()) as (hub, _):
        for subscriber in (here, everywhere):
            await hub.join(subscriber.operation)
        room.say("first")
        await here.has("first")
        another.say(*texts(3))
        await everywhere.has(*texts(3))
        [(row_id, xid)] = room.connection.execute(
            "select id, xid::text::bigint from pgnotify_gql.journal order by id desc limit 1"
        )
        here.offer = lambda payloads: 0  # type: ignore[method-assign]
        room.say("second")
        async with asyncio.timeout(EVENT_TIMEOUT):
            await here.operation.behind.passed()
        assert here.operation.cursor is not None
        [position] = here.operation.cursor.positions.values()
        assert position.includes(xid, row_id)
    assert here.received == ["first"]


@pytest.mark.postgres("18")
async def test_a_truncated_table_is_told_to_everybody_who_waits_for_the_model(
    database_triggers: Database, layer: BaseChannelLayer
) -> None:
    room, subscriber = Room(database_triggers), Subscriber(Topic(Message, conversation=1234))
    async with fed(database_triggers, layer) as (hub, _):
        await hub.join(subscriber.operation)
        room.connection.execute("truncate conversations_message")
        await subscriber.until(lambda: subscriber.received == [None])


@pytest.mark.postgres("18")
async def test_two_hubs_are_both_given_everything(database_triggers: Database, layer: BaseChannelLayer) -> None:
    room, one, two = Room(database_triggers), Subscriber(Message), Subscriber(Message)
    async with fed(database_triggers, layer) as (hub, _), hub_of(layer, database_triggers.conninfo) as another:
        await hub.join(one.operation)
        await another.join(two.operation)
        room.say(*texts(20))
        await one.has(*texts(20))
        await two.has(*texts(20))
    assert one.received == two.received == texts(20)


# Joining and leaving.


@pytest.mark.postgres("18")
async def test_nothing_is_lost_or_doubled_between_joining_and_the_stream_while_somebody_writes(
    database_triggers: Database, layer: BaseChannelLayer
) -> None:
    room, stop, written = Room(database_triggers), threading.Event(), 0

    def write() -> None:
        nonlocal written
        while not stop.is_set():
            room.say(str(written))
            written += 1

    joined: list[tuple[int, Subscriber]] = []
    async with fed(database_triggers, layer) as (hub, _):
        writing = asyncio.create_task(asyncio.to_thread(write))
        try:
            for _ in range(12):
                subscriber = Subscriber(Message)
                await hub.join(subscriber.operation)
                # What is being written may have been committed before.
                first = written + 1
                joined.append((first, subscriber))
                await subscriber.until(lambda found=subscriber.received: len(found) > 5)  # type: ignore[misc]
                if len(joined) % 3 == 0:
                    for _, leaving in joined[-3:]:
                        await hub.leave(leaving.operation)
        finally:
            stop.set()
            await writing
    for first, subscriber in joined:
        numbers = list(map(int, subscriber.received))
        assert numbers[0] <= first
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


@pytest.mark.postgres("18")
async def test_a_change_between_joining_the_group_and_the_cursor_does_no_harm(
    database_triggers: Database, layer: BaseChannelLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgnotify_gql.hub.receiver.LAYER_TIMEOUT", EVENT_TIMEOUT)
    room, subscriber = Room(database_triggers), Subscriber(Message)

    class Slow(HubReader):
        async def current(self) -> Any:
            room.say("before the cursor")
            await eventually(lambda: feed_of(hub)._early[MESSAGE])
            cursor = await super().current()
            room.say("after the cursor")
            await eventually(lambda: (feed_of(hub)._early[MESSAGE] or (0, 0))[1] == 2)
            return cursor

    hub = Hub(layer, [Slow(opener(database_triggers.conninfo))], Executor(1))
    await hub.start()
    async with leading(database_triggers, Relay(layer, send_timeout=EVENT_TIMEOUT)):
        await hub.join(subscriber.operation)
        room.say("after joining", "and another")
        await subscriber.has("and another")
        await hub.close()
    assert subscriber.received[-2:] == ["after joining", "and another"]
    assert len(subscriber.received) == len(set(subscriber.received))


@pytest.mark.postgres("18")
async def test_who_has_left_is_given_nothing_more_and_others_go_on(
    database_triggers: Database, layer: BaseChannelLayer
) -> None:
    room, leaving, staying = Room(database_triggers), Subscriber(Message), Subscriber(Message)
    async with fed(database_triggers, layer) as (hub, _):
        await hub.join(leaving.operation)
        await hub.join(staying.operation)
        room.say("one")
        await leaving.has("one")
        await hub.leave(leaving.operation)
        room.say("two")
        await staying.has("one", "two")
        await hub.leave(staying.operation)
        assert feed_of(hub)._intakes == {}
        assert hub._cohorts == {}
        # Joined anew, it starts at the present.
        room.say("in between")
        await hub.join(leaving.operation)
        room.say("three")
        await leaving.has("three")
    assert leaving.received == ["one", "three"]
    assert staying.received == ["one", "two"]


async def test_the_group_of_a_model_is_left_with_its_last_operation() -> None:
    layer = InMemoryChannelLayer()
    hub = Hub(layer, [FakeReader()], Executor(1))
    await hub.start()
    first, second = Subscriber(Message), Subscriber(Message, Conversation)
    await hub.join(first.operation)
    await hub.join(second.operation)
    assert len(layer.groups) == 3
    await hub.leave(first.operation)
    assert len(layer.groups) == 3
    await hub.leave(second.operation)
    assert set(layer.groups) == {names.heartbeat_group()}
    await hub.close()
    assert not layer.groups


class FakeReader(HubReader):
    """A journal in which nothing ever happens."""

    def __init__(self) -> None:
        super().__init__(self._refuse)

    async def _refuse(self) -> Connection:
        raise AssertionError("nobody asks the database")

    async def current(self) -> Any:
        return Joined(Snapshot(0, 0), 0, datetime.min.replace(tzinfo=UTC))

    async def is_captured(self, label: str) -> bool:
        return True


def left_in(hub: Hub) -> tuple[Any, ...]:
    """What a hub keeps for its operations."""
    feed = feed_of(hub)
    return feed._intakes, feed._early, dict(feed._waiting), hub._cohorts


async def test_a_join_that_fails_leaves_nothing_behind() -> None:
    class Failing(FakeReader):
        left = 1

        async def current(self) -> Any:
            self.left -= 1
            if self.left < 0:
                raise JournalMissingError("default")
            return await super().current()

    hub = Hub(InMemoryChannelLayer(), [Failing()], Executor(1))
    await hub.start()
    with pytest.raises(JournalMissingError):
        await hub.join(Subscriber(Conversation, Message).operation)
    assert left_in(hub) == ({}, {}, {}, {})
    await hub.close()


async def test_a_join_that_is_cancelled_leaves_nothing_behind() -> None:
    class Stuck(FakeReader):
        async def current(self) -> Any:
            entered.set()
            await asyncio.sleep(3600)

    entered = asyncio.Event()
    hub = Hub(InMemoryChannelLayer(), [Stuck()], Executor(1))
    await hub.start()
    joining = asyncio.create_task(hub.join(Subscriber(Message).operation))
    await entered.wait()
    joining.cancel()
    with pytest.raises(asyncio.CancelledError):
        await joining
    assert left_in(hub) == ({}, {}, {}, {})
    await hub.close()


# Sharing.


@pytest.mark.postgres("18")
async def test_operations_that_share_are_executed_once_and_all_are_told(
    database_triggers: Database, layer: BaseChannelLayer
) -> None:
    room = Room(database_triggers)
    sharing = [Subscriber(Message, share="everybody") for _ in range(10)]
    async with fed(database_triggers, layer) as (hub, _):
        for subscriber in sharing:
            await hub.join(subscriber.operation)
        room.say(*texts(5))
        for subscriber in sharing:
            await subscriber.has(*texts(5))
    assert all(subscriber.received == texts(5) for subscriber in sharing)
    assert sum(subscriber.executed for subscriber in sharing) == 5


async def test_audiences_topics_and_strangers_never_share(database_triggers: Database) -> None:
    room = Room(database_triggers)
    apart = [
        Subscriber(Message, share=("query", "user 1")),
        Subscriber(Message, share=("query", "user 2")),
        Subscriber(Topic(Message, author=room.author), share=("query", "user 1")),
        Subscriber(Message),
        Subscriber(Message),
    ]
    async with fed(database_triggers, InMemoryChannelLayer()) as (hub, _):
        for subscriber in apart:
            await hub.join(subscriber.operation)
        room.say("one")
        for subscriber in apart:
            await subscriber.has("one")
    assert [subscriber.executed for subscriber in apart] == [1] * 5


async def test_a_cohort_goes_on_when_the_operation_that_made_it_leaves(database_triggers: Database) -> None:
    room, first, second = Room(database_triggers), Subscriber(Message, share=1), Subscriber(Message, share=1)
    async with fed(database_triggers, InMemoryChannelLayer()) as (hub, _):
        await hub.join(first.operation)
        await hub.join(second.operation)
        await hub.leave(first.operation)
        room.say("one")
        await second.has("one")
    assert first.received == []


# A layer that loses, doubles and reorders.


def all_lost(message: dict[str, Any]) -> list[dict[str, Any]]:
    return []


def every_third_lost(message: dict[str, Any]) -> list[dict[str, Any]]:
    return [message] if message["seq"] % 3 else []


def all_doubled(message: dict[str, Any]) -> list[dict[str, Any]]:
    return [message, message]


def chaos() -> Fate:
    chance, held = random.Random(3), list[dict[str, Any]]()

    def reorder(message: dict[str, Any]) -> list[dict[str, Any]]:
        held.append(message)
        chance.shuffle(held)
        sent = [held.pop() for _ in range(chance.randint(0, len(held)))]
        held.extend(chance.sample(sent, len(sent) // 2))
        return [found for found in sent if chance.random() > 0.2]

    return reorder


@pytest.mark.postgres("18")
@pytest.mark.parametrize(
    "fate",
    [all_lost, every_third_lost, all_doubled, None],
    ids=["all lost", "every third lost", "all doubled", "chaos"],
)
@pytest.mark.usefixtures("quick_heartbeats")
async def test_what_the_layer_loses_doubles_or_reorders_arrives_once_and_in_order(
    database_triggers: Database, layer: BaseChannelLayer, fate: Fate | None
) -> None:
    room, subscriber = Room(database_triggers), Subscriber(Message)
    async with fed(database_triggers, layer, fate or chaos()) as (hub, relay_side):
        await hub.join(subscriber.operation)
        said = 0
        while said < 60 or relay_side.sent <= 10:
            room.say(f"message {said}")
            said += 1
            await asyncio.sleep(0.002)
        await subscriber.has(f"message {said - 1}")
    assert subscriber.received == [f"message {number}" for number in range(said)]


@pytest.mark.postgres("18")
async def test_the_loss_of_the_last_message_is_noticed_by_the_heartbeat(
    database_triggers: Database, layer: BaseChannelLayer
) -> None:
    room, subscriber = Room(database_triggers), Subscriber(Message)
    async with fed(database_triggers, layer) as (hub, relay_side):
        await hub.join(subscriber.operation)
        room.say("arrives")
        await subscriber.has("arrives")
        relay_side.fate = nothing
        room.say("lost")
        # Nothing more is sent but the heartbeat before the listener sleeps.
        await subscriber.has("lost")
    assert subscriber.received == ["arrives", "lost"]


@pytest.mark.postgres("18")
async def test_without_heartbeats_a_lost_message_is_noticed_by_the_next_one(
    database_triggers: Database, layer: BaseChannelLayer
) -> None:
    room, subscriber = Room(database_triggers), Subscriber(Message)
    async with fed(database_triggers, layer) as (hub, relay_side):
        await hub.join(subscriber.operation)
        room.say("arrives")
        await subscriber.has("arrives")
        relay_side.heartbeats = False
        relay_side.fate = nothing
        room.say("lost")
        await eventually(lambda: relay_side.spoilt)
        relay_side.fate = lambda message: [message]
        room.say("next")
        await subscriber.has("next")
    assert subscriber.received == ["arrives", "lost", "next"]


def memory_of_one(redis: RedisServer) -> Any:
    return InMemoryChannelLayer(capacity=1)


def redis_of_one(redis: RedisServer) -> Any:
    return RedisChannelLayer(hosts=[redis.url], capacity=1)


@pytest.mark.postgres("18")
@pytest.mark.parametrize("make", [memory_of_one, redis_of_one])
async def test_a_layer_that_holds_one_message_bears_a_burst_of_500(
    database_triggers: Database, redis_server: RedisServer, make: Callable[[RedisServer], Any]
) -> None:
    small = make(redis_server)
    room, subscriber = Room(database_triggers), Subscriber(Message)
    with silenced("channels_redis.core"):
        async with fed(database_triggers, small) as (hub, _):
            await hub.join(subscriber.operation)
            await asyncio.to_thread(room.say, *texts(500))
            await subscriber.has(texts(500)[-1])
    await small.flush()
    assert subscriber.received == texts(500)


@contextmanager
def silenced(name: str) -> Iterator[None]:
    """Without the log of a layer that tells each message it drops."""
    logging.getLogger(name).disabled = True
    try:
        yield
    finally:
        logging.getLogger(name).disabled = False


@pytest.mark.postgres("18")
@pytest.mark.parametrize("kind", [RedisChannelLayer, RedisPubSubChannelLayer])
async def test_redis_is_restarted_and_the_hub_goes_on(
    database_triggers: Database, redis_server: RedisServer, kind: Any
) -> None:
    """A restarted Redis has forgotten all groups."""
    layer = kind(hosts=[redis_server.url])
    room, subscriber = Room(database_triggers), Subscriber(Message)
    hub = Hub(layer, [HubReader(opener(database_triggers.conninfo))], Executor(1), silence=0.6)
    await hub.start()
    try:
        async with leading(database_triggers, Relay(layer), timing=Timing(safety_poll=0.2, session_timeout=600)):
            await hub.join(subscriber.operation)
            room.say("before")
            await subscriber.has("before")
            redis_server.stop()
            room.say("while it was down")
            redis_server.start()
            room.say("after")
            await subscriber.has("while it was down", "after")
            room.say("and later")
            await subscriber.has("and later")
    finally:
        await hub.close()
        await layer.flush()
    assert subscriber.received == ["before", "while it was down", "after", "and later"]


@pytest.mark.postgres("18")
async def test_redis_is_flushed_and_the_hub_goes_on(database_triggers: Database, redis_server: RedisServer) -> None:
    layer = RedisChannelLayer(hosts=[redis_server.url])
    room, subscriber = Room(database_triggers), Subscriber(Message)
    hub = Hub(layer, [HubReader(opener(database_triggers.conninfo))], Executor(1), silence=0.6)
    await hub.start()
    async with leading(database_triggers, Relay(layer), timing=Timing(safety_poll=0.2, session_timeout=600)):
        await hub.join(subscriber.operation)
        redis_server.flush()
        room.say(*texts(3))
        await subscriber.has(*texts(3))
        await hub.close()
    await layer.flush()
    assert subscriber.received == texts(3)


# Leaders that change.


async def test_its_backend_is_terminated_in_the_middle_of_a_burst_and_all_arrives_once_in_order(
    database_triggers: Database, layer: BaseChannelLayer
) -> None:
    room, subscriber, chance = Room(database_triggers), Subscriber(Message), random.Random(5)
    keys = room.say(*(f"0 {row}" for row in range(4)))
    edits = [(chance.randrange(4), number) for number in range(1, 301)]

    def burst(part: list[tuple[int, int]]) -> None:
        for row, number in part:
            room.edit(keys[row], f"{number} {row}")

    async with fed(database_triggers, layer) as (hub, _):
        await hub.join(subscriber.operation)
        for start in (0, 100, 200):
            part = edits[start : start + 100]
            writing = asyncio.create_task(asyncio.to_thread(burst, part))
            await subscriber.has(f"{start + 10} {edits[start + 9][0]}")
            terminate(database_triggers, "test leader")
            await writing
            await subscriber.has(f"{start + 100} {part[-1][0]}")
    assert subscriber.received == [f"{number} {row}" for row, number in edits]


@pytest.mark.postgres("18")
async def test_a_new_leader_that_begins_further_back_brings_nothing_twice(
    database_triggers: Database, layer: BaseChannelLayer
) -> None:
    room, subscriber = Room(database_triggers), Subscriber(Message)
    admin = database_triggers.connect()
    async with hub_of(layer, database_triggers.conninfo) as hub:
        (stored,) = admin.execute("select relayed::text from pgnotify_gql.journal_state").fetchone() or ("",)
        await hub.join(subscriber.operation)
        async with leading(database_triggers, Relay(layer, send_timeout=EVENT_TIMEOUT)):
            room.say(*texts(10))
            await subscriber.has(*texts(10))
        # As if the last leader had crashed before it stored anything.
        admin.execute("update pgnotify_gql.journal_state set relayed = %s::pg_snapshot", [stored])
        async with leading(database_triggers, Relay(layer, send_timeout=EVENT_TIMEOUT)):
            room.say("new")
            await subscriber.has("new")
    assert subscriber.received == [*texts(10), "new"]


@pytest.mark.postgres("18")
async def test_a_message_of_a_leader_that_was_replaced_is_ignored(database_triggers: Database) -> None:
    layer = InMemoryChannelLayer()
    room, subscriber, kept = Room(database_triggers), Subscriber(Message), list[dict[str, Any]]()

    def keep(message: dict[str, Any]) -> list[dict[str, Any]]:
        kept.append(message)
        return [message]

    async with fed(database_triggers, layer, keep) as (hub, _):
        await hub.join(subscriber.operation)
        room.say("one")
        await subscriber.has("one")
        stale = {**kept[0], "seq": 50}
        terminate(database_triggers, "test leader")
        room.say("two")
        await subscriber.has("two")
        epoch = feed_of(hub)._intakes[MESSAGE]._epoch
        assert epoch > stale["epoch"]
        await layer.group_send(names.model_group(MESSAGE), stale)
        room.say("three")
        await subscriber.has("three")
        assert feed_of(hub)._intakes[MESSAGE]._epoch == epoch
    assert subscriber.received == ["one", "two", "three"]


# The journal and its database.


def empty_journal(database: Database) -> None:
    """What rotation does when everything is older than the retention."""
    with database.connect() as admin:
        admin.execute("truncate pgnotify_gql.journal")
        admin.execute(
            "update pgnotify_gql.journal_state set emptied = pg_current_snapshot(), emptied_xid = pg_current_xact_id()"
        )


@pytest.mark.postgres("18")
async def test_what_has_left_the_journal_is_answered_with_a_resync_to_everybody_on_the_model(
    database_triggers: Database, layer: BaseChannelLayer
) -> None:
    room = Room(database_triggers)
    affected, also, other = Subscriber(Message), Subscriber(Topic(Message, author=7)), Subscriber(Conversation)
    async with fed(database_triggers, layer) as (hub, relay_side):
        for subscriber in (affected, also):
            await hub.join(subscriber.operation)
        room.say("one")
        await affected.has("one")
        relay_side.fate, relay_side.heartbeats = nothing, False
        room.say("gone")
        await eventually(lambda: relay_side.spoilt)
        empty_journal(database_triggers)
        await hub.join(other.operation)
        relay_side.fate = lambda message: [message]
        room.say("two")
        await affected.has("two")
        room.say("three")
        await affected.has("three")
    assert affected.received == ["one", "two", "three"]
    for subscriber in (affected, also):
        (reason,) = subscriber.resyncs
        assert "have left the journal: raise PGNOTIFY_GQL['RETENTION']" in reason
    assert other.resyncs == []


@pytest.mark.postgres("18")
async def test_a_change_that_cannot_be_decoded_is_a_resync_and_the_next_one_arrives(
    database_triggers: Database, caplog: pytest.LogCaptureFixture
) -> None:
    room, subscriber, other = Room(database_triggers), Subscriber(Message), Subscriber(Conversation)
    async with fed(database_triggers, InMemoryChannelLayer()) as (hub, _):
        await hub.join(subscriber.operation)
        await hub.join(other.operation)
        room.say("one")
        room.connection.execute(
            "insert into pgnotify_gql.journal (label, kind, rows) values (%s, 'INSERT', '[5]')", [MESSAGE]
        )
        room.say("two")
        await subscriber.has("one", "two")
    assert subscriber.received == ["one", "two"]
    assert subscriber.resyncs == ["a change could not be decoded"]
    assert other.resyncs == []
    assert "cannot be decoded" in caplog.text


@pytest.mark.postgres("18")
async def test_a_kind_that_this_version_does_not_know_is_a_resync_and_ends_no_listener(
    database_triggers: Database, caplog: pytest.LogCaptureFixture
) -> None:
    room, subscriber, other = Room(database_triggers), Subscriber(Message), Subscriber(Conversation)
    async with fed(database_triggers, InMemoryChannelLayer()) as (hub, _):
        await hub.join(subscriber.operation)
        await hub.join(other.operation)
        room.say("one")
        room.connection.execute(
            "insert into pgnotify_gql.journal (label, kind, rows) values (%s, 'ARCHIVE', '[[[1]]]')", [MESSAGE]
        )
        room.say("two")
        await subscriber.has("one", "two")
        epoch = feed_of(hub)._intakes[MESSAGE]._epoch
        room.say("three")
        await subscriber.has("three")
        assert feed_of(hub)._intakes[MESSAGE]._epoch == epoch
    assert subscriber.received == ["one", "two", "three"]
    assert subscriber.resyncs == ["a change could not be decoded"]
    assert other.resyncs == []
    assert "'ARCHIVE' is not a valid Kind" in caplog.text


@pytest.mark.postgres("18")
async def test_a_message_that_makes_no_sense_is_logged_and_the_next_one_is_taken(
    database_triggers: Database, caplog: pytest.LogCaptureFixture
) -> None:
    layer = InMemoryChannelLayer()
    room, subscriber = Room(database_triggers), Subscriber(Message)
    async with fed(database_triggers, layer) as (hub, _):
        await hub.join(subscriber.operation)
        await layer.group_send(names.model_group(MESSAGE), {"type": CHANGES, "label": MESSAGE})
        await layer.group_send(names.heartbeat_group(), {"type": "something.else"})
        room.say("one")
        await subscriber.has("one")
    assert "could not be handled" in caplog.text


@pytest.mark.postgres("18")
async def test_a_message_that_cannot_be_read_is_healed_from_the_journal(database_triggers: Database) -> None:
    layer = InMemoryChannelLayer()
    room, subscriber = Room(database_triggers), Subscriber(Message)

    def with_half_rows(message: dict[str, Any]) -> list[dict[str, Any]]:
        return [{**message, "rows": [row[:2] for row in message["rows"]]}]

    async with fed(database_triggers, layer) as (hub, relay_side):
        await hub.join(subscriber.operation)
        room.say("one")
        await subscriber.has("one")
        relay_side.fate = with_half_rows
        room.say("unreadable")
        await eventually(lambda: relay_side.spoilt)
        relay_side.fate = lambda message: [message]
        room.say("two")
        await subscriber.has("two")
    assert subscriber.received == ["one", "unreadable", "two"]


class Away:
    """Opens connections for a hub while the database is `there`."""

    def __init__(self, database: Database) -> None:
        self.there = True
        self.refused = 0
        self._open = opener(database.conninfo, 0, "test hub")

    async def __call__(self) -> Connection:
        if not self.there:
            self.refused += 1
            raise psycopg.OperationalError("the database is away")
        return await self._open()


@pytest.mark.postgres("18")
async def test_healing_waits_for_a_database_that_is_away_and_then_goes_on(
    database_triggers: Database, layer: BaseChannelLayer, caplog: pytest.LogCaptureFixture
) -> None:
    room, subscriber, database = Room(database_triggers), Subscriber(Message), Away(database_triggers)
    relay_side = Faulty(layer)
    async with (
        hub_of(layer, "", connect=database) as hub,
        leading(database_triggers, Relay(relay_side, send_timeout=EVENT_TIMEOUT)),
    ):
        await hub.join(subscriber.operation)
        room.say("one")
        await subscriber.has("one")
        database.there = False
        terminate(database_triggers, "test hub")
        relay_side.fate = nothing
        room.say("lost")
        await eventually(lambda: database.refused > 2)
        relay_side.fate = lambda message: [message]
        room.say("later")
        assert subscriber.received == ["one"]
        database.there = True
        await subscriber.has("lost", "later")
    assert subscriber.received == ["one", "lost", "later"]
    assert "waits for the database" in caplog.text


@pytest.mark.postgres("18")
async def test_healing_that_breaks_off_in_the_middle_of_a_backlog_goes_on_and_brings_nothing_twice(
    database_triggers: Database,
) -> None:
    class Breaking(HubReader):
        left = 2

        async def missed(self, *arguments: Any) -> AsyncGenerator[Batch, None]:
            async for batch in super().missed(*arguments):
                yield batch
                if self.left and batch.rows:
                    self.left -= 1
                    await self.close()
                    raise psycopg.OperationalError("lost in the middle")

    layer = InMemoryChannelLayer()
    room, subscriber = Room(database_triggers), Subscriber(Message)
    reader = Breaking(opener(database_triggers.conninfo))
    hub = Hub(layer, [reader], Executor(2))
    await hub.start()
    relay_side = Faulty(layer, nothing)
    expected = texts(3 * BATCH_ROWS)
    async with leading(database_triggers, Relay(relay_side)):
        await hub.join(subscriber.operation)
        await asyncio.to_thread(room.say, *expected)
        await subscriber.has(expected[-1])
        await hub.close()
    assert reader.left == 0
    assert subscriber.received == expected


@pytest.mark.postgres("18")
async def test_joining_while_another_model_is_healed_uses_one_connection(database_triggers: Database) -> None:
    layer, subscriber, opened_ = InMemoryChannelLayer(), Subscriber(Message), list[Connection]()
    opening = opener(database_triggers.conninfo, 0, "test hub")

    async def connect() -> Connection:
        connection = await opening()
        opened_.append(connection)
        return connection

    reader = HubReader(connect)
    found = await asyncio.gather(*(reader.current() for _ in range(5)))
    assert len(found) == 5
    assert len(opened_) == 1
    await reader.close()
    assert subscriber.received == []
    assert layer.groups == {}


@pytest.mark.postgres("18")
async def test_a_database_without_a_journal_is_waited_for_and_the_log_says_how_to_make_one(
    empty_database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    reader = HubReader(opener(empty_database.conninfo, 0, "test hub"))
    asking = asyncio.create_task(reader.current())
    await eventually(lambda: "manage.py migrate pgnotify_gql --database default" in caplog.text)
    assert "does not exist" not in caplog.text
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await reader.close()


@pytest.mark.postgres("18")
async def test_a_model_that_is_fed_can_be_joined_and_left_while_another_one_waits_for_the_database(
    database_triggers: Database,
) -> None:
    room, layer, database = Room(database_triggers), InMemoryChannelLayer(), Away(database_triggers)
    first, second, other = Subscriber(Message), Subscriber(Message), Subscriber(Conversation)
    async with (
        hub_of(layer, "", connect=database) as hub,
        leading(database_triggers, Relay(layer, send_timeout=EVENT_TIMEOUT)),
    ):
        await hub.join(first.operation)
        room.say("before")
        await first.has("before")
        database.there = False
        terminate(database_triggers, "test hub")
        waiting = asyncio.create_task(hub.join(other.operation))
        await eventually(lambda: database.refused)
        async with asyncio.timeout(EVENT_TIMEOUT):
            await hub.join(second.operation)
            await hub.leave(first.operation)
        room.say("while another waits")
        await second.has("while another waits")
        assert not waiting.done()
        database.there = True
        await waiting


@pytest.mark.postgres("18")
async def test_who_joins_while_another_model_is_healed_begins_with_what_commits_afterwards(
    database_triggers: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Healing is done in a transaction, which shows the journal as it was."""
    monkeypatch.setattr("pgnotify_gql.hub.executor.MOST_PENDING", 10)
    room, layer = Room(database_triggers), InMemoryChannelLayer()
    relay_side, entered, go_on = Faulty(layer, nothing), threading.Event(), threading.Event()
    subscriber = Subscriber(Message)

    def execute(change: Change, cursor: Cursor, batch: object) -> str:
        entered.set()
        go_on.wait(EVENT_TIMEOUT)
        return subscriber.execute(change)

    operation = Operation(subscriber.operation.interest, execute, subscriber)
    reader = HubReader(opener(database_triggers.conninfo, 0, "test hub"))
    hub = Hub(layer, [reader], Executor(1))
    await hub.start()
    try:
        async with leading(database_triggers, Relay(relay_side)):
            await hub.join(operation)
            await asyncio.to_thread(room.say, *texts(2 * BATCH_ROWS))
            await asyncio.to_thread(entered.wait, EVENT_TIMEOUT)
            await eventually(lambda: not hub.executor._room.is_set())
            room.connection.execute("update conversations_conversation set title = 'before'")
            ((now,),) = room.connection.execute("select pg_current_snapshot()::text").fetchall()
            joined = await reader.current()
            assert joined.cursor.covers(Snapshot.parse(now))
    finally:
        go_on.set()
        await hub.close()


# Back-pressure and ends.


@pytest.mark.postgres("18")
async def test_a_hub_that_cannot_keep_up_holds_little_in_memory_and_loses_nothing(
    database_triggers: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgnotify_gql.hub.executor.MOST_PENDING", 50)
    room, subscriber = Room(database_triggers), Subscriber(Message)
    most = 0

    def execute(change: Change, cursor: Cursor, batch: object) -> str:
        nonlocal most
        most = max(most, hub.executor._pending)
        return subscriber.execute(change)

    operation = Operation(subscriber.operation.interest, execute, subscriber)
    async with fed(database_triggers, InMemoryChannelLayer(capacity=2)) as (hub, _):
        await hub.join(operation)
        room.say_at_once(2000)
        room.say_at_once(2000, "second ")
        await subscriber.has("2000", "second 2000")
    assert len(subscriber.received) == 4000
    assert most <= 51


def left_behind() -> tuple[set[str], set[str]]:
    """Names of a hub's tasks and threads; a listener has tasks too."""
    tasks = {task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("pgnotify_gql")}
    tasks -= {"pgnotify_gql bell", "pgnotify_gql stop"}
    threads = {thread.name for thread in threading.enumerate() if thread.name.startswith("pgnotify_gql")}
    return tasks, threads


async def test_closing_leaves_no_task_thread_or_connection(
    database_triggers: Database, layer: BaseChannelLayer
) -> None:
    room, subscriber = Room(database_triggers), Subscriber(Message)
    async with leading(database_triggers, Relay(layer, send_timeout=EVENT_TIMEOUT)):
        async with hub_of(layer, database_triggers.conninfo) as hub:
            await hub.join(subscriber.operation)
            room.say("one")
            await subscriber.has("one")
            assert sessions(database_triggers, "test hub")
        assert left_behind() == (set(), set())
        await eventually(lambda: not sessions(database_triggers, "test hub"))


@pytest.mark.postgres("18")
async def test_closing_in_the_middle_of_healing_leaves_nothing(
    database_triggers: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backlog is in parts, in a transaction, and the hub waits for room."""
    monkeypatch.setattr("pgnotify_gql.hub.executor.MOST_PENDING", 10)
    layer, room, entered, stop = InMemoryChannelLayer(), Room(database_triggers), threading.Event(), threading.Event()

    def execute(change: Change, cursor: Cursor, batch: object) -> str:
        entered.set()
        stop.wait(EVENT_TIMEOUT)
        return "1"

    subscriber = Subscriber(Message)
    operation = Operation(subscriber.operation.interest, execute, subscriber)
    async with leading(database_triggers, Relay(Faulty(layer, nothing))):
        hub = Hub(layer, [HubReader(opener(database_triggers.conninfo, 0, "test hub"))], Executor(1))
        await hub.start()
        await hub.join(operation)
        await asyncio.to_thread(room.say, *texts(2 * BATCH_ROWS))
        await asyncio.to_thread(entered.wait, EVENT_TIMEOUT)
        await eventually(lambda: not hub.executor._room.is_set())
        closing = asyncio.create_task(hub.close())
        await asyncio.sleep(0)
        stop.set()
        async with asyncio.timeout(EVENT_TIMEOUT):
            await closing
        assert left_behind() == (set(), set())
        await eventually(lambda: not sessions(database_triggers, "test hub"))


@pytest.mark.postgres("18")
async def test_closing_while_healing_waits_for_the_database_is_quick(database_triggers: Database) -> None:
    layer, room, subscriber, database = (
        InMemoryChannelLayer(),
        Room(database_triggers),
        Subscriber(Message),
        Away(database_triggers),
    )
    async with leading(database_triggers, Relay(Faulty(layer, nothing))):
        async with hub_of(layer, "", connect=database) as hub:
            await hub.join(subscriber.operation)
            database.there = False
            terminate(database_triggers, "test hub")
            room.say("lost")
            await eventually(lambda: database.refused > 0)
        assert left_behind() == (set(), set())


# The hub of a process.


@pytest.fixture
def settings_of_process() -> Iterator[None]:
    with override_settings(PGNOTIFY_GQL={"INLINE_LISTENER": True, "WORKERS": 2}):
        yield


@pytest.mark.usefixtures("settings_of_process")
async def test_a_process_has_one_hub_with_its_listener_from_the_first_socket_to_the_last(
    database_triggers: Database, layer: BaseChannelLayer
) -> None:
    room, subscriber = Room(database_triggers), Subscriber(Message)
    with pytest.raises(RuntimeError, match="no hub is open"):
        current_hub()
    async with open_hub() as first:
        async with open_hub() as second:
            assert first is second is current_hub()
        assert current_hub() is first
        await first.join(subscriber.operation)
        room.say("one")
        await subscriber.has("one")
        # A second connection, for the listener's own bell, ends when PostgreSQL has noticed.
        await eventually(lambda: len(sessions(database_triggers, "pgnotify_gql listener")) == 1)
    with pytest.raises(RuntimeError, match="no hub is open"):
        current_hub()
    assert left_behind() == (set(), set())
    await eventually(lambda: not sessions(database_triggers, "pgnotify_gql listener"))
    async with open_hub() as again:
        assert again is not first


@pytest.fixture
def thresholds() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


@pytest.mark.usefixtures("thresholds", "layer")
@pytest.mark.parametrize(
    ("before", "tuned", "after"),
    [
        ((700, 10, 20), True, (process.YOUNG_OBJECTS, 10, 20)),
        ((700, 10, 20), False, (700, 10, 20)),
        ((50_000, 10, 10), True, (50_000, 10, 10)),
        ((0, 10, 10), True, (0, 10, 10)),
    ],
    ids=["tuned", "left alone", "higher", "off"],
)
async def test_a_process_with_a_hub_looks_for_garbage_less_often(
    database_triggers: Database, before: tuple[int, int, int], tuned: bool, after: tuple[int, int, int]
) -> None:
    gc.set_threshold(*before)
    with override_settings(PGNOTIFY_GQL={"TUNE_GC": tuned}):
        async with open_hub():
            assert gc.get_threshold() == after


# It would read the journal by itself before long.
@override_settings(PGNOTIFY_GQL={"INLINE_LISTENER": True, "SAFETY_POLL": 60, "SESSION_TIMEOUT": 180})
async def test_a_hub_has_from_the_listener_beside_it_what_the_layer_does_not_take(
    database_triggers: Database,
) -> None:
    class Broken(InMemoryChannelLayer):  # type: ignore[misc]
        async def group_send(self, group: str, message: dict[str, Any]) -> None:
            asked.append(group)
            raise ConnectionError("of no use")

    asked: list[str] = []
    layer = Broken()
    room, subscriber = Room(database_triggers), Subscriber(Message)
    with default_layer(layer):
        async with open_hub() as hub:
            await hub.join(subscriber.operation)
            room.say("alone")
            await subscriber.has("alone")
            assert asked == []
            # Somebody else in the same process, who has no listener beside him.
            await layer.group_add(names.model_group(MESSAGE), await layer.new_channel())
            room.say("with another")
            await subscriber.has("alone", "with another")
            await eventually(lambda: asked == [names.model_group(MESSAGE)])


@pytest.mark.usefixtures("settings_of_process")
async def test_another_hub_has_from_an_inline_listener_what_the_layer_brings(
    database_triggers: Database, layer: BaseChannelLayer
) -> None:
    room, beside, elsewhere = Room(database_triggers), Subscriber(Message), Subscriber(Message)
    async with open_hub() as hub, hub_of(layer, database_triggers.conninfo) as other:
        await hub.join(beside.operation)
        await other.join(elsewhere.operation)
        for text in ("one", "two"):
            room.say(text)
        for subscriber in (beside, elsewhere):
            await subscriber.has("one", "two")
            assert subscriber.received == ["one", "two"]


@pytest.mark.postgres("18")
@pytest.mark.usefixtures("settings_of_process")
async def test_sockets_that_open_at_the_same_time_share_one_hub(database_triggers: Database) -> None:
    hubs: set[Hub] = set()
    meeting = asyncio.Barrier(10)

    async def socket() -> None:
        async with open_hub() as hub:
            hubs.add(hub)
            await meeting.wait()

    with default_layer():
        async with asyncio.timeout(EVENT_TIMEOUT):
            await asyncio.gather(*(socket() for _ in range(10)))
    assert len(hubs) == 1
    assert left_behind() == (set(), set())


@pytest.mark.postgres("18")
@pytest.mark.usefixtures("settings_of_process")
async def test_a_socket_that_is_cancelled_closes_the_hub_behind_it(database_triggers: Database) -> None:
    opened_ = asyncio.Event()

    async def socket() -> None:
        async with open_hub():
            opened_.set()
            await asyncio.sleep(3600)

    with default_layer():
        task = asyncio.create_task(socket())
        await opened_.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await eventually(lambda: left_behind() == (set(), set()))


@pytest.mark.postgres("18")
@pytest.mark.usefixtures("settings_of_process")
async def test_an_inline_listener_without_a_journal_says_so_and_the_hub_closes(
    empty_database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"INLINE_LISTENER": True, "LISTENER_CONNINFO": empty_database.conninfo}
    with default_layer(), override_settings(PGNOTIFY_GQL=settings):
        async with open_hub():
            await eventually(lambda: "the inline listener of database default cannot run" in caplog.text)
            assert "migrate pgnotify_gql" in caplog.text
    assert left_behind() == (set(), set())


async def test_joining_a_model_without_triggers_says_what_to_do(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    layer = InMemoryChannelLayer()
    subscriber = Subscriber(Message)
    hub = Hub(layer, [HubReader(opener(database.conninfo))], Executor(1))
    await hub.start()
    try:
        await hub.join(subscriber.operation)
    finally:
        await hub.close()
    assert "conversations.message, which has no triggers" in caplog.text
    assert "manage.py install_triggers" in caplog.text


async def test_joining_a_model_with_triggers_says_nothing(
    database_triggers: Database, caplog: pytest.LogCaptureFixture
) -> None:
    subscriber = Subscriber(Message)
    hub = Hub(InMemoryChannelLayer(), [HubReader(opener(database_triggers.conninfo))], Executor(1))
    await hub.start()
    try:
        await hub.join(subscriber.operation)
    finally:
        await hub.close()
    assert caplog.text == ""


@override_settings(PGNOTIFY_GQL={"INLINE_LISTENER": False})
async def test_an_in_memory_layer_that_nobody_feeds_is_named_in_the_log(
    database_triggers: Database, caplog: pytest.LogCaptureFixture
) -> None:
    with default_layer():
        async with open_hub():
            assert "set INLINE_LISTENER" in caplog.text
