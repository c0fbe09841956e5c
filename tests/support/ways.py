"""
Ways of writing, and the forms a watched table can have: what a write is expected to become, whatever the form.

A write is a list of steps, each with the changes that it makes.  Of the order this is compared: steps come one after
the other, and the changes of a row, within a step too.  The order between rows of one statement is not promised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pytest

from pgnotify_gql import names
from pgnotify_gql.capture import Kind
from pgnotify_gql.journal.change import Change
from tests.support.databases import Database
from tests.support.watched import Connection, WatchedTable, watched

Image = Mapping[str, Any]


@dataclass(frozen=True)
class Expected:
    """A change: its kind, the key (None for TRUNCATE), and the images."""

    kind: Kind
    pk: int | None
    old: Image | None = None
    new: Image | None = None

    def without_images(self) -> Expected:
        return Expected(self.kind, self.pk)


def row(pk: int, name: str = "", version: int = 0, note: str | None = None) -> Image:
    """Return the image of an item."""
    return {"id": pk, "name": name, "version": version, "note": note}


TEA, MILK, RUM = row(1, "tea"), row(2, "milk"), row(3, "rum")
"""What every table holds before the write; the last one is in another partition, or in the child."""

TRUNCATED = Expected(Kind.TRUNCATE, None)


def inserted(new: Image) -> Expected:
    return Expected(Kind.INSERT, new["id"], None, new)


def deleted(old: Image) -> Expected:
    return Expected(Kind.DELETE, old["id"], old, None)


def updated(old: Image, **columns: Any) -> Expected:
    return Expected(Kind.UPDATE, old["id"], old, {**old, **columns})


def moved(old: Image, **columns: Any) -> tuple[Expected, Expected]:
    """Return the changes of a row whose key is among the changed columns."""
    return deleted(old), inserted({**old, **columns})


@dataclass(frozen=True)
class Step:
    """A statement, or what calls some, and the changes that it makes."""

    statement: str | Callable[[Connection], object]
    changes: Sequence[Expected]


def step(statement: str | Callable[[Connection], object], *changes: Expected) -> Step:
    return Step(statement, changes)


@dataclass(frozen=True)
class Form:
    """One of the ways in which a table is captured: how it is made, and how it is watched."""

    name: str
    create: str = """
        create sequence item_number start 50;
        create table item (
            id bigint primary key default nextval('item_number'),
            name text not null default '',
            version int not null default 0,
            note text
        )
    """
    relatives: str = ""
    home_of_rum: str = "item"
    whole: bool = True
    replicated: bool = False

    def __str__(self) -> str:
        return self.name

    @property
    def by_row(self) -> bool:
        return self.replicated or bool(self.relatives)

    def make(self, database: Database | Connection, *, rings: bool = True) -> WatchedTable:
        """Make the table, with its rows, and install its triggers."""
        table = watched(
            database,
            sql=";".join([self.create + self.relatives, "alter sequence item_number owned by item.id"]),
            columns="__all__" if self.whole else (),
            replicated=self.replicated,
            rings=rings,
        )
        table.run("insert into item (id, name) values (1, 'tea'), (2, 'milk')")
        table.run(f"insert into {self.home_of_rum} (id, name) values (3, 'rum')")
        table.journal()
        return table


KEYS_ONLY = Form("keys only", whole=False)
PLAIN = Form("all columns")
REPLICATED = Form("replicated", replicated=True)
PARTITIONED = Form(
    "partitioned",
    relatives="""
        partition by range (id);
        create table item_low partition of item for values from (minvalue) to (3);
        create table item_high partition of item for values from (3) to (maxvalue)
    """,
)
INHERITED = Form(
    "with a child",
    relatives="; create table special_item (extra text) inherits (item)",
    home_of_rum="special_item",
)

FORMS = (KEYS_ONLY, PLAIN, REPLICATED, PARTITIONED, INHERITED)


def made_anew(form: Form, database: Database, *, rings: bool = True) -> WatchedTable:
    """Make the table of a form in a database where another form may have been before."""
    connection = database.connect()
    connection.execute("drop schema public cascade")
    connection.execute("create schema public")
    return form.make(connection, rings=rings)


class Listener:
    """A session that hears the bells."""

    def __init__(self, database: Database) -> None:
        self.connection = database.connect()
        self.connection.execute(f"listen {names.NOTIFY_CHANNEL}")

    def bells(self) -> int:
        """Count the bells since the last look.  They arrive in the order of commits, so all before a marker are
        there."""
        self.connection.execute("select pg_notify(%s, 'marker')", [names.NOTIFY_CHANNEL])
        payloads = (notification.payload for notification in self.connection.notifies(timeout=30))
        return sum(1 for _ in iter(lambda: next(payloads), "marker"))


@dataclass(frozen=True)
class Way:
    """A way to write: its steps, in one transaction if `together`, after statements that prepare for it."""

    steps: Sequence[Step]
    before: str = ""
    together: bool = False
    forms: Sequence[Form] = FORMS


def way(
    name: str,
    *steps: Step,
    before: str = "",
    together: bool = False,
    forms: Sequence[Form] = FORMS,
    marks: pytest.MarkDecorator | tuple[()] = (),
) -> Any:
    """Return a way as the parameter of a test."""
    return pytest.param(Way(steps, before, together, forms), id=name, marks=marks)


def in_every_form(database: Database, way: Way, subtests: pytest.Subtests) -> None:
    """
    Write in a way; assert that the journal gets these changes and nothing else, in each form of the table.

    And that each transaction rings once if it changed something, and else not at all.
    """
    listener = Listener(database)
    for form in way.forms:
        with subtests.test(form.name):
            table = made_anew(form, database)
            if way.before:
                table.run(way.before)
            table.journal()
            listener.bells()
            rows = rows_of(table)
            changes = written(table, way)
            require_same(changes, form, [step.changes for step in way.steps])
            require_replay(rows, changes, rows_of(table), whole=form.whole)
            assert listener.bells() == len({change.xid for change in changes})


def written(table: WatchedTable, way: Way) -> list[Change]:
    """Run the steps of a way and return all that was journaled."""
    with table.connection.transaction() if way.together else nullcontext():
        for each in way.steps:
            if callable(each.statement):
                each.statement(table.connection)
            else:
                table.run(each.statement)
    journal = table.journal()
    assert {entry.label for entry in journal} <= {table.watch.label}
    return [change for entry in journal for change in entry.changes(table.watch)]


def require_same(changes: Iterable[Change], form: Form, groups: Sequence[Sequence[Expected]]) -> None:
    """Assert that changes are those of the groups: groups in order, and each row's in order within a group."""
    seen = [_seen(change) for change in changes]
    wanted = [[each if form.whole else each.without_images() for each in group] for group in groups]
    remaining = iter(seen)
    found = [list(islice(remaining, len(group))) for group in wanted]
    assert [_by_row(group) for group in found] == [_by_row(group) for group in wanted], f"it was {seen}"
    assert list(remaining) == [], f"it was {seen}"


def require_replay(
    before: Mapping[int, Image], changes: Iterable[Change], after: Mapping[int, Image], *, whole: bool
) -> None:
    """Assert that whoever applies the changes, in order, to what was there before arrives at what is there after."""
    rows: dict[int, Image | None] = {**before}
    for change in changes:
        if change.kind is Kind.TRUNCATE:
            rows.clear()
            continue
        assert (change.pk in rows) == (change.kind is not Kind.INSERT), f"{change.kind} of {change.pk}"
        known = rows.pop(change.pk, None)
        assert change.old == known or not whole
        if change.kind is not Kind.DELETE:
            rows[change.pk] = change.new
    assert rows == after if whole else set(rows) == set(after)


def rows_of(table: WatchedTable) -> dict[int, Image]:
    """Return what the table holds, by key."""
    return {key: row(key, *values) for key, *values in table.run("select id, name, version, note from item")}


def _seen(change: Change) -> Expected:
    return Expected(change.kind, change.pk, change.old, change.new)


def _by_row(changes: Iterable[Expected]) -> dict[int | None, list[Expected]]:
    rows: dict[int | None, list[Expected]] = {}
    for change in changes:
        rows.setdefault(change.pk, []).append(change)
    return rows
