"""
From a watch's condition, a Q object, to the SQL expression that its trigger function evaluates.

The expression names columns without a table, as a CHECK constraint does, and is evaluated under the trigger function's
fixed search_path.  So what it may use is what lies in ``pg_catalog``: a column of a type that an extension brought
(citext, hstore) is refused, because there its operators are not found, or another one is found in their place.

Everything that can be known to be wrong is refused before anything is installed.  What turns out only while a user
writes (a division by zero, a column that was dropped) does not fail the write, see ``capture_v1_condition.sql``.
"""

from __future__ import annotations

from django.core.exceptions import EmptyResultSet, FieldError, FullResultSet, ValidationError
from django.db import DatabaseError, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Subquery
from django.db.models.sql import Query
from django.db.models.sql.compiler import SQLCompiler
from django.db.models.sql.where import WhereNode
from psycopg import sql

from ..errors import WatchError, one_line
from .watch import Watch, column_of

EXTENSION_TYPES = """
    select a.attname, format_type(a.atttypid, a.atttypmod)
    from pg_attribute a
    join pg_type t on t.oid = a.atttypid
    left join pg_type e on e.oid = t.typelem and t.typelem <> 0 and t.typlen = -1
    left join pg_type b on b.oid = coalesce(nullif(e.typbasetype, 0), nullif(t.typbasetype, 0), e.oid, t.oid)
    where a.attrelid = %s and a.attname = any (%s)
      and b.typnamespace <> 'pg_catalog'::regnamespace and b.typtype <> 'e'
"""


def condition_sql(watch: Watch, connection: BaseDatabaseWrapper) -> str:
    """
    Return a watch's condition as an SQL expression.

    Raises WatchError when it is no condition on columns of the model's own table, or is always or never true.
    """
    where = resolve_condition(watch)
    try:
        text, parameters = where.as_sql(_compiler(watch, connection), connection)
    except FullResultSet as error:
        raise _refused(watch, "it is always true; leave it out") from error
    except EmptyResultSet as error:
        raise _refused(watch, "it is never true") from error
    except (FieldError, TypeError, ValueError) as error:
        raise _refused(watch, str(error)) from error
    literals = tuple(sql.Literal(parameter).as_string(connection.connection) for parameter in parameters)
    try:
        return str(text % literals)
    except (TypeError, ValueError) as error:
        raise _refused(watch, "a percent sign in a db_column has to be written twice, as the ORM needs it") from error


def resolve_condition(watch: Watch) -> WhereNode:
    """
    Return a watch's condition with the model's fields in the place of names.  Asks no database.

    Raises WatchError when it is no condition on fields of the model's own table.
    """
    condition = watch.condition
    assert condition is not None
    if any(isinstance(part, Subquery) or hasattr(part, "query") for part in condition.flatten()):
        raise _refused(watch, "it asks other rows; use columns of this row only")
    try:
        where: WhereNode = Query(watch.model, alias_cols=False).build_where(condition)
    except (FieldError, TypeError, ValueError) as error:
        raise _refused(watch, str(error)) from error
    except ValidationError as error:
        raise _refused(watch, " ".join(error.messages)) from error
    return where


def require_evaluable(watch: Watch, connection: BaseDatabaseWrapper, oid: int, expression: str) -> None:
    """Let PostgreSQL plan the expression as the trigger function will.  Raises WatchError when it cannot."""
    columns = [column_of(field) for field in watch.condition_fields]
    with connection.cursor() as cursor:
        cursor.execute(EXTENSION_TYPES, [oid, columns])
        foreign = [f"{column} is of type {kind}" for column, kind in cursor.fetchall()]
    if foreign:
        raise _refused(watch, f"{', '.join(foreign)}, whose operators an extension brings")
    try:
        with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
            cursor.execute("set local search_path = pg_catalog, pg_temp")
            cursor.execute("select %s::regclass::text", [oid])
            (table,) = cursor.fetchone()
            cursor.execute(f"select from {table} as pgn where ({expression}) limit 0")
            # Within somebody's transaction the search_path would stay.
            transaction.set_rollback(True, using=connection.alias)
    except DatabaseError as error:
        raise _refused(watch, one_line(error)) from error


def _compiler(watch: Watch, connection: BaseDatabaseWrapper) -> SQLCompiler:
    connection.ensure_connection()  # literals are written in the encoding of a connection
    compiler: SQLCompiler = Query(watch.model, alias_cols=False).get_compiler(connection=connection)
    return compiler


def _refused(watch: Watch, reason: str) -> WatchError:
    return WatchError(f"the condition of the watch of {watch.label} cannot be evaluated in a trigger: {reason}")
