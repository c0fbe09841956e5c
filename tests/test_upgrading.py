"""
Another version of our SQL takes the place of the one before, while everybody writes: nothing is missed, nobody waits.

Removing everything leaves nothing, and waits for nobody for ever.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from io import StringIO

import psycopg
import pytest
from django.core.management import call_command
from django.db import OperationalError, connection
from psycopg import sql

from pgnotify_gql.capture import function, render
from pgnotify_gql.capture.catalog import Status, installed_functions, installed_triggers
from pgnotify_gql.capture.installer import execute, plan_install
from pgnotify_gql.capture.registry import Registry, make_watch
from pgnotify_gql.capture.templates import template
from pgnotify_gql.capture.watch import Watch
from tests.support.databases import Database
from tests.support.migrated import step_of
from tests.support.watched import ITEM_SQL, Connection, Item, install, journal_rows, make_model

WRITERS = 3

WRITES_BETWEEN = 40
"""Writes of all writers together between two upgrades."""

LONGEST_WAIT = "1s"
"""For a lock.  The installer queues for 0.05 s at most; the rest is for machines that have much to do."""

ROUNDS = 4

PATIENCE = 60

Upgrade = Callable[[pytest.MonkeyPatch], Watch]


class Writers:
    """Sessions that write at full speed and remember what they have committed."""

    def __init__(self, database: Database) -> None:
        self.committed: Counter[tuple[str, int]] = Counter()
        self._database = database
        self._stopping = threading.Event()
        self._progress = threading.Condition()

    def write(self, number: int) -> None:
        """Insert a row, update it and delete every second one, each by itself or all in one transaction."""
        try:
            with self._database.server.connect(self._database.name) as session:
                session.execute(f"set lock_timeout = '{LONGEST_WAIT}'")
                key = number * 1_000_000
                while not self._stopping.is_set():
                    key += 1
                    self._write(session, key)
        finally:
            with self._progress:
                self._stopping.set()
                self._progress.notify_all()

    def _write(self, session: Connection, key: int) -> None:
        statements = {
            "INSERT": "insert into item (id) values (%s)",
            "UPDATE": "update item set version = 1 where id = %s",
        }
        if key % 2:
            statements["DELETE"] = "delete from item where id = %s"
        if key % 3:
            for kind, statement in statements.items():
                session.execute(statement, [key])
                self._remember((kind, key))
            return
        with session.transaction():
            for statement in statements.values():
                session.execute(statement, [key])
        self._remember(*((kind, key) for kind in statements))

    def _remember(self, *changes: tuple[str, int]) -> None:
        with self._progress:
            self.committed.update(changes)
            self._progress.notify_all()

    def go_on(self) -> None:
        """Wait until they have committed some more."""
        with self._progress:
            aim = self.committed.total() + WRITES_BETWEEN
            self._progress.wait_for(lambda: self._stopping.is_set() or self.committed.total() >= aim, PATIENCE)
            assert self.committed.total() >= aim, "a writer failed, or all stand still"

    def stop(self) -> None:
        self._stopping.set()


@contextmanager
def writing(database: Database) -> Iterator[Writers]:
    writers = Writers(database)
    with ThreadPoolExecutor(WRITERS) as threads:
        running: list[Future[None]] = [threads.submit(writers.write, number) for number in range(WRITERS)]
        try:
            writers.go_on()
            yield writers
            writers.go_on()
        finally:
            writers.stop()
            for outcome in running:
                outcome.result(PATIENCE)


def journaled(connection: Connection) -> Counter[tuple[str, int]]:
    """Every change of an item in the journal, by kind and key."""
    return Counter(
        (row.kind, entry[0][0])
        for row in journal_rows(connection)
        if row.label == "stock.item"
        for entry in json.loads(row.rows)
    )


def another_format(patched: pytest.MonkeyPatch) -> Watch:
    """Only the comments differ."""
    patched.setattr(render, "FORMAT", "v0")
    return Watch(Item)


def another_text(patched: pytest.MonkeyPatch) -> Watch:
    """The trigger function is another one, under another name."""

    def older(name: str) -> sql.SQL:
        text = template(name)
        return sql.SQL(f"{text.as_string(None)}\n-- an older version") if name == "capture_v1_row.sql" else text

    patched.setattr(function, "template", older)
    return Watch(Item)


def by_row(patched: pytest.MonkeyPatch) -> Watch:
    """Triggers of another level and other names."""
    return Watch(Item, replicated=True)


def another_watch(patched: pytest.MonkeyPatch) -> Watch:
    return Watch(Item, "__all__")


@pytest.fixture
def items(database: Database) -> Watch:
    """A table of items with its triggers."""
    database.connect().execute(ITEM_SQL)
    install(Watch(Item))
    return Watch(Item)


@pytest.mark.parametrize("version", [another_format, another_text, by_row, another_watch])
def test_no_write_is_missed_or_captured_twice_or_waits_while_versions_change(
    database: Database, items: Watch, version: Upgrade, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[int] = []

    def change(watch: Watch) -> None:
        step = step_of(watch)
        assert step.status is Status.OUTDATED
        execute(connection, step, lock_timeout=2.0, waiting=waited.append)

    with writing(database) as writers:
        for _ in range(ROUNDS):
            with monkeypatch.context() as patched:
                change(version(patched))
            writers.go_on()
            change(items)
            writers.go_on()
    assert journaled(database.connect()) == writers.committed
    assert max(writers.committed.values()) == 1
    assert step_of(items).status is Status.INSTALLED
    assert len(installed_functions(connection)) == 1


def test_a_function_is_not_called_once_it_is_replaced(
    database: Database, items: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sessions that have written before keep plans, and must not keep the old function with them."""
    writer = database.connect()
    for key in range(10):
        writer.execute("insert into item (id) values (%s)", [key])
    install(Watch(Item, ("version",)))
    for key in range(10, 20):
        writer.execute("insert into item (id) values (%s)", [key])
    found = [json.loads(row.rows)[0] for row in journal_rows(writer)]
    assert found[:10] == [[[key]] for key in range(10)]
    assert found[10:] == [[[key], None, {"version": 0}] for key in range(10, 20)]


