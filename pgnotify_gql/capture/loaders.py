"""
What psycopg would load for a column, made from what PostgreSQL writes into JSON.

JSON spells most types as psycopg's text format does; for those psycopg's own loaders are used, set up as Django sets
them up.  Numbers, dates, timestamps and JSON itself have a form of their own, and short cuts here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import date, datetime, tzinfo
from decimal import Decimal
from functools import lru_cache
from json import dumps
from typing import Any, TypeAlias
from zoneinfo import ZoneInfo

from django.core.signals import setting_changed
from django.db import DEFAULT_DB_ALIAS, connections
from django.dispatch import receiver
from psycopg import DataError
from psycopg import adapters as default_adapters
from psycopg.abc import Buffer
from psycopg.adapt import AdaptersMap, Loader, Transformer
from psycopg.postgres import types
from psycopg.pq import Format
from psycopg.types.datetime import IntervalLoader

Load: TypeAlias = Callable[[Any], Any]

UNREADABLE = (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError, DataError)
"""What loaders raise for values that Python cannot hold, or for JSON of another type than the field's."""

AS_IT_IS = frozenset({"bool", "int2", "int4", "int8"})
"""Types whose JSON value is the Python value."""

TEXTS = frozenset({"text", "varchar", "bpchar", "char", "name", "inet", "cidr", "tsvector"})
"""Types that are text in Python; Django takes network addresses so."""

MOMENTS = frozenset({"date", "timestamp", "timestamptz"})

DATE_LENGTH = len("2024-02-29")


def loader(name: str, alias: str) -> Load:
    """
    Return what loads values of a type, named as in psycopg's registry, for the timestamps of a database.

    A type that psycopg does not know is text.  What is returned takes no null, and raises one of `UNREADABLE`.
    """
    if name in AS_IT_IS:
        return as_it_is
    if name in TEXTS:
        return text
    if name in MOMENTS:
        return _moment_loader(alias)
    if own := LOADERS.get(name):
        return own
    return _psycopg_loader(name, alias)


def as_it_is(raw: Any) -> Any:
    return raw


def text(raw: Any) -> str | None:
    # Anything else comes from a column that was altered to another type, before the field was.
    return raw if raw is None or isinstance(raw, str) else json_text(raw)


def floats(raw: Any) -> Any:
    """
    Return JSON as ``json.loads`` gives it, with floats.  Raises ValueError for an integer that it refuses.

    Without recursion, whose limit a document meets here earlier than in ``json.loads``.
    """
    whole = [raw]
    unfinished: list[Any] = [whole]
    while unfinished:
        container = unfinished.pop()
        for place, item in container.items() if type(container) is dict else enumerate(container):
            if isinstance(item, Decimal):
                container[place] = _float(item)
            elif isinstance(item, (list, dict)):
                container[place] = item.copy()
                unfinished.append(container[place])
    return whole[0]


def _float(number: Decimal) -> float:
    value = float(number)
    # What has a point overflows to infinity in json.loads too; an integer is a Decimal only if it was too long.
    if math.isinf(value) and number.as_tuple().exponent == 0:
        raise ValueError("an integer with too many digits")
    return value


def json_text(raw: Any) -> str:
    """Return JSON as the text that PostgreSQL makes of a jsonb, for the decoder of an application."""
    if isinstance(raw, Decimal):
        return format(raw, "f")
    if isinstance(raw, list):
        return f"[{', '.join(map(json_text, raw))}]"
    if isinstance(raw, dict):
        return f"{{{', '.join(f'{json_text(key)}: {json_text(item)}' for key, item in raw.items())}}}"
    return dumps(raw, ensure_ascii=False)


def _bytes(raw: str) -> bytes:
    return bytes.fromhex(raw.removeprefix("\\x"))


def _time(raw: str) -> Any:
    # A TimeField's column may be a timetz, whose zone the loader of time would not see.
    return _psycopg_loader("timetz" if "+" in raw or "-" in raw else "time", DEFAULT_DB_ALIAS)(raw)


LOADERS: dict[str, Load] = {
    "numeric": Decimal,
    "float4": float,
    "float8": float,
    "bytea": _bytes,
    "json": floats,
    "jsonb": json_text,
    "hstore": dict,
    "time": _time,
    "timetz": _time,
}
"""From JSON to what psycopg would load, as Django sets it up: a jsonb is a text, which JSONField decodes."""


def _moment_loader(alias: str) -> Load:
    # JSON tells which of the three types the column has.
    def load(raw: str) -> date:
        if len(raw) == DATE_LENGTH:
            return date.fromisoformat(raw)
        moment = datetime.fromisoformat(raw)
        if moment.tzinfo is None:
            return moment
        zone, naive = _zone(alias)
        if moment.tzinfo is not zone:
            moment = moment.astimezone(zone)
        return moment.replace(tzinfo=None) if naive else moment

    return load


@lru_cache
def _zone(alias: str) -> tuple[tzinfo, bool]:
    """Return the time zone of a database's timestamps, and whether the ORM leaves it out (``USE_TZ = False``)."""
    connection = connections[alias]
    if connection.timezone is not None:
        return connection.timezone, False
    return ZoneInfo(connection.timezone_name), True


@lru_cache
def _psycopg_loader(name: str, alias: str) -> Load:
    """Return psycopg's own loader of a type; what it does not know is text."""
    info = types.get(name)
    adapters = _adapters(alias)
    if info is None or adapters.get_loader(info.oid, Format.TEXT) is None:
        return as_it_is
    load = Transformer(adapters).get_loader(info.oid, Format.TEXT).load
    return lambda raw: load(raw.encode()) if isinstance(raw, str) else raw


@lru_cache
def _adapters(alias: str) -> AdaptersMap:
    """Return psycopg's loaders, for values that do not come through a connection; timestamps are what Django makes."""
    adapters = AdaptersMap(default_adapters)
    load = _moment_loader(alias)

    class TimestamptzLoader(Loader):
        """Those inside ranges."""

        def load(self, data: Buffer) -> date:
            moment: date = load(bytes(data).decode())
            return moment

    adapters.register_loader("timestamptz", TimestamptzLoader)
    if adapters.get_loader(types["interval"].oid, Format.TEXT) is IntervalLoader:
        adapters.register_loader("interval", _PostgresIntervalLoader)
    return adapters


class _PostgresIntervalLoader(IntervalLoader):
    """psycopg's in Python, which asks its connection for the style; the one in C takes this style without one."""

    def load(self, data: Buffer) -> Any:
        return self._load_postgres(self, data)


@receiver(setting_changed)
def _forget_zones(*, setting: str, **kwargs: Any) -> None:
    # Sent by tests that override settings.
    if setting in {"TIME_ZONE", "USE_TZ"}:
        _zone.cache_clear()
