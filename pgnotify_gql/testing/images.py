"""
From a Python value to the JSON value that PostgreSQL writes for its column.

The way back is the one of production (``capture.values``), so a change that was made by hand holds what one of the
database would hold.  The first step is the ORM's own, which prepares the value for the driver.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal, localcontext
from math import isfinite
from typing import Any
from zoneinfo import ZoneInfo

from django.contrib.postgres.fields import ArrayField
from django.db import connections
from django.db.models import DecimalField, Field, GeneratedField
from psycopg.adapt import PyFormat, Transformer
from psycopg.types.multirange import Multirange
from psycopg.types.range import Range

from ..capture.values import column_type, selected_expression, sent_type, written_to

MOST_DIGITS = 150_000
"""Of a numeric column, before and behind the point together."""


def encoded(field: Field[Any, Any], value: Any) -> Any:
    """Return what stands in an image for a value of a field.  Raises what the field raises for what is no value."""
    alias = written_to(field)
    connection = connections[alias]
    known: Any = field.output_field if isinstance(field, GeneratedField) else field
    prepared = known.get_db_prep_save(value, connection)
    target: Any = selected_expression(field).output_field
    column = column_type(field, alias)
    name = sent_type(target, column.name, alias)
    while isinstance(target, ArrayField):
        target = target.base_field

    encoder: Callable[[Any], Any] = ENCODERS.get(name, _text)

    def encode(item: Any) -> Any:
        if item is None:
            return None
        if name in MOMENTS:
            return MOMENTS[name](item, ZoneInfo(connection.timezone_name))
        return _places(target, encoder(item))

    return _nested(prepared, encode) if column.dimensions else encode(prepared)


def _nested(item: Any, encode: Callable[[Any], Any]) -> Any:
    return [_nested(inner, encode) for inner in item] if isinstance(item, list) else encode(item)


def _places(field: Any, number: Any) -> Any:
    places = getattr(field, "decimal_places", None)
    if places is None or not isinstance(field, DecimalField) or not isinstance(number, Decimal):
        return number
    with localcontext(prec=MOST_DIGITS):
        return number.quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP)


def _numeric(value: Any) -> Any:
    number = Decimal(value)
    return number if number.is_finite() else _special(float(number))


def _float(value: Any) -> Any:
    number = float(value)
    return number if isfinite(number) else _special(number)


def _special(number: float) -> str:
    return "NaN" if number != number else "Infinity" if number > 0 else "-Infinity"


def _json(value: Any) -> Any:
    # Text is passed on as it is by fields of an application; others wrap a value, with the function that writes it.
    dumps = getattr(value, "dumps", None) or json.dumps
    text = value if isinstance(value, str) else dumps(getattr(value, "obj", value))
    return json.loads(text, parse_float=Decimal)


def _inet(value: Any) -> str:
    mapped = getattr(value, "ipv4_mapped", None)
    return _text(value) if mapped is None else f"::ffff:{mapped}"


def _bytes(value: Any) -> str:
    return f"\\x{bytes(getattr(value, 'obj', value)).hex()}"


def _interval(value: Any) -> str:
    if not isinstance(value, timedelta):
        return _text(value)
    seconds = timedelta(seconds=value.seconds, microseconds=value.microseconds)
    time = (datetime.min + seconds).time().isoformat()
    days = f"{value.days} {'day' if value.days == 1 else 'days'} " if value.days else ""
    return f"{days}{'+' if value.days < 0 and seconds else ''}{time}"


def _iso(value: Any, zone: ZoneInfo) -> str:
    return value.isoformat() if hasattr(value, "isoformat") else _text(value)


def _date(value: Any, zone: ZoneInfo) -> str:
    return (value.date() if isinstance(value, datetime) else value).isoformat()


def _timestamp(value: Any, zone: ZoneInfo) -> str:
    """Without a zone, and in that of the session."""
    moment = _moment(value)
    return (moment.astimezone(zone).replace(tzinfo=None) if moment.tzinfo is not None else moment).isoformat()


def _timestamptz(value: Any, zone: ZoneInfo) -> str:
    moment = _moment(value)
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=zone)).astimezone(UTC).isoformat()


def _moment(value: Any) -> datetime:
    return value if isinstance(value, datetime) else datetime(value.year, value.month, value.day)


def _text(value: Any) -> str:
    if isinstance(value, Range):
        return _range(value)
    if isinstance(value, Multirange):
        return f"{{{','.join(map(_range, value))}}}"
    if isinstance(value, datetime):
        return value.isoformat(" ")
    if isinstance(value, (str, date)):
        return str(value)
    dumped = Transformer().get_dumper(value, PyFormat.TEXT).dump(value)
    return bytes(dumped or b"").decode()


def _range(value: Range[Any]) -> str:
    if value.isempty:
        return "empty"
    lower, upper, begin, end = value.lower, value.upper, value.lower_inc, value.upper_inc
    # Of whole numbers and days PostgreSQL keeps ranges with the first, and without the last.
    if lower is not None and not begin and (step := _step(lower)):
        lower, begin = lower + step, True
    if upper is not None and end and (step := _step(upper)):
        upper, end = upper + step, False
    return f"{'[' if begin else '('}{_quoted(lower)},{_quoted(upper)}{']' if end else ')'}"


def _step(bound: Any) -> Any:
    if isinstance(bound, int):
        return 1
    return timedelta(days=1) if isinstance(bound, date) and not isinstance(bound, datetime) else None


def _quoted(bound: Any) -> str:
    text = "" if bound is None else _text(bound)
    return f'"{text}"' if " " in text else text


ENCODERS: dict[str, Callable[[Any], Any]] = {
    "bool": bool,
    "int2": int,
    "int4": int,
    "int8": int,
    "oid": int,
    "numeric": _numeric,
    "float4": _float,
    "float8": _float,
    "json": _json,
    "jsonb": _json,
    "hstore": dict,
    "inet": _inet,
    "bytea": _bytes,
    "interval": _interval,
}
"""By the name of the type; all others are written as text."""

MOMENTS: dict[str, Callable[[Any, ZoneInfo], str]] = {
    "date": _date,
    "time": _iso,
    "timetz": _iso,
    "timestamp": _timestamp,
    "timestamptz": _timestamptz,
}
"""Those that may depend on the time zone of the session."""
