"""The fixtures keep what they promise to the other tests."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import urlopen

import psycopg
import pytest
import redis
from channels.layers import BaseChannelLayer, get_channel_layer
from django.contrib.auth.models import User
from django.db import connection
from mirakuru.exceptions import ProcessExitedWithError

from tests.support.databases import Database
from tests.support.ports import free_port
from tests.support.postgres import PostgresServer, find_bin_path
from tests.support.processes import CHECKOUT, PgBouncer, Process, ProjectServer, RedisServer


def test_a_server_answers_with_its_version(request: pytest.FixtureRequest, postgres: PostgresServer) -> None:
    with postgres.connect() as connection:
        assert connection.info.server_version // 10_000 == int(postgres.version)
    assert postgres.version in request.node.name


@pytest.mark.postgres("18")
def test_a_marked_test_runs_with_the_versions_of_its_marker_only(postgres: PostgresServer) -> None:
    assert postgres.version == "18"


@pytest.mark.parametrize("attempt", [1, 2])
def test_a_clone_has_all_tables_and_no_rows_whatever_the_test_before_wrote(database: Database, attempt: int) -> None:
    assert User.objects.count() == 0
    User.objects.create(username=f"attempt {attempt}")


def test_django_and_a_connection_of_the_test_see_the_same_database(database: Database) -> None:
    User.objects.create(username="ann")
    rows = database.connect().execute("select current_database(), username from auth_user").fetchall()
    assert rows == [(database.name, "ann")]
    with connection.cursor() as cursor:
        cursor.execute("select current_database()")
        assert cursor.fetchone() == (database.name,)
    # The backend keeps the version of a server for as long as it lives.
    assert connection.get_database_version()[0] == int(database.server.version)


def test_a_migrated_clone_has_no_triggers(database: Database) -> None:
    triggers = database.connect().execute("select tgname from pg_trigger where not tgisinternal").fetchall()
    assert triggers == []


def test_installed_triggers_watch_the_tables_of_the_example(database_triggers: Database) -> None:
    tables = database_triggers.connect().execute(
        "select distinct tgrelid::regclass::text from pg_trigger where not tgisinternal"
    )
    assert ("conversations_message",) in tables.fetchall()


@pytest.fixture(scope="module")
def worker() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as worker:
        yield worker


@pytest.mark.parametrize("users", [0, 1, 2])
def test_a_thread_that_outlives_a_test_sees_the_database_of_the_present_one(
    database: Database, worker: ThreadPoolExecutor, users: int
) -> None:
    for number in range(users):
        User.objects.create(username=str(number))
    assert worker.submit(User.objects.count).result(timeout=30) == users


def test_a_database_is_reachable_through_tcp_and_through_its_url(empty_database: Database) -> None:
    for conninfo in (empty_database.tcp_conninfo, empty_database.url):
        with psycopg.connect(conninfo) as connection:
            assert connection.execute("select current_database()").fetchone() == (empty_database.name,)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_clone_survives_a_restart_of_its_server(database: Database, mode: str) -> None:
    User.objects.create(username="ann")
    connection.close()
    database.server.restart(mode)  # type: ignore[arg-type]
    assert User.objects.count() == 1


def test_a_clone_is_dropped_with_its_sessions_prepared_transactions_and_slots(
    postgres: PostgresServer, database: Database
) -> None:
    # Both are left behind on purpose: the fixture's end must cope.
    open_connection = psycopg.connect(database.conninfo)
    open_connection.execute("select pg_create_logical_replication_slot('left_behind', 'pgoutput')")
    open_connection.commit()
    open_connection.tpc_begin(open_connection.xid(1, "left behind", ""))
    open_connection.execute("create table left_behind ()")
    open_connection.tpc_prepare()
    open_connection.close()


def test_a_closed_server_leaves_no_process_and_no_file() -> None:
    bin_path = find_bin_path("18")
    assert bin_path is not None
    server = PostgresServer.create("18", bin_path)
    with server.connect() as connection:
        assert connection.info.backend_pid
    server.close()
    assert not server.directory.exists()
    with pytest.raises(psycopg.OperationalError):
        server.connect()


def test_an_interrupted_run_stops_its_servers() -> None:
    program = """
