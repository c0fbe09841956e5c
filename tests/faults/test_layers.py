"""
Channel layers that fail: whatever a layer does, hubs are given everything that was committed, once and in order.

Hub and leader have a layer object each, as in processes of their own.  How long a hub took until it was up to date
again is a property of the test in the report (``--junit-xml``).
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any

import psycopg
import pytest
import redis as redis_client
from channels.layers import BaseChannelLayer, InMemoryChannelLayer
from channels_redis.core import RedisChannelLayer
from channels_redis.pubsub import RedisPubSubChannelLayer
from redis.exceptions import ConnectionError as RedisConnectionError

from example.conversations.models import Conversation, Message
from pgnotify_gql import names
from pgnotify_gql.hub import receiver as receiver_module
from pgnotify_gql.hub.cursor import Cursor
from pgnotify_gql.hub.executor import Executor
from pgnotify_gql.hub.hub import Hub
from pgnotify_gql.hub.reader import HubReader
from pgnotify_gql.journal import Change
from pgnotify_gql.journal.state import Era
from pgnotify_gql.listener import Listener, Timing
from pgnotify_gql.listener import term as term_module
from pgnotify_gql.relay import Relay
from pgnotify_gql.relay.messages import CHANGES, HEARTBEAT
from tests.faults.load import Load
from tests.support.databases import Database
from tests.support.feed import (
    EVENT_TIMEOUT,
    MESSAGE,
    Recorder,
    Room,
    eventually,
    feed_of,
    hub_of,
    leading,
    lock_holders,
    opener,
    running,
    terminate,
)
from tests.support.operations import Chaos, Ear, Faulty, Subscriber
from tests.support.ports import free_port
from tests.support.processes import RedisServer

pytestmark = [
    pytest.mark.postgres("18"),
    # Where two tasks find the connection of redis-py's PubSub lost, both open one, and the first is dropped unclosed.
    pytest.mark.filterwarnings("ignore:unclosed <StreamWriter:ResourceWarning"),
]

TIMING = Timing(safety_poll=0.5, session_timeout=600)
"""A listener whose heartbeats come twice a second when it sleeps."""

AWAY = 1.5
"""Seconds for which a layer is away: many heartbeats, and hundreds of changes of a load."""

FROZEN = 2.5
"""Seconds for which Redis is frozen: longer than the relay waits for it."""

HEALED = 60.0
"""Seconds within which everything must have arrived, on however busy a machine."""

REDIS_LAYERS = {"redis": RedisChannelLayer, "redis-pubsub": RedisPubSubChannelLayer}

Record = Callable[[str, float], None]


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Record:
    """Take down a figure, as `record_property`, which warns of reports in the newer format."""
    return lambda name, value: request.node.user_properties.append((name, round(value, 3)))


@asynccontextmanager
async def layer_of(kind: str, url: str, **options: Any) -> AsyncIterator[Any]:
    """A layer such as a process has one."""
    layer = InMemoryChannelLayer(**options) if kind == "memory" else REDIS_LAYERS[kind](hosts=[url], **options)
    try:
        yield layer
    finally:
        # It closes the connections too.
        with suppress(RedisConnectionError):
            await layer.flush()


@asynccontextmanager
async def layers_of(kind: str, url: str, hub_url: str = "", **options: Any) -> AsyncIterator[tuple[Any, Any]]:
    """The leader's layer and the hub's, which can only be the same one where it is in-memory."""
    async with AsyncExitStack() as stack:
        sending = await stack.enter_async_context(layer_of(kind, url, **options))
        if kind == "memory":
            yield sending, sending
        else:
            yield sending, await stack.enter_async_context(layer_of(kind, hub_url or url, **options))


@asynccontextmanager
async def fed(database: Database, sending: Any, receiving: Any, timing: Timing = TIMING) -> AsyncIterator[Hub]:
    """A hub, and a leader that sends to it."""
    async with hub_of(receiving, database.conninfo) as hub, leading(database, Relay(sending), timing=timing):
        yield hub


async def up_to_date(load: Load, subscriber: Subscriber) -> float:
    """Wait until the subscriber has what had been committed before; return the seconds it took."""
    begun = time.monotonic()
    latest = {f"{writer.name}.{writer.committed[-1]}" for writer in load.writers if writer.committed}
    await subscriber.until(lambda: latest <= set(subscriber.received), HEALED)
    return time.monotonic() - begun


async def everything(load: Load, subscriber: Subscriber, room: Room) -> None:
    """Wait until the subscriber has all that a load, which has stopped, has committed, and check it."""
    await subscriber.until(lambda: load.arrived(subscriber.received, room.connection), HEALED)
    assert load.all_answered(room.connection)
    load.check(subscriber.received, room.connection)
    assert not subscriber.resyncs


@contextmanager
def silenced(*names: str) -> Iterator[None]:
    """Without the log of a layer that tells each message it drops, or each try."""
    loggers = [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger in loggers:
            logger.disabled = False


# Redis fails.


class Cable:
    """
    The network between a program and Redis; it can be cut.

    It owns the sockets: of a connection that streams are just being made for, no one could say whose it is.
    """

    def __init__(self, redis: RedisServer) -> None:
        self._redis = redis
        self._port = free_port()
        self._listening: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._lines: list[asyncio.Event] = []

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._port}/0"

    def mend(self) -> None:
        """Accept connections."""
        listening = self._listening = socket.create_server(("127.0.0.1", self._port))
        listening.setblocking(False)
        asyncio.get_running_loop().add_reader(listening, self._accept, listening)

    async def cut(self) -> None:
        """End every connection, and accept no other."""
        if self._listening is not None:
            asyncio.get_running_loop().remove_reader(self._listening)
            self._listening.close()
            self._listening = None
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def replace(self) -> None:
        """End every connection that is stranded, and accept new ones."""
        await self.cut()
        self.mend()

    def strand(self) -> None:
        """Let nothing through on the connections there are, which nobody is told; new ones work."""
        for stranded in self._lines:
            stranded.set()

    def _accept(self, listening: socket.socket) -> None:
        near, far = listening.accept()[0], socket.socket()
        for end in (near, far):
            end.setblocking(False)
        task = asyncio.create_task(self._connect(near, far))
        self._tasks.add(task)

        # Also of a task that is cancelled before it has begun.
        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            near.close()
            far.close()

        task.add_done_callback(ended)

    async def _connect(self, near: socket.socket, far: socket.socket) -> None:
        stranded = asyncio.Event()
        self._lines.append(stranded)
        with suppress(OSError):
            await asyncio.get_running_loop().sock_connect(far, ("127.0.0.1", self._redis.port))
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(_copy(near, far, stranded))
                    both.create_task(_copy(far, near, stranded))
            except* (OSError, EOFError):
                pass


async def _copy(source: socket.socket, target: socket.socket, stranded: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(source, 65536):
        if not stranded.is_set():
            await loop.sock_sendall(target, data)
    raise EOFError


@pytest.fixture
async def cable(redis_server: RedisServer) -> AsyncIterator[Cable]:
    cable = Cable(redis_server)
    cable.mend()
    yield cable
    await cable.cut()


Fault = Callable[[RedisServer, Cable], Awaitable[None]]


async def restarted(redis: RedisServer, cable: Cable) -> None:
    await asyncio.to_thread(redis.stop)
    await asyncio.to_thread(redis.start)


async def killed_and_down_for_a_while(redis: RedisServer, cable: Cable) -> None:
    await asyncio.to_thread(redis.kill, True, signal.SIGKILL)
    await asyncio.sleep(AWAY)
    await asyncio.to_thread(redis.start)


async def flushed(redis: RedisServer, cable: Cable) -> None:
    redis.flush()


async def frozen(redis: RedisServer, cable: Cable) -> None:
    redis.pause()
    await asyncio.sleep(FROZEN)
    redis.resume()


async def cut_off(redis: RedisServer, cable: Cable) -> None:
    """Groups and queued messages stay, and come late."""
    await cable.cut()
    await asyncio.sleep(AWAY)
    cable.mend()


async def thrown_out(redis: RedisServer, cable: Cable) -> None:
    """What Redis does to subscribers that do not read fast enough."""
    with redis_client.Redis.from_url(redis.url) as client:
        for kind in ("pubsub", "normal"):
            client.client_kill_filter(_type=kind, skipme=True)


@pytest.mark.parametrize("kind", list(REDIS_LAYERS))
@pytest.mark.parametrize("fault", [restarted, killed_and_down_for_a_while, flushed, frozen, cut_off, thrown_out])
async def test_redis_fails_under_load_and_everything_arrives_and_then_through_the_layer_again(
    database_triggers: Database,
    redis_server: RedisServer,
    cable: Cable,
    kind: str,
    fault: Fault,
    record: Record,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if fault is flushed:
        # Nobody is told; until then all is lost.
        monkeypatch.setattr(receiver_module, "RENEW_INTERVAL", 0.5)
    room, subscriber = Room(database_triggers), Subscriber(Message)
    load = Load(room, database_triggers.connect)
    with silenced("channels_redis.pubsub"):
        # The hub alone is behind the cable: the leader's messages fill the layer while it is cut.
        async with layers_of(kind, redis_server.url, cable.url) as (sending, receiving):
            ear = Ear(receiving)
            async with fed(database_triggers, sending, ear) as hub:
                await hub.join(subscriber.operation)
                with load.running():
                    await eventually(lambda: ear.changes > 10)
                    await fault(redis_server, cable)
                    record("seconds until up to date", await up_to_date(load, subscriber))
                    taken = ear.changes
                    await eventually(lambda: ear.changes > taken + 10, HEALED)
                await everything(load, subscriber, room)


async def stopped_for_good(redis: RedisServer, cable: Cable) -> None:
    await asyncio.to_thread(redis.stop)


async def frozen_for_good(redis: RedisServer, cable: Cable) -> None:
    redis.pause()


async def stranded(redis: RedisServer, cable: Cable) -> None:
    """As when a network forgets a connection, or a host is lost: redis-py waits for ever."""
    cable.strand()


@pytest.mark.parametrize("kind", list(REDIS_LAYERS))
@pytest.mark.parametrize("fault", [stopped_for_good, frozen_for_good, stranded])
async def test_as_long_as_nothing_comes_through_redis_the_journal_is_read_instead(
    database_triggers: Database,
    redis_server: RedisServer,
    cable: Cable,
    kind: str,
    fault: Fault,
    record: Record,
) -> None:
    room, subscriber = Room(database_triggers), Subscriber(Message)
    with silenced("channels_redis.pubsub"):
        async with layers_of(kind, redis_server.url, cable.url) as (sending, receiving):
            hub = Hub(receiving, [HubReader(opener(database_triggers.conninfo))], Executor(1), silence=0.6)
            await hub.start()
            async with leading(database_triggers, Relay(sending), timing=Timing(safety_poll=0.2, session_timeout=600)):
                await hub.join(subscriber.operation)
                room.say("before")
                await subscriber.has("before")
                await fault(redis_server, cable)
                begun = time.monotonic()
                try:
                    for number in range(2):
                        room.say(f"away {number}")
                        await subscriber.until(lambda: len(subscriber.received) == number + 2, timeout=10)  # noqa: B023
                    record("seconds until two changes had arrived", time.monotonic() - begun)
                finally:
                    if redis_server.running():
                        redis_server.resume()
                    else:
                        await asyncio.to_thread(redis_server.start)
                    if kind == "redis":
                        # It waits for every answer before it closes.
                        await cable.replace()
                    async with asyncio.timeout(EVENT_TIMEOUT):
                        await hub.close()
    assert subscriber.received == ["before", "away 0", "away 1"]


async def test_a_hub_whose_connection_to_redis_was_lost_without_a_word_comes_back_to_the_layer(
    database_triggers: Database, redis_server: RedisServer, cable: Cable, record: Record
) -> None:
    room, subscriber = Room(database_triggers), Subscriber(Message)
    async with layers_of("redis", redis_server.url, cable.url) as (sending, receiving):
        ear = Ear(receiving)
        hub = Hub(ear, [HubReader(opener(database_triggers.conninfo))], Executor(1), silence=0.6)
        await hub.start()
        try:
            async with leading(database_triggers, Relay(sending), timing=Timing(safety_poll=0.2, session_timeout=600)):
                await hub.join(subscriber.operation)
                room.say("before")
                await subscriber.has("before")
                await eventually(lambda: ear.beats)
                cable.strand()
                # What was on its way has arrived with the heartbeats that come five times a second.
                await asyncio.sleep(0.1)
                begun, taken = time.monotonic(), ear.beats
                # Each connection that was lost costs LAYER_TIMEOUT, until one is opened in its place.
                await eventually(lambda: ear.beats > taken)
                record("seconds until it came back", time.monotonic() - begun)
                room.say("after")
                await subscriber.has("after")
        finally:
            await cable.replace()
            async with asyncio.timeout(EVENT_TIMEOUT):
                await hub.close()
    assert subscriber.received == ["before", "after"]


# Groups that are forgotten.


async def test_after_a_flush_in_silence_groups_are_joined_again_and_what_was_lost_meanwhile_is_healed(
    database_triggers: Database,
    redis_server: RedisServer,
    caplog: pytest.LogCaptureFixture,
    record: Record,
) -> None:
    room, subscriber = Room(database_triggers), Subscriber(Message)
    async with layers_of("redis", redis_server.url) as (sending, receiving):
        ear = Ear(receiving)
        async with fed(database_triggers, sending, ear) as hub:
            await hub.join(subscriber.operation)
            room.say("before")
            await subscriber.has("before")
            with redis_client.Redis.from_url(redis_server.url) as client:
                client.flushall()
                begun = time.monotonic()
                group = sending._group_key(names.model_group(MESSAGE))
                room.say("lost")
                await eventually(lambda: client.exists(group))
                record("seconds until joined again", time.monotonic() - begun)
            await subscriber.has("lost")
            record("seconds until up to date", time.monotonic() - begun)
            taken = ear.changes
            room.say("after")
            await subscriber.has("after")
            assert ear.changes > taken
    assert subscriber.received == ["before", "lost", "after"]
    # Only a hub that has heard nothing for three times as long does without the layer.
    assert "The journal is read meanwhile" not in caplog.text


GROUP_EXPIRY = 2
"""Seconds after which layers forget who has joined a group."""


class Both:
    """Sends to several layers."""

    def __init__(self, *layers: Any) -> None:
        self._layers = layers

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        for layer in self._layers:
            await layer.group_send(group, message)


async def test_where_groups_expire_within_seconds_changes_go_on_arriving_through_the_layer(
    database_triggers: Database, redis_server: RedisServer
) -> None:
    room, subscribers, ears, deaf = Room(database_triggers), list[Subscriber](), list[Ear](), list[Ear]()
    async with AsyncExitStack() as stack:
        layers = []
        for kind in ("memory", "redis"):
            pair = layers_of(kind, redis_server.url, group_expiry=GROUP_EXPIRY)
            sending, receiving = await stack.enter_async_context(pair)
            layers.append(sending)
            ears.append(Ear(receiving))
            deaf.append(Ear(receiving, renews=False))
        for ear in (*ears, *deaf):
            hub = await stack.enter_async_context(hub_of(ear, database_triggers.conninfo))
            subscribers.append(Subscriber(Message))
            await hub.join(subscribers[-1].operation)
        relay_side = Faulty(Both(*layers))
        await stack.enter_async_context(leading(database_triggers, Relay(relay_side), timing=TIMING))
        begun, said = time.monotonic(), list[str]()
        while time.monotonic() - begun < 3 * GROUP_EXPIRY:
            said.append(f"message {len(said)}")
            room.say(said[-1])
            for subscriber in subscribers[: len(ears)]:
                await subscriber.has(said[-1])
            await asyncio.sleep(0.1)
        for ear, subscriber in zip(ears, subscribers, strict=False):
            assert subscriber.received == said
            assert ear.changes >= 0.9 * relay_side.sent
        # What becomes of a hub that does not join again.
        for ear in deaf:
            assert 0 < ear.changes < 0.7 * relay_side.sent


# More than a layer holds.


class Gated(Subscriber):
    """A subscriber whose executions wait while the gate is closed; notes how much was pending at most."""

    def __init__(self, *topics: Any) -> None:
        super().__init__(*topics)
        self.hub: Hub | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.most_pending = 0

    def execute(self, change: Change, cursor: Cursor | None = None, batch: object = None) -> str:
        if self.hub is not None:
            self.most_pending = max(self.most_pending, self.hub.executor._pending)
        self.gate.wait(HEALED)
        return super().execute(change)


MOST_PENDING = 50
"""Changes after which a hub waits until some have been executed."""

CAPACITY = 4
"""Messages of a channel that a layer holds."""


@pytest.fixture
def small_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgnotify_gql.hub.executor.MOST_PENDING", MOST_PENDING)


@pytest.mark.usefixtures("small_hub")
@pytest.mark.parametrize("kind", ["memory", "redis"])
async def test_a_hundred_times_what_the_layer_holds_is_sent_and_the_hub_heals_and_holds_little(
    database_triggers: Database, redis_server: RedisServer, kind: str, record: Record
) -> None:
    """The process of the hub stands still, as in a long garbage collection, and the layer drops what it cannot hold."""
    room, subscriber = Room(database_triggers), Gated(Message)
    load = Load(room, database_triggers.connect)
    with silenced("channels_redis.core"):
        async with layers_of(kind, redis_server.url, capacity=CAPACITY) as (sending, receiving):
            relay_side, ear = Faulty(sending), Ear(receiving)
            async with fed(database_triggers, relay_side, ear) as hub:
                subscriber.hub = hub
                await hub.join(subscriber.operation)
                with load.running():
                    await subscriber.until(lambda: len(subscriber.received) > 10)
                    ear.hears.clear()
                    sent, taken = relay_side.sent, ear.changes
                    await eventually(lambda: relay_side.sent > sent + 100 * CAPACITY, HEALED)
                # One more than it had asked for before.
                assert ear.changes <= taken + 1
                ear.hears.set()
                record("seconds until up to date", await up_to_date(load, subscriber))
                await everything(load, subscriber, room)
    # All but what the layer held was dropped.
    assert ear.changes - taken <= 2 * CAPACITY
    assert subscriber.most_pending <= MOST_PENDING + 1


WAITING = 20
"""Messages that a hub holds before they are handled."""


@pytest.mark.usefixtures("small_hub")
@pytest.mark.parametrize("kind", ["memory", *REDIS_LAYERS])
async def test_a_hub_that_cannot_keep_up_holds_little_of_what_it_is_sent_also_where_the_layer_has_no_capacity(
    database_triggers: Database,
    redis_server: RedisServer,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """That of Redis' publish and subscribe puts all that it is sent into a queue of the hub's process."""
    caplog.set_level(logging.INFO, "pgnotify_gql.hub")
    monkeypatch.setattr(receiver_module, "MOST_WAITING", WAITING * receiver_module.MESSAGE_SIZE)
    room, subscriber = Room(database_triggers), Gated(Message)
    load = Load(room, database_triggers.connect)
    async with layers_of(kind, redis_server.url) as (sending, receiving):
        ear = Ear(receiving)
        async with fed(database_triggers, sending, ear) as hub:
            subscriber.hub = hub
            await hub.join(subscriber.operation)
            try:
                with load.running():
                    await subscriber.until(lambda: len(subscriber.received) > 10)
                    subscriber.gate.clear()
                    await eventually(lambda: not hub.executor._room.is_set())
                    taken = ear.changes
                    await eventually(lambda: ear.changes > taken + 20 * WAITING, HEALED)
                    assert len(feed_of(hub)._receiver._waiting) <= WAITING
            finally:
                subscriber.gate.set()
            await everything(load, subscriber, room)
    assert subscriber.most_pending <= MOST_PENDING + 1
    assert "come faster than they are handled" in caplog.text


EXPIRY = 1
"""Seconds after which layers drop a message that nobody has taken."""


def expired(kind: str, layer: Any, channel: str, client: redis_client.Redis, until: float) -> Callable[[], bool]:
    """Whether the layer has dropped what it had been sent for a channel until then."""
    if kind == "memory":
        # It takes the channel out of every group as well, so that nothing follows what it drops.
        return lambda: channel not in layer.channels and not any(channel in group for group in layer.groups.values())
    key = layer.prefix + layer.non_local_name(channel)
    return lambda: client.zcount(key, 0, until) == 0


@pytest.mark.usefixtures("small_hub")
@pytest.mark.parametrize("kind", ["memory", "redis"])
async def test_what_waits_for_a_hub_expires_in_the_layer_and_the_hub_heals(
    database_triggers: Database,
    redis_server: RedisServer,
    kind: str,
    caplog: pytest.LogCaptureFixture,
    record: Record,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(receiver_module, "RENEW_INTERVAL", 0.5)
    room, subscriber = Room(database_triggers), Subscriber(Message)
    load = Load(room, database_triggers.connect)
    async with layers_of(kind, redis_server.url, expiry=EXPIRY) as (sending, receiving):
        ear = Ear(receiving)
        async with fed(database_triggers, sending, ear) as hub:
            await hub.join(subscriber.operation)
            with redis_client.Redis.from_url(redis_server.url) as client:
                with load.running():
                    await subscriber.until(lambda: len(subscriber.received) > 10)
                    ear.hears.clear()
                    taken = ear.changes
                    await eventually(load.grown_by(20))
                    channel = feed_of(hub)._receiver._channel
                    await eventually(expired(kind, receiving, channel, client, time.time()))
                ear.hears.set()
            record("seconds until up to date", await up_to_date(load, subscriber))
            await everything(load, subscriber, room)
            room.say("and later")
            await subscriber.has("and later")
            assert ear.changes > taken
    assert "The journal is read meanwhile" not in caplog.text


# The last message before silence.


class Timekeeper(Subscriber):
    """Notes how many heartbeats the relay had sent, and the hub had taken, when a change was executed."""

    def __init__(self, relay_side: Faulty, ear: Ear) -> None:
        super().__init__(Message)
        self._relay_side = relay_side
        self._ear = ear
        self.beats: dict[str, tuple[int, int]] = {}

    def execute(self, change: Change, cursor: Cursor | None = None, batch: object = None) -> str:
        self.beats[(change.new or {})["text"]] = self._relay_side.beats, self._ear.beats
        return super().execute(change)


@contextmanager
def stirred(room: Room) -> Iterator[None]:
    """Changes of another model, which keep the leader awake."""
    stop = threading.Event()

    def stir() -> None:
        with room.database.server.connect(room.database.name) as connection:
            while not stop.wait(0.01):
                connection.execute("update conversations_conversation set title = gen_random_uuid()::text")

    thread = threading.Thread(target=stir, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


BEAT = 2.5
"""Seconds between two heartbeats: reading the journal must not take longer, on a machine that is busy."""


@pytest.mark.parametrize("awake", [True, False], ids=["awake", "falling asleep"])
@pytest.mark.parametrize("beats_lost", [0, 1], ids=["only it is lost", "the next heartbeat is lost too"])
async def test_the_loss_of_the_last_message_before_silence_is_noticed_within_two_heartbeats(
    database_triggers: Database,
    layer: BaseChannelLayer,
    awake: bool,
    beats_lost: int,
    monkeypatch: pytest.MonkeyPatch,
    record: Record,
) -> None:
    monkeypatch.setattr(term_module, "HEARTBEAT_INTERVAL", BEAT)
    timing = Timing(safety_poll=BEAT, session_timeout=600)
    room, relay_side, ear = Room(database_triggers), Faulty(layer), Ear(layer)
    subscriber, lost = Timekeeper(relay_side, ear), list[dict[str, Any]]()

    def without_the_last(message: dict[str, Any]) -> list[dict[str, Any]]:
        if message["label"] != MESSAGE:
            return [message]
        relay_side.beat_fate = without_some
        at.append((relay_side.beats, ear.beats))
        return []

    def without_some(heartbeat: dict[str, Any]) -> list[dict[str, Any]]:
        if len(lost) == beats_lost:
            return [heartbeat]
        lost.append(heartbeat)
        return []

    at = list[tuple[int, int]]()
    async with fed(database_triggers, relay_side, ear, timing) as hub, AsyncExitStack() as stack:
        await hub.join(subscriber.operation)
        room.say("arrives")
        await subscriber.has("arrives")
        if awake:
            stack.enter_context(stirred(room))
            begun = relay_side.sent
            await eventually(lambda: relay_side.sent > begun + 5)
        else:
            await eventually(lambda: not lock_holders(database_triggers, names.AWAKE_LOCK))
        relay_side.fate = without_the_last
        begun_at = time.monotonic()
        room.say("the last one")
        await subscriber.has("the last one")
        record("seconds until up to date", time.monotonic() - begun_at)
    assert subscriber.received == ["arrives", "the last one"]
    ((sent, taken),) = at
    sent_then, taken_then = subscriber.beats["the last one"]
    assert len(lost) == beats_lost
    assert beats_lost < sent_then - sent <= 2
    # One may have been on its way when the message was lost.
    assert 1 <= taken_then - taken <= 2


# A layer that is slow.

SLOW = 0.4
"""Seconds that a message takes to a slow layer: far less than the relay waits for it."""

SLOW_SESSION = 8
"""Seconds after which the leader's session ends when it is silent."""


