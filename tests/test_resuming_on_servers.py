"""Clients that come back with a cursor, over real sockets: to another process, after faults, and with wrong cursors."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
from django.core import signing

from pgnotify_gql.hub.cursor import SALT
from tests.support import processes
from tests.support.databases import Database
from tests.support.feed import Room
from tests.support.initial import empty_journal
from tests.support.processes import Process, ProjectServer, RedisServer, project_environment
from tests.support.resuming import LEGACY, TRANSPORT, Resumer

pytestmark = pytest.mark.postgres("18")

SITE = "tests.support.resuming_site:application"

Start = Callable[[], ProjectServer]


@pytest.fixture(params=["daphne", "uvicorn"])
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=[TRANSPORT, LEGACY])
def subprotocol(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def room(database_triggers: Database) -> Room:
    return Room(database_triggers)


@pytest.fixture
def start(running: ExitStack, kind: str, database_triggers: Database, redis_server: RedisServer) -> Start:
    """Start a server process, one of several on the same database and Redis."""
    variables = project_environment(database_triggers.url, redis_server, inline=False, environment=None)
    make = {"daphne": processes.daphne, "uvicorn": processes.uvicorn}[kind]
    return lambda: running.enter_context(make(variables, SITE))


@pytest.fixture
def lead(
    run_listener: Callable[..., Process], database_triggers: Database, redis_server: RedisServer
) -> Callable[[], Process]:
    """Start a listener and wait until it leads."""
    return lambda: run_listener(database_triggers, redis_server)


def numbers(first: int, last: int, prefix: str = "") -> list[str]:
    return [f"{prefix}{number}" for number in range(first, last + 1)]


def test_a_client_comes_back_to_another_process_after_a_change_of_leaders(
    room: Room, start: Start, lead: Callable[[], Process], subprotocol: str
) -> None:
    leader, one, other, client = lead(), start(), start(), Resumer("current", subprotocol)
    with client.connected(one) as socket:
        client.read_to_marker(socket)
        room.say("one")
        client.read_until(socket, "one")
    room.say("missed, relayed by the first leader")
    leader.kill()
    room.say("missed while nobody led")
    lead()
    with client.connected(other) as socket:
        client.read_to_marker(socket)
        room.say("live")
        client.read_until(socket, "live")
    assert client.received == ["one", "missed, relayed by the first leader", "missed while nobody led", "live"]
    assert (client.state, client.resyncs) == ([], [])


def test_a_client_comes_back_when_its_server_was_killed(
    room: Room, start: Start, lead: Callable[[], Process], subprotocol: str
) -> None:
    lead()
    one, client = start(), Resumer("current", subprotocol)
    with client.connected(one) as socket:
        client.read_to_marker(socket)
        room.say("one")
        client.read_until(socket, "one")
        one.kill()
    room.say("two")
    with client.connected(start()) as socket:
        room.say("three")
        client.read_until(socket, "two", "three")
    assert client.received == ["one", "two", "three"]


def test_a_client_comes_back_in_the_middle_of_bulk_writes(
    room: Room, start: Start, lead: Callable[[], Process], subprotocol: str
) -> None:
    """A journal row has 1,000 of these changes at most: it stops in the middle of one, and of a batch."""
    lead()
    one, other, client = start(), start(), Resumer("current", subprotocol)
    with client.connected(one) as socket:
        client.read_to_marker(socket)
        room.say_at_once(2500, "first ")
        room.say_at_once(2500, "second ")
        client.read_many(socket, 700)
    assert client.received[-1] == "first 700"
    for server, count in ((other, 1_900), (one, 1), (other, 0), (one, 999)):
        with client.connected(server) as socket:
            client.read_many(socket, count)
    with client.connected(other) as socket:
        room.say("the end")
        client.read_until(socket, "the end")
    assert client.received == [*numbers(1, 2500, "first "), *numbers(1, 2500, "second "), "the end"]
    assert client.resyncs == []


def test_a_forged_cursor_is_refused_and_the_operation_may_be_started_without_one(
    room: Room, start: Start, lead: Callable[[], Process], subprotocol: str
) -> None:
    lead()
    server, client = start(), Resumer("current", subprotocol)
    with client.connected(server) as socket:
        client.read_to_marker(socket)
    good = client.cursor
    wrong: list[Any] = ["", "forged", good[:-1] + ("A" if good[-1] != "A" else "B"), _signed_elsewhere(good), 5, {}]
    for forged in wrong:
        client.cursor = forged
        refusal = client.refusal(server)
        error = refusal if subprotocol == LEGACY else refusal[0]
        assert error == {
            "message": "the cursor is not one of this site: subscribe without it",
            "extensions": {"code": "INVALID_CURSOR"},
        }
    client.cursor = None
    with client.connected(server) as socket:
        client.read_to_marker(socket)


def test_the_cursor_of_another_subscription_is_answered_with_a_resync_and_the_live_stream(
    room: Room, start: Start, lead: Callable[[], Process], subprotocol: str
) -> None:
    lead()
    server, other, client = start(), Resumer("current", subprotocol), Resumer("titles", subprotocol)
    with other.connected(server) as socket:
        other.read_to_marker(socket)
    client.cursor = other.cursor
    with client.connected(server) as socket:
        client.read(socket)
        room.next_door()
        client.read_until(socket, "a conversation")
    (reason,) = client.resyncs
    assert reason.startswith("the cursor is of another subscription")
    # The cursor that came with the resync is one of this subscription.
    room.next_door()
    with client.connected(server) as socket:
        client.read(socket)
    assert (client.received, len(client.resyncs)) == (["a conversation"] * 2, 1)


def test_a_cursor_that_is_too_old_is_answered_with_a_resync_and_the_live_stream(
    room: Room, start: Start, lead: Callable[[], Process], subprotocol: str, database_triggers: Database
) -> None:
    lead()
    server = start()
    plain, initial = Resumer("texts", subprotocol), Resumer("current", subprotocol)
    with plain.connected(server) as socket:
        plain.read_first(socket, lambda: room.say("begin"))
    with initial.connected(server) as socket:
        initial.read_to_marker(socket)
        room.say("one")
        initial.read_until(socket, "one")
    begun, plain.received, initial.state = initial.state, [], []
    room.say("gone")
    empty_journal(database_triggers)
    with plain.connected(server) as other, initial.connected(server) as socket:
        plain.read(other)
        initial.read_to_marker(socket)
        room.say("live")
        plain.read_until(other, "live")
        initial.read_until(socket, "live")
    for client in (plain, initial):
        (reason,) = client.resyncs
        assert "have left the journal" in reason
    assert plain.received == ["live"]
    assert (initial.received, initial.state) == (["one", "live"], [*begun, "one", "gone"])


def _signed_elsewhere(token: str) -> str:
    """The same cursor, signed with the key of another site."""
    said = signing.Signer(salt=SALT).unsign_object(token)
    return signing.Signer(key="of another site", salt=SALT).sign_object(said)
