"""
Databases that are restarted, crash, change their places, are away, are full, or stand behind a pooler.

After each fault everything that was committed arrives, in order per row, once, and nothing that was rolled back does.
The times that a fault cost are properties of the test in pytest's JUnit report.
"""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import Literal

import pytest
from channels_redis.core import RedisChannelLayer

from example.conversations.models import Message
from pgnotify_gql import names
from pgnotify_gql.hub.hub import Hub
from pgnotify_gql.journal.reader import BATCH_ROWS
from pgnotify_gql.listener import Timing
from pgnotify_gql.listener.doorbell import Doorbell
from tests.faults.cluster import (
    FULL,
    Crowd,
    Site,
    caught_up,
    crowd_at,
    django_through,
    own_server,
    quiet_hub,
    several_hosts,
    site_of,
    twin_of,
    unprivileged,
    watched_database,
)
from tests.support.databases import Database
from tests.support.feed import MESSAGE, Room, eventually, feed_of, lock_holders, sessions, terminate, transaction
from tests.support.postgres import PostgresServer
from tests.support.processes import PgBouncer, Process, RedisServer
from tests.support.receivers import receiving

Mode = Literal["fast", "immediate"]
Measured = Callable[[str, float], None]
Start = Callable[..., Process]

MODES = pytest.mark.parametrize("mode", ["fast", "immediate"], ids=["restart", "crash"])

SETTINGS = "tests.support.listener_settings"


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Measured:
    """Note a figure; it ends up in the JUnit report."""

    def note(what: str, figure: float) -> None:
        request.node.user_properties.append((what, round(figure, 3)))

    return note


@pytest.fixture(scope="module")
def server(postgres: PostgresServer) -> Iterator[PostgresServer]:
    """A server that a test may restart; in a crash it forgets all that nobody has waited for."""
    with own_server(postgres, wal_writer_delay="10s") as server:
        yield server


@pytest.fixture
def watched(server: PostgresServer) -> Iterator[Database]:
    with watched_database(server) as database:
        yield database


@pytest.fixture
def primary(server: PostgresServer, watched: Database) -> Iterator[PostgresServer]:
    """A server that the test may lose, with the watched database."""
    with twin_of(server) as twin:
        yield twin


@pytest.fixture
def replica(primary: PostgresServer) -> Iterator[PostgresServer]:
    """Streams from the primary."""
    replica = primary.standby()
    yield replica
    replica.close()


@pytest.fixture
def of_primary(primary: PostgresServer, watched: Database) -> Iterator[Database]:
    """The watched database of the primary."""
    database = Database(primary, watched.name)
    yield database
    database.close()


# Restarts and crashes.


@MODES
async def test_the_database_is_restarted_under_load(
    server: PostgresServer, watched: Database, mode: Mode, measured: Measured
) -> None:
    async with site_of(watched) as (site, _, _):
        with site.load.running():
            await eventually(site.load.grown_by(20))
            await asyncio.to_thread(server.restart, mode)
            back = site.moment()
            await eventually(site.load.grown_by(20))
        await site.complete()
    measured("seconds from the server's return to the first change", site.seconds_until_told(back))


def wake(site: Site, database: Database) -> None:
    """Ring until the leader has woken up: one that sleeps answers a single bell in its sleep."""
    while not lock_holders(database, names.AWAKE_LOCK):
        site.room.say(*["wakes it"] * 5)


def last_asked(site: Site) -> object:
    """When the leader has last begun a statement."""
    return site.room.connection.execute(
        "select max(query_start) from pg_stat_activity"
        " where datname = current_database() and application_name = 'test leader'"
    ).fetchone()


def asked_since(site: Site, last: object) -> bool:
    return last_asked(site) != last