class Slow:
    """A layer that takes its time for changes."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        if message["type"] == CHANGES:
            await asyncio.sleep(SLOW)
        await self._layer.group_send(group, message)


async def test_a_layer_that_is_slow_with_each_of_many_messages_neither_stops_the_feed_nor_costs_the_leader_its_session(
    database_triggers: Database, record: Record
) -> None:
    layer, standby, subscriber = InMemoryChannelLayer(), Recorder(), Subscriber(Message)
    room, terms = Room(database_triggers), list[int]()

    class Counted(Relay):
        def begin(self, epoch: int, era: Era) -> None:
            terms.append(epoch)
            super().begin(epoch, era)

    timing = Timing(safety_poll=0.5, session_timeout=SLOW_SESSION)
    connect = partial(opener, database_triggers.conninfo, SLOW_SESSION)
    leader = Listener(connect("test leader"), Counted(Slow(layer)), timing=timing)
    other = Listener(connect("test standby"), standby, timing=timing)
    async with hub_of(layer, database_triggers.conninfo) as hub, running(leader):
        async with asyncio.timeout(EVENT_TIMEOUT):
            await leader.leading.wait()
        async with running(other):
            await hub.join(subscriber.operation)
            begun = time.monotonic()
            with psycopg.connect(database_triggers.conninfo) as writer:
                room.say("at the head", connection=writer)
                # As many models as take three times as long as the session lives.
                writer.execute(
                    "insert into pgnotify_gql.journal (label, kind, rows)"
                    " select 'other.model' || number, 'INSERT', '[[[1]]]' from generate_series(1, %s) as number",
                    [int(3 * SLOW_SESSION / SLOW)],
                )
                (row,) = room.say("in the middle", connection=writer)
                room.edit(row, "at the end", connection=writer)
            room.say("afterwards")
            await subscriber.has("afterwards")
            record("seconds until up to date", time.monotonic() - begun)
            for number in range(5):
                room.say(f"later {number}")
            await subscriber.has("later 4")
    later = [f"later {number}" for number in range(5)]
    assert subscriber.received == ["at the head", "in the middle", "at the end", "afterwards", *later]
    assert len(terms) == 1
    assert not standby.epochs


# Everything at once.


class TitledRoom(Room):
    """A room in which whoever edits a message gives the message's own conversation another title."""

    conversations: dict[int, int]

    def edit(self, key: int, text: str, connection: psycopg.Connection | None = None) -> None:
        super().edit(key, text, connection)
        (connection or self.connection).execute(
            "update conversations_conversation set title = %s where id = %s", [text, self.conversations[key]]
        )


