"""A server of the example, and the packages of npm, which are installed for the run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import Client, override_settings

from tests.acceptance.room import Room
from tests.support.databases import Database
from tests.support.npm import install
from tests.support.processes import ProjectServer

DRIVERS = Path(__file__).parent / "drivers"

PACKAGES = (
    # The last major version for Node 20; the next one wants 22.
    "graphql@16",
    "ws@8",
    # The current major versions, as people install them today; all run on Node 20.
    "graphql-ws@6",
    "graphql-sse@2",
    "@apollo/client@4",
    "rxjs@7",
    "@urql/core@6",
    "relay-runtime@21",
    # The last of its major version, with which other clients come back with their cursors: see
    # test_resuming_by_clients.
    "graphql-ws-5@npm:graphql-ws@5.16.2",
    # The last of all: it is not maintained, and still in use.
    "subscriptions-transport-ws@0.11.0",
)

DRAIN_WINDOW = "0.5"
"""Seconds: between the closes of the first client and the second, the first comes back to a server that drains."""


@pytest.fixture(scope="session")
def drivers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts beside their packages, in a directory of this run; skips the tests where there is no registry."""
    directory = tmp_path_factory.mktemp("clients")
    install(directory, *PACKAGES)
    for script in DRIVERS.glob("*.mjs"):
        shutil.copy(script, directory)
    return directory


@pytest.fixture
def room(database_triggers: Database) -> Room:
    """A conversation of alice and bob, and a raw connection that writes into it."""
    # Nobody logs in with a password, and to hash one takes half a second.
    with override_settings(PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"]):
        call_command("sample_data", stdout=StringIO())
    return Room(database_triggers.connect())


@pytest.fixture
def cookie(room: Room) -> str:
    """What a browser sends for alice; it is kept in the database, and so outlives servers."""
    client = Client()
    client.force_login(User.objects.get(username="alice"))
    return f"{settings.SESSION_COOKIE_NAME}={client.cookies[settings.SESSION_COOKIE_NAME].value}"


@pytest.fixture(params=["daphne", "uvicorn"])
def server(request: pytest.FixtureRequest, room: Room, database_triggers: Database) -> Iterator[ProjectServer]:
    """The example, fed by a listener of its own process."""
    start: Callable[..., ProjectServer] = request.getfixturevalue(request.param)
    server = start(database_triggers, environment={"DRAIN_WINDOW": DRAIN_WINDOW})
    yield server
    assert "Traceback" not in server.log
    assert "ERROR" not in server.log
