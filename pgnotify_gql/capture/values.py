"""
From what PostgreSQL writes into JSON to the value the ORM would give.

Numbers with a point arrive as ``Decimal`` (see ``journal.change``), so that no digit of a numeric column is lost.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from django.db.models import BinaryField, Field, JSONField


def decode(field: Field[Any, Any], raw: Any) -> Any:
    """Return the Python value of a field from its JSON value."""
    if raw is None:
        return None
    if isinstance(field, JSONField):
        return _floats(raw)
    if isinstance(field, BinaryField):
        return bytes.fromhex(raw.removeprefix("\\x"))
    return field.to_python(raw)


def _floats(value: Any) -> Any:
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, list):
        return [_floats(item) for item in value]
    if isinstance(value, dict):
        return {key: _floats(item) for key, item in value.items()}
    return value
