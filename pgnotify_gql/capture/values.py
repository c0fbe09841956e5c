"""
From what PostgreSQL writes into JSON to the value the ORM would give.

The ORM's value is what psycopg loads for the column's type, then what the field's own converters make of it
(``from_db_value``).  The same two steps are taken here.  The type is the one that the field declares: where a column
has another type in the database, its values may be read differently than by the ORM.

Numbers with a point arrive as ``Decimal`` (see ``journal.change``), so that no digit of a numeric column is lost.

What PostgreSQL can hold and Python cannot (``infinity``, a year BC, a time of 24:00), where the ORM raises, stays the
text that PostgreSQL wrote, and so does what a converter of the application fails on: one such row must not end the
feed of all others.

Some types are written as the writer's session wants it.  ``image_settings`` tells which settings a trigger function
has to fix for its images to be read here, and only those: each SET clause costs every write of the table 0.15 to
0.3 us (PostgreSQL 18; journaling a change costs about 6).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from django.contrib.postgres.fields import ArrayField
from django.db import DEFAULT_DB_ALIAS, connections, router
from django.db.models import Field, GeneratedField, JSONField
from django.db.models.expressions import Col
from psycopg.postgres import types

from .loaders import UNREADABLE, Load, as_it_is, floats, json_text, loader, text

MISSING = "pgnotify_gql_missing"
"""The one key of the object that stands in an image for a column which the trigger function did not find."""

SETTINGS = {
    "bytea_output": "hex",
    "intervalstyle": "postgres",
    "timezone": "UTC",
    "datestyle": "ISO",
    "extra_float_digits": "1",
}
"""Every setting that the text of a value may depend on, with the value that is read here."""

PLAIN_TYPES = frozenset(
    {
        "bool", "int2", "int4", "int8", "oid", "numeric", "text", "varchar", "bpchar", "char", "name", "uuid",
        "date", "time", "timetz", "timestamp", "json", "jsonb", "hstore", "inet", "cidr", "macaddr", "macaddr8",
        "tsvector", "tsquery", "bit", "varbit", "int4range", "int8range", "numrange", "int4multirange",
        "int8multirange", "nummultirange",
    }
)  # fmt: skip
"""Types that are written into JSON in one way only: it has a form of its own for dates and timestamps."""

TYPE_SETTINGS = {
    "bytea": ("bytea_output",),
    "interval": ("intervalstyle",),
    # It is written with its offset, but in another zone the first and the last day of Python's calendar are in years
    # that it does not know.
    "timestamptz": ("timezone",),
    "float4": ("extra_float_digits",),
    "float8": ("extra_float_digits",),
    "daterange": ("datestyle",),
    "datemultirange": ("datestyle",),
    "tsrange": ("datestyle",),
    "tsmultirange": ("datestyle",),
    "tstzrange": ("datestyle", "timezone"),
    "tstzmultirange": ("datestyle", "timezone"),
}
"""The settings on which the text of a type depends.  Any type that is in neither table is taken to depend on all."""

SYNONYMS = {
    "citext": "text",
    "decimal": "numeric",
    "float": "float8",
    "serial": "int4",
    "bigserial": "int8",
    "smallserial": "int2",
}
"""Names that a field may give its type, beside those that psycopg knows."""

logger = logging.getLogger("pgnotify_gql.capture")

_warned: set[tuple[str, str]] = set()


def decode(field: Field[Any, Any], raw: Any) -> Any:
    """Return the Python value of a field from its JSON value; for many values of a field, keep its `decoder`."""
    return decoder(field)(raw)


def decoder(field: Field[Any, Any]) -> Load:
    """
    Return the function that makes a field's Python value from its JSON value.

    The value is equal to what the ORM gives for the same row, and of the same type; for files it is the stored name, as
    in ``values()``.  A JSON null looks like an SQL null.  What Python cannot hold stays as PostgreSQL wrote it; the
    function raises nothing.
    """
    alias = written_to(field)
    column = column_type(field, alias)
    if _is_plain_json(field):
        return _in_arrays(_guarded(floats), column)
    expression = selected_expression(field)
    load = loader(sent_type(expression.output_field, column.name, alias), alias)
    connection = connections[alias]
    # As Django's compiler puts them together.
    converters = [*connection.ops.get_db_converters(expression), *expression.get_db_converters(connection)]
    if converters:
        return _converted(field, _in_arrays(load, column), converters, expression, alias)
    return _in_arrays(_guarded(load), column)


def image_settings(fields: Iterable[Field[Any, Any]]) -> dict[str, str]:
    """
    Return the settings that a trigger function must fix to capture these fields (the key's included), by name.

    Always in the same order.  A field whose type is not known here, an array's element too, needs all of them: nothing
    tells what its text depends on.
    """
    needed = {name for field in fields for name in _settings_of(field)}
    return {name: value for name, value in SETTINGS.items() if name in needed}


def is_missing(raw: Any) -> bool:
    """Return whether the JSON value of a column says that the trigger function did not find the column."""
    return type(raw) is dict and len(raw) == 1 and MISSING in raw


def warn_of_missing(label: str, column: str) -> None:
    """Tell the operator, once per model and process, that a trigger function looks for a column in vain."""
    if _first_time("missing", label):
        logger.warning(
            "the triggers of %s capture a column '%s' that its table no longer has, so changes come without it: "
            "run `manage.py install_triggers`",
            label,
            column,
        )


# --- Which type a field has ---------------------------------------------------------------------------------------


class ColumnType(NamedTuple):
    """A type by the name that psycopg's registry has for it, or by its own, and how deep it is nested in arrays."""

    name: str
    dimensions: int


def written_to(field: Field[Any, Any]) -> str:
    """Return the alias of the database that a field's model is written to."""
    model = getattr(field, "model", None)
    return DEFAULT_DB_ALIAS if model is None else router.db_for_write(model)


def column_type(field: Field[Any, Any], alias: str) -> ColumnType:
    """Return the type of a field's column, as PostgreSQL names it."""
    # From db_parameters(), where GeneratedField answers for its output field.
    declared = field.db_parameters(connections[alias])["type"] or ""
    dimensions = re.findall(r"\[\d*\]", declared)
    return ColumnType(_canonical(declared), len(dimensions))


def _canonical(declared: str) -> str:
    # Without array dimensions and type modifiers, which may stand in the middle: timestamp(3) with time zone.
    name = re.sub(r"\[\d*\]|\s*\([^)]*\)", "", declared).strip().lower()
    info = types.get(SYNONYMS.get(name, name))
    return name if info is None else info.name


def sent_type(field: Field[Any, Any], name: str, alias: str) -> str:
    """Return the type of what the ORM receives: for a domain that is the type under it, which the field inherits."""
    if name in PLAIN_TYPES or name in TYPE_SETTINGS or types.get(name):
        return name
    # As in Field.db_type(), which the field overrides.
    connection = connections[alias]
    inherited = connection.data_types.get(field.get_internal_type())
    if inherited is None:
        return name
    parameters = field.db_type_parameters(connection)
    return _canonical(inherited(parameters) if callable(inherited) else inherited % parameters)


def _settings_of(field: Field[Any, Any]) -> Iterable[str]:
    name = column_type(field, written_to(field)).name
    if name in PLAIN_TYPES:
        return ()
    return TYPE_SETTINGS.get(name, SETTINGS)


def selected_expression(field: Field[Any, Any]) -> Any:
    """Return what the ORM selects for a field: it knows the field that a foreign key refers to."""
    model = getattr(field, "model", None)
    return Col("", field) if model is None else field.get_col(model._meta.db_table)


def _is_plain_json(field: Field[Any, Any]) -> bool:
    """Return whether a field holds JSON, or arrays of it, that Python's own decoder reads."""
    inner: Any = field.output_field if type(field) is GeneratedField else field
    while type(inner) is ArrayField:
        inner = inner.base_field
    return (
        isinstance(inner, JSONField)
        and inner.decoder is None
        and type(inner).from_db_value is JSONField.from_db_value
        and type(inner).get_db_converters is JSONField.get_db_converters
    )


# --- How the steps are put together -------------------------------------------------------------------------------


def _guarded(load: Load) -> Load:
    if load in {as_it_is, text}:
        return load

    def decode(raw: Any) -> Any:
        if raw is None:
            return None
        try:
            return load(raw)
        except UNREADABLE:
            return _unread(raw)

    return decode


def _in_arrays(load: Load, column: ColumnType) -> Load:
    """Return what loads every element, however deep the arrays really are; those inside JSON are data."""
    if not column.dimensions:
        return load
    is_json = column.name in {"json", "jsonb"}

    def element(raw: Any, depth: int) -> Any:
        if isinstance(raw, list) and (depth or not is_json):
            return [element(item, depth - 1) for item in raw]
        return None if raw is None else load(raw)

    return lambda raw: element(raw, column.dimensions)


def _converted(field: Field[Any, Any], load: Load, converters: list[Any], expression: Any, alias: str) -> Load:
    def decode(raw: Any) -> Any:
        try:
            value = None if raw is None else load(raw)
        except UNREADABLE:
            return _unread(raw)
        try:
            # This thread's own connection; the ORM converts null as well.
            connection = connections[alias]
            for convert in converters:
                value = convert(value, expression, connection)
        except Exception as error:
            _warn_of_converter(field, error)
            return _unread(raw)
        return value

    return decode


def _unread(raw: Any) -> Any:
    if not isinstance(raw, (list, dict)):
        return raw
    try:
        return floats(raw)
    except ValueError:
        return json_text(raw)


def _warn_of_converter(field: Field[Any, Any], error: Exception) -> None:
    # The type of the error only: its text may quote the row.
    if _first_time("converter", str(field)):
        logger.warning(
            "%s could not convert a value from the database (%s): the value stays as PostgreSQL wrote it; "
            "make its from_db_value() accept what psycopg loads",
            field,
            type(error).__name__,
        )


def _first_time(event: str, subject: str) -> bool:
    if (event, subject) in _warned:
        return False
    _warned.add((event, subject))
    return True
