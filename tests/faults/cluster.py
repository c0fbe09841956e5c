"""
Servers that a test may stop and crash, and a site that lives through it: writers, a leader, a hub with a subscriber.

Nothing here looks at the journal by itself before a minute has passed: what arrives was rung for, or read by a listener
that began again.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from io import StringIO
from typing import Any

import psycopg
from channels.layers import InMemoryChannelLayer
from django.core.management import call_command
from django.db import connections
from psycopg import conninfo, sql

from example.conversations.models import Message
from pgnotify_gql import names
from pgnotify_gql.hub.executor import Executor
from pgnotify_gql.hub.hub import Hub
from pgnotify_gql.hub.reader import HubReader
from pgnotify_gql.listener import Timing
from pgnotify_gql.relay import Relay
from tests.faults.load import Load
from tests.support.databases import Database, forget_connections, migrated_template, new_database, used_by_django
from tests.support.feed import NEVER, RARELY, Room, eventually, leading, opener
from tests.support.operations import Faulty, Subscriber
from tests.support.postgres import PostgresServer
from tests.support.processes import PgBouncer

BELL = 5.0
"""Seconds within which a change must arrive that was rung for: far less than a minute, and bearable when busy."""

ASLEEP = 0.3
"""Seconds without a statement after which a leader sleeps; one that does not asks every 50 ms at least."""


@contextmanager
def own_server(like: PostgresServer, **settings: str | int) -> Iterator[PostgresServer]:
    """A server of the test's own, of the same version as another one."""
    server = PostgresServer.create(like.version, like.bin_path, **settings)
    try:
        yield server
    finally:
        server.close()


@contextmanager
def twin_of(server: PostgresServer) -> Iterator[PostgresServer]:
    """A copy of a server with all its databases, which goes its own way."""
    twin = server.standby()
    try:
        twin.promote()
        yield twin
    finally:
        twin.close()


@contextmanager
def watched_database(server: PostgresServer) -> Iterator[Database]:
    """A migrated database with triggers, unknown to Django."""
    with new_database(server, migrated_template(server)) as database:
        with used_by_django(database):
            call_command("install_triggers", stdout=StringIO())
        yield database


@contextmanager
def django_through(pooler: PgBouncer) -> Iterator[None]:
    """Let Django's alias "default" lead to a database through its pooler, in every thread."""
    with used_by_django(pooler.database):
        forget_connections()
        connections.databases["default"].update(HOST="127.0.0.1", PORT=str(pooler.port))
        yield


class Witness(Subscriber):
    """A subscriber that knows when it was told."""

    def __init__(self) -> None:
        super().__init__(Message)
        self.told_at: list[float] = []

    def __str__(self) -> str:
        return f"{len(self.received)} changes, at last {self.received[-10:]}, {len(self.resyncs)} resyncs"

    def deliver(self, payload: str) -> None:
        self.told_at.append(time.monotonic())
        super().deliver(payload)


@dataclass(frozen=True)
class Moment:
    """A time, and the number of each writer's newest transaction at that time."""

    at: float
    written: dict[str, int]


class Site:
    """
    Writers and a subscriber; `dsn` leads whoever looks after them to the database, `writers` the writers themselves.

    The leader has the name of an application `leader`.
    """

    def __init__(
        self, database: Database, dsn: str, *, writers: str | None = None, leader: str = "test leader"
    ) -> None:
        self.room = Room(database)
        self.subscriber = Witness()
        self.load = Load(self.room, partial(psycopg.connect, writers or dsn, prepare_threshold=None))
        self._dsn, self._leader = writers or dsn, leader

    def moment(self) -> Moment:
        """Now, and what the writers have written by now."""
        written = {w.name: max([*w.committed, *w.doubtful], default=0) for w in self.load.writers}
        return Moment(time.monotonic(), written)

    def seconds_until_told(self, since: Moment) -> float:
        """Seconds from a moment until the subscriber was told of something that was written after it."""
        for text, at in zip(self.subscriber.received, self.subscriber.told_at, strict=True):
            writer, _, number = text.removeprefix("new ").partition(".")
            if number.isdecimal() and int(number) > since.written[writer]:
                return at - since.at
        raise AssertionError("nothing was written since")

    def reconnect(self) -> None:
        """Give the room a connection in place of one that was lost."""
        self.room.connection.close()
        self.room.connection = psycopg.connect(self._dsn, autocommit=True, prepare_threshold=None)

    def asleep(self) -> bool:
        """Whether there is a leader that waits for a bell."""
        ((found,),) = self.room.connection.execute(
            "select count(*) > 0 and bool_and(state = 'idle'"
            " and state_change < clock_timestamp() - make_interval(secs => %s))"
            " and not exists (select from pg_locks where locktype = 'advisory' and classid = %s and objid = %s)"
            " from pg_stat_activity where datname = current_database() and application_name = %s",
            [ASLEEP, names.LOCK_CLASS, names.AWAKE_LOCK, self._leader],
        )
        return bool(found)

    async def rings(self, text: str = "said when all was quiet", write: Callable[[str], object] | None = None) -> None:
        """Assert that a change arrives by the bell which is written, in a thread, while the leader sleeps."""
        await eventually(self.asleep)
        await asyncio.to_thread(write or self.room.say, text)
        await self.subscriber.until(lambda: text in self.subscriber.received, timeout=BELL)

    async def complete(self, *, rings: bool = True) -> None:
        """Assert, once the load has stopped, that what was committed arrived as it should."""
        self.reconnect()
        load, subscriber, connection = self.load, self.subscriber, self.room.connection
        assert load.all_answered(connection)
        await subscriber.until(lambda: load.arrived(subscriber.received, connection))
        if rings:
            # What arrives twice, or too late, comes before it.
            await self.rings()
        load.check(subscriber.received, connection)
        assert subscriber.resyncs == []

    def close(self) -> None:
        self.room.connection.close()


