"""
Leaders that are killed, frozen, cut off from the network or ended by the server, while writers go on.

Times are measured from the fault to the standby's own word that it leads, and to its first change; `record_property`
keeps them (``--junitxml``).
"""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from io import StringIO

import pytest
from channels_redis.core import RedisChannelLayer
from django.core.management import call_command
from redis import Redis

from example.conversations.models import Message
from pgnotify_gql import names
from pgnotify_gql.hub.cursor import Cursor
from pgnotify_gql.journal import Change
from pgnotify_gql.relay.messages import CHANGES
from tests.faults import hub_process
from tests.faults.load import Load
from tests.faults.network import ADDRESSES, Island, Road, island
from tests.support.databases import Database, migrated_template, new_database, used_by_django
from tests.support.feed import Room, eventually, hub_of, lock_holders, sessions
from tests.support.operations import Subscriber
from tests.support.postgres import PostgresServer
from tests.support.processes import Process, RedisServer, project_environment
from tests.support.receivers import Received, receiving

Start = Callable[..., Process]
Note = Callable[[str, object], None]

CRASH_BOUND = 1.0
"""Seconds within which a standby leads after the leader's session has ended: DESIGN's, and the issue's."""

SESSION_TIMEOUT = 4.0
"""Seconds after which a frozen leader loses its session, as these listeners are told."""

SLACK = 1.0
"""Seconds more: a standby tries every 0.25, the server looks at its timers and ends the session, the standby begins an
epoch, and all of them share two cores with the writers and with other tests."""

FREEZE_BOUND = SESSION_TIMEOUT + SLACK

PATIENCE = 40.0
"""Seconds for what has no bound but must happen: pauses between two tries to connect grow to several."""

IN_HAND = 1
"""Messages that may come late, of a leader that was stopped in the middle of handing one to the layer: it went on with
that when it was back, or the network had it. Hubs know it by its epoch, so subscribers do not notice."""

STATES = "leading database|standing by"
LISTENER = "pgnotify_gql listener"
LOST = "lost the (?:database|leadership)"
ENVIRONMENT = {"DJANGO_SETTINGS_MODULE": "tests.support.listener_settings", "SESSION_TIMEOUT": str(SESSION_TIMEOUT)}
CALM = ENVIRONMENT | {"SESSION_TIMEOUT": "30"}
"""Of leaders that are killed or ended: nobody may wait for the end of a session that is only silent."""

pytestmark = pytest.mark.postgres("18")


# Listeners and what they relay


def epochs(listener: Process) -> list[int]:
    """The terms of a listener, by its own word."""
    return [int(epoch) for epoch in re.findall(r"leading database default in epoch (\d+)", listener.log)]


def last_epoch(listeners: list[Process]) -> int:
    return max(epoch for listener in listeners for epoch in epochs(listener))


def state(listener: Process) -> str:
    """The last that a listener has said of its leadership."""
    said: list[str] = re.findall(f"{STATES}|{LOST}|cannot be used", listener.log)
    return said[-1]


def leads(listener: Process) -> bool:
    return state(listener) == "leading database"


async def started(
    start: Start, count: int, *arguments: object, environment: Mapping[str, str] = ENVIRONMENT
) -> list[Process]:
    """So many listeners, the leader first; started at once, so that whoever comes first leads."""
    processes = await asyncio.gather(
        *(asyncio.to_thread(start, *arguments, banner=STATES, environment=environment) for _ in range(count))
    )
    await eventually(lambda: sorted(map(leads, processes)) == [False] * (count - 1) + [True], PATIENCE)
    processes.sort(key=leads, reverse=True)
    return processes


class Brief(Subscriber):
    """Keeps the beginning of a text: some tests write megabytes."""

    def execute(self, change: Change, cursor: Cursor | None = None, batch: object = None) -> str:
        return super().execute(change)[:40].rstrip('"') + '"'


# It reads every few milliseconds, but for when it is asleep, or busy with a batch.
SILENT = """
    select state_change > %s and state_change < clock_timestamp() - interval '100 ms'
    from pg_stat_activity where pid = any(%s)
"""


