"""The doorbell: who rings when, and who hears it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from pgnotify_gql import names
from pgnotify_gql.journal.reader import Connection, current_snapshot
from pgnotify_gql.listener.doorbell import Doorbell, PolledDoorbell
from tests.support.databases import Database
from tests.support.feed import Bells, Room, lock_holders, opened
from tests.support.processes import PgBouncer

LONG = 20.0
"""Seconds to wait for a bell that rings."""


@pytest.fixture
async def connection(database_triggers: Database) -> AsyncIterator[Connection]:
    async with opened(database_triggers.conninfo) as connection:
        yield connection


@pytest.fixture
async def doorbell(connection: Connection) -> Doorbell:
    doorbell = Doorbell(connection)
    await doorbell.listen()
    return doorbell


def ring(database: Database) -> None:
    database.connect().execute("select pg_notify(%s, '')", [names.NOTIFY_CHANNEL])


async def test_a_bell_rung_elsewhere_is_heard(doorbell: Doorbell, database: Database) -> None:
    async with opened(database.conninfo) as other:
        assert await doorbell.hears(other, LONG)


async def test_the_bell_of_somebody_else_is_not_mistaken_for_the_own_one(
    doorbell: Doorbell, database: Database
) -> None:
    ring(database)
    async with opened(database.conninfo) as other:
        await other.execute("listen pgnotify_gql_elsewhere")
        assert await doorbell.hears(other, LONG)


async def test_a_bell_that_came_while_the_process_stood_still_is_heard_behind_the_deadline(
    doorbell: Doorbell, connection: Connection, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(database.conninfo) as other:
        execute = other.execute

        async def late(*statement: Any) -> Any:
            result = await execute(*statement)
            # Its answer brings the bell along.
            await current_snapshot(connection)
            return result

        monkeypatch.setattr(other, "execute", late)
        assert await doorbell.hears(other, timeout=0)


@pytest.mark.postgres("18")
async def test_a_connection_that_does_not_listen_is_deaf(connection: Connection, database: Database) -> None:
    ring(database)
    async with opened(database.conninfo) as other:
        assert not await Doorbell(connection).hears(other, 0.1)


async def test_a_bell_ends_a_wait(doorbell: Doorbell, database: Database) -> None:
    waiting = asyncio.create_task(doorbell.wait(LONG))
    await asyncio.sleep(0)
    ring(database)
    assert await waiting


async def test_a_bell_rung_between_two_waits_is_not_lost(
    doorbell: Doorbell, connection: Connection, database: Database
) -> None:
    ring(database)
    # Its answer brings the bell along, while nobody waits for one.
    await current_snapshot(connection)
    assert await doorbell.wait(LONG)


async def test_a_bell_rung_before_the_wait_and_not_yet_received_is_not_lost(
    doorbell: Doorbell, database: Database
) -> None:
    ring(database)
    assert await doorbell.wait(LONG)


async def test_many_bells_between_two_waits_are_one_wake_up(
    doorbell: Doorbell, connection: Connection, database: Database
) -> None:
    for _ in range(50):
        ring(database)
    await current_snapshot(connection)
    assert await doorbell.wait(LONG)
    assert not await doorbell.wait(0)


async def test_a_wait_without_a_bell_ends(doorbell: Doorbell) -> None:
    assert not await doorbell.wait(0.01)


async def test_writers_ring_unless_the_doorbell_is_silenced(doorbell: Doorbell, database: Database) -> None:
    room, bells = Room(database), Bells(database)
    bells.rung()
    await doorbell.silence()
    room.say("one", "two")
    assert bells.rung() == 0
    await doorbell.unsilence()
    room.say("three", "four")
    assert bells.rung() == 2


async def test_a_silenced_doorbell_is_silenced_once_however_often_it_was_asked(
    doorbell: Doorbell, database: Database
) -> None:
    for _ in range(3):
        await doorbell.silence()
    await doorbell.unsilence()
    assert lock_holders(database, names.AWAKE_LOCK) == []
    await doorbell.unsilence()


async def test_a_writer_frozen_while_it_tests_the_lock_does_not_hold_up_the_listener(
    doorbell: Doorbell, database: Database
) -> None:
    with database.connect() as frozen:
        frozen.execute("select pg_advisory_lock_shared(%s, %s)", [names.LOCK_CLASS, names.AWAKE_LOCK])
        await doorbell.silence()
        assert lock_holders(database, names.AWAKE_LOCK) == []
        frozen.execute("select pg_advisory_unlock_shared(%s, %s)", [names.LOCK_CLASS, names.AWAKE_LOCK])
    await doorbell.silence()
    assert len(lock_holders(database, names.AWAKE_LOCK)) == 1


async def test_a_writer_does_not_keep_the_lock_that_it_tested(database_triggers: Database) -> None:
    room = Room(database_triggers)
    room.connection.autocommit = False
    room.say("one")
    assert lock_holders(database_triggers, names.AWAKE_LOCK, "ShareLock") == []
    room.connection.rollback()


async def test_the_silence_ends_with_the_session(database_triggers: Database) -> None:
    async with opened(database_triggers.conninfo) as connection:
        await Doorbell(connection).silence()
        assert len(lock_holders(database_triggers, names.AWAKE_LOCK)) == 1
        database_triggers.connect().execute("select pg_terminate_backend(%s, 10000)", [connection.info.backend_pid])
    assert lock_holders(database_triggers, names.AWAKE_LOCK) == []


async def test_a_polled_doorbell_waits_its_interval_and_silences_nobody(
    connection: Connection, database: Database
) -> None:
    polled = PolledDoorbell(connection, 0.01)
    await polled.silence()
    assert lock_holders(database, names.AWAKE_LOCK) == []
    assert not await polled.wait(LONG)
    await polled.unsilence()


async def test_a_doorbell_behind_a_pooler_in_transaction_mode_is_deaf(
    database: Database, pgbouncer: Callable[..., PgBouncer]
) -> None:
    """Rung from the listening connection itself the bell comes back, with the answer to the statement that rang."""
    pooler = pgbouncer(database)
    async with opened(pooler.conninfo) as connection:
        doorbell = Doorbell(connection)
        await doorbell.listen()
        assert await doorbell.hears(connection, LONG)
        async with opened(pooler.conninfo) as other:
            assert not await doorbell.hears(other, 0.3)


async def test_a_doorbell_behind_a_pooler_in_session_mode_is_heard(
    database: Database, pgbouncer: Callable[..., PgBouncer]
) -> None:
    pooler = pgbouncer(database, pool_mode="session")
    async with opened(pooler.conninfo) as connection, opened(pooler.conninfo) as other:
        doorbell = Doorbell(connection)
        await doorbell.listen()
        assert await doorbell.hears(other, LONG)