import os, signal, time
from tests.support.postgres import PostgresServer, find_bin_path
server = PostgresServer.create("18", find_bin_path("18"))
print(server.directory, flush=True)
os.kill(os.getpid(), signal.SIGINT)
time.sleep(60)
"""
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=CHECKOUT,
    )
    assert result.stderr.strip().endswith("KeyboardInterrupt")
    assert not Path(result.stdout.strip()).exists()


def test_ports_are_given_once() -> None:
    ports = [free_port() for _ in range(50)]
    assert len(set(ports)) == 50


async def test_a_layer_is_fresh_and_the_default_one(layer: BaseChannelLayer) -> None:
    assert get_channel_layer() is layer
    channel = await layer.new_channel()
    await layer.group_add("group", channel)
    await layer.group_send("group", {"type": "message", "text": "hello"})
    assert (await layer.receive(channel))["text"] == "hello"


@pytest.mark.parametrize("attempt", [1, 2])
def test_redis_is_empty_and_runs_whatever_the_test_before_did(redis_server: RedisServer, attempt: int) -> None:
    with redis.Redis.from_url(redis_server.url) as client:
        assert client.dbsize() == 0
        client.set("attempt", attempt)
    redis_server.kill()


@pytest.mark.postgres("18")
def test_pgbouncer_pools_the_connections_to_a_database(
    empty_database: Database, pgbouncer: Callable[..., PgBouncer]
) -> None:
    pool = pgbouncer(empty_database)
    pids = set()
    for _ in range(2):
        with psycopg.connect(pool.conninfo) as connection:
            pids.add(connection.execute("select pg_backend_pid()").fetchone())
    assert len(pids) == 1


SLEEPER = [sys.executable, "-c", "import time; print('ready'); time.sleep(60)"]


@pytest.mark.postgres("18")
@pytest.mark.parametrize("kind", ["daphne", "uvicorn"])
def test_a_project_server_answers_once_it_is_started(
    request: pytest.FixtureRequest, database: Database, kind: str
) -> None:
    server: ProjectServer = request.getfixturevalue(kind)(database, inline=False)
    with urlopen(f"{server.http_url}/login/", timeout=10) as response:
        assert response.status == 200


@pytest.mark.postgres("18")
def test_a_listener_leads_once_it_is_started_and_ends_well(
    database_triggers: Database, redis_server: RedisServer, run_listener: Callable[..., Process]
) -> None:
    listener = run_listener(database_triggers, redis_server)
    listener.terminate()
    assert listener.wait() == 0


class TestAProcess:
    def test_shows_its_output_before_and_after_its_end(self) -> None:
        with Process(SLEEPER, banner="ready") as process:
            assert process.log == "ready\n"
        assert process.log == "ready\n"

    def test_is_stopped_even_while_frozen(self) -> None:
        with Process(SLEEPER, banner="ready") as process:
            process.pause()
        assert not process.running()

    def test_that_fails_to_start_says_why(self) -> None:
        with pytest.raises(ProcessExitedWithError) as caught:
            Process([sys.executable, "-c", "raise SystemExit('no database')"], banner="ready").start()
        assert caught.value.__notes__ == ["no database\n"]

    def test_is_not_blocked_by_output_that_nobody_reads(self) -> None:
        command = [sys.executable, "-c", "print('x' * 1_000_000); print('done')"]
        with Process(command, banner="done") as process:
            assert process.wait() == 0

    def test_that_ends_before_it_is_ready_is_an_error(self) -> None:
        with pytest.raises(ProcessExitedWithError):
            Process([sys.executable, "-c", "print('bye')"], banner="ready").start()


class TestSkippedTests:
    @pytest.fixture(autouse=True)
    def suite(self, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("REQUIRE_ALL", raising=False)
        monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
        pytester.makeconftest(
            """
            import os
            from tests.support.requirements import SkippedTests

            def pytest_configure(config):
                config.pluginmanager.register(SkippedTests(fatal=os.environ.get("REQUIRE_ALL") == "1"))
            """
        )
        pytester.makepyfile(
            """
            from tests.support.requirements import require

            def test_that_needs_something():
                require("no-such-program")

            def test_that_needs_nothing():
                pass
            """
        )

    def test_are_listed(self, pytester: pytest.Pytester) -> None:
        result = self.run(pytester)
        assert result.ret == pytest.ExitCode.OK
        result.stdout.fnmatch_lines(["*not tested on this machine*", "no-such-program is not installed (1 skipped)"])

    def test_fail_the_run_where_everything_is_required(
        self, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("REQUIRE_ALL", "1")
        result = self.run(pytester)
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        result.stdout.fnmatch_lines(["*REQUIRE_ALL is set*", "no-such-program is not installed (1 skipped)"])

    def run(self, pytester: pytest.Pytester) -> pytest.RunResult:
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:django")