class Scene:
    """A load, a hub with a subscriber, and what the listeners send to it."""

    def __init__(self, database: Database, relayed: Received, subscriber: Subscriber, note: Note) -> None:
        self.database = database
        self.room = Room(database)
        self.load = Load(self.room, database.connect)
        self.relayed = relayed
        self.subscriber = subscriber
        self._note = note

    def holders(self) -> list[int]:
        return lock_holders(self.database, names.LEADER_LOCK)

    async def at_work(self, count: int = 5) -> None:
        """Wait until each writer has committed so many more, and the feed has gone on with them."""
        await eventually(self.load.grown_by(count), PATIENCE)
        texts = {f"{writer.name}.{writer.committed[-1]}" for writer in self.load.writers}
        await self.subscriber.until(lambda: texts <= set(self.subscriber.received), PATIENCE)

    async def succeeded(self, standbys: list[Process], before: int, since: float, what: str) -> tuple[Process, float]:
        """
        Wait until one of these leads, in an epoch after `before`.

        Return it, and the seconds from `since` (monotonic) to its word; these and those to its first change are noted.
        """
        await eventually(lambda: last_epoch(standbys) > before if any(map(epochs, standbys)) else False, PATIENCE)
        taken = time.monotonic() - since
        leader = max(standbys, key=lambda listener: max(epochs(listener), default=0))
        epoch = epochs(leader)[-1]
        await self.relayed.until(lambda: epoch in self.epochs_relayed(), PATIENCE)
        self._note(f"{what}: leads after", round(taken, 3))
        self._note(f"{what}: first change after", round(time.monotonic() - since, 3))
        assert len(self.holders()) == 1
        return leader, taken

    def hands_over(self) -> Callable[[], bool]:
        """Whether the leader has read what was committed before this call, and has asked for no more since."""
        ((now,),) = self.room.connection.execute("select clock_timestamp()").fetchall()

        def is_silent() -> bool:
            with self.database.server.connect() as admin:
                found = admin.execute(SILENT, [now, self.holders()]).fetchall()
            return found == [(True,)]

        return is_silent

    def epochs_relayed(self) -> list[int]:
        """The epochs of all messages of changes, in the order in which they came."""
        return [message["epoch"] for message in self.relayed.messages if message["type"] == CHANGES]

    def stale(self) -> list[int]:
        """The epochs of messages of changes that came after one of a later epoch."""
        epochs, latest, stale = self.epochs_relayed(), 0, []
        for epoch in epochs:
            latest = max(latest, epoch)
            if epoch < latest:
                stale.append(epoch)
        return stale

    async def all_arrived(self) -> None:
        """The load has stopped: wait for all of it, and check that it came once and in order."""
        with self.database.server.connect(self.database.name) as connection:
            assert self.load.all_answered(connection)
            expected = {text for texts in self.load.expected(connection).values() for text in texts}
            expected |= {f"new {text}" for text in expected}
            await self.subscriber.until(lambda: expected <= set(self.subscriber.received), PATIENCE)
            self.load.check(self.subscriber.received, connection)
        assert not self.subscriber.resyncs


@asynccontextmanager
async def scene(database: Database, redis: RedisServer, note: Note) -> AsyncIterator[Scene]:
    subscriber, layer = Brief(Message), RedisChannelLayer(hosts=[redis.url])
    async with receiving(redis) as relayed:
        try:
            async with hub_of(layer, database.conninfo) as hub:
                await hub.join(subscriber.operation)
                yield Scene(database, relayed, subscriber, note)
        finally:
            await layer.flush()


# Killed


async def test_leaders_killed_one_after_the_other_under_load_are_each_followed_within_a_second(
    database_triggers: Database, redis_server: RedisServer, run_listener: Start, record_property: Note
) -> None:
    listeners = await started(run_listener, 3, database_triggers, redis_server, environment=CALM)
    async with scene(database_triggers, redis_server, record_property) as played:
        with played.load.running():
            while len(listeners) > 1:
                await played.at_work()
                leader = next(listener for listener in listeners if leads(listener))
                (session,), epoch = played.holders(), epochs(leader)[-1]
                leader.send_signal(signal.SIGKILL)
                killed = time.monotonic()
                leader.wait()
                listeners.remove(leader)
                _, taken = await played.succeeded(listeners, epoch, killed, "killed awake")
                assert taken < CRASH_BOUND
                assert session not in played.holders()
                assert [leads(listener) for listener in listeners].count(True) == 1
            await played.at_work()
        await played.all_arrived()
        assert played.stale() == []


