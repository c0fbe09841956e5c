"""`manage.py run_listener` as operators run it: processes that are told to stop, killed, and frozen."""

import asyncio
import signal
import time
from collections.abc import Callable

import pytest
from django.core.management import CommandError
from mirakuru.exceptions import ProcessExitedWithError
from psycopg.conninfo import make_conninfo

from pgnotify_gql import names
from pgnotify_gql.listener import Listener
from pgnotify_gql.management.commands.run_listener import _listen
from pgnotify_gql.relay.messages import CHANGES
from tests.support.databases import Database
from tests.support.feed import Recorder, Room, eventually, lock_holders, opener
from tests.support.processes import Process, RedisServer
from tests.support.receivers import receiving

Start = Callable[..., Process]

STANDING_BY = "standing by"

STOP_TIME = 2.0
"""Seconds in which a listener that was told to stop has ended."""


async def asleep(process: Process, database: Database) -> None:
    await eventually(lambda: not lock_holders(database, names.AWAKE_LOCK))
    assert process.running()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_leader_that_is_told_to_stop_ends_with_status_0(
    database_triggers: Database, run_listener: Start, number: int
) -> None:
    leader = run_listener(database_triggers)
    told = time.monotonic()
    leader.send_signal(number)
    assert leader.wait() == 0
    assert time.monotonic() - told < STOP_TIME
    assert "Traceback" not in leader.log


@pytest.mark.postgres("18")
def test_a_standby_that_is_told_to_stop_ends_with_status_0(database_triggers: Database, run_listener: Start) -> None:
    run_listener(database_triggers)
    standby = run_listener(database_triggers, banner=STANDING_BY)
    told = time.monotonic()
    standby.terminate()
    assert standby.wait() == 0
    assert time.monotonic() - told < STOP_TIME


@pytest.mark.postgres("18")
def test_a_listener_that_waits_for_a_database_can_be_told_to_stop(database: Database, run_listener: Start) -> None:
    database.server.stop()
    waiting = run_listener(database, banner="trying again in")
    told = time.monotonic()
    waiting.terminate()
    assert waiting.wait() == 0
    assert time.monotonic() - told < STOP_TIME


@pytest.mark.postgres("18")
def test_a_missing_journal_is_one_sentence_and_a_failure(empty_database: Database, run_listener: Start) -> None:
    with pytest.raises(ProcessExitedWithError) as raised:
        run_listener(empty_database)
    assert raised.value.exit_code == 1
    (note,) = raised.value.__notes__
    assert "CommandError: database 'default' has no journal: run `manage.py migrate pgnotify_gql" in note
    assert "Traceback" not in note


@pytest.mark.postgres("18")
@pytest.mark.postgres("18")
async def test_a_database_that_refuses_the_listener_is_one_sentence(database: Database) -> None:
    admin, role = database.connect(), f"stranger_{database.name}"
    admin.execute(f"create role {role} login")
    try:
        refused = Listener(opener(make_conninfo(database.conninfo, user=role)), Recorder())
        with pytest.raises(CommandError, match=r"^database 'default' refuses the listener: permission denied for "):
            await _listen("default", refused)
    finally:
        admin.execute(f"drop role {role}")


async def test_a_database_that_cannot_be_addressed_is_one_sentence_that_names_the_setting() -> None:
    with pytest.raises(CommandError) as raised:
        await _listen("default", Listener(opener("hots=example"), Recorder()))
    assert str(raised.value).startswith(
        "database 'default' cannot be addressed, LISTENER_CONNINFO is malformed: invalid connection option"
    )


def test_an_unknown_setting_is_one_sentence_and_a_failure(database: Database, run_listener: Start) -> None:
    with pytest.raises(ProcessExitedWithError) as raised:
        run_listener(database, environment={"DJANGO_SETTINGS_MODULE": SETTINGS, "SESSION_TIMEOUT": "-1"})
    assert raised.value.exit_code == 1
    assert "PGNOTIFY_GQL['SESSION_TIMEOUT'] must be a number above 0" in raised.value.__notes__[0]


async def test_the_leader_is_killed_and_a_standby_leads_within_a_second(
    database_triggers: Database, run_listener: Start, redis_server: RedisServer
) -> None:
    room = Room(database_triggers)
    leader = run_listener(database_triggers, redis_server)
    standby = run_listener(database_triggers, redis_server, banner=STANDING_BY)
    async with receiving(redis_server) as received:
        room.say("from the first")
        await received.until(received.contains("from the first"))
        leader.send_signal(signal.SIGKILL)
        assert leader.wait() == -signal.SIGKILL
        killed = time.monotonic()
        await eventually(lambda: "leading database" in standby.log)
        assert time.monotonic() - killed < 1
        room.say("from the second")
        await received.until(received.contains("from the second"))


async def test_a_leader_killed_in_the_middle_of_a_burst_loses_nothing(
    database_triggers: Database, run_listener: Start, redis_server: RedisServer
) -> None:
    room = Room(database_triggers)
    leader = run_listener(database_triggers, redis_server)
    run_listener(database_triggers, redis_server, banner=STANDING_BY)

    def burst() -> None:
        for number in range(300):
            room.say(f"<message {number}>")

    async with receiving(redis_server) as received:
        writing = asyncio.create_task(asyncio.to_thread(burst))
        await received.until(received.contains("<message 50>"))
        leader.send_signal(signal.SIGKILL)
        leader.wait()
        await writing
        await received.until(received.contains("<message 299>"))
        assert all(f"<message {number}>" in received.texts for number in range(300))


SETTINGS = "tests.support.listener_settings"

SESSION_TIMEOUT = 4.0


@pytest.mark.parametrize("moment", ["awake", "asleep"])
async def test_a_frozen_leader_loses_its_session_and_relays_nothing_stale_when_it_is_back(
    database_triggers: Database, run_listener: Start, redis_server: RedisServer, moment: str
) -> None:
    environment = {"DJANGO_SETTINGS_MODULE": SETTINGS, "SESSION_TIMEOUT": str(SESSION_TIMEOUT)}
    room = Room(database_triggers)
    old = run_listener(database_triggers, redis_server, environment=environment)
    new = run_listener(database_triggers, redis_server, banner=STANDING_BY, environment=environment)
    async with receiving(redis_server) as received:
        room.say("from the old one")
        await received.until(received.contains("from the old one"))
        if moment == "asleep":
            await asleep(old, database_triggers)
        old_epoch = received.epochs()[-1]
        old.pause()
        frozen = time.monotonic()
        room.say("while it is frozen")
        await eventually(lambda: "leading database" in new.log)
        assert time.monotonic() - frozen < SESSION_TIMEOUT + 2
        await received.until(received.contains("while it is frozen"))
        await received.until(lambda: received.epochs()[-1] > old_epoch)
        before = len(received.messages)
        old.resume()
        room.say("after it is back")
        await eventually(lambda: STANDING_BY in old.log)
        await received.until(received.contains("after it is back"))
        # A heartbeat may have been on its way when it was frozen; hubs ignore those of an older epoch.
        relayed = [message for message in received.messages[before:] if message["type"] == CHANGES]
        assert {message["epoch"] for message in relayed} == {received.epochs()[-1]}
    assert "lost the database" in old.log
