"""The writers of `verify_delivery`: their ledger is what was committed, whatever becomes of their connections."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgnotify_gql.journal.change import JournalRow
from pgnotify_gql.journal.snapshot import Snapshot
from pgnotify_gql.verification.errors import VerificationError
from pgnotify_gql.verification.ledger import Ledger, change_number
from pgnotify_gql.verification.row import watch
from pgnotify_gql.verification.table import read_ledger, tables
from pgnotify_gql.verification.writer import Commits, Writer
from tests.support.databases import Database
from tests.support.feed import eventually

NAME = "pgnotify_gql verify writer of a test"

JOURNALED = """
    select id, xid::text::bigint, label, kind, rows::text, 0, context from pgnotify_gql.journal
    where label = %s order by id
"""

OURS = """
    select relname from pg_class where relname like 'verification%'
    union all select tgname from pg_trigger where tgname like 'pgnotify_gql%'
    union all select proname from pg_proc where proname like 'capture\\_%%'
"""


@contextmanager
def made(database: Database) -> Iterator[None]:
    with tables("default", database.conninfo, rings=True):
        yield


@pytest.fixture
def written(database: Database) -> Iterator[Database]:
    """A database with the tables of a run."""
    with made(database):
        yield database


async def write(database: Database, until: Callable[[Commits], bool], *, disturb: bool = False) -> Commits:
    """Let four writers write, and lose their sessions now and then."""
    commits, chance = Commits(), random.Random(5)
    conninfo = make_conninfo(database.conninfo, application_name=NAME)
    writers = [Writer(number, conninfo, commits, rate=2_000, chance=random.Random(number)) for number in range(4)]
    tasks = [asyncio.create_task(writer.run()) for writer in writers]
    admin = database.connect()

    def enough() -> bool:
        if disturb and chance.random() < 0.1:
            admin.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where application_name = %s and random() < 0.5",
                [NAME],
            )
        return until(commits)

    writers[0].flood()
    await eventually(enough, 60)
    for writer in writers:
        writer.stop()
    await asyncio.gather(*tasks)
    return commits


def check(database: Database) -> Ledger:
    """Assert that ledger, table and journal say the same."""
    connection = database.connect()
    ledger = Ledger(read_ledger(connection))
    now = Snapshot.parse(connection.execute("select pg_current_snapshot()::text").fetchall()[0][0])
    assert ledger.rows_at(now) == dict(connection.execute("select key, version from pgnotify_gql.verification"))
    journaled = defaultdict(list)
    for columns in connection.execute(JOURNALED, [watch.label]):
        for change in JournalRow(*columns).changes(watch):
            image = change.new or change.old or {}
            journaled[change.pk].append(change_number(image["version"], deleted=change.new is None))
    noted = defaultdict(list)
    for entry in ledger.entries:
        noted[entry.key].append(entry.change)
    assert noted == journaled
    return ledger


@pytest.mark.postgres("18", "15")
async def test_the_ledger_has_what_was_committed_and_in_the_order_of_each_row(written: Database) -> None:
    commits = await write(written, lambda commits: commits.transactions > 300 and commits.rolled_back > 5)
    ledger = check(written)
    assert len(ledger) == commits.changes
    assert {entry.xid for entry in ledger.entries} <= commits.sent.keys()


@pytest.mark.postgres("18")
async def test_it_does_when_the_answer_to_a_commit_was_lost(written: Database) -> None:
    commits = await write(written, lambda commits: commits.failed > 20, disturb=True)
    assert len(check(written)) >= commits.changes


@pytest.mark.postgres("18")
def test_a_ledger_that_is_wrong_would_be_noticed(written: Database) -> None:
    asyncio.run(write(written, lambda commits: commits.transactions > 10))
    written.connect().execute(
        "update pgnotify_gql.verification set version = 0 where key = (select min(key) from pgnotify_gql.verification)"
    )
    with pytest.raises(AssertionError):
        check(written)


@pytest.mark.postgres("18")
async def test_a_writer_that_may_not_write_says_so(written: Database) -> None:
    connection = written.connect()
    connection.execute("alter table pgnotify_gql.verification_ledger rename to somewhere_else")
    try:
        with pytest.raises(psycopg.errors.UndefinedTable):
            await Writer(0, written.conninfo, Commits(), rate=100, chance=random.Random(1)).run()
    finally:
        connection.execute("alter table pgnotify_gql.somewhere_else rename to verification_ledger")


@pytest.mark.postgres("18", "15")
def test_the_tables_go_after_an_error_and_the_triggers_of_the_site_stay(database_triggers: Database) -> None:
    connection = database_triggers.connect()
    before = connection.execute(OURS).fetchall()
    assert before

    def fail() -> None:
        with made(database_triggers):
            assert len(connection.execute(OURS).fetchall()) > len(before)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert connection.execute(OURS).fetchall() == before


@pytest.mark.postgres("18")
def test_what_an_earlier_run_has_left_is_removed_and_its_sessions_end(database_triggers: Database) -> None:
    connection = database_triggers.connect()
    before = connection.execute(OURS).fetchall()
    left = tables("default", database_triggers.conninfo, rings=True)
    left.__enter__()
    writer = database_triggers.connect(application_name=NAME)
    writer.autocommit = False
    writer.execute("insert into pgnotify_gql.verification (key, version, bucket) values (1, 1, 1)")
    with database_triggers.connect() as admin:
        admin.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where application_name = 'pgnotify_gql verification'"
        )
    with made(database_triggers):
        assert connection.execute("select count(*) from pgnotify_gql.verification").fetchall() == [(0,)]
    assert connection.execute(OURS).fetchall() == before
    with pytest.raises(psycopg.OperationalError):
        writer.execute("select 1")


@pytest.mark.postgres("18")
def test_two_runs_do_not_meet(database_triggers: Database) -> None:
    with made(database_triggers):
        with (
            pytest.raises(VerificationError, match=r"another verification runs in database 'default' \(backend \d+\)"),
            made(database_triggers),
        ):
            pass
        database_triggers.connect().execute("select from pgnotify_gql.verification")