async def asleep(database: Database) -> None:
    await eventually(lambda: not lock_holders(database, names.AWAKE_LOCK))


async def test_a_leader_killed_in_its_sleep_is_followed_within_a_second(
    database_triggers: Database, redis_server: RedisServer, run_listener: Start, record_property: Note
) -> None:
    leader, standby = await started(run_listener, 2, database_triggers, redis_server, environment=CALM)
    async with scene(database_triggers, redis_server, record_property) as played:
        await asleep(database_triggers)
        before = last_epoch([leader])
        leader.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        leader.wait()
        played.room.say("while nobody leads")
        with played.load.running():
            _, taken = await played.succeeded([standby], before, killed, "killed asleep")
            # Relayed, and not only healed by the hub.
            await played.relayed.until(played.relayed.contains("while nobody leads"))
            assert taken < CRASH_BOUND
            await played.at_work()
        await played.all_arrived()


# Frozen


@pytest.mark.parametrize("moment", ["awake", "asleep"])
async def test_a_frozen_leader_is_followed_within_the_session_timeout_and_comes_back_as_a_standby(
    database_triggers: Database, redis_server: RedisServer, run_listener: Start, record_property: Note, moment: str
) -> None:
    old, new = await started(run_listener, 2, database_triggers, redis_server)
    async with scene(database_triggers, redis_server, record_property) as played:
        before = last_epoch([old])
        with ExitStack() as writing:
            if moment == "awake":
                writing.enter_context(played.load.running())
                await played.at_work()
            else:
                await asleep(database_triggers)
            old.pause()
            frozen = time.monotonic()
            if moment == "asleep":
                writing.enter_context(played.load.running())
            _, taken = await played.succeeded([new], before, frozen, f"frozen {moment}")
            assert taken < FREEZE_BOUND
            await played.at_work()
            old.resume()
            await back_as_standby(old, new)
            await played.at_work()
        await played.all_arrived()
        assert len(played.stale()) <= (IN_HAND if moment == "awake" else 0)


async def back_as_standby(old: Process, new: Process) -> None:
    """Wait until an old leader has noticed, and stands by again."""
    await eventually(lambda: state(old) == "standing by", PATIENCE)
    assert re.search(LOST, old.log)
    assert leads(new)
    assert len(epochs(old)) == 1


async def test_a_leader_frozen_while_it_sends_does_not_go_on_sending_what_another_has_relayed(
    database_triggers: Database, redis_server: RedisServer, run_listener: Start, record_property: Note
) -> None:
    """It asks Redis for the members of a group, and is frozen until another leads; the answer waits for it."""
    old, new = await started(run_listener, 2, database_triggers, redis_server)
    async with scene(database_triggers, redis_server, record_property) as played:
        before = last_epoch([old])
        redis_server.pause()
        try:
            played.room.say("being sent")
            await eventually(played.hands_over())
            old.pause()
            frozen = time.monotonic()
        finally:
            redis_server.resume()
        # Something for the new leader: on a busy machine the old one may have given up, and stored its cursor, just
        # before it was frozen.
        played.room.say("while it is frozen")
        _, taken = await played.succeeded([new], before, frozen, "frozen while it sends")
        assert taken < FREEZE_BOUND
        await played.subscriber.has("being sent", "while it is frozen")
        old.resume()
        await back_as_standby(old, new)
        played.room.say("afterwards")
        await played.subscriber.has("afterwards")
        assert played.subscriber.received.count("being sent") == 1
        assert played.stale() == []


LARGE_ROW = 300_000
LARGE_ROWS = 100
"""Characters of a text, and how many of them one statement writes: tens of megabytes in one read."""