@MODES
@pytest.mark.parametrize("moment", ["asleep", "drowsy"])
async def test_the_database_is_restarted_while_a_transaction_is_open_and_the_leader_sleeps_or_is_about_to(
    server: PostgresServer, watched: Database, mode: Mode, moment: str, measured: Measured
) -> None:
    async with site_of(watched) as (site, _, _):
        await site.rings("before")
        if moment == "asleep":
            await eventually(site.asleep)
        with transaction(watched) as writer:
            if moment == "drowsy":
                # With a transaction from before it wants to sleep, the leader waits for it.
                await eventually(site.asleep)
                site.room.say("lost", connection=writer)
                await asyncio.to_thread(wake, site, watched)
                await eventually(lambda: not lock_holders(watched, names.AWAKE_LOCK))
                # It goes on asking: to fall asleep takes fewer statements than these.
                for _ in range(10):
                    await eventually(partial(asked_since, site, last_asked(site)))
            else:
                site.room.say("lost", connection=writer)
            await asyncio.to_thread(server.restart, mode)
            back = time.monotonic()
        site.reconnect()
        # Nobody rings before it listens again: the first is read because a listener that begins reads, not by a bell.
        site.room.say("while nobody listens")
        await site.subscriber.has("while nobody listens")
        measured("seconds from the server's return to the first change", time.monotonic() - back)
        await site.rings()
        with site.load.running():
            await eventually(site.load.grown_by(5))
        await site.complete(rings=False)
        assert not {"lost"} & set(site.subscriber.received)


async def test_the_database_crashes_again_and_again_under_load(
    server: PostgresServer, watched: Database, measured: Measured
) -> None:
    back = []
    async with site_of(watched) as (site, _, _):
        with site.load.running():
            for growth in (10, 1, 1, 10, 1, 10):
                await eventually(site.load.grown_by(growth))
                await asyncio.to_thread(server.restart, "immediate")
                back.append(site.moment())
            await eventually(site.load.grown_by(20))
        await site.complete()
    measured("seconds from the server's return to the first change", site.seconds_until_told(back[-1]))


async def test_ids_of_transactions_that_a_crash_took_back_are_not_taken_for_seen(
    server: PostgresServer, watched: Database
) -> None:
    """
    What commits without waiting for the disk is forgotten by a crash, and its ids are given out again.

    A leader's own transactions are of that kind, and the hub has seen past them.
    """
    async with site_of(watched) as (site, hub, _):
        await site.rings("before")
        texts: list[str] = []
        took_back = False
        for attempt in range(5):
            await see_what_will_be_forgotten(watched, site, lambda: position_of(hub))
            seen = position_of(hub)
            await asyncio.to_thread(server.restart, "immediate")
            site.reconnect()
            new = [f"after {attempt}.{number}" for number in range(20)]
            texts += new
            site.room.say(*new)
            ((given_out,),) = site.room.connection.execute(
                "select min(xid::text::bigint) from pgnotify_gql.journal where rows::text like %s",
                [f"%after {attempt}.%"],
            )
            await site.subscriber.has(*new)
            # All may have been written between our look and the crash: once more.
            took_back = given_out < seen
            if took_back:
                break
        assert took_back, "the crash took nothing back"
        await site.rings()
    assert site.subscriber.received == ["before", *texts, "said when all was quiet"]


async def see_what_will_be_forgotten(watched: Database, site: Site, position: Callable[[], int]) -> None:
    """Let a hub see past transactions that are not on the disk."""
    careless = watched.connect()
    careless.execute("set synchronous_commit = off")
    while True:
        ((written,),) = careless.execute("select pg_current_wal_insert_lsn()::text")
        for _ in range(100):
            careless.execute("select pg_current_xact_id()")
        ((last,),) = careless.execute("select pg_current_xact_id()::text::bigint")
        await eventually(site.asleep)
        careless.execute("select pg_notify(%s, '')", [names.NOTIFY_CHANNEL])
        await eventually(partial(is_past, position, last))
        # Every ten seconds all is written.
        ((flushed,),) = careless.execute("select pg_current_wal_flush_lsn() > %s::pg_lsn", [written])
        if not flushed:
            return


