"""
The SQL of a watch for migrations: it needs no look at what triggers there are.

``installer`` compares and touches only what differs.  A migration is written once and runs anywhere, at an empty table
and at one with triggers of an earlier version, so its statements replace what is there, and drop what is left over.
What they have in common with the installer is what they leave behind: the same triggers with the same digests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg import sql

from .catalog import Relation
from .condition import condition_sql, require_evaluable
from .function import UNBOUND, dollar_quotes, triggered_kinds
from .kinds import Kind
from .render import render
from .templates import template
from .watch import Watch

NO_OID = 0
"""PostgreSQL's InvalidOid."""


@dataclass(frozen=True)
class Script:
    """The statements that install a watch on its table, and those that remove it."""

    label: str
    table: str
    install: Sequence[str]
    remove: Sequence[str]


def imagined(table: str, *, partitioned: bool = False, has_parent: bool = False) -> Relation:
    """Return a table, by its quoted name, that is not there."""
    return Relation(NO_OID, table, partitioned, has_parent, ())


def make_script(connection: BaseDatabaseWrapper, watch: Watch, relation: Relation, *, rings: bool) -> Script:
    """Return the SQL of a watch on its table, which may be an imagined one.  Raises WatchError."""
    condition = None if watch.condition is None else condition_sql(watch, connection)
    if condition is not None and relation.oid != NO_OID:
        require_evaluable(watch, connection, relation.oid, condition)
    capture = render(watch, condition=condition, rings=rings, by_row=relation.has_relatives or watch.replicated)
    names: list[str] = []
    statements = [_bound(capture.create_function, relation.table) if capture.by_row else capture.create_function]
    for kind in triggered_kinds(watch):
        spread = _is_spread(relation, kind)
        trigger = capture.trigger(kind, "%s" if spread else relation.table)
        made = trigger.statements
        statements += [_spread(made, relation.table)] if spread else made
        names.append(trigger.name)
    statements.append(_tidy(watch.label, relation.table, names))
    return Script(watch.label, relation.table, statements, removal(watch.label, relation.table))


def removal(label: str, table: str) -> list[str]:
    """Return the statements that remove a watch from its table, whatever version of it is there."""
    return [_tidy(label, table, [])]


def retargeted(statements: Sequence[str], old: str, new: str) -> list[str]:
    """Return statements about a table, by its quoted name, for another name that it has been given since."""
    # Not each occurrence: a column may be called like its table.
    places = [
        (f" on {old}", f" on {new}"),
        (f"alter table {old} ", f"alter table {new} "),
        (sql.Literal(old).as_string(None), sql.Literal(new).as_string(None)),
    ]
    texts = list(statements)
    for before, after in places:
        texts = [text.replace(before, after) for text in texts]
    return texts


def _is_spread(relation: Relation, kind: Kind) -> bool:
    """Return whether each descendant of a table needs a trigger of its own."""
    # PostgreSQL clones row-level triggers to partitions, but neither to tables that inherit nor for TRUNCATE.
    return relation.has_relatives and (kind is Kind.TRUNCATE or not relation.partitioned)


def _bound(create_function: str, table: str) -> str:
    """Return a statement that makes a function which names the table by its oid."""
    return _do(
        template("function_v1_bound.sql").format(
            statement=_quoted(create_function), unbound=sql.Literal(UNBOUND), table=sql.Literal(table)
        )
    )


def _spread(statements: Sequence[str], table: str) -> str:
    """Return a statement that runs others, which hold ``%s`` for the table, for each of a family."""
    run = [sql.SQL("execute pg_catalog.format({}, pgn_table);").format(_quoted(statement)) for statement in statements]
    return _do(
        template("trigger_v1_spread.sql").format(
            table=sql.Literal(table), statements=sql.SQL("\n        ").join(run)
        )
    )  # fmt: skip


def _tidy(label: str, table: str, kept: Sequence[str]) -> str:
    names = sql.SQL(", ").join(map(sql.Literal, kept))
    return _do(
        template("trigger_v1_tidy.sql").format(
            table=sql.Literal(table),
            label=sql.Literal(label),
            kept=sql.SQL("array[{}]::pg_catalog.text[]").format(names),
        )
    )


def _do(body: sql.Composed) -> str:
    return f"do {_quoted(body.as_string(None)).as_string(None)}"


def _quoted(text: str) -> sql.SQL:
    """Return a literal that can be read: between dollar quotes, which do not occur in the text."""
    tag = dollar_quotes(text)
    return sql.SQL(f"{tag}\n{text}\n{tag}")
