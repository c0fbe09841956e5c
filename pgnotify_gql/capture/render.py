"""
From a watch to SQL: its trigger function and its triggers, static text with a digest.

The SQL depends on the watch and on whether bells are rung, on nothing in the database, so the same watch renders to
the same digest everywhere.  Everything is composed with psycopg's ``sql``; nothing is interpolated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.db.models import Field, ForeignKey
from psycopg import sql

from .. import names
from .kinds import Kind
from .templates import template
from .watch import Watch, column_of

CHUNK_ROWS = 1_000
"""Changes in one journal row at most: bounds what a reader holds in memory at once."""

CHUNK_BYTES = 1_000_000
"""A journal row is closed once its images passed this size (one row's image may be larger)."""

FORMAT = "v1"

PLAIN_KEYS = frozenset(
    {
        "AutoField", "BigAutoField", "SmallAutoField", "IntegerField", "BigIntegerField", "SmallIntegerField",
        "PositiveIntegerField", "PositiveBigIntegerField", "PositiveSmallIntegerField", "UUIDField", "CharField",
        "TextField", "SlugField", "DateField", "DateTimeField", "DecimalField", "BooleanField",
    }
)  # fmt: skip
"""Key fields whose type has its equality in pg_catalog; others are compared as text, lest a write fail for want of
an operator that the fixed search_path hides."""

TRANSITIONS = {
    Kind.INSERT: "referencing new table as pgn_new_rows",
    Kind.UPDATE: "referencing old table as pgn_old_rows new table as pgn_new_rows",
    Kind.DELETE: "referencing old table as pgn_old_rows",
    Kind.TRUNCATE: "",
}

UNPAIRED = {Kind.INSERT: "pgn_new_rows", Kind.DELETE: "pgn_old_rows"}

OLD, NEW, ROW = "pgn_old", "pgn_new", "pgn"


@dataclass(frozen=True)
class Trigger:
    """One trigger: its name and the statement that creates or replaces it."""

    name: str
    kind: Kind
    create: str


@dataclass(frozen=True)
class Capture:
    """Everything a watch needs in the database, and the digest that tells whether it is there."""

    watch: Watch
    table: str
    function: str
    create_function: str
    triggers: tuple[Trigger, ...]
    digest: str

    @property
    def columns(self) -> list[str]:
        """Return the columns that the trigger function names."""
        return [column_of(field) for field in (*self.watch.key_fields, *self.watch.fields)]

    @property
    def comment(self) -> str:
        """Return the COMMENT ON TRIGGER by which a later look recognises this version."""
        return f"pgnotify_gql {FORMAT} {self.watch.label} {self.digest}"


def render(watch: Watch, *, rings: bool = True) -> Capture:
    """
    Return the SQL of a watch.

    `rings` is False where the listener polls: such trigger functions never call NOTIFY, which would make PREPARE
    TRANSACTION fail.  Raises WatchError when the watch names unknown columns.
    """
    draft = _statements(watch, "capture", rings)
    digest = hashlib.sha256("\n".join(draft).encode()).hexdigest()[:16]
    function = names.function_name(watch.label, digest)
    create_function, *triggers = _statements(watch, function, rings)
    return Capture(
        watch=watch,
        table=_text(sql.Identifier(watch.model._meta.db_table)),
        function=function,
        create_function=create_function,
        triggers=tuple(
            Trigger(names.trigger_name(kind), kind, create)
            for kind, create in zip(triggered_kinds(watch), triggers, strict=True)
        ),
        digest=digest,
    )


def triggered_kinds(watch: Watch) -> list[Kind]:
    """Return the kinds that need a trigger: an UPDATE of a key is a DELETE and an INSERT, so those need it too."""
    kinds = set(watch.kinds)
    if kinds & {Kind.INSERT, Kind.DELETE}:
        kinds.add(Kind.UPDATE)
    return [kind for kind in Kind if kind in kinds]


def _statements(watch: Watch, function: str, rings: bool) -> list[str]:
    qualified = sql.Identifier(names.SCHEMA, function)
    kinds = triggered_kinds(watch)
    body = sql.SQL("\n").join(_branch(watch, kind) for kind in kinds)
    create = template("capture_v1.sql").format(
        function=qualified, settings=_settings(watch), body=body, bell=_bell() if rings else sql.SQL("")
    )
    return [_text(create), *(_text(_trigger(watch, kind, qualified)) for kind in kinds)]


def _trigger(watch: Watch, kind: Kind, function: sql.Identifier) -> sql.Composed:
    return template("trigger_v1.sql").format(
        trigger=sql.Identifier(names.trigger_name(kind)),
        kind=sql.SQL(kind.value),
        table=sql.Identifier(watch.model._meta.db_table),
        transitions=sql.SQL(TRANSITIONS[kind]),
        function=function,
    )


def _settings(watch: Watch) -> sql.SQL:
    # Images are text made by output functions that look at the writer's session.
    if not watch.fields:
        return sql.SQL("")
    return sql.SQL("set bytea_output = 'hex' set intervalstyle = 'postgres' set timezone = 'UTC'")


def _bell() -> sql.Composed:
    return template("capture_v1_bell.sql").format(
        lock_class=sql.Literal(names.LOCK_CLASS),
        awake_lock=sql.Literal(names.AWAKE_LOCK),
        notify_channel=sql.Literal(names.NOTIFY_CHANNEL),
    )


def _branch(watch: Watch, kind: Kind) -> sql.Composed:
    label = sql.Literal(watch.label)
    chunk_rows, chunk_bytes = sql.Literal(CHUNK_ROWS), sql.Literal(CHUNK_BYTES)
    if kind is Kind.TRUNCATE:
        return template("capture_v1_truncate.sql").format(label=label)
    if kind is Kind.UPDATE:
        first = watch.key_fields[0]
        return template("capture_v1_update.sql").format(
            label=label,
            chunk_rows=chunk_rows,
            chunk_bytes=chunk_bytes,
            same_key=_same_key(watch),
            old_key_missing=sql.SQL("{} is null").format(_column(OLD, first)),
            new_key_missing=sql.SQL("{} is null").format(_column(NEW, first)),
            update_entry=_entry(watch, NEW, old=OLD, new=NEW),
            delete_entry=_entry(watch, OLD, old=OLD),
            insert_entry=_entry(watch, NEW, new=NEW),
            kinds=sql.Literal([kind.value for kind in Kind if kind in watch.kinds]),
        )
    images = {"new": ROW} if kind is Kind.INSERT else {"old": ROW}
    return template("capture_v1_rows.sql").format(
        kind=sql.Literal(kind.value),
        label=label,
        rows=sql.Identifier(UNPAIRED[kind]),
        entry=_entry(watch, ROW, **images),
        chunk_rows=chunk_rows,
        chunk_bytes=chunk_bytes,
    )


def _entry(watch: Watch, key: str, old: str | None = None, new: str | None = None) -> sql.Composed:
    """Return the JSON of one change: ``[key]`` without images, ``[key, old, new]`` with."""
    parts: list[sql.Composable] = [_array([_column(key, field) for field in watch.key_fields])]
    if watch.fields:
        parts += [_image(watch, old), _image(watch, new)]
    return _array(parts)


def _image(watch: Watch, alias: str | None) -> sql.Composable:
    if alias is None:
        return sql.SQL("null")
    # A sub-select and row_to_json, because json_build_object takes 50 columns at most.
    return sql.SQL("(select pg_catalog.row_to_json(pgn_image.*) from (select {}) as pgn_image)").format(
        sql.SQL(", ").join(_column(alias, field) for field in watch.fields)
    )


def _same_key(watch: Watch) -> sql.Composed:
    return sql.SQL(" and ").join(
        sql.SQL("{} = {}").format(_comparable(OLD, field), _comparable(NEW, field)) for field in watch.key_fields
    )


def _comparable(alias: str, field: Field[Any, Any]) -> sql.Composable:
    target: Any = field
    while isinstance(target, ForeignKey):
        target = target.target_field
    column = _column(alias, field)
    if target.get_internal_type() in PLAIN_KEYS:
        return column
    return sql.SQL("{}::pg_catalog.text").format(column)


def _array(parts: Sequence[sql.Composable]) -> sql.Composed:
    return sql.SQL("pg_catalog.json_build_array({})").format(sql.SQL(", ").join(parts))


def _column(alias: str, field: Field[Any, Any]) -> sql.Identifier:
    return sql.Identifier(alias, column_of(field))


def _text(statement: sql.Composable) -> str:
    return statement.as_string(None)
