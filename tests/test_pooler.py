"""A listener that was pointed at PgBouncer in transaction mode: it says so, and polls."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import psycopg
import pytest

from pgnotify_gql import names
from pgnotify_gql.listener import Listener, Timing
from pgnotify_gql.listener.doorbell import Doorbell
from tests.support.databases import Database
from tests.support.feed import Recorder, Room, leading, lock_holders, opened, opener, running
from tests.support.processes import PgBouncer

DEAF = "a pooler in transaction mode"

POLLED = Timing(safety_poll=60, poll_interval=0.02, session_timeout=600)


@pytest.fixture
def pooler(database_triggers: Database, pgbouncer: Callable[..., PgBouncer]) -> PgBouncer:
    return pgbouncer(database_triggers)


@pytest.fixture(autouse=True)
def soon_known_to_be_deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Doorbell.hears, "__defaults__", (0.3,))


@pytest.fixture
def clients(pooler: PgBouncer) -> Iterator[list[psycopg.Connection]]:
    """Clients of the application, which make the pooler open several server connections."""
    with ExitStack() as stack:
        clients = [stack.enter_context(psycopg.connect(pooler.conninfo, prepare_threshold=None)) for _ in range(4)]
        for client in clients:
            client.execute("select 1")
        yield clients


async def test_a_pooler_is_named_in_the_log_and_then_polled(
    database: Database, pooler: PgBouncer, caplog: pytest.LogCaptureFixture
) -> None:
    room, recorder = Room(database), Recorder()
    async with leading(database, recorder, dsn=pooler.conninfo, timing=POLLED):
        assert DEAF in caplog.text
        assert "LISTENER_CONNINFO" in caplog.text
        for number in range(30):
            room.say(f"message {number}")
            await recorder.has(f"message {number}")
        assert lock_holders(database, names.AWAKE_LOCK) == []
    assert len(recorder.epochs) == 1


async def test_changes_arrive_while_the_pooler_moves_the_listener_between_servers(
    database: Database, pooler: PgBouncer, clients: list[psycopg.Connection], caplog: pytest.LogCaptureFixture
) -> None:
    """Prepared statements would be missing on the next server, or be there already."""
    room, recorder = Room(database), Recorder()
    async with leading(database, recorder, dsn=pooler.conninfo, timing=POLLED):
        for number in range(40):
            client = clients[number % len(clients)]
            client.commit() if number % 3 else client.execute("select 1")
            room.say(f"message {number}")
            await recorder.has(f"message {number}")
    assert "connecting again" not in caplog.text
    assert len(recorder.texts) == 40


async def test_a_backlog_is_read_through_a_pooler(database: Database, pooler: PgBouncer) -> None:
    Room(database).say_at_once(3000)
    recorder = Recorder()
    async with leading(database, recorder, dsn=pooler.conninfo, timing=POLLED):
        await recorder.has("1", "3000")


async def test_settings_of_a_listener_do_not_stay_with_a_server_of_the_pooler(
    database: Database, pooler: PgBouncer
) -> None:
    """A leaked synchronous_commit = off would make the application's commits less durable than it believes."""
    async with opened(pooler.conninfo):
        pass
    with psycopg.connect(pooler.conninfo) as client:
        changed = client.execute("select name from pg_settings where source = 'session'").fetchall()
    assert {name for (name,) in changed} <= {"application_name", "client_encoding", "DateStyle", "TimeZone"}


async def test_settings_of_a_listener_are_in_force_without_a_pooler(database: Database) -> None:
    async with opened(database.conninfo) as connection:
        result = await connection.execute("show synchronous_commit")
        assert await result.fetchone() == ("off",)


async def test_a_listener_behind_a_pooler_leaves_nothing_that_keeps_the_next_from_leading(
    database: Database, pooler: PgBouncer
) -> None:
    """A session lock would stay with a server connection of the pooler."""
    room, recorder = Room(database), Recorder()
    for number in range(2):
        async with leading(database, recorder, dsn=pooler.conninfo, timing=POLLED):
            room.say(f"message {number}")
            await recorder.has(f"message {number}")
    first, second = recorder.epochs
    assert first < second
    assert lock_holders(database, names.LEADER_LOCK) == []


async def test_of_two_listeners_behind_a_pooler_one_leads(database: Database, pooler: PgBouncer) -> None:
    first, second = Recorder(), Recorder()
    room = Room(database)
    async with running(Listener(opener(pooler.conninfo, 0, "test standby"), second, timing=POLLED)):
        await second.until(lambda: second.led(1))
        async with running(Listener(opener(pooler.conninfo, 0, "test standby"), first, timing=POLLED)):
            for number in range(20):
                room.say(f"message {number}")
                await second.has(f"message {number}")
    assert first.epochs == []
    assert len(second.texts) == 20
