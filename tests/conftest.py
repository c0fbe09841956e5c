"""
The fixtures of the whole suite; what they are made of is in `tests/support`.

A test that needs a database asks for `database` or `database_triggers` and runs once per PostgreSQL version;
`@pytest.mark.postgres("18")` limits it to one. What is not installed skips the tests that need it, see
`tests/support/requirements.py`.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Protocol

import pytest

# Python 3.11 would make a loop for pytest-asyncio, which asks for the thread's own, and nobody would close it.
asyncio.set_event_loop(None)

# The settings are read once, before there is any server: no test may reach a database by accident.
os.environ["DJANGO_SETTINGS_MODULE"] = "example.settings"
os.environ["DATABASE_URL"] = "postgresql://nobody@127.0.0.1:1/no_database_fixture_was_requested"
for variable in ("REDIS_URL", "PGNOTIFY_INLINE"):
    os.environ.pop(variable, None)

import django

django.setup()

from channels.layers import BaseChannelLayer, InMemoryChannelLayer
from channels_redis.core import RedisChannelLayer
from channels_redis.pubsub import RedisPubSubChannelLayer
from django.core.management import call_command
from django.test import override_settings
from hypothesis import settings as hypothesis_settings
from redis.exceptions import ConnectionError as RedisConnectionError

from tests.support import processes
from tests.support.databases import Database, migrated_template, new_database, used_by_django
from tests.support.layers import default_layer
from tests.support.passwords import remember_hashes
from tests.support.postgres import PostgresServer, find_bin_path
from tests.support.processes import PgBouncer, Process, ProjectServer, RedisServer, project_environment
from tests.support.requirements import SkippedTests, require

POSTGRES_VERSIONS = ("18", "15")
"""The newest version, and the oldest one that is supported."""

ServerFactory = Callable[..., ProjectServer]


class HasUrl(Protocol):
    """What a server can be pointed at: a database, or a PgBouncer before one."""

    @property
    def url(self) -> str: ...


remember_hashes()

# An example may take however long: the machine has other tests to run.
hypothesis_settings.register_profile("busy", hypothesis_settings(), deadline=None)
hypothesis_settings.load_profile("busy")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "postgres(*versions): run with these major versions of PostgreSQL only")
    config.pluginmanager.register(SkippedTests(fatal=os.environ.get("REQUIRE_ALL") == "1"), "skipped-tests")
    # A cancelled run must stop its servers, as Ctrl-C does; by default the signal ends Python on the spot.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "postgres" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("postgres")
        versions = POSTGRES_VERSIONS if marker is None else marker.args
        metafunc.parametrize("postgres", versions, indirect=True, scope="session")


@pytest.fixture(scope="session")
def postgres_servers() -> Iterator[Callable[[str], PostgresServer]]:
    """Give the server of a version, started on first use and kept until the end of the run."""
    servers: dict[str, PostgresServer] = {}
    with ExitStack() as started:

        def server_of(version: str) -> PostgresServer:
            if version not in servers:
                if (bin_path := find_bin_path(version)) is None:
                    pytest.skip(f"PostgreSQL {version} is not installed")
                servers[version] = PostgresServer.create(version, bin_path)
                started.callback(servers[version].close)
            return servers[version]

        yield server_of


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest, postgres_servers: Callable[[str], PostgresServer]) -> PostgresServer:
    """A running server, of each version in turn."""
    return postgres_servers(request.param)


@pytest.fixture
def empty_database(postgres: PostgresServer) -> Iterator[Database]:
    """A database without a table, unknown to Django."""
    with new_database(postgres) as database:
        yield database


@pytest.fixture
def database(postgres: PostgresServer) -> Iterator[Database]:
    """A migrated database without triggers, which Django's alias "default" leads to."""
    with new_database(postgres, migrated_template(postgres)) as database, used_by_django(database):
        yield database


@pytest.fixture
def database_triggers(database: Database) -> Database:
    """The same with the triggers of the example's watched models."""
    call_command("install_triggers", stdout=StringIO())
    return database