def is_past(position: Callable[[], int], xid: int) -> bool:
    return position() > xid


def position_of(hub: Hub) -> int:
    """The id up to which a hub has seen the transactions of messages."""
    return feed_of(hub)._intakes[MESSAGE].position.before.xmax


# Failovers.


async def test_the_primary_changes_places_with_its_replica_twice_under_load(
    primary: PostgresServer, replica: PostgresServer, of_primary: Database, measured: Measured
) -> None:
    dsn = several_hosts(of_primary.name, primary, replica)
    async with site_of(of_primary, dsn=dsn) as (site, _, _):
        with site.load.running():
            for old, new in ((primary, replica), (replica, primary)):
                await eventually(site.load.grown_by(20))
                await eventually(partial(caught_up, old, new))
                # It ends when the replica has everything.
                await asyncio.to_thread(old.stop, "fast")
                await asyncio.to_thread(new.promote)
                back = site.moment()
                if old is primary:
                    await asyncio.to_thread(old.follow, new)
            await eventually(site.load.grown_by(20))
        await site.complete()
    measured("seconds from the promotion to the first change", site.seconds_until_told(back))


NOT_USABLE = r"cannot be used \(.*\); trying again in"


@pytest.mark.postgres("18")
async def test_a_listener_that_finds_only_a_replica_says_so_and_leads_when_it_is_promoted(
    primary: PostgresServer,
    replica: PostgresServer,
    of_primary: Database,
    run_listener: Start,
    redis_server: RedisServer,
) -> None:
    of_replica = Database(replica, of_primary.name)
    began = time.monotonic()
    # Each try is told at level DEBUG, only the first one and a reminder now and then above it.
    waiting = run_listener(of_replica, redis_server, "--verbosity", "2", banner=NOT_USABLE)
    await eventually(lambda: len(re.findall(NOT_USABLE, waiting.log)) >= 3)
    tries = len(re.findall(NOT_USABLE, waiting.log))
    assert "it is a replica: name the primary" in waiting.log
    assert tries < 5 + 10 * (time.monotonic() - began)
    assert "Traceback" not in waiting.log
    await eventually(lambda: caught_up(primary, replica))
    await asyncio.to_thread(primary.stop, "immediate")
    async with receiving(redis_server) as received:
        await asyncio.to_thread(replica.promote)
        await asyncio.to_thread(waiting.wait_for_log, "leading database")
        Room(of_replica).say("after the promotion")
        await received.until(received.contains("after the promotion"))
    assert waiting.running()
    of_replica.close()


# A database that is away, or full.


@asynccontextmanager
async def site_of_processes(
    database: Database, redis: RedisServer, *, writers: str | None = None, dsn: str | None = None
) -> AsyncIterator[tuple[Site, Hub]]:
    """A site whose leader will be a process; its subscriber has not joined yet."""
    dsn = dsn or database.conninfo
    layer = RedisChannelLayer(hosts=[redis.url])
    site = Site(database, dsn, writers=writers, leader="pgnotify_gql listener")
    try:
        async with quiet_hub(layer, dsn) as hub:
            yield site, hub
    finally:
        site.close()
        await layer.flush()


def rarely(**more: str) -> dict[str, str]:
    """The environment of a listener that looks by itself once a minute."""
    return {"DJANGO_SETTINGS_MODULE": SETTINGS, "SAFETY_POLL": "60", "SESSION_TIMEOUT": "600", **more}


NO_ANSWER_FOR_SUBSCRIBERS = "cannot be read for subscribers"


