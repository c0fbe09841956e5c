"""
From a watch to SQL: its trigger function and its triggers, static text with a digest.

The SQL depends on the watch, on whether bells are rung, and on whether the table is captured by statement or by row, so
the same watch of the same kind of table renders to the same digest everywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import LiteralString

from psycopg import sql

from .. import names
from .function import TriggerFunction
from .kinds import Kind
from .templates import template
from .watch import Watch

FORMAT = "v1"

TRANSITIONS = {
    Kind.INSERT: "referencing new table as pgn_new_rows",
    Kind.UPDATE: "referencing old table as pgn_old_rows new table as pgn_new_rows",
    Kind.DELETE: "referencing old table as pgn_old_rows",
    Kind.TRUNCATE: "",
}


@dataclass(frozen=True)
class Trigger:
    """One trigger: its name, its table, and the statements that create or replace it."""

    name: str
    kind: Kind
    table: str
    statements: Sequence[str]


@dataclass(frozen=True)
class Capture:
    """Everything a watch needs in the database, and the digest that tells whether it is there."""

    watch: Watch
    by_row: bool
    function: str
    create_function: str
    digest: str

    @property
    def comment(self) -> str:
        """Return the COMMENT ON TRIGGER by which a later look recognises this version."""
        return f"pgnotify_gql {FORMAT} {self.watch.label} {self.digest}"

    def trigger(self, kind: Kind, table: str) -> Trigger:
        """Return the trigger for a kind on a table, whose name is quoted already."""
        # Relatives may be watched themselves, so triggers that are spread over them are named after the model.
        name = names.trigger_name(kind, self.watch.label if self.by_row else "")
        create = template("trigger_v1.sql").format(
            trigger=sql.Identifier(name),
            kind=sql.SQL(kind.value),
            table=sql.SQL(table),
            transitions=sql.SQL("" if self.by_row else TRANSITIONS[kind]),
            level=sql.SQL("row" if self.by_row and kind is not Kind.TRUNCATE else "statement"),
            function=sql.Identifier(names.SCHEMA, self.function),
        )
        statements = [create, _statement("comment on trigger {} on {} is {}", name, table, sql.Literal(self.comment))]
        if self.watch.replicated:
            statements.append(_statement("alter table {1} enable always trigger {0}", name, table))
        return Trigger(name, kind, table, [statement.as_string(None) for statement in statements])


def render(watch: Watch, *, condition: str | None = None, rings: bool = True, by_row: bool = False) -> Capture:
    """
    Return the SQL of a watch.

    `condition` is its condition as SQL, see ``condition_sql``.  `rings` is False where the listener polls: such trigger
    functions never call NOTIFY, which would make PREPARE TRANSACTION fail.  Raises WatchError when the watch names
    unknown columns.
    """
    function = TriggerFunction(watch, condition, rings=rings, by_row=by_row)
    # Not of the triggers: a partition that is attached later needs another one, and no other function.
    digest = hashlib.sha256(f"{function.create('capture')} {watch.replicated}".encode()).hexdigest()[:16]
    name = names.function_name(watch.label, digest)
    return Capture(watch, by_row, name, function.create(name), digest)


def _statement(text: LiteralString, trigger: str, table: str, *others: sql.Composable) -> sql.Composed:
    return sql.SQL(text).format(sql.Identifier(trigger), sql.SQL(table), *others)