OURS = """
    select 'trigger', tgname::text from pg_trigger where tgname like 'pgnotify%'
    union all select 'function', proname::text from pg_proc
              where pronamespace = 'pgnotify_gql'::regnamespace and prorettype = 'trigger'::regtype
    union all select 'comment', description from pg_description where description like 'pgnotify%'
    union all select 'dependency', classid::regclass::text from pg_depend
              where refclassid = 'pg_proc'::regclass and refobjid >= 16384
"""


class TestRemovingEverything:
    @pytest.fixture
    def registry(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> Registry:
        """Watches of every kind of table, with every kind of trigger."""
        database.connect().execute(
            f"{ITEM_SQL};"
            "create table mirror (id bigint primary key);"
            "create table event (id bigint primary key) partition by range (id);"
            "create table event_1 partition of event for values from (0) to (9) partition by range (id);"
            "create table event_1_1 partition of event_1 for values from (0) to (5);"
            "create table base (id bigint primary key); create table derived () inherits (base);"
            'create schema attic; create table attic."a ""box""" (id bigint primary key)'
        )
        registry = Registry()
        registry.add(Watch(Item, "__all__", condition=None, update_of=("version",)))
        registry.add(make_watch(make_model("Mirror", "mirror"), replicated=True))
        registry.add(make_watch(make_model("Event", "event")))
        registry.add(make_watch(make_model("Base", "base")))
        registry.add(make_watch(make_model("Box", 'attic"."a ""box""'), kinds=["DELETE"]))
        monkeypatch.setattr("pgnotify_gql.management.commands.install_triggers.registry", registry)
        return registry

    def test_leaves_no_object_behind(self, database: Database, registry: Registry) -> None:
        reader = database.connect()
        before = reader.execute(OURS).fetchall()
        call_command("install_triggers", stdout=StringIO())
        during = {kind for kind, _ in reader.execute(OURS).fetchall()}
        assert during == {"trigger", "function", "comment", "dependency"}
        call_command("uninstall_triggers", stdout=StringIO())
        assert reader.execute(OURS).fetchall() == before == []

    def test_of_one_model_leaves_none_of_its_objects_and_all_of_the_others(
        self, database: Database, registry: Registry
    ) -> None:
        reader = database.connect()
        call_command("install_triggers", stdout=StringIO())
        before = set(reader.execute(OURS).fetchall())
        call_command("uninstall_triggers", "stock.base", stdout=StringIO())
        gone = before - set(reader.execute(OURS).fetchall())
        assert gone
        assert all("base" in name for kind, name in gone)
        assert "stock.base" not in {t.label for t in installed_triggers(connection)}
        assert {step.label for step in plan_install(connection, registry).pending} == {"stock.base"}

    def test_leaves_no_object_of_a_function_that_lost_its_table(self, database: Database, registry: Registry) -> None:
        call_command("install_triggers", stdout=StringIO())
        reader = database.connect()
        reader.execute("drop table item, base, mirror cascade")
        call_command("uninstall_triggers", stdout=StringIO())
        assert reader.execute(OURS).fetchall() == []


class TestRemovingTheJournal:
    def test_takes_all_triggers_along(self, database: Database, items: Watch) -> None:
        call_command("migrate", "pgnotify_gql", "zero", stdout=StringIO(), skip_checks=True)
        writer = database.connect()
        assert writer.execute("select to_regnamespace('pgnotify_gql')").fetchone() == (None,)
        writer.execute("insert into item (id) values (1)")

    def test_does_not_queue_behind_a_long_transaction_for_ever_and_says_what_to_do(
        self, database: Database, items: Watch
    ) -> None:
        holder = database.connect()
        holder.execute("begin; insert into item (id) values (1)")
        with pytest.raises(OperationalError) as caught:
            call_command("migrate", "pgnotify_gql", "zero", stdout=StringIO(), skip_checks=True)
        assert "the journal is still there" in str(caught.value)
        assert "Run `manage.py uninstall_triggers` first" in str(caught.value)
        assert isinstance(caught.value.__cause__, psycopg.errors.LockNotAvailable)
        holder.execute("insert into item (id) values (2); commit")
        assert step_of(items).status is Status.INSTALLED
        assert journaled(holder) == {("INSERT", 1): 1, ("INSERT", 2): 1}

    def test_limits_nothing_but_itself(self, database: Database) -> None:
        call_command("migrate", "pgnotify_gql", "zero", stdout=StringIO(), skip_checks=True)
        with connection.cursor() as cursor:
            cursor.execute("show lock_timeout")
            assert cursor.fetchone() == ("0",)