@pytest.mark.postgres("18")
async def test_the_database_is_down_when_listener_and_hub_start_and_both_begin_when_it_comes(
    server: PostgresServer,
    watched: Database,
    run_listener: Start,
    redis_server: RedisServer,
    caplog: pytest.LogCaptureFixture,
    measured: Measured,
) -> None:
    async with site_of_processes(watched, redis_server) as (site, hub), receiving(redis_server) as received:
        site.room.say("written before it went down")
        await asyncio.to_thread(server.stop)
        joining = asyncio.create_task(hub.join(site.subscriber.operation))
        waiting = await asyncio.to_thread(
            run_listener, watched, redis_server, banner="trying again in", environment=rarely()
        )
        await eventually(lambda: NO_ANSWER_FOR_SUBSCRIBERS in caplog.text)
        assert not joining.done()
        await asyncio.to_thread(server.start)
        back = site.moment()
        site.reconnect()
        site.room.say("written since it came up")
        await joining
        with site.load.running():
            await asyncio.to_thread(waiting.wait_for_log, "leading database")
            await eventually(lambda: site.subscriber.told_at)
            await eventually(site.load.grown_by(10))
        await received.until(received.contains("written since it came up"))
        assert "written before it went down" in received.texts
        await site.complete()
    measured("seconds from the server's start to the first change", site.seconds_until_told(back))
    assert "Traceback" not in waiting.log


@pytest.fixture(scope="module")
def small_server(postgres: PostgresServer) -> Iterator[PostgresServer]:
    """A server with little room, and some that is kept for superusers, who are the tests and the writers."""
    with own_server(postgres, max_connections=30, superuser_reserved_connections=15) as server:
        yield server


@pytest.fixture
def crowded(small_server: PostgresServer) -> Iterator[Database]:
    with watched_database(small_server) as database:
        yield database


@pytest.fixture
def plain(crowded: Database) -> str:
    """How a role without privileges connects, which all of the listener, the hub and the crowd do."""
    return unprivileged(crowded, "plain")


@pytest.fixture
def crowd(plain: str) -> Iterator[Crowd]:
    """Who takes up the server's room."""
    with crowd_at(plain) as crowd:
        yield crowd


