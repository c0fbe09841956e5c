"""
A change as somebody sees who looks on: decoded as far as that goes, and shown in any case.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ..capture.kinds import Kind
from .change import Change, JournalRow, Source
from .position import Position


@dataclass(frozen=True)
class RawSource:
    """Stands in for a watch that this process does not have: values are what JSON gives."""

    label: str

    def pk(self, key: Sequence[Any]) -> Any:
        return key[0] if len(key) == 1 else tuple(key)

    def keys(self, pk: Any) -> Mapping[str, Any]:
        return {}

    def values(self, image: Mapping[str, Any]) -> Mapping[str, Any]:
        return image

    def instance(self, image: Mapping[str, Any]) -> Any:
        return None

    def fetch(self, pk: Any) -> Any:
        return None


@dataclass(frozen=True)
class Sighting:
    """
    A change and how it was seen.

    `change` is None where `problem` says why it cannot be decoded; `row` is then all there is.  `seen` is a time of
    the server's clock.  `position` is where to go on after it; `known` is False where this process has no watch of
    the model.
    """

    row: JournalRow
    change: Change | None
    problem: str
    known: bool
    seen: datetime
    position: Position

    @property
    def key(self) -> Any:
        """Return the primary key, raw where the watch has no meaning for it; None for TRUNCATE."""
        change = self.change
        if change is None or change.pk is not None or change.kind is Kind.TRUNCATE:
            return change and change.pk
        # Made by triggers for another key than the watch has.
        return RawSource(self.row.label).pk(json.loads(self.row.rows)[change.index][0])

    @property
    def delay(self) -> float:
        """Return the seconds from the statement to our seeing it."""
        # The clocks are compared once a connection, to half a round trip.
        return max(0.0, (self.seen - self.row.at).total_seconds())


def decoded(row: JournalRow, source: Source | None) -> list[tuple[Change | None, str]]:
    """Return the changes of a row, or in the place of one why it cannot be decoded; never raises."""
    try:
        changes = row.changes(source or RawSource(row.label))
    except Exception as error:  # whatever it is: a tail is there to show it
        return [(None, _reason(error))]
    return [_examined(change) for change in changes]


def _examined(change: Change) -> tuple[Change | None, str]:
    try:
        change.old, change.new, change.changed  # noqa: B018  (decodes the images, which is otherwise put off)
    except Exception as error:  # as above
        return None, _reason(error)
    return change, ""


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