TERMS = 3
"""Leaders that are replaced."""


async def replace_leader(database: Database, chaos: Chaos) -> None:
    """End the leader's session; what the layer had held back comes when the next leader sends already."""
    former, chaos.hoards = chaos.epoch, True
    await asyncio.to_thread(terminate, database, "test leader")
    await eventually(lambda: chaos.epoch > former, HEALED)
    chaos.hoards = False
    await chaos.release()


@pytest.mark.parametrize("seed", range(2))
async def test_a_layer_that_loses_doubles_delays_and_reorders_all_while_leaders_change_costs_no_change_of_any_model(
    database_triggers: Database, seed: int, monkeypatch: pytest.MonkeyPatch, record: Record
) -> None:
    monkeypatch.setattr(term_module, "HEARTBEAT_INTERVAL", 0.02)
    room = TitledRoom(database_triggers)
    load = Load(room, database_triggers.connect)
    room.conversations = {writer.row: room.next_door().conversation for writer in load.writers}
    layer = InMemoryChannelLayer()
    chaos = Chaos(layer, seed)
    messages, conversations, both = Subscriber(Message), Subscriber(Conversation), Subscriber(Message, Conversation)
    async with fed(database_triggers, chaos, layer) as hub:
        for subscriber in (messages, conversations, both):
            await hub.join(subscriber.operation)
        with load.running():
            for _ in range(TERMS):
                await eventually(chaos.has_met(1), HEALED)
                await replace_leader(database_triggers, chaos)
        chaos.calm = True
        room.say("the last one")
        record("seconds until up to date", await up_to_date(load, messages))
        await messages.until(lambda: load.arrived(messages.received, room.connection), HEALED)
        await chaos.release()
        room.say("after all that came late")
        room.edit(load.writers[0].row, "and a title")
        await both.has("after all that came late", "and a title")
        expected = {room.conversations[w.row]: len(load.expected(room.connection)[w.name]) for w in load.writers}
        expected[room.conversations[load.writers[0].row]] += 1
        await eventually(lambda: sum(expected.values()) <= len(conversations.received))
        await eventually(lambda: {*messages.received, *conversations.received} <= set(both.received))
    load.check(messages.received, room.connection)
    assert Counter(conversations.received) == expected
    assert Counter(both.received) == Counter(messages.received) + Counter(conversations.received)
    assert [text for text in both.received if isinstance(text, str)] == messages.received
    assert not messages.resyncs
    assert chaos.met[CHANGES, "of a former leader"] > 0
    assert chaos.met[HEARTBEAT, "of a former leader"] > 0
