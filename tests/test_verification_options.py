"""What keeps `verify_delivery` from being run is one sentence; what it tells, and how far it is."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from channels.layers import InMemoryChannelLayer
from django.core.management import CommandError, call_command
from django.db import connections
from django.test import override_settings

from pgnotify_gql.verification import site
from pgnotify_gql.verification.faults import FAULTS
from pgnotify_gql.verification.judge import Verdict, Violation, ViolationKind
from pgnotify_gql.verification.latency import Distribution
from pgnotify_gql.verification.progress import Display, Lines, Status, progress
from pgnotify_gql.verification.report import Report
from pgnotify_gql.verification.run import Run
from tests.support.databases import Database, used_by_django
from tests.support.ports import free_port
from tests.support.processes import CHECKOUT

REDIS = "channels_redis.core.RedisChannelLayer"


def complaint(*arguments: str) -> str:
    """Return what the command fails with."""
    with pytest.raises(CommandError) as raised:
        call_command("verify_delivery", *arguments, stdout=StringIO(), stderr=StringIO())
    return str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--duration", "0"], "a number of seconds"),
        (["--duration", "soon"], "a number of seconds"),
        (["--fault-every", "-1"], "a number of seconds"),
        (["--rate", "0"], "a number above 0, not '0'"),
        (["--servers", "0"], "a whole number above 0"),
        (["--listeners", "-1"], "a whole number above 0"),
        (["--writers", "x"], "a whole number above 0"),
        (["--subscribers", "1.5"], "a whole number above 0"),
        (["--fault", "meteorite"], "invalid choice: 'meteorite'"),
        (["--fault", "kill-server", "--no-faults"], "not allowed with argument"),
        (["--server", "gunicorn"], "invalid choice: 'gunicorn'"),
        (["--database", "nowhere"], "invalid choice: 'nowhere'"),
        (["--seed", "x"], "invalid int value"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(arguments: list[str], says: str) -> None:
    assert says in complaint(*arguments)


def test_an_in_memory_layer_bears_no_second_process() -> None:
    for arguments in (["--servers", "2"], ["--listeners", "1"]):
        assert "in-memory and reaches no other process: leave --servers and --listeners out" in complaint(*arguments)
    assert complaint("--fault", "kill-listener") == (
        "--fault kill-listener: there is no process of a listener in this run"
    )


def test_without_processes_of_listeners_their_faults_are_left_out() -> None:
    layers = {"default": {"BACKEND": REDIS, "CONFIG": {"hosts": ["redis://127.0.0.1:1/0"]}}}
    rest = {"duration": 1, "writers": 1, "subscribers": 1, "fault_every": 1, "rate": 1, "wait": 1, "seed": 1}

    def options(**chosen: Any) -> Any:
        every: dict[str, Any] = {"servers": None, "listeners": None, "server": None, "faults": None}
        return site.Site.found("default").options(**(every | chosen | rest))

    with override_settings(CHANNEL_LAYERS=layers, PGNOTIFY_GQL={}):
        assert options().faults == list(FAULTS)
        assert (options().servers, options().listeners, options().inline) == (2, 2, False)
        assert set(FAULTS) - set(options(listeners=0).faults) == {"kill-listener", "pause-listener"}
        assert options(faults=[]).faults == []
    with override_settings(CHANNEL_LAYERS=layers, PGNOTIFY_GQL={"INLINE_LISTENER": True}):
        assert options().inline is False
        assert options(listeners=0).inline is True


def test_a_database_that_is_not_followed_is_refused() -> None:
    with override_settings(PGNOTIFY_GQL={"DATABASES": ["other"]}):
        assert "PGNOTIFY_GQL['DATABASES'] does not name it" in complaint()


def test_a_database_that_is_not_postgresql_is_refused() -> None:
    # Wherever its listeners would connect.
    followed = {"DATABASES": ["lite"], "LISTENER_CONNINFO": "host=127.0.0.1 port=1"}
    with sqlite("lite"), override_settings(PGNOTIFY_GQL=followed):
        assert complaint("--database", "lite") == "database 'lite' is sqlite: the feed needs PostgreSQL"


@contextmanager
def sqlite(alias: str) -> Iterator[None]:
    """Have an alias of a database in memory."""
    parameters = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:", "OPTIONS": {}}
    connections.databases[alias] = connections.databases["default"] | parameters
    try:
        yield
    finally:
        del connections[alias]
        del connections.databases[alias]


class Hanging(InMemoryChannelLayer):  # type: ignore[misc]
    """A layer whose server takes connections, and does not answer."""

    async def new_channel(self, prefix: str = "") -> str:
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")


def test_a_layer_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "LAYER_TIMEOUT", 0.01)
    with override_settings(CHANNEL_LAYERS={"default": {"BACKEND": f"{__name__}.Hanging"}}):
        assert complaint() == ("the channel layer 'default' does not answer within 0.01 s: start what it connects to")


def test_a_server_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "installed_servers", lambda: ["daphne"])
    assert complaint("--server", "uvicorn") == "--server uvicorn is not installed: pip install uvicorn"
    monkeypatch.setattr(site, "installed_servers", list)
    assert complaint() == "no ASGI server is installed: pip install daphne or uvicorn"


def test_settings_that_no_other_process_would_find_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DJANGO_SETTINGS_MODULE")
    assert complaint().startswith("DJANGO_SETTINGS_MODULE is not set")


@pytest.mark.parametrize(("module", "user"), [("rich", "progress"), ("websockets", "subscriber")])
def test_an_extra_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, module: str, user: str) -> None:
    for name in [*sys.modules]:
        if name.partition(".")[0] == module:
            monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, module, None)
    for name in (user, "run", "cast", "arrival", "progress"):
        monkeypatch.delitem(sys.modules, f"pgnotify_gql.verification.{name}", raising=False)
    assert complaint() == f"{module} is not installed: pip install 'pgnotify_gql[verify]'"


@pytest.mark.postgres("18")
def test_a_layer_that_cannot_be_reached_is_named(database: Database) -> None:
    layers = {"default": {"BACKEND": REDIS, "CONFIG": {"hosts": [f"redis://127.0.0.1:{free_port()}/0"]}}}
    with override_settings(CHANNEL_LAYERS=layers):
        says = complaint()
    assert says.startswith("the channel layer 'default' cannot be used (")
    assert "start what it connects to" in says


@pytest.mark.postgres("18")
def test_a_database_without_a_journal_is_told_to_migrate(empty_database: Database) -> None:
    with used_by_django(empty_database):
        assert "has no journal: run `manage.py migrate pgnotify_gql" in complaint()


def test_a_database_that_is_down_is_named() -> None:
    assert complaint().startswith("database 'default' cannot be used: ")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the logs of a run are made."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.postgres("18")
def test_a_run_that_was_cancelled_has_verified_nothing_and_leaves_no_logs(
    database: Database, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(self: Run) -> Report:
        # What follows has underscores of its own now and then.
        assert [name.startswith("verify_delivery_") for name in os.listdir(temporary)] == [True]
        raise asyncio.CancelledError

    monkeypatch.setattr(Run, "run", run)
    assert complaint() == "interrupted: nothing is verified"
    assert list(temporary.iterdir()) == []


@pytest.mark.postgres("18")
@pytest.mark.parametrize("as_json", [False, True])
def test_violations_are_reported_and_counted_and_the_logs_kept(
    database: Database, temporary: Path, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    async def run(self: Run) -> Report:
        return report(logs=str(self._logs))

    monkeypatch.setattr(Run, "run", run)
    output = StringIO()
    with pytest.raises(CommandError, match=r"^30 violations$"):
        call_command("verify_delivery", *["--json"] * as_json, stdout=output, stderr=StringIO())
    (logs,) = temporary.iterdir()
    if as_json:
        assert json.loads(output.getvalue())["logs"] == str(logs)
    else:
        assert output.getvalue().endswith(f"\nlogs            {logs}\n")


@pytest.mark.postgres("18")
def test_with_verbosity_0_there_is_the_report_alone(
    database: Database, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = report(verdict=Verdict(5, 5))

    async def run(self: Run) -> Report:
        self._remark("a listener leads that is not of this run")
        self._progress.show(STATUS)
        return whole

    monkeypatch.setattr(Run, "run", run)
    output, errors = StringIO(), StringIO()
    call_command("verify_delivery", verbosity=0, stdout=output, stderr=errors)
    assert (output.getvalue(), errors.getvalue()) == (f"{whole.as_text()}\n", "")


def report(**changed: Any) -> Report:
    violations = [Violation(ViolationKind.LOST, "private 1", key, key + 100) for key in range(1, 31)]
    values: dict[str, Any] = {
        "database": "default",
        "seed": 7,
        "duration": 60.04,
        "interrupted": False,
        "conditions": {"cores": 2},
        "changes": 1000,
        "transactions": 300,
        "rolled_back": 20,
        "failed": 3,
        "verdict": Verdict(8000, 7970, violations),
        "faults": {"kill-server": 2, "slow-client": 0},
        "states": 4,
        "reconnections": 5,
        "closes": {"1006": 5},
        "unexpected_exits": 0,
        "waited": 1.23,
        "wait_limit": 60,
        "latency": Distribution(7970, 10, 20, 30, 40),
        "quiet_latency": Distribution(0),
    }
    return Report(**(values | changed))


def test_the_report_shows_the_first_violations_and_counts_the_rest() -> None:
    lines = report().as_text().splitlines()
    assert "violations      30: 30 lost" in lines
    assert "  lost: row 20 version 120, private 1" in lines
    assert "  lost: row 21 version 121, private 1" not in lines
    assert "  and 10 more" in lines
    assert "faults          2 kill-server" in lines
    assert "without faults  no deliveries" in lines


def test_without_violations_the_report_says_0() -> None:
    assert "violations      0" in report(verdict=Verdict(5, 5)).as_text().splitlines()


def test_every_key_of_the_report_every_violation_and_every_fault_is_documented() -> None:
    proof = (CHECKOUT / "docs" / "delivery.rst").read_text().partition("\nProof\n")[2]
    found = json.loads(report().as_json())
    assert found["violations"] == {"total": 30, **dict.fromkeys(map(str, ViolationKind), 0)} | {"lost": 30}
    described = set(re.findall(r"``([a-z0-9_]+)``", proof))
    assert set(found) <= described
    assert {kind.value for kind in ViolationKind} <= described
    assert set(FAULTS) <= set(re.findall(r"``([a-z-]+)``", proof))


STATUS = Status("running", 5, 60, 1200, 9600, 7, 8, 3, 2, ["kill-server"])


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_a_display_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    terminal = Terminal()
    with progress(terminal, pytest.fail) as display:
        assert isinstance(display, Display)
        display.say("kill-server: server 1")
        display.show(STATUS)
    shown = terminal.getvalue()
    assert re.search(r"\n\x1b\[2m\d\d:\d\d:\d\d  kill-server: server 1", shown), "at the beginning of a line"
    assert "1,200" in shown
    assert shown.rstrip().endswith("\x1b[2K")


def test_elsewhere_there_is_a_line_for_each_event_and_phase() -> None:
    lines: list[str] = []
    write: Callable[[str], object] = lines.append
    with progress(StringIO(), write) as told:
        assert isinstance(told, Lines)
        told.show(STATUS)
        told.show(STATUS)
        told.say("kill-server: server 1")
        told.show(Status("waiting", 60, 60, 1300, 9700, 8, 8, 3, 2, missing=12))
    assert lines == [
        "running, 5 of 60 s, 1,200 changes, 9,600 deliveries, 7 of 8 subscribers connected, 3 reconnections, 2 faults",
        "kill-server: server 1",
        "waiting, 60 of 60 s, 1,300 changes, 9,700 deliveries, 8 of 8 subscribers connected, 3 reconnections, 2 faults,"
        " 12 deliveries to come",
    ]
