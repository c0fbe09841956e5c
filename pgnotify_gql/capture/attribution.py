"""
Attribution: whatever is being served (a request) has a context, and each transaction that writes gets it.

What is being served is in a ContextVar, as a function that gives its context.  An execute wrapper on each PostgreSQL
connection looks at every statement, and before the first one of a transaction that may write puts the context in
force there, by the setting that `change_context` uses too.  A statement in autocommit mode is given a transaction, so
that it shares one with the setting.  So what only reads asks the database nothing, no transaction is opened that
would not be there anyway, and nothing outlives a transaction: behind PgBouncer the next one is another client's.

Whether the setting is still in force is known without asking.  libpq is idle before the first statement of a
transaction, because psycopg sends BEGIN with it.  A rolled back savepoint is seen as the statement that it is.  And
Django makes a new list `run_on_commit` after each commit and rollback, which tells about transactions that began with
something that went past the wrapper.  Where that is wrong, a statement too many is sent, which finds all in place.

What somebody else has set in this transaction stays and wins: an object is merged with, anything else left alone.

Not seen, and so attributed only if an earlier statement of the transaction was: psycopg's ``copy()``, which goes past
execute wrappers, and statements that do not begin like writing ones (a SELECT that calls a function which writes,
EXECUTE, the second of two statements in one string).  In autocommit mode neither CALL nor DO: they may commit, which
PostgreSQL allows outside a transaction only.  Other programs say who they are by the setting themselves.

Considered and left out: sending the setting and a lone statement in one message would save two round trips in
autocommit mode, but runs the statement by another protocol, which changes what it may be (several statements in one
string) and how its errors arrive.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from psycopg.pq import TransactionStatus
from psycopg.sql import Composable

from . import setting
from .setting import Context

Source = Callable[[], Context]
Execute = Callable[[Any, Any, bool, dict[str, Any]], Any]

_source: ContextVar[Source | None] = ContextVar("pgnotify_gql.attribution", default=None)

WRITING = frozenset({"INSERT", "UPDATE", "DELETE", "MERGE", "TRUNCATE", "COPY", "CALL", "DO"})
"""First words of statements that may write; WITH is looked into."""

MAY_COMMIT = frozenset({"CALL", "DO"})

_FIRST_WORD = re.compile(r"(?:[\s(;]|--[^\n]*|/\*.*?\*/)*+([a-z]+)", re.DOTALL | re.IGNORECASE)
_WRITES_INSIDE = re.compile(r"\b(?:insert|update|delete|merge)\b", re.IGNORECASE)


@contextmanager
def attributed_to(source: Source) -> Iterator[None]:
    """
    Let `source` give the context of what is written inside, in this thread or task and those it awaits.

    It is called before each statement that may write, so it should remember.  What it writes itself is not attributed.
    Whatever it raises, the statement raises; what it returns has passed `setting.encode`.
    """
    # Not by token: the block may be left in a copy of the context that it was entered in.
    before = _source.get()
    _source.set(source)
    try:
        yield
    finally:
        _source.set(before)


def attach() -> None:
    """Put the wrapper on the connections of this thread that were open when this module was imported."""
    for connection in connections.all(initialized_only=True):
        _attach(connection)


def _attach(connection: BaseDatabaseWrapper, **kwargs: object) -> None:
    # A connection that is not the one of its alias (a copy) could not be given a transaction by `atomic`.
    managed = any(connection is known for known in connections.all(initialized_only=True))
    if connection.vendor == "postgresql" and managed and _wrapper(connection) is None:
        # First, not last: `with connection.execute_wrapper(...)`, inside which this may happen, removes the last.
        connection.execute_wrappers.insert(0, Attribution())


# When the models are loaded, not when the middleware is: by then other threads may have connections, which nobody can
# reach from here (those that log a test's AsyncClient in before its first request).
connection_created.connect(_attach, dispatch_uid="pgnotify_gql.attribution")


def _wrapper(connection: BaseDatabaseWrapper) -> Attribution | None:
    return next((wrapper for wrapper in connection.execute_wrappers if isinstance(wrapper, Attribution)), None)


def settle(connection: BaseDatabaseWrapper) -> str:
    """Return the setting in force in the transaction of `connection`, with the context of what is being served."""
    wrapper = _wrapper(connection)
    if wrapper is None or not wrapper.concerned:
        return setting.read(connection)
    return wrapper.settle(connection, _current())


def forget(connection: BaseDatabaseWrapper) -> None:
    """Do not rely on what was put in force in the transaction of `connection`: somebody has restored an older value."""
    if wrapper := _wrapper(connection):
        wrapper.in_force = None


def _current() -> Context:
    source = _source.get()
    if source is None:
        return {}
    # It may query, and even write (a session that is renewed).
    _source.set(None)
    try:
        return source()
    finally:
        _source.set(source)


class Attribution:
    """The execute wrapper of one connection, and what it has put in force in the present transaction."""

    def __init__(self) -> None:
        self.in_force: Context | None = None
        # Every context that was put in force: each may come back when a savepoint is rolled back or a block is left.
        self._put: list[Context] = []
        self._hooks: object = None

    @property
    def concerned(self) -> bool:
        """
        Whether there is anything to do.

        Also after a request, while the transaction goes on (in a TestCase): its context must not stay.
        """
        return _source.get() is not None or bool(self._put)

    def __call__(self, execute: Execute, sql: Any, params: Any, many: bool, context: dict[str, Any]) -> Any:
        # Not `concerned`: this is on the way of every statement of the process.
        if _source.get() is None and not self._put:
            return execute(sql, params, many, context)
        connection: BaseDatabaseWrapper = context["connection"]
        verb = _verb(sql, connection)
        self._notice(connection, verb)
        if verb not in WRITING or setting.is_broken(connection):
            return execute(sql, params, many, context)
        wanted = _current()
        if connection.get_autocommit() and setting.status(connection) == TransactionStatus.IDLE:
            if not wanted or verb in MAY_COMMIT:
                return execute(sql, params, many, context)
            with transaction.atomic(using=connection.alias, savepoint=False):
                self.settle(connection, wanted)
                return execute(sql, params, many, context)
        if (wanted or self._put) and wanted != self.in_force:
            self.settle(connection, wanted)
        return execute(sql, params, many, context)

    def _notice(self, connection: BaseDatabaseWrapper, verb: str) -> None:
        if not self._put:
            return
        if setting.status(connection) == TransactionStatus.IDLE:
            self._put.clear()
            self.in_force = None
        elif verb == "ROLLBACK" or connection.run_on_commit is not self._hooks:
            self.in_force = None

    def settle(self, connection: BaseDatabaseWrapper, wanted: Context) -> str:
        """Put `wanted` in force, in place of what this put there before; return the value in force then."""
        text = setting.encode(wanted) if wanted else ""
        found = setting.offer(connection, text)
        # SUPPRESSED is no object, and so stays, like whatever else cannot be merged with.
        foreign = None if found == text else setting.decode(found)
        if foreign is not None:
            # Of what this put there itself, while the context was another one, nothing stays.
            theirs = {key: value for key, value in foreign.items() if not self._has_put(key, value)}
            merged = {**wanted, **theirs}
            text = setting.encode(merged) if merged else ""
            if text != found:
                setting.write(connection, text)
                found = text
        if wanted and wanted not in self._put:
            self._put.append(wanted)
        self.in_force = wanted
        self._hooks = connection.run_on_commit
        return found

    def _has_put(self, key: str, value: object) -> bool:
        return any((key, value) in context.items() for context in self._put)


def _verb(sql: Any, connection: BaseDatabaseWrapper) -> str:
    """The first word of a statement, in capitals; of a WITH that may write, what it may do."""
    text = sql
    if isinstance(sql, Composable):
        text = sql.as_string(connection.connection)
    elif isinstance(sql, bytes):
        text = sql.decode("latin-1")
    found = _FIRST_WORD.match(text)
    verb = found[1].upper() if found else ""
    if verb == "WITH" and (inside := _WRITES_INSIDE.search(text)):
        return inside[0].upper()
    return verb
