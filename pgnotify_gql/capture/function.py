"""
The text of a trigger function: static SQL, composed with psycopg's ``sql``; nothing is interpolated.

Rows are journaled statement by statement where the database offers transition tables, which is cheap for many rows,
and row by row where statements may be aimed at relatives of the table (partitions, inheritance) or where logical
replication writes.  Both use the same SQL for one row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from django.db.models import Field, ForeignKey
from psycopg import sql

from .. import names
from .context import SUPPRESSED
from .kinds import Kind
from .templates import template
from .values import MISSING, image_settings
from .watch import Watch, column_of

CHUNK_ROWS = 1_000
"""Changes in one journal row at most: bounds what a reader holds in memory at once."""

CHUNK_BYTES = 100_000
"""
A journal row is closed once its images passed this size (one row's image may be larger).

A reader takes some hundred journal rows at a time, and holds them in memory.  Journal rows ten times as large made an
UPDATE of 50,000 rows with images no faster (1.06 s against 1.07, medians of 7, PostgreSQL 18).
"""

PLAIN_KEYS = frozenset(
    {
        "AutoField", "BigAutoField", "SmallAutoField", "IntegerField", "BigIntegerField", "SmallIntegerField",
        "PositiveIntegerField", "PositiveBigIntegerField", "PositiveSmallIntegerField", "UUIDField", "CharField",
        "TextField", "SlugField", "DateField", "DateTimeField", "DecimalField", "BooleanField",
    }
)  # fmt: skip
"""Key fields whose type has its equality in pg_catalog; others are compared as text, lest a write fail for want of
an operator that the fixed search_path hides."""

UNBOUND = "'0'::pg_catalog.regclass"
"""Stands for the watched table in row-level functions, see ``bind``."""

OLD, NEW, ROW = "pgn_old", "pgn_new", "pgn"

KINDS_BY_FREQUENCY = (Kind.UPDATE, Kind.INSERT, Kind.DELETE, Kind.TRUNCATE)

TRUE = sql.SQL("true")


def bind(statement: str, table_oid: int) -> str:
    """
    Return a CREATE FUNCTION with the watched table's oid in it, so that its plans are made anew after ALTER TABLE.

    PostgreSQL makes a plan anew when a table that it names has been altered.  Plans of row-level functions read OLD and
    NEW, and name no table: they would go on to take a column for what it was, and fail writes when its type changed.
    A name would have to be resolved again, and fail writes when the table was renamed; an oid stays.  After a dump and
    restore it is another one, and ``install_triggers --check`` says OUTDATED.
    """
    return statement.replace(UNBOUND, f"'{table_oid}'::pg_catalog.regclass")


def named_columns(watch: Watch) -> list[str]:
    """Return the columns that the trigger function of a watch names, its condition aside."""
    fields = (*watch.key_fields, *watch.fields, *watch.decisive_fields)
    return list(dict.fromkeys(map(column_of, fields)))


def triggered_kinds(watch: Watch) -> list[Kind]:
    """Return the kinds that need a trigger: an UPDATE of a key is a DELETE and an INSERT, so those need it too."""
    kinds = set(watch.kinds)
    if kinds & {Kind.INSERT, Kind.DELETE}:
        kinds.add(Kind.UPDATE)
    return [kind for kind in Kind if kind in kinds]


class TriggerFunction:
    """The trigger function of one watch; `condition` is its condition as SQL, evaluated over the table's columns."""

    def __init__(self, watch: Watch, condition: str | None, *, rings: bool, by_row: bool) -> None:
        self.watch = watch
        self.condition = None if condition is None else sql.SQL(condition)
        self.rings = rings
        self.by_row = by_row
        self.compares_rows = by_row and not watch.decisive_fields
        self.label = sql.Literal(watch.label)
        self.chunks = {"chunk_rows": sql.Literal(CHUNK_ROWS), "chunk_bytes": sql.Literal(CHUNK_BYTES)}

    def create(self, name: str) -> str:
        """Return the statement that creates or replaces it under a name in our schema."""
        branches = self._branches()
        create = template("capture_v1.sql").format(
            function=sql.Identifier(names.SCHEMA, name),
            settings=self._settings(),
            tag=sql.SQL(dollar_quotes(_text(branches))),
            suppressed=sql.Literal(SUPPRESSED),
            branches=branches,
            bell=_bell() if self.rings else sql.SQL(""),
        )
        return _text(create)

    def _settings(self) -> sql.Composable:
        # Images and keys are text made by output functions that look at the writer's session.
        settings = image_settings((*self.watch.key_fields, *self.watch.fields))
        return sql.SQL(" ").join(
            sql.SQL("set {} = {}").format(sql.SQL(name), sql.Literal(value)) for name, value in settings.items()
        )

    def _branches(self) -> sql.Composed:
        kinds = triggered_kinds(self.watch)
        branches = [
            sql.SQL("if tg_op = {} then\n{}").format(sql.Literal(kind.value), self._branch(kind))
            for kind in KINDS_BY_FREQUENCY
            if kind in kinds
        ]
        return sql.SQL("{}\nend if;").format(sql.SQL("\nels").join(branches))

    def _branch(self, kind: Kind) -> sql.Composable:
        if kind is Kind.TRUNCATE:
            return self._truncate()
        if self.condition is None:
            return self._changes(kind, conditional=False)
        tests: list[sql.Composable] = [
            template("capture_v1_condition_test.sql").format(rows=self._rows(side), condition=self.condition)
            for side in _sides(kind)
        ]
        return template("capture_v1_condition.sql").format(
            tests=sql.SQL("\n").join(tests),
            label=self.label,
            conditional=self._changes(kind, conditional=True),
            unconditional=self._changes(kind, conditional=False),
        )

    def _truncate(self) -> sql.Composed:
        wanted = template("capture_v1_truncate_once.sql").format(label=self.label) if self.by_row else TRUE
        return template("capture_v1_truncate.sql").format(label=self.label, wanted=wanted)

    def _changes(self, kind: Kind, *, conditional: bool) -> sql.Composable:
        changes = self._updates if kind is Kind.UPDATE else self._rows_of
        one, many = changes(kind, conditional)
        if self.by_row:
            return one
        return template("capture_v1_second.sql").format(rows=self._rows(_sides(kind)[-1]), one=one, many=many)

    def _rows_of(self, kind: Kind, conditional: bool) -> tuple[sql.Composed, sql.Composed]:
        side = OLD if kind is Kind.DELETE else NEW
        parts = {
            "label": self.label,
            "kind": sql.Literal(kind.value),
            "source": self._source(side, conditional),
            "entry": self._entry(ROW, **{"old" if side is OLD else "new": ROW}),
            "wanted": sql.SQL("pgn.wanted") if conditional else TRUE,
        }
        return (
            template("capture_v1_row.sql").format(**parts),
            template("capture_v1_rows.sql").format(**parts, **self.chunks),
        )

    def _updates(self, kind: Kind, conditional: bool) -> tuple[sql.Composed, sql.Composed]:
        parts = {
            "label": self.label,
            "old_source": self._source(OLD, conditional, compared=True),
            "new_source": self._source(NEW, conditional, compared=True),
            "same_key": self._same_key(),
            "differs": self._differs(),
            "update_entry": self._entry(NEW, old=OLD, new=NEW),
            "delete_entry": self._entry(OLD, old=OLD),
            "insert_entry": self._entry(NEW, new=NEW),
            "wanted": sql.SQL("(pgn_old.wanted or pgn_new.wanted)") if conditional else TRUE,
            "kinds": sql.Literal([kind.value for kind in Kind if kind in self.watch.kinds]),
        }
        return (
            template("capture_v1_update_row.sql").format(**parts),
            template("capture_v1_update_rows.sql").format(**parts, **self.chunks),
        )

    def _rows(self, side: str) -> sql.Composable:
        if self.by_row:
            row = "old.*" if side is OLD else "new.*"
            return sql.SQL(f"(select {row} where {UNBOUND} is not null)")
        return sql.Identifier(f"{side}_rows")

    def _source(self, side: str, conditional: bool, *, compared: bool = False) -> sql.Composed:
        """Return the rows of a side, with columns ``key_1``, ``column_1``, ``compared``, ``wanted``."""
        columns: list[sql.Composable] = [
            sql.SQL("{} as {}").format(sql.Identifier(column_of(field)), sql.Identifier(name))
            for name, field in (*_numbered("key", self.watch.key_fields), *_numbered("column", self.watch.fields))
        ]
        if compared and not self.compares_rows:
            columns.append(sql.SQL("{} as compared").format(self._compared()))
        if conditional:
            assert self.condition is not None
            columns.append(sql.SQL("({}) as wanted").format(self.condition))
        return template("capture_v1_source.sql").format(
            missing=self._missing(side), columns=sql.SQL(", ").join(columns), rows=self._rows(side)
        )

    def _differs(self) -> sql.Composable:
        # *<> compares images: that works for types without an equality (json) too.
        if self.compares_rows:
            # The rows as they are, without a word about their columns: one that only a child of the watched table has
            # may be altered, and plans are made anew for the watched table only, see ``bind``.
            return sql.SQL("old *<> new")
        return sql.SQL("pgn_old.compared *<> pgn_new.compared")

    def _compared(self) -> sql.Composable:
        """Return one record of what decides whether an UPDATE is a change."""
        if self.watch.decisive_fields:
            decisive = [sql.Identifier(column_of(field)) for field in self.watch.decisive_fields]
            return sql.SQL("row({})").format(sql.SQL(", ").join(decisive))
        # Not row(pgn.*), which is a list of all columns: to name a virtual generated one of a transition table fails
        # the write.  Nor a bare pgn, which is the column of that name where the table has one.
        return sql.SQL("coalesce(pgn.*)")

    def _missing(self, side: str) -> sql.Composed:
        """Return what stands for columns that are gone: no key, and for others a mark that differs between sides."""
        mark = sql.Literal(f'{{"{MISSING}":"{"old" if side is OLD else "new"}"}}')
        keys = {column_of(field) for field in self.watch.key_fields}
        return sql.SQL(", ").join(
            sql.SQL("{} as {}").format(
                sql.SQL("null::pg_catalog.text") if column in keys else sql.SQL("{}::pg_catalog.json").format(mark),
                sql.Identifier(column),
            )
            for column in named_columns(self.watch)
        )

    def _entry(self, key: str, old: str | None = None, new: str | None = None) -> sql.Composed:
        """Return the JSON of one change: ``[key]`` without images, ``[key, old, new]`` with."""
        keys: list[sql.Composable] = [sql.Identifier(key, name) for name, _ in _numbered("key", self.watch.key_fields)]
        parts: list[sql.Composable] = [_array(keys)]
        if self.watch.fields:
            parts += [self._image(old), self._image(new)]
        return _array(parts)

    def _image(self, alias: str | None) -> sql.Composable:
        if alias is None:
            return sql.SQL("null")
        # A sub-select and row_to_json, because json_build_object takes 50 columns at most.
        return sql.SQL("(select pg_catalog.row_to_json(pgn_image.*) from (select {}) as pgn_image)").format(
            sql.SQL(", ").join(
                sql.SQL("{} as {}").format(sql.Identifier(alias, name), sql.Identifier(column_of(field)))
                for name, field in _numbered("column", self.watch.fields)
            )
        )

    def _same_key(self) -> sql.Composed:
        return sql.SQL(" and ").join(
            sql.SQL("{} = {}").format(_comparable(OLD, name, field), _comparable(NEW, name, field))
            for name, field in _numbered("key", self.watch.key_fields)
        )


def _sides(kind: Kind) -> tuple[str, ...]:
    return {Kind.INSERT: (NEW,), Kind.DELETE: (OLD,)}.get(kind, (OLD, NEW))


def _numbered(stem: str, fields: Iterable[Field[Any, Any]]) -> list[tuple[str, Field[Any, Any]]]:
    return [(f"{stem}_{number}", field) for number, field in enumerate(fields, 1)]


def _comparable(alias: str, name: str, field: Field[Any, Any]) -> sql.Composable:
    target: Any = field
    while isinstance(target, ForeignKey):
        target = target.target_field
    column = sql.Identifier(alias, name)
    if target.get_internal_type() in PLAIN_KEYS:
        return column
    return sql.SQL("{}::pg_catalog.text").format(column)


def _bell() -> sql.Composed:
    return template("capture_v1_bell.sql").format(
        lock_class=sql.Literal(names.LOCK_CLASS),
        awake_lock=sql.Literal(names.AWAKE_LOCK),
        notify_channel=sql.Literal(names.NOTIFY_CHANNEL),
    )


def _array(parts: Sequence[sql.Composable]) -> sql.Composed:
    return sql.SQL("pg_catalog.json_build_array({})").format(sql.SQL(", ").join(parts))


def dollar_quotes(body: str) -> str:
    """Return dollar quotes that do not occur in the body: names of columns may contain anything."""
    tag = "pgnotify_gql"
    while f"${tag}$" in body:
        tag += "_"
    return f"${tag}$"


def _text(statement: sql.Composable) -> str:
    return statement.as_string(None)
