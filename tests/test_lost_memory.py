"""
Databases that lose their memory: a failover to a replica that lagged, and a journal restored into another cluster.

Ids of transactions are then given out a second time, or begin lower than they were.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from io import StringIO

import psycopg
import pytest
from channels.layers import InMemoryChannelLayer
from django.core.management import call_command
from psycopg import conninfo

from example.conversations.models import Message
from pgnotify_gql.journal.reader import require_complete
from pgnotify_gql.journal.state import join
from pgnotify_gql.listener import Listener
from pgnotify_gql.relay import Relay
from tests.support.databases import Database, migrated_template, new_database, used_by_django
from tests.support.feed import RARELY, Recorder, Room, eventually, hub_of, leading, opened, opener, running
from tests.support.operations import Subscriber
from tests.support.postgres import PostgresServer


@pytest.fixture
def primary(postgres: PostgresServer) -> Iterator[PostgresServer]:
    """A server of the test's own, which may be lost."""
    server = PostgresServer.create(postgres.version, postgres.bin_path)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def room(primary: PostgresServer) -> Iterator[Room]:
    with new_database(primary, migrated_template(primary)) as database:
        with used_by_django(database):
            call_command("install_triggers", stdout=StringIO())
        yield Room(database)
        if not primary.running():
            primary.start()


def caught_up(primary: psycopg.Connection, standby: PostgresServer) -> bool:
    """Whether a standby has replayed all that the primary has written."""
    ((written,),) = primary.execute("select pg_current_wal_flush_lsn()::text")
    with standby.connect() as session:
        ((replayed,),) = session.execute("select pg_last_wal_replay_lsn() >= %s::pg_lsn", [written])
    return bool(replayed)


async def test_what_is_written_after_an_unclean_failover_arrives_though_its_transaction_ids_were_seen_before(
    primary: PostgresServer, room: Room
) -> None:
    standby = primary.standby()
    try:
        servers = [primary, standby]
        dsn = conninfo.make_conninfo(
            host=",".join(str(server.directory) for server in servers),
            port=",".join(str(server.port) for server in servers),
            user=primary.user, dbname=room.database.name, target_session_attrs="read-write",
        )  # fmt: skip
        layer, subscriber = InMemoryChannelLayer(), Subscriber(Message)
        listener = Listener(opener(dsn), Relay(layer), timing=RARELY)
        async with hub_of(layer, dsn) as hub, running(listener):
            await hub.join(subscriber.operation)
            room.say("replicated")
            await subscriber.has("replicated")
            await eventually(lambda: caught_up(room.connection, standby))
            standby.stop("immediate")
            lost = [f"lost {number}" for number in range(10)]
            room.say(*lost)
            await subscriber.has(*lost)
            primary.stop("immediate")
            await asyncio.to_thread(standby.start)
            with standby.connect() as session:
                session.execute("select pg_promote(true, 60)")
            after = [f"after {number}" for number in range(20)]
            writer = psycopg.connect(standby.conninfo(room.database.name), autocommit=True)
            with writer:
                for text in after:
                    room.say(text, connection=writer)
                # Pauses between two tries to connect grow to 15 s.
                await subscriber.until(lambda: set(after) <= set(subscriber.received), timeout=60)
        assert subscriber.received == ["replicated", *lost, *after]
    finally:
        standby.close()


@pytest.fixture
def restored(postgres: PostgresServer, primary: PostgresServer, room: Room) -> Iterator[Database]:
    """The database, dumped and restored into another cluster, which has given out fewer ids of transactions."""
    room.connection.execute("create procedure burn() language plpgsql as $$ begin for i in 1..20000 loop"
                            " perform pg_current_xact_id(); commit; end loop; end $$")  # fmt: skip
    room.connection.execute("call burn()")
    room.say("before the dump")
    room.connection.execute(
        "update pgnotify_gql.journal_state set cluster = system_identifier::text, relayed = pg_current_snapshot()"
        " from pg_control_system()"
    )
    other = PostgresServer.create(postgres.version, postgres.bin_path)
    try:
        with new_database(other) as database:
            source, target = primary.conninfo(room.database.name), other.conninfo(database.name)
            dump = subprocess.run([primary.bin_path / "pg_dump", source], capture_output=True, check=True)
            subprocess.run(
                [primary.bin_path / "psql", "-q", "-d", target], input=dump.stdout, check=True, capture_output=True
            )
            yield database
    finally:
        other.close()


async def test_a_journal_that_was_restored_into_another_cluster_begins_anew(
    room: Room, restored: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Its cursor would take all that is written for seen, until the other cluster has given out as many ids."""
    copy = Room.__new__(Room)
    copy.connection, copy.author, copy.conversation = restored.connect(), room.author, room.conversation
    copy.say("before the first leader")
    recorder = Recorder()
    async with leading(restored, recorder):
        assert "was made in another cluster of databases" in caplog.text
        copy.say("after it")
        await recorder.has("after it")
    assert recorder.texts == ["after it"]
    async with opened(restored.conninfo) as connection:
        await require_complete(connection, (await join(connection)).cursor)
    later = Recorder()
    async with leading(restored, later):
        copy.say("in the next term")
        await later.has("in the next term")
    assert later.texts == ["in the next term"]


async def era_of(room: Room) -> str:
    """The era in which a leader leads."""
    recorder = Recorder()
    async with leading(room.database, recorder):
        pass
    with room.database.server.connect(room.database.name) as session:
        ((era,),) = session.execute("select era::text from pgnotify_gql.journal_era")
    return str(era)


async def test_an_era_ends_with_a_crash_and_not_with_a_restart_or_a_change_of_leaders(
    primary: PostgresServer, room: Room
) -> None:
    first = await era_of(room)
    assert await era_of(room) == first
    primary.restart("fast")
    assert await era_of(room) == first
    primary.restart("immediate")
    assert await era_of(room) != first


async def test_an_era_ends_with_a_promotion(primary: PostgresServer, room: Room) -> None:
    first = await era_of(room)
    standby = primary.standby()
    try:
        await eventually(lambda: caught_up(room.connection, standby))
        primary.stop("fast")
        standby.promote()
        twin = Room.__new__(Room)
        twin.database = Database(standby, room.database.name)
        assert await era_of(twin) != first
    finally:
        standby.close()


async def test_a_replica_is_refused_since_its_snapshots_would_lose_what_is_in_progress(
    primary: PostgresServer, room: Room
) -> None:
    standby = primary.standby()
    try:
        with pytest.raises(psycopg.OperationalError, match="it is a replica: name the primary"):
            await opener(standby.conninfo(room.database.name))()
    finally:
        standby.close()
