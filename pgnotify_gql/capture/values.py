"""
From what PostgreSQL writes into JSON to the value the ORM would give.

Numbers with a point arrive as ``Decimal`` (see ``journal.change``), so that no digit of a numeric column is lost.

What PostgreSQL can hold and Python cannot (``infinity``, a year BC, a numeric ``NaN``, a range) stays the text that
PostgreSQL wrote: one such row must not end the feed of all others.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from django.contrib.postgres.fields import ArrayField
from django.core.exceptions import ValidationError
from django.db.models import BinaryField, Field, JSONField

MISSING = "pgnotify_gql_missing"
"""Key of the JSON object that stands in an image for a column which the table no longer has."""


def image_settings(fields: Iterable[Field[Any, Any]]) -> dict[str, str]:
    """Return the settings of PostgreSQL under which the text of these fields can be decoded."""
    return {"bytea_output": "hex", "intervalstyle": "postgres", "timezone": "UTC"}


def decode(field: Field[Any, Any], raw: Any) -> Any:
    """Return the Python value of a field from its JSON value."""
    if raw is None:
        return None
    if isinstance(field, JSONField):
        return _floats(raw)
    if isinstance(field, BinaryField):
        return bytes.fromhex(raw.removeprefix("\\x"))
    if isinstance(field, ArrayField):
        return [decode(field.base_field, item) for item in raw]
    try:
        return field.to_python(raw)
    except (ValidationError, ValueError):
        return raw


def _floats(value: Any) -> Any:
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, list):
        return [_floats(item) for item in value]
    if isinstance(value, dict):
        return {key: _floats(item) for key, item in value.items()}
    return value
