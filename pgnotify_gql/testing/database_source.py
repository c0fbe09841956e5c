"""
The rows that triggers have written since a test began, read through Django's own connection.

A journal row is visible in the transaction that wrote it, so nothing has to be committed.  It is read beside Django, by
the driver's connection: a test that counts queries counts its own.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, LiteralString

import psycopg
from django.db import connections
from django.test import testcases

from ..errors import JournalMissingError
from ..journal.change import JournalRow
from ..journal.reader import CAPTURED, COLUMNS
from .errors import SubscriptionTestError

PRESENT: LiteralString = "select to_regclass('pgnotify_gql.journal') is not null"

# Whatever is written from here on has a later id, and is of a transaction that has not ended yet.
BEGIN: LiteralString = """
    select coalesce(pg_sequence_last_value(pg_get_serial_sequence('pgnotify_gql.journal', 'id')::regclass), 0),
           pg_snapshot_xmin(pg_current_snapshot())::text
"""

READ: LiteralString = f"""
    select {COLUMNS} from pgnotify_gql.journal
    where xid >= %s::xid8 and id > %s and not id = any(%s) order by id
"""  # noqa: S608  (columns of our own)


FORBIDDEN: type[AssertionError] = testcases.DatabaseOperationForbidden  # type: ignore[attr-defined]  # not in the stubs
"""Raised for a database that a test case of Django's does not name in ``databases``."""


class DatabaseSource:
    """Of one database, given by its alias; see ``journal.Source``."""

    def __init__(self, alias: str) -> None:
        self._alias = alias
        self._begun: tuple[int, str] | None = None

    def begin(self) -> bool:
        """
        Read from here on what is written; return whether the test may use the database at all.

        Raises JournalMissingError, and SubscriptionTestError where an error has broken the test's transaction.
        """
        try:
            connections[self._alias].ensure_connection()
        except FORBIDDEN:
            return False
        if self._begun is None:
            if not self._ask(PRESENT)[0][0]:
                raise JournalMissingError(self._alias)
            ((last, xmin),) = self._ask(BEGIN)
            self._begun = last, xmin
        return True

    def read(self, delivered: Collection[int]) -> Sequence[JournalRow]:
        if not self.begin():
            return []
        assert self._begun is not None
        last, xmin = self._begun
        return [JournalRow(*columns) for columns in self._ask(READ, xmin, last, list(delivered))]

    def is_captured(self, label: str) -> bool:
        return self.begin() and bool(self._ask(CAPTURED, label)[0][0])

    def _ask(self, question: LiteralString, *parameters: Any) -> list[Any]:
        connection = connections[self._alias]
        try:
            with connection.connection.cursor() as cursor:
                cursor.execute(question, parameters or None)
                found: list[Any] = cursor.fetchall()
                return found
        except psycopg.errors.InFailedSqlTransaction as error:
            raise SubscriptionTestError(
                f"the transaction of the test in database '{self._alias}' was broken by an earlier error: put what is "
                "meant to fail into a transaction.atomic() of its own"
            ) from error