@pytest.fixture
def second_database(postgres: PostgresServer, database: Database) -> Iterator[Database]:
    """
    A second database, of the same server, for conversations: Django's alias "second" leads to it, both are followed.

    `database` has the rest of the example. Both have the triggers of their models.
    """
    settings = {"DATABASES": ["default", "second"], "INLINE_LISTENER": True}
    with (
        new_database(postgres, migrated_template(postgres)) as second,
        used_by_django(second, "second"),
        override_settings(DATABASE_ROUTERS=["tests.support.routers.ConversationsInSecond"], PGNOTIFY_GQL=settings),
    ):
        for alias in ("default", "second"):
            call_command("install_triggers", database=alias, stdout=StringIO())
        yield second


@pytest.fixture(scope="session")
def redis_process() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_server(redis_process: RedisServer) -> Iterator[RedisServer]:
    """An empty Redis; a test may stop it, or freeze it, as it likes."""
    if not redis_process.running():
        redis_process.start()
    redis_process.flush()
    yield redis_process
    if redis_process.running():
        redis_process.resume()


@pytest.fixture(params=["memory", "redis", "redis-pubsub"])
async def layer(request: pytest.FixtureRequest) -> AsyncIterator[BaseChannelLayer]:
    """
    A fresh channel layer of each kind, which is also what `get_channel_layer()` answers.

    The Redis ones share their keys with a server process that is given the same `redis_server`.
    """
    if request.param == "memory":
        layer = InMemoryChannelLayer()
    else:
        kind = RedisChannelLayer if request.param == "redis" else RedisPubSubChannelLayer
        layer = kind(hosts=[request.getfixturevalue("redis_server").url])
    try:
        with default_layer(layer):
            yield layer
    finally:
        # It closes the connections too. A test may have stopped Redis.
        with suppress(RedisConnectionError):
            await layer.flush()


@pytest.fixture
def running() -> Iterator[ExitStack]:
    """Where the factories below leave their processes, so that all stop when the test ends."""
    with ExitStack() as processes:
        yield processes


@pytest.fixture
def daphne(running: ExitStack) -> ServerFactory:
    """Start the example project in Daphne: `daphne(database, redis=None, inline=True, environment=None)`."""
    return partial(_start_server, running, processes.daphne)


@pytest.fixture
def uvicorn(running: ExitStack) -> ServerFactory:
    """The same in Uvicorn."""
    return partial(_start_server, running, processes.uvicorn)


def _start_server(
    running: ExitStack,
    make: Callable[[dict[str, str]], ProjectServer],
    database: HasUrl,
    redis: RedisServer | None = None,
    *,
    inline: bool = True,
    environment: dict[str, str] | None = None,
) -> ProjectServer:
    variables = project_environment(database.url, redis, inline=inline, environment=environment)
    return running.enter_context(make(variables))


@pytest.fixture
def run_listener(running: ExitStack) -> Callable[..., Process]:
    """
    Start `manage.py run_listener` and wait until it leads, or until its output shows another `banner`.

    A banner is a regular expression; that of a standby is "standing by".
    """

    def start(
        database: HasUrl,
        redis: RedisServer | None = None,
        *arguments: str,
        banner: str = "leading database",
        environment: dict[str, str] | None = None,
    ) -> Process:
        variables = project_environment(database.url, redis, inline=False, environment=environment)
        return running.enter_context(processes.listener(variables, *arguments, banner=banner))

    return start


@pytest.fixture
def pgbouncer(running: ExitStack) -> Callable[..., PgBouncer]:
    """Start a PgBouncer before a database: `pgbouncer(database, pool_mode="transaction")`."""

    def start(database: Database, *, pool_mode: str = "transaction") -> PgBouncer:
        return running.enter_context(PgBouncer(database, pool_mode=pool_mode))

    return start


@pytest.fixture(scope="session")
def chromium() -> Path:
    return require("chromium")


@pytest.fixture(scope="session")
def node() -> Path:
    return require("node")