READING = """
    select wait_event is not distinct from 'ClientWrite', clock_timestamp() - query_start > interval '30 ms'
    from pg_stat_activity where datname = %s and application_name = %s and state = 'active'
"""


async def frozen_while_it_reads(leader: Process, played: Scene) -> tuple[list[str], float]:
    """
    Freeze a leader while it reads, so that the server is blocked in the middle of sending.

    Return what was written, and when (monotonic) the leader was frozen.

    What the server has not sent yet is more than a socket holds, so it blocks as soon as the leader takes no more.
    """
    written: list[str] = []

    def reads() -> tuple[bool, bool]:
        """Whether the server is blocked while it sends, and whether it has been at it for long: a large batch."""
        found = admin.execute(READING, [played.database.name, LISTENER]).fetchall()
        return any(blocked for blocked, _ in found), any(is_long for _, is_long in found)

    with played.database.server.connect() as admin:
        for attempt in range(10):
            written += [f"large {attempt}.{number}." for number in range(1, LARGE_ROWS + 1)]
            writing = asyncio.create_task(asyncio.to_thread(write_large, played.room, f"large {attempt}."))
            all_there = partial(has_large, played.subscriber, set(written))
            begun: Callable[[], bool] = partial(lambda there: any(reads()) or there(), all_there)
            # It may be over between two looks: then once more.
            await eventually(begun, PATIENCE)
            leader.pause()
            frozen = time.monotonic()
            await writing
            await eventually(lambda: reads() != (False, True))
            # Still so a little later: it was not a moment's wait of a send that then came to its end.
            await asyncio.sleep(0.1)
            if reads()[0]:
                return written, frozen
            leader.resume()
            await played.subscriber.until(all_there, PATIENCE)
    raise AssertionError("the leader was never frozen in the middle of a batch")


def write_large(room: Room, prefix: str) -> None:
    with room.database.server.connect(room.database.name) as connection:
        connection.execute(
            "insert into conversations_message (conversation_id, author_id, text)"
            " select %s, %s, %s || number || '.' || repeat('x', %s) from generate_series(1, %s) as number",
            [room.conversation, room.author, prefix, LARGE_ROW, LARGE_ROWS],
        )


async def test_a_leader_frozen_in_the_middle_of_a_large_batch_is_ended_by_a_standby_and_followed(
    database_triggers: Database, redis_server: RedisServer, run_listener: Start, record_property: Note
) -> None:
    """Over a unix socket, where no time-out of TCP helps."""
    server = database_triggers.server
    local = Local(f"postgresql://{server.user}@/{database_triggers.name}?host={server.directory}&port={server.port}")
    old, new = await started(run_listener, 2, local, redis_server)
    async with scene(database_triggers, redis_server, record_property) as played:
        before = last_epoch([old])
        written, frozen = await frozen_while_it_reads(old, played)
        with played.load.running():
            _, taken = await played.succeeded([new], before, frozen, "frozen while it reads")
            assert taken < FREEZE_BOUND
            old.resume()
            await back_as_standby(old, new)
            await played.at_work()
        await played.all_arrived()
        await played.subscriber.until(partial(has_large, played.subscriber, set(written)), PATIENCE)
        assert [name_of(text) for text in played.subscriber.received if text.startswith("large")] == written
        assert played.stale() == []


def has_large(subscriber: Subscriber, texts: set[str]) -> bool:
    return texts <= {name_of(text) for text in subscriber.received}


def name_of(text: str) -> str:
    return text.rstrip("x")


class Local:
    """An address of a database, for `run_listener`."""

    def __init__(self, url: str) -> None:
        self.url = url


# Ended by the server


TIMES = 4