@pytest.mark.postgres("18")
async def test_the_server_is_full_when_listener_and_hub_start_and_both_begin_when_there_is_room(
    crowded: Database,
    plain: str,
    crowd: Crowd,
    run_listener: Start,
    redis_server: RedisServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with site_of_processes(crowded, redis_server, dsn=plain, writers=crowded.conninfo) as (site, hub):
        crowd.fill()
        joining = asyncio.create_task(hub.join(site.subscriber.operation))
        waiting = await asyncio.to_thread(
            run_listener, Role(crowded), redis_server, banner="trying again in", environment=rarely()
        )
        assert re.search(rf"cannot be used \(.*({FULL}).*\); trying again in", waiting.log)
        await eventually(lambda: NO_ANSWER_FOR_SUBSCRIBERS in caplog.text)
        assert re.search(FULL, caplog.text)
        crowd.leave()
        await asyncio.to_thread(waiting.wait_for_log, "leading database")
        await joining
        with site.load.running():
            await eventually(site.load.grown_by(10))
        await site.complete()
    assert "Traceback" not in waiting.log


class Role:
    """A database, reached as the role without privileges."""

    def __init__(self, database: Database) -> None:
        self.url = database.url.replace("//postgres@", "//plain@")


async def driven_out(crowded: Database, crowd: Crowd, application: str, refused: Callable[[], bool]) -> None:
    """End the sessions of an application, and give their place to the crowd, until it has been refused and has none."""
    while True:
        if sessions(crowded, application):
            terminate(crowded, application)
        await asyncio.to_thread(crowd.fill, 0)
        if refused():
            # Perhaps because of one that has been ended and holds its place for a while: then it would come back.
            await asyncio.to_thread(crowd.fill)
            if not sessions(crowded, application):
                return
        await asyncio.sleep(0.01)


@pytest.mark.postgres("18")
async def test_the_leaders_backend_is_terminated_and_the_server_is_full(
    crowded: Database, plain: str, crowd: Crowd, caplog: pytest.LogCaptureFixture, measured: Measured
) -> None:
    async with site_of(crowded, dsn=plain, writers=crowded.conninfo) as (site, _, _):
        with site.load.running():
            await eventually(site.load.grown_by(10))
            refused = re.compile(rf"cannot be used \(.*({FULL})")
            await driven_out(crowded, crowd, "test leader", lambda: bool(refused.search(caplog.text)))
            await eventually(site.load.grown_by(20))
            crowd.leave()
            room_since = site.moment()
            await site.subscriber.until(lambda: site.subscriber.told_at[-1:] > [room_since.at])
        await site.complete()
    measured("seconds from there being room to the first change", site.seconds_until_told(room_since))


@pytest.mark.postgres("18")
async def test_a_leader_whose_backend_was_terminated_leads_again_in_the_place_that_it_had(
    crowded: Database, plain: str, crowd: Crowd, caplog: pytest.LogCaptureFixture
) -> None:
    async with site_of(crowded, dsn=plain, writers=crowded.conninfo) as (site, _, _):
        crowd.fill()
        terminate(crowded, "test leader")
        site.room.say("while nobody leads")
        await site.subscriber.until(lambda: "while nobody leads" in site.subscriber.received)
    assert "whether bells are heard could not be tried" in caplog.text


@pytest.mark.postgres("18")
async def test_a_hub_that_has_to_heal_waits_while_the_server_is_full(
    crowded: Database, plain: str, crowd: Crowd, caplog: pytest.LogCaptureFixture
) -> None:
    async with site_of(crowded, dsn=plain, writers=crowded.conninfo) as (site, _, relay_side):
        with site.load.running():
            await eventually(site.load.grown_by(10))
            # As long as nothing comes through the layer, it heals again and again.
            relay_side.fate = lambda message: []
            waits = f"healing {MESSAGE} waits for the database"
            await driven_out(crowded, crowd, "test hub", lambda: waits in caplog.text)
            relay_side.fate = lambda message: [message]
            await eventually(site.load.grown_by(20))
            assert not sessions(crowded, "test hub")
            crowd.leave()
            room_since = site.moment()
            await site.subscriber.until(lambda: site.subscriber.told_at[-1:] > [room_since.at])
        await site.complete()


@pytest.mark.postgres("18")
async def test_a_leader_needs_no_further_connection_for_a_backlog_when_the_server_is_full(
    crowded: Database, plain: str, crowd: Crowd
) -> None:
    async with site_of(crowded, dsn=plain, writers=crowded.conninfo) as (site, _, _):
        # A hub that has not heard of the leader yet reads the first change from the journal, over one more connection.
        site.room.say("before")
        await site.subscriber.has("before")
        crowd.fill()
        texts = [f"backlog {number}" for number in range(2 * BATCH_ROWS)]
        with transaction(crowded) as writer:
            site.room.say(*texts, connection=writer)
            writer.commit()
        await site.subscriber.has(*texts)
        assert site.subscriber.received == ["before", *texts]
        await site.rings()


# PgBouncer in transaction mode.

DEAF = "a pooler in transaction mode"

KILLED_LEASE = 5.0
"""Seconds of the lease of a leader that is killed: so long that a busy machine does not cost it the lease before."""

LEASE = 1.0
"""Seconds without a word after which a leader behind a pooler counts as gone."""

POLLED = Timing(safety_poll=60, poll_interval=0.02, session_timeout=LEASE)


@pytest.fixture
def pooler(watched: Database, running: ExitStack) -> PgBouncer:
    """It tries a server that was away again at once, and not after its usual 15 s."""
    return running.enter_context(PgBouncer(watched, server_login_retry=0.2))


@pytest.fixture
def django_behind_pooler(pooler: PgBouncer) -> Iterator[None]:
    with django_through(pooler):
        yield


@pytest.fixture
def soon_known_to_be_deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Doorbell.hears, "__defaults__", (0.3,))


def restart_pooler(server: PostgresServer, pooler: PgBouncer) -> None:
    pooler.kill()
    pooler.start()


