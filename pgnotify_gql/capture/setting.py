"""
The setting that carries a context from the writer to the trigger functions: its name, its values, its statements.

It is local to a transaction: PostgreSQL takes it back at the end, or when the savepoint it was made in is rolled
back, so nothing of it can reach another client behind a pooler.  Its value is a JSON object, or the reserved word
`SUPPRESSED`, which is none.  Anybody may set it by hand, to anything.
"""

from __future__ import annotations

import json
from math import isfinite
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg.pq import TransactionStatus

Json = str | int | float | bool | None | list[Any] | dict[str, Any]
"""What lists and dicts hold is left open: as both are invariant, a ``list[str]`` would be no ``list[Json]``."""

Context = dict[str, Json]

SUPPRESSED = "suppressed"
"""The value under which trigger functions journal nothing."""

LONGEST_CONTEXT = 8192
"""Bytes of a context as JSON: it is repeated in every row of the journal that the transaction writes."""

# Each names pgnotify_gql.context in its text, so that a log of queries tells what they are for.
_READ = "select pg_catalog.current_setting('pgnotify_gql.context', true)"
_WRITE = "select pg_catalog.set_config('pgnotify_gql.context', %s, true)"
_OFFER = """
    select pg_catalog.set_config(
        'pgnotify_gql.context',
        coalesce(nullif(pg_catalog.current_setting('pgnotify_gql.context', true), ''), %s),
        true
    )
"""


def read(connection: BaseDatabaseWrapper) -> str:
    """Return the value in force, empty when there is none."""
    return _ask(connection, _READ) or ""


def write(connection: BaseDatabaseWrapper, value: str) -> None:
    """Put a value in force, for the rest of the transaction or until its savepoint is rolled back."""
    _ask(connection, _WRITE, value)


def offer(connection: BaseDatabaseWrapper, value: str) -> str:
    """Put a value in force if there is none, and return the one that is in force then."""
    return _ask(connection, _OFFER, value) or ""


def _ask(connection: BaseDatabaseWrapper, statement: str, *parameters: Any) -> str | None:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters or None)
        value: str | None = cursor.fetchone()[0]
        return value


def status(connection: BaseDatabaseWrapper) -> int:
    """Return libpq's `TransactionStatus`; it asks nobody."""
    if connection.connection is None:
        return TransactionStatus.UNKNOWN
    found: int = connection.connection.pgconn.transaction_status
    return found


def is_broken(connection: BaseDatabaseWrapper) -> bool:
    """Whether the transaction can only be rolled back, so that every further statement would raise."""
    return connection.needs_rollback or status(connection) in {TransactionStatus.INERROR, TransactionStatus.UNKNOWN}


def encode(context: Context) -> str:
    """
    Return the text of a context, in ASCII: a database may have any encoding.

    Raises TypeError for what is no JSON, ValueError for a number or a character that PostgreSQL cannot read in JSON,
    and for a context that is too long.
    """
    if not isinstance(context, dict):
        raise TypeError(f"a context is a dict, which {context!r} is not")
    try:
        _check(context, "the context")
    except RecursionError:
        raise ValueError("the context is nested too deeply, or holds itself") from None
    text = json.dumps(context, allow_nan=False)
    if len(text) > LONGEST_CONTEXT:
        raise ValueError(
            f"the context of a change is {len(text)} bytes long as JSON, at most {LONGEST_CONTEXT} are allowed:"
            " it is repeated in every row of the journal, so give it a key of the rest instead"
        )
    return text


def decode(text: str) -> dict[str, Json] | None:
    """Return the context of a text, or None when it is no JSON object."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _check(value: object, place: str) -> None:
    # json.dumps would write keys that are no strings as strings, and tuples as lists: they came back as others.
    match value:
        case None | bool() | int():
            pass
        case float():
            if not isfinite(value):
                raise ValueError(f"{place} is {value}, which is no JSON: give None, or a string")
        case str():
            if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
                raise ValueError(f"{place} holds a NUL or half a character, which PostgreSQL cannot read in JSON")
        case list():
            for number, item in enumerate(value):
                _check(item, f"{place}[{number}]")
        case dict():
            for key, item in value.items():
                if not isinstance(key, str):
                    raise TypeError(f"{place} has the key {key!r}: the keys of a JSON object are strings")
                _check(key, f"the key {key!r}")
                _check(item, f"{place}[{key!r}]")
        case _:
            raise TypeError(
                f"{place} is of type {type(value).__name__}, which is no JSON:"
                " give a string, number, bool, None, or a list or dict of these"
            )