async def test_a_leader_whose_session_is_ended_again_and_again_is_followed_each_time_within_a_second(
    database_triggers: Database, redis_server: RedisServer, run_listener: Start, record_property: Note
) -> None:
    listeners = await started(run_listener, 2, database_triggers, redis_server, environment=CALM)
    async with scene(database_triggers, redis_server, record_property) as played:
        with played.load.running():
            for _ in range(TIMES):
                await played.at_work()
                await eventually(lambda: sorted(map(state, listeners)) == STATES.split("|"))
                (session,), before = played.holders(), last_epoch(listeners)
                with database_triggers.server.connect() as admin:
                    ended = time.monotonic()
                    admin.execute("select pg_terminate_backend(%s)", [session])
                _, taken = await played.succeeded(listeners, before, ended, "terminated")
                assert taken < CRASH_BOUND
            await played.at_work()
            await eventually(lambda: sorted(map(state, listeners)) == STATES.split("|"))
        await played.all_arrived()
        assert len(played.stale()) <= TIMES * IN_HAND


@pytest.fixture(scope="module")
def server(postgres: PostgresServer) -> Iterator[PostgresServer]:
    """A server that tests may restart, and that islands reach."""
    server = PostgresServer.create(postgres.version, postgres.bin_path)
    try:
        with (server.data_directory / "pg_hba.conf").open("a") as access:
            access.write(f"host all all {ADDRESSES} trust\n")
        with (server.data_directory / "postgresql.conf").open("a") as settings:
            settings.write("listen_addresses = '*'\n")
        server.restart()
        yield server
    finally:
        server.close()


@pytest.fixture
def own_database(server: PostgresServer) -> Iterator[Database]:
    with new_database(server, migrated_template(server)) as database:
        with used_by_django(database):
            call_command("install_triggers", stdout=StringIO())
        yield database


async def test_after_a_restart_of_the_server_under_load_one_leads_and_the_other_stands_by(
    own_database: Database, redis_server: RedisServer, run_listener: Start, record_property: Note
) -> None:
    listeners = await started(run_listener, 2, own_database, redis_server)
    async with scene(own_database, redis_server, record_property) as played:
        with played.load.running():
            await played.at_work()
            before = last_epoch(listeners)
            await asyncio.to_thread(own_database.server.restart)
            accepts = time.monotonic()
            await played.succeeded(listeners, before, accepts, "restarted")
            await eventually(lambda: sorted(map(state, listeners)) == STATES.split("|"), PATIENCE)
            assert len(played.holders()) == 1
            await played.at_work()
        await played.all_arrived()
        assert len(played.stale()) <= IN_HAND


# Cut off


@pytest.fixture
def reachable_redis(redis_server: RedisServer) -> Iterator[RedisServer]:
    """A Redis that islands reach: it listens on all addresses meanwhile."""
    with Redis.from_url(redis_server.url) as client:
        before = client.config_get("bind")["bind"]
        client.config_set("protected-mode", "no")
        client.config_set("bind", "*")
    yield redis_server
    with Redis.from_url(redis_server.url) as client:
        client.config_set("bind", before)
        client.config_set("protected-mode", "yes")


@pytest.fixture
def away(running: ExitStack) -> Island:
    """An island that programs can be started on; it is gone after them."""
    return running.enter_context(island())


def environment_on(away: Island, database: Database, redis: RedisServer) -> dict[str, str]:
    url = f"postgresql://{database.server.user}@{away.to_database.near}:{database.server.port}/{database.name}"
    redis_url = f"redis://{away.to_redis.near}:{redis.port}/0"
    return project_environment(url, None, inline=False, environment={**ENVIRONMENT, "REDIS_URL": redis_url})


@pytest.fixture
def listener_away(
    away: Island, own_database: Database, reachable_redis: RedisServer, running: ExitStack
) -> Callable[[], Process]:
    """Start `manage.py run_listener` on the island."""
    environment = environment_on(away, own_database, reachable_redis)

    def start() -> Process:
        arguments = ("manage.py", "run_listener")
        return running.enter_context(away.python(*arguments, banner=STATES, environment=environment))

    return start


@contextmanager
def cut(away: Island, *roads: Road) -> Iterator[None]:
    away.cut(*roads)
    try:
        yield
    finally:
        away.heal(*roads)