def crash_server(server: PostgresServer, pooler: PgBouncer) -> None:
    server.restart("immediate")


FAULTS = pytest.mark.parametrize("fault", [restart_pooler, crash_server], ids=["the pooler", "the database"])

Fault = Callable[[PostgresServer, PgBouncer], None]


@pytest.mark.postgres("18")
@FAULTS
@pytest.mark.usefixtures("django_behind_pooler")
async def test_the_application_writes_through_a_pooler_and_the_listener_does_not(
    server: PostgresServer,
    watched: Database,
    pooler: PgBouncer,
    run_listener: Start,
    redis_server: RedisServer,
    fault: Fault,
) -> None:
    environment = rarely(LISTENER_CONNINFO=watched.conninfo, DJANGO_SETTINGS_MODULE="tests.faults.settings_past_pooler")
    async with site_of_processes(watched, redis_server, writers=pooler.conninfo) as (site, hub):
        leader = await asyncio.to_thread(run_listener, pooler, redis_server, environment=environment)
        await hub.join(site.subscriber.operation)
        with site.load.running():
            await eventually(site.load.grown_by(20))
            await asyncio.to_thread(fault, server, pooler)
            await eventually(site.load.grown_by(20))
        await site.complete()
        for number in range(3):
            await site.rings(f"from Django {number}", partial(create_message, site.room))
    assert DEAF not in leader.log


def create_message(room: Room, text: str) -> None:
    Message.objects.create(conversation_id=room.conversation, author_id=room.author, text=text)


@pytest.mark.postgres("18")
@FAULTS
@pytest.mark.usefixtures("soon_known_to_be_deaf")
async def test_a_fault_behind_a_pooler_through_which_the_listener_reads(
    server: PostgresServer,
    watched: Database,
    pooler: PgBouncer,
    fault: Fault,
    caplog: pytest.LogCaptureFixture,
    measured: Measured,
) -> None:
    async with site_of(watched, dsn=pooler.conninfo, timing=POLLED) as (site, _, _):
        assert DEAF in caplog.text
        with site.load.running():
            await eventually(site.load.grown_by(20))
            await asyncio.to_thread(fault, server, pooler)
            back = site.moment()
            await eventually(site.load.grown_by(20))
        await site.complete(rings=False)
        site.room.say("later")
        await site.subscriber.has("later")
        await site.complete(rings=False)
    measured("seconds from the return to the first change", site.seconds_until_told(back))


@pytest.mark.postgres("18")
async def test_a_leader_behind_a_pooler_is_killed_under_load_and_a_standby_leads_when_its_lease_has_run_out(
    watched: Database, pooler: PgBouncer, run_listener: Start, redis_server: RedisServer, measured: Measured
) -> None:
    environment = {"DJANGO_SETTINGS_MODULE": SETTINGS, "SESSION_TIMEOUT": str(KILLED_LEASE)}
    async with site_of_processes(watched, redis_server, dsn=pooler.conninfo) as (site, hub):
        leader, standby = await asyncio.gather(
            asyncio.to_thread(run_listener, pooler, redis_server, banner=SETTLED, environment=environment),
            asyncio.to_thread(run_listener, pooler, redis_server, banner=SETTLED, environment=environment),
        )
        if LEADING not in leader.log:
            leader, standby = standby, leader
        assert DEAF in leader.log
        assert DEAF in standby.log
        await hub.join(site.subscriber.operation)
        with site.load.running():
            await site.subscriber.until(lambda: len(site.subscriber.received) > 100)
            assert LEADING not in standby.log
            leader.send_signal(signal.SIGKILL)
            leader.wait()
            killed = time.monotonic()
            await eventually(lambda: LEADING in standby.log)
            measured("seconds until the standby leads", time.monotonic() - killed)
            assert time.monotonic() - killed < KILLED_LEASE + 2
            await eventually(site.load.grown_by(10))
        await site.complete(rings=False)


LEADING = "leading database"
SETTLED = f"{LEADING}|standing by"