@asynccontextmanager
async def quiet_hub(layer: Any, dsn: str) -> AsyncIterator[Hub]:
    """A hub that does not read the journal by itself, however long the layer is silent."""
    hub = Hub(layer, [HubReader(opener(dsn, 0, "test hub"))], Executor(2), silence=NEVER)
    await hub.start()
    try:
        yield hub
    finally:
        await hub.close()


@asynccontextmanager
async def site_of(
    database: Database,
    *,
    dsn: str | None = None,
    writers: str | None = None,
    timing: Timing = RARELY,
) -> AsyncIterator[tuple[Site, Hub, Faulty]]:
    """
    A site with a leader and a hub in this process, both at `dsn`, the database's own unless given.

    Also gives the hub and the relay's side of the layer.
    """
    dsn = dsn or database.conninfo
    layer = InMemoryChannelLayer()
    site, relay_side = Site(database, dsn, writers=writers), Faulty(layer)
    try:
        async with quiet_hub(layer, dsn) as hub, leading(database, Relay(relay_side), dsn=dsn, timing=timing):
            await hub.join(site.subscriber.operation)
            yield site, hub, relay_side
    finally:
        site.close()


def several_hosts(dbname: str, *servers: PostgresServer) -> str:
    """A connection string that leads to whichever of these servers can be written to."""
    return conninfo.make_conninfo(
        host=",".join(str(server.directory) for server in servers),
        port=",".join(str(server.port) for server in servers),
        user=servers[0].user,
        dbname=dbname,
        target_session_attrs="read-write",
    )


def caught_up(primary: PostgresServer, replica: PostgresServer) -> bool:
    """Whether a replica has replayed all that the primary has written."""
    with primary.connect() as session:
        ((written,),) = session.execute("select pg_current_wal_flush_lsn()::text")
    with replica.connect() as session:
        ((replayed,),) = session.execute("select pg_last_wal_replay_lsn() >= %s::pg_lsn", [written])
    return bool(replayed)


FULL = r"too many clients|connection slots are reserved"
"""What a server says that has no room for a role without privileges."""


class Crowd:
    """Idle connections that take up all the room that a server has for `dsn`."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._there: list[psycopg.Connection] = []

    def fill(self, quiet: float = 1.0) -> None:
        """Connect until the server has refused for some seconds: who has just left may hold its place until then."""
        refused_at: float | None = None
        while refused_at is None or time.monotonic() - refused_at < quiet:
            try:
                self._there.append(psycopg.connect(self._dsn))
                refused_at = None
            except psycopg.OperationalError as error:
                if not re.search(FULL, str(error)):
                    raise
                refused_at = refused_at or time.monotonic()
                time.sleep(0.02)

    def leave(self) -> None:
        while self._there:
            self._there.pop().close()


@contextmanager
def crowd_at(dsn: str) -> Iterator[Crowd]:
    crowd = Crowd(dsn)
    try:
        yield crowd
    finally:
        crowd.leave()


def unprivileged(database: Database, role: str) -> str:
    """Let a role do what a listener and a hub do, and no more; return how to connect as it."""
    with database.server.connect(database.name) as admin:
        if admin.execute("select from pg_roles where rolname = %s", [role]).fetchone() is None:
            admin.execute(sql.SQL("create role {} login").format(sql.Identifier(role)))
        grants = "grant usage on schema pgnotify_gql to {0}; grant all on all tables in schema pgnotify_gql to {0};"
        grants += " grant all on all sequences in schema pgnotify_gql to {0}"
        admin.execute(sql.SQL(grants).format(sql.Identifier(role)))
    return conninfo.make_conninfo(database.conninfo, user=role)