@pytest.mark.parametrize("reachable", ["nothing", "Redis"])
async def test_a_leader_that_is_cut_off_is_followed_within_the_session_timeout_and_comes_back_as_a_standby(
    away: Island, listener_away: Callable[[], Process], own_database: Database, redis_server: RedisServer,
    run_listener: Start, record_property: Note, reachable: str,
) -> None:  # fmt: skip
    log = own_database.server.log_file
    old, said_before = await asyncio.to_thread(listener_away), len(log.read_text())
    assert leads(old)
    new = await asyncio.to_thread(
        run_listener, own_database, redis_server, banner="standing by", environment=ENVIRONMENT
    )
    async with scene(own_database, redis_server, record_property) as played:
        before = last_epoch([old])
        with played.load.running():
            await played.at_work()
            with cut(away, *([away.to_database] if reachable == "Redis" else [])):
                cut_at, packets = time.monotonic(), away.packets(old)
                _, taken = await played.succeeded([new], before, cut_at, f"cut off, {reachable} reachable")
                assert taken < FREEZE_BOUND
                await eventually(lambda: re.search(LOST, old.log), PATIENCE)
                await played.at_work()
                if reachable == "nothing":
                    assert away.packets(old) == packets, "the cut was not silent"
            healed = time.monotonic()
            await back_as_standby(old, new)
            record_property("stands by after", round(time.monotonic() - healed, 3))
            await played.at_work()
        await played.all_arrived()
        assert len(played.stale()) <= IN_HAND
    # By the server itself or by the standby, whichever is first; no packet told either of them.
    assert re.search("due to (idle-session timeout|administrator command)", log.read_text()[said_before:])


async def test_a_standby_that_was_cut_off_stands_by_again_and_leads_when_it_has_to(
    away: Island, listener_away: Callable[[], Process], own_database: Database, redis_server: RedisServer,
    run_listener: Start, record_property: Note,
) -> None:  # fmt: skip
    leader = await asyncio.to_thread(run_listener, own_database, redis_server, environment=CALM)
    standby = await asyncio.to_thread(listener_away)
    assert not leads(standby)
    async with scene(own_database, redis_server, record_property) as played:
        with played.load.running():
            with cut(away):
                await eventually(lambda: re.search(LOST, standby.log), PATIENCE)
                await eventually(lambda: len(sessions(own_database, LISTENER)) == 1, PATIENCE)
                await played.at_work()
            await eventually(lambda: state(standby) == "standing by", PATIENCE)
            await played.at_work()
            before = last_epoch([leader])
            leader.send_signal(signal.SIGKILL)
            killed = time.monotonic()
            leader.wait()
            _, taken = await played.succeeded([standby], before, killed, "killed, the standby once cut off")
            assert taken < CRASH_BOUND
            await played.at_work()
        await played.all_arrived()


CUT_OFF = 150
"""Messages while a hub is cut off: more than the layer keeps for it, which is 100."""


async def test_a_hub_that_was_cut_off_gives_its_subscriber_everything_once_the_network_is_back(
    away: Island, own_database: Database, reachable_redis: RedisServer, run_listener: Start, running: ExitStack,
    record_property: Note,
) -> None:  # fmt: skip
    listener = asyncio.to_thread(run_listener, own_database, reachable_redis, environment=ENVIRONMENT)
    environment = environment_on(away, own_database, reachable_redis)
    hub = await asyncio.to_thread(away.python, "-m", hub_process.__name__, banner="joined", environment=environment)
    running.enter_context(hub)
    await listener
    async with scene(own_database, reachable_redis, record_property) as played:
        with played.load.running():
            await played.at_work()
            with cut(away):
                packets, before = away.packets(hub), len(played.epochs_relayed())
                await played.relayed.until(lambda: len(played.epochs_relayed()) > before + CUT_OFF, PATIENCE)
                assert away.packets(hub) == packets, "the cut was not silent"
            healed = time.monotonic()
            await played.at_work()
        await played.all_arrived()
        with own_database.server.connect(own_database.name) as connection:
            await eventually(lambda: played.load.arrived(hub_process.received(hub.log), connection), PATIENCE)
            record_property("arrived after", round(time.monotonic() - healed, 3))
            played.load.check(hub_process.received(hub.log), connection)
