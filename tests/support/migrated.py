"""
A table whose migrations a test makes, run by Django's own machinery, and somebody who writes while they run.

The application is not installed and its models are known to nobody else: there is the state that migrations leave, and
nothing besides.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from django.db import connection, models
from django.db.migrations import Migration
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ProjectState
from django.db.models import Model

from pgnotify_gql.capture.catalog import Status
from pgnotify_gql.capture.installer import Step, plan_install
from pgnotify_gql.capture.registry import make_watch
from pgnotify_gql.capture.watch import Watch
from tests.support.databases import Database
from tests.support.watched import Connection, journal_rows

APP = "stock"

PATIENCE = 30
"""Seconds after which a test that waits for a writer has failed."""

WRITES_BETWEEN = 5
"""Writes that a test waits for before and after what it does."""


class MigratedApp:
    """The state that migrations left, and the migrations, which can be reversed."""

    def __init__(self) -> None:
        self.state = ProjectState()
        self._applied: list[tuple[Migration, ProjectState]] = []

    def migrate(self, *operations: Operation, atomic: bool = True) -> None:
        """Run a migration of these operations."""
        migration = _migration(operations, atomic=atomic)
        before = self.state.clone()
        with connection.schema_editor(atomic=atomic) as editor:
            migration.apply(self.state, editor)
        self._applied.append((migration, before))

    def revert(self) -> None:
        """Reverse the last migration."""
        migration, before = self._applied.pop()
        with connection.schema_editor(atomic=migration.atomic) as editor:
            migration.unapply(before.clone(), editor)
        self.state = before

    def sql(self, *operations: Operation, backwards: bool = False) -> str:
        """What `sqlmigrate` prints for a migration of these operations."""
        migration = _migration(operations)
        with connection.schema_editor(collect_sql=True) as editor:
            change = migration.unapply if backwards else migration.apply
            change(self.state.clone(), editor, collect_sql=True)
        return "\n".join(map(str, editor.collected_sql))

    def model(self, name: str) -> type[Model]:
        """A model as it is now."""
        return self.state.apps.get_model(APP, name)

    def watch(self, name: str, **options: Any) -> Watch:
        """A watch of a model as it is now, as the application would declare it."""
        return make_watch(self.model(name), **options)


def _migration(operations: Sequence[Operation], *, atomic: bool = True) -> Migration:
    made = type("Migration", (Migration,), {"operations": operations, "atomic": atomic})
    migration: Migration = made("0000_test", APP)
    return migration


def step_of(watch: Watch) -> Step:
    """What installing would do for a watch."""
    plan = plan_install(connection, [watch])
    assert plan.errors == []
    (step,) = (step for step in plan.steps if step.status is not Status.ORPHANED)
    return step


def fields(**more: models.Field[Any, Any]) -> list[tuple[str, models.Field[Any, Any]]]:
    """The fields of an item: `touched` is what somebody writes all the time."""
    item: dict[str, models.Field[Any, Any]] = {
        "id": models.AutoField(primary_key=True),
        "name": models.CharField(max_length=20, default="tea"),
        "version": models.IntegerField(default=0),
        "touched": models.IntegerField(default=0),
    }
    return list((item | more).items())


class Writer:
    """Updates the one row of items, over and over, each time with a number one higher."""

    def __init__(self, session: Connection) -> None:
        self.written = 0
        self._session = session
        self._stopping = threading.Event()
        self._progress = threading.Condition()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._write, name="writer")

    def _write(self) -> None:
        try:
            while not self._stopping.wait(0.001):
                self._session.execute("update written set touched = touched + 1")
                with self._progress:
                    self.written += 1
                    self._progress.notify_all()
        except Exception as error:
            with self._progress:
                self._error = error
                self._progress.notify_all()

    def goes_on(self, writes: int = WRITES_BETWEEN) -> None:
        """Wait until it has written some more.  Raises what a write raised."""
        with self._progress:
            aim = self.written + writes
            done = self._progress.wait_for(lambda: self._error or self.written >= aim, PATIENCE)
        if self._error is not None:
            raise self._error
        assert done, "the writer stands still"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        if self._error is not None:
            raise self._error


@contextmanager
def writing(database: Database, table: str) -> Iterator[Writer]:
    """
    Write all the time, as a program that is not told about migrations.

    It writes through a view, which finds its table and its column whatever they are called.
    """
    session = database.connect()
    session.execute(f"create view written as select touched from {table}")
    writer = Writer(session)
    writer.start()
    try:
        writer.goes_on()
        yield writer
        writer.goes_on()
    finally:
        writer.stop()


def new_images(connection: Connection, watch: Watch) -> list[Any]:
    """The new image of every change in the journal but those of rows that went, decoded for a watch."""
    changes = [change for row in journal_rows(connection) for change in row.changes(watch)]
    return [change.new for change in changes if change.kind.value != "DELETE"]
