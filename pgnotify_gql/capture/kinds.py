"""The kinds of change."""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    """What happened to a row; TRUNCATE happens to a whole table."""

    INSERT = "INSERT"
    UPDATE = "UPDATE"
    DELETE = "DELETE"
    TRUNCATE = "TRUNCATE"


ALL_KINDS = frozenset(Kind)
