"""A run of `verify_delivery` without processes of its own: what ends it early, and what it says then."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgnotify_gql import names
from pgnotify_gql.verification import run as module
from pgnotify_gql.verification.errors import VerificationError
from pgnotify_gql.verification.options import Options
from pgnotify_gql.verification.progress import Status
from pgnotify_gql.verification.run import Run
from pgnotify_gql.verification.subscriber import PROTOCOLS, Kind, Subscriber
from pgnotify_gql.verification.table import tables
from tests.support.databases import Database

pytestmark = pytest.mark.postgres("18")

LONG = 600.0


class Told:
    """Keeps what a run says, and does something when it shows how far it is."""

    def __init__(self, react: Callable[[Status], object] = lambda status: None) -> None:
        self.sentences: list[str] = []
        self._react = react

    def say(self, sentence: str) -> None:
        self.sentences.append(sentence)

    def show(self, status: Status) -> None:
        self._react(status)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def run_in(database: Database, folder: Path, told: Told, **changed: Any) -> Run:
    values: dict[str, Any] = {
        "database": "default", "duration": LONG, "servers": 0, "listeners": 0, "writers": 1, "subscribers": 0,
        "server": "daphne", "faults": [], "fault_every": 1, "rate": 100, "wait": LONG, "seed": 1, "run": "of a test",
    }  # fmt: skip
    return Run(
        Options(**(values | changed)), told, conninfo=database.conninfo, direct_conninfo=database.conninfo,
        session_timeout=1, logs=folder, conditions={},
    )  # fmt: skip


@pytest.fixture
def written(database: Database) -> Iterator[Database]:
    """A database with the tables of a run."""
    with tables("default", database.conninfo, rings=True):
        yield database


@pytest.fixture
def deaf(monkeypatch: pytest.MonkeyPatch) -> Subscriber:
    """The only subscriber of a run: its server cannot be reached."""
    protocol = PROTOCOLS["graphql-ws"]
    url = "ws://127.0.0.1:1/"
    subscriber = Subscriber("private 1", Kind("private", "private"), protocol, [url], {}, random.Random(1))
    monkeypatch.setattr(module, "make_subscribers", lambda *arguments: [subscriber])
    return subscriber


@pytest.fixture(autouse=True)
def sigterm() -> Iterator[None]:
    """A run gives the signals their default back, and not what this process has for them."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


async def test_what_a_writer_may_not_do_is_what_it_ends_with(database: Database, tmp_path: Path) -> None:
    with pytest.raises(psycopg.errors.UndefinedTable, match="verification"):
        await run_in(database, tmp_path, Told()).run()


@pytest.mark.parametrize(("application", "remarked"), [("nightly", True), ("pgnotify_gql verify listener", False)])
async def test_a_leader_that_is_not_of_the_run_is_remarked(
    database: Database, tmp_path: Path, application: str, remarked: bool
) -> None:
    name = application if remarked else f"{application} of a test"
    leader = database.connect(application_name=name)
    leader.execute("select pg_advisory_lock(%s, %s)", [names.LOCK_CLASS, names.LEADER_LOCK])
    told = Told()
    with pytest.raises(psycopg.errors.UndefinedTable):
        await run_in(database, tmp_path, told).run()
    sentence = (
        f"a listener that is not of this run leads (backend {leader.info.backend_pid}, 'nightly'): faults of listeners "
        "are not felt while it does"
    )
    assert told.sentences == [sentence] * remarked


async def test_whom_nothing_reaches_is_named(
    database: Database, tmp_path: Path, deaf: Subscriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONNECT_LIMIT", -1)
    with pytest.raises(VerificationError, match=r"^nothing has come to private 1 within -1 s, although nothing was"):
        await run_in(database, tmp_path, Told()).run()


async def test_interrupted_before_everybody_is_connected_it_has_verified_nothing(
    written: Database, tmp_path: Path, deaf: Subscriber
) -> None:
    told = Told(lambda status: interrupt() if status.phase == "connecting" and len(told.sentences) == 0 else None)
    with pytest.raises(VerificationError, match=r"^interrupted before anything was written: nothing is verified$"):
        await run_in(written, tmp_path, told).run()


async def test_where_nothing_was_committed_it_has_verified_nothing(
    written: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "make_writers", lambda *arguments: [])
    with pytest.raises(VerificationError, match=r"^nothing was committed: nothing is verified$"):
        await run_in(written, tmp_path, Told(), duration=0.01).run()


async def test_interrupted_once_more_it_ends_at_once(written: Database, tmp_path: Path, deaf: Subscriber) -> None:
    deaf.heard.set()
    phases: list[str] = []

    def react(status: Status) -> None:
        if status.phase in {"running", "waiting"} - set(phases) and status.changes:
            phases.append(status.phase)
            interrupt()

    told = Told(react)
    # In a task of its own: that is what is cancelled.
    running = asyncio.create_task(run_in(written, tmp_path, told).run())
    await asyncio.wait({running})
    assert running.cancelled()
    assert phases == ["running", "waiting"]
    assert told.sentences == ["interrupted: what was written so far is judged (once more: ends at once)"]
