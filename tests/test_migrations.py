"""
What happens to watched tables when migrations alter them: no write fails, none is missed, and what is captured.

Somebody writes all the time, also while a migration runs.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

import pytest
from django.contrib.postgres.operations import (
    AddConstraintNotValid,
    AddIndexConcurrently,
    RemoveIndexConcurrently,
    ValidateConstraint,
)
from django.core.management import call_command
from django.db import connection, models
from django.db.migrations.operations import (
    AddConstraint,
    AddField,
    AddIndex,
    AlterField,
    AlterModelTable,
    AlterUniqueTogether,
    CreateModel,
    DeleteModel,
    RemoveConstraint,
    RemoveField,
    RenameField,
    RenameModel,
    RunSQL,
)
from django.db.migrations.operations.base import Operation
from django.db.models import Q

from pgnotify_gql.capture.catalog import Status, installed_functions, installed_triggers
from pgnotify_gql.capture.registry import Registry
from tests.support.databases import Database
from tests.support.migrated import MigratedApp, fields, new_images, step_of, writing
from tests.support.watched import Connection, install, journal_rows

CAPTURED = {"columns": ["name", "touched"]}
DECISIVE = {"columns": ["touched"], "update_of": ["version", "touched"]}
CONDITIONAL = {"columns": ["touched"], "condition": Q(version=0)}


@dataclass(frozen=True)
class Alteration:
    """Migrations of one operation each, and what becomes of capture."""

    operations: Sequence[Operation]
    options: dict[str, Any] = field(default_factory=lambda: CAPTURED)
    """Of the watch before."""
    between: set[str] = field(default_factory=lambda: {"name", "touched"})
    """The fields of an image, between the migrations and the next `install_triggers`."""
    stale: bool = True
    """Whether there is something to install afterwards."""
    after: dict[str, Any] | None = None
    """The options of the watch afterwards, if they are others."""
    label: str = "stock.item"
    """Of the model afterwards."""
    concurrent: bool = False
    """Not in a transaction."""


def constraint() -> models.CheckConstraint:
    return models.CheckConstraint(condition=Q(version__gte=0), name="not_negative")


def by_name() -> models.Index:
    return models.Index(fields=["name"], name="by_name")


ALTERATIONS = {
    "a captured column is renamed": Alteration(
        [RenameField("item", "name", "title")], between={"touched"}, after={"columns": ["title", "touched"]}
    ),
    "a captured column is removed": Alteration(
        [RemoveField("item", "name")], between={"touched"}, after={"columns": ["touched"]}
    ),
    "a captured column may be null": Alteration(
        [AlterField("item", "name", models.CharField(max_length=20, null=True))],
        stale=False,
    ),
    "a captured column gets another name in the database": Alteration(
        [AlterField("item", "name", models.CharField(max_length=20, db_column="label"))], between={"touched"}
    ),
    "a captured column gets longer": Alteration(
        [AlterField("item", "name", models.CharField(max_length=200))], stale=False
    ),
    "a captured column gets another type": Alteration([AlterField("item", "name", models.TextField())], stale=False),
    "a decisive column is renamed": Alteration(
        [RenameField("item", "version", "edition")],
        DECISIVE,
        between={"touched"},
        after={"columns": ["touched"], "update_of": ["edition", "touched"]},
    ),
    "a decisive column is removed": Alteration(
        [RemoveField("item", "version")], DECISIVE, between={"touched"}, after={"columns": ["touched"]}
    ),
    "a decisive column gets another type": Alteration(
        [AlterField("item", "version", models.TextField())], DECISIVE, between={"touched"}, stale=False
    ),
    "a decisive column may be null": Alteration(
        [AlterField("item", "version", models.IntegerField(null=True))], DECISIVE, between={"touched"}, stale=False
    ),
    "a column of the condition is renamed": Alteration(
        [RenameField("item", "version", "edition")],
        CONDITIONAL,
        between={"touched"},
        after={"columns": ["touched"], "condition": Q(edition=0)},
    ),
    "a column of the condition is removed": Alteration(
        [RemoveField("item", "version")], CONDITIONAL, between={"touched"}, after={"columns": ["touched"]}
    ),
    "a column of the condition gets a wider type": Alteration(
        [AlterField("item", "version", models.BigIntegerField())], CONDITIONAL, between={"touched"}, stale=False
    ),
    "a column of the condition gets a type that it cannot compare": Alteration(
        [AlterField("item", "version", models.TextField())],
        CONDITIONAL,
        between={"touched"},
        after={"columns": ["touched"], "condition": Q(version="0")},
    ),
    "the key gets wider": Alteration([AlterField("item", "id", models.BigAutoField(primary_key=True))], stale=False),
    "the key becomes a UUID": Alteration(
        [
            AddField("item", "code", models.UUIDField(default=uuid.uuid4)),
            RemoveField("item", "id"),
            AlterField("item", "code", models.UUIDField(primary_key=True, default=uuid.uuid4)),
            RenameField("item", "code", "id"),
        ],
        stale=False,
    ),
    "the model is renamed": Alteration([RenameModel("Item", "Thing")], label="stock.thing"),
    "the table is renamed": Alteration([AlterModelTable("item", "things")], stale=False),
    "the table is moved to another schema": Alteration(
        [
            RunSQL("create schema attic"),
            RunSQL(
                "alter table stock_item set schema attic",
                state_operations=[AlterModelTable("item", 'attic"."stock_item')],
            ),
        ],
        stale=False,
    ),
    "a column is added": Alteration([AddField("item", "size", models.IntegerField(default=3))], stale=False),
    "a column is added where all are captured": Alteration(
        [AddField("item", "size", models.IntegerField(default=3))],
        {"columns": "__all__"},
        between={"id", "name", "version", "touched"},
    ),
    "a constraint is added and removed": Alteration(
        [AddConstraint("item", constraint()), RemoveConstraint("item", "not_negative")], stale=False
    ),
    "a constraint is added and validated later": Alteration(
        [AddConstraintNotValid("item", constraint()), ValidateConstraint("item", "not_negative")], stale=False
    ),
    "an index is added and removed concurrently": Alteration(
        [AddIndexConcurrently("item", by_name()), RemoveIndexConcurrently("item", "by_name")],
        stale=False,
        concurrent=True,
    ),
    "an index is added": Alteration([AddIndex("item", by_name())], stale=False),
    "columns become unique together": Alteration(
        [AlterUniqueTogether("item", {("name", "version")}), AlterUniqueTogether("item", set())], stale=False
    ),
}


@pytest.fixture
def app(database: Database) -> MigratedApp:
    """An application with a table of items, and one of them."""
    app = MigratedApp()
    app.migrate(CreateModel("Item", fields()))
    database.connect().execute("insert into stock_item (name, version, touched) values ('tea', 0, 0)")
    return app


@pytest.fixture
def reader(database: Database) -> Connection:
    return database.connect()


def touches(images: Sequence[Any]) -> list[int]:
    return [image["touched"] for image in images]


@pytest.mark.parametrize("alteration", ALTERATIONS.values(), ids=ALTERATIONS.keys())
class TestAlterations:
    def test_no_write_fails_or_is_missed(
        self, database: Database, app: MigratedApp, reader: Connection, alteration: Alteration
    ) -> None:
        install(app.watch("item", **alteration.options))
        with writing(database, "stock_item") as writer:
            for operation in alteration.operations:
                app.migrate(operation, atomic=not alteration.concurrent)
                writer.goes_on()
            after = app.watch(alteration.label.partition(".")[2], **(alteration.after or alteration.options))
            install(after)
        images = new_images(reader, after)
        assert touches(images) == list(range(1, writer.written + 1))
        assert {row.label for row in journal_rows(reader)} == {"stock.item", alteration.label}

    def test_images_are_what_the_triggers_still_find_until_they_are_installed_again(
        self, database: Database, app: MigratedApp, reader: Connection, alteration: Alteration
    ) -> None:
        before = app.watch("item", **alteration.options)
        install(before)
        with writing(database, "stock_item"):
            for operation in alteration.operations:
                app.migrate(operation, atomic=not alteration.concurrent)
        assert set(new_images(reader, before)[-1]) == alteration.between
        after = app.watch(alteration.label.partition(".")[2], **(alteration.after or alteration.options))
        assert (step_of(after).status is Status.OUTDATED) == alteration.stale
        install(after)
        assert step_of(after).status is Status.INSTALLED
        reader.execute("update written set touched = 0")
        assert set(new_images(reader, after)[-1]) == {each.name for each in after.fields}
        assert journal_rows(reader)[-1].label == alteration.label


def test_a_key_that_changes_into_another_column_is_missing_between(
    database: Database, app: MigratedApp, reader: Connection
) -> None:
    install(app.watch("item", columns=["touched"]))
    update = "update stock_item set touched = touched + 1"
    app.migrate(AddField("item", "code", models.UUIDField(default=uuid.uuid4)))
    reader.execute(update)
    app.migrate(RemoveField("item", "id"))
    reader.execute(update)
    app.migrate(AlterField("item", "code", models.UUIDField(primary_key=True, default=uuid.uuid4)))
    app.migrate(RenameField("item", "code", "id"))
    reader.execute(update)
    ((key,),) = reader.execute("select id from stock_item").fetchall()
    watch = app.watch("item", columns=["touched"])
    changes = [change for row in journal_rows(reader) for change in row.changes(watch)]
    # The first key is a number, which no UUID is.
    assert [(change.kind.value, change.pk) for change in changes[1:]] == [
        ("DELETE", None),
        ("INSERT", None),
        ("UPDATE", key),
    ]
    assert len(changes) == 4


def test_a_condition_that_cannot_be_evaluated_captures_what_it_would_leave_out(
    app: MigratedApp, reader: Connection
) -> None:
    install(app.watch("item", **CONDITIONAL))
    reader.execute("insert into stock_item (name, version, touched) values ('milk', 1, 0)")
    assert journal_rows(reader) == []
    app.migrate(RenameField("item", "version", "edition"))
    reader.execute("insert into stock_item (name, edition, touched) values ('milk', 1, 0)")
    assert len(journal_rows(reader)) == 1
    install(app.watch("item", columns=["touched"], condition=Q(edition=0)))
    reader.execute("insert into stock_item (name, edition, touched) values ('milk', 1, 0)")
    assert len(journal_rows(reader)) == 1


def test_without_a_column_to_decide_by_every_update_counts(app: MigratedApp, reader: Connection) -> None:
    install(app.watch("item", columns=["name"], update_of=["version"]))
    update = "update stock_item set touched = touched + 1"
    reader.execute(update)
    assert journal_rows(reader) == []
    app.migrate(RenameField("item", "version", "edition"))
    reader.execute(update)
    assert len(journal_rows(reader)) == 1
    install(app.watch("item", columns=["name"], update_of=["edition"]))
    reader.execute(update)
    assert len(journal_rows(reader)) == 1


class TestDeletedModels:
    @pytest.fixture
    def registry(self, monkeypatch: pytest.MonkeyPatch) -> Registry:
        registry = Registry()
        monkeypatch.setattr("pgnotify_gql.management.commands.install_triggers.registry", registry)
        return registry

    def test_the_triggers_go_with_the_table_and_the_function_with_the_next_installation(
        self, app: MigratedApp, registry: Registry
    ) -> None:
        install(app.watch("item", **CAPTURED))
        app.migrate(DeleteModel("item"))
        assert installed_triggers(connection) == []
        assert len(installed_functions(connection)) == 1
        call_command("install_triggers", stdout=StringIO())
        assert installed_functions(connection) == []

    def test_a_model_of_the_same_name_that_comes_later_is_installed_anew(
        self, app: MigratedApp, registry: Registry, reader: Connection
    ) -> None:
        install(app.watch("item", **CAPTURED))
        app.migrate(DeleteModel("item"), CreateModel("Item", fields()))
        watch = app.watch("item", **CAPTURED)
        assert step_of(watch).status is Status.MISSING
        install(watch)
        reader.execute("insert into stock_item (name, version, touched) values ('tea', 0, 7)")
        assert touches(new_images(reader, watch)) == [7]
