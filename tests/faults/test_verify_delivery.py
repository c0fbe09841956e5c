"""
`manage.py verify_delivery` as operators run it, on the example project: it proves delivery with every fault, says when
changes are lost, and leaves nothing behind.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from pgnotify_gql.verification.faults import FAULTS
from tests.support.databases import Database
from tests.support.processes import CHECKOUT, RedisServer, project_environment

LIMIT = 90
"""Seconds that anything here may take beyond the duration that was asked for, on a busy machine."""

TABLES = "select count(*) from pg_class where relname like 'verification%'"

OURS = """
    select relname from pg_class where relname like 'verification%'
    union all select tgname from pg_trigger where tgname like 'pgnotify_gql%'
    union all select proname from pg_proc where proname like 'capture\\_%'
    order by 1
"""


class Verification(subprocess.Popen[str]):
    """The command as a process; a database without Redis has the in-memory layer."""

    def __init__(self, database: Database, redis: RedisServer | None, *arguments: str) -> None:
        environment = project_environment(database.url, redis, inline=False, environment=None)
        super().__init__(
            [sys.executable, "manage.py", "verify_delivery", *arguments],
            cwd=CHECKOUT,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ended(self, duration: float = 0) -> tuple[int, str, str]:
        """Return exit status, output and errors."""
        output, errors = self.communicate(timeout=duration + LIMIT)
        return self.returncode, output, errors

    def children(self) -> list[psutil.Process]:
        """Return the servers and listeners that it has started by now."""
        return psutil.Process(self.pid).children()


@contextmanager
def verifying(database: Database, redis: RedisServer | None, *arguments: str) -> Iterator[Verification]:
    with Verification(database, redis, *arguments) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def entries(connection: psycopg.Connection) -> int:
    """Return how many changes were committed so far; none before there is a ledger."""
    try:
        (found,) = connection.execute("select count(*) from pgnotify_gql.verification_ledger").fetchall()
    except psycopg.errors.UndefinedTable:
        return 0
    return int(found[0])


def wait_until(condition: Callable[[], Any], process: Verification) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.postgres("18")
@pytest.mark.timeout(60 + 2 * LIMIT)
def test_a_minute_with_every_fault_has_no_violation(database_triggers: Database, redis_server: RedisServer) -> None:
    connection = database_triggers.connect()
    before = connection.execute(OURS).fetchall()
    arguments = ("--duration", "60", "--fault-every", "3", "--json")
    with verifying(database_triggers, redis_server, *arguments) as process:
        status, output, errors = process.ended(duration=60)
    assert status == 0, (output, errors)
    report = json.loads(output)
    assert report["violations"]["total"] == 0
    assert report["received"] == report["expected"] > 5_000
    assert set(report["faults"]) == set(FAULTS)
    # Where processes take long to start again, the turn of some faults does not come.
    assert sum(map(bool, report["faults"].values())) >= 7, report
    assert report["reconnections"] > 0
    assert report["states"] >= 2
    assert report["latency_ms"]["all"]["count"] > 5_000
    # Also the triggers of the site are as they were.
    assert connection.execute(OURS).fetchall() == before


@pytest.mark.postgres("18")
@pytest.mark.timeout(3 * LIMIT)
def test_changes_that_are_lost_are_counted_and_named_with_status_1(
    database_triggers: Database, redis_server: RedisServer
) -> None:
    """A session disables the trigger for a moment; writers wait for it, so what is lost is known exactly."""
    watcher, admin = database_triggers.connect(), database_triggers.connect()

    def alter(what: str) -> int:
        with admin.transaction():
            admin.execute(f"alter table pgnotify_gql.verification {what} trigger user")
            return entries(admin)

    arguments = ("--duration", "15", "--no-faults", "--subscribers", "2", "--wait", "10", "--json")
    with verifying(database_triggers, redis_server, *arguments) as process:
        wait_until(lambda: entries(watcher) > 50, process)
        first = alter("disable")
        wait_until(lambda: entries(watcher) > first + 30, process)
        last = alter("enable")
        status, output, errors = process.ended(duration=15)
    assert status == 1
    report = json.loads(output)
    assert report["violations"]["lost"] == report["violations"]["total"] == 2 * (last - first)
    assert report["expected"] - report["received"] == 2 * (last - first)
    assert not report["all_arrived"]
    assert len(report["first_violations"]) == 20
    assert all(shown["kind"] == "lost" and shown["key"] > 0 for shown in report["first_violations"])
    assert "violations" in errors.splitlines()[-1]
    assert sorted(path.name for path in Path(report["logs"]).iterdir()) == [
        "listener_1.log", "listener_2.log", "server_1.log", "server_2.log",
    ]  # fmt: skip
    shutil.rmtree(report["logs"])
    assert entries(watcher) == 0


@pytest.mark.postgres("15")
@pytest.mark.timeout(3 * LIMIT)
def test_with_an_in_memory_layer_there_is_one_server_with_a_listener_inside(database_triggers: Database) -> None:
    arguments = ("--duration", "12", "--fault", "kill-server", "--fault", "end-listener-session", "--fault-every", "3")
    with verifying(database_triggers, None, *arguments) as process:
        status, output, errors = process.ended(duration=12)
    assert status == 0, (output, errors)
    assert "servers 1, listeners inline" in output
    assert "kill-server: server 1" in output
    assert "\nviolations      0\n" in output


@pytest.mark.postgres("18")
@pytest.mark.timeout(3 * LIMIT)
def test_ctrl_c_ends_it_early_and_what_was_written_is_judged(
    database_triggers: Database, redis_server: RedisServer
) -> None:
    watcher = database_triggers.connect()
    arguments = ("--duration", "600", "--fault", "pause-server", "--fault-every", "1", "--server", "uvicorn")
    with verifying(database_triggers, redis_server, *arguments) as process:
        wait_until(lambda: entries(watcher) > 300, process)
        children = process.children()
        assert len(children) == 4
        process.send_signal(signal.SIGINT)
        status, output, errors = process.ended()
    assert status == 0, (output, errors)
    assert " s, interrupted, seed " in output
    assert "\nviolations      0\n" in output
    assert not any(child.is_running() for child in children)
    assert watcher.execute(TABLES).fetchall() == [(0,)]


@pytest.mark.postgres("18")
@pytest.mark.timeout(3 * LIMIT)
def test_ctrl_c_before_anything_was_written_verifies_nothing(
    database_triggers: Database, redis_server: RedisServer
) -> None:
    watcher = database_triggers.connect()
    with verifying(database_triggers, redis_server) as process:
        wait_until(lambda: watcher.execute(TABLES).fetchall() != [(0,)], process)
        process.send_signal(signal.SIGINT)
        status, _, errors = process.ended()
    assert status == 1
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert watcher.execute(TABLES).fetchall() == [(0,)]


@pytest.mark.postgres("18")
@pytest.mark.timeout(4 * LIMIT)
def test_a_run_that_is_killed_leaves_no_process_and_the_next_one_removes_its_tables(
    database_triggers: Database, redis_server: RedisServer
) -> None:
    watcher = database_triggers.connect()
    with verifying(database_triggers, redis_server, "--duration", "600", "--no-faults") as process:
        wait_until(lambda: entries(watcher) > 30, process)
        children = process.children()
        # One that is frozen does not hear of its parent's end.
        children[0].suspend()
        process.kill()
        process.wait()
        _, alive = psutil.wait_procs(children, timeout=LIMIT)
        assert alive == []
    assert watcher.execute(TABLES).fetchall() != [(0,)]
    with verifying(database_triggers, redis_server, "--duration", "3", "--no-faults", "--json") as process:
        status, output, errors = process.ended()
    assert status == 0, (output, errors)
    assert json.loads(output)["violations"]["total"] == 0
    assert watcher.execute(TABLES).fetchall() == [(0,)]


@pytest.mark.postgres("18")
@pytest.mark.timeout(3 * LIMIT)
def test_only_one_runs_at_a_time(database_triggers: Database, redis_server: RedisServer) -> None:
    watcher = database_triggers.connect()
    with verifying(database_triggers, redis_server, "--duration", "600", "--no-faults", "--json") as process:
        wait_until(lambda: entries(watcher) > 30, process)
        with verifying(database_triggers, redis_server) as second:
            status, _, errors = second.ended()
        assert status == 1
        assert "another verification runs in database 'default'" in errors
        process.terminate()
        status, output, errors = process.ended()
    assert status == 0, (output, errors)
    assert json.loads(output)["interrupted"] is True
