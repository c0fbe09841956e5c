"""
A change: one committed row change, decoded and immutable.

The journal keeps JSON; keys are decoded here at once, row images when somebody asks.  What a value becomes is the
watch's knowledge, which comes in through ``Source``: this layer knows no model.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from functools import cached_property
from typing import Any, Protocol

from ..capture.kinds import Kind


class Source(Protocol):
    """What a watch knows about the rows of its table."""

    @property
    def label(self) -> str: ...

    def pk(self, key: Sequence[Any]) -> Any: ...

    def keys(self, pk: Any) -> Mapping[str, Any]: ...

    def values(self, image: Mapping[str, Any]) -> Mapping[str, Any]: ...

    def fetch(self, pk: Any) -> Any: ...


@dataclass(frozen=True)
class JournalRow:
    """
    One row of the journal.

    `rows` is the JSON that PostgreSQL wrote: a list with ``[key]`` or ``[key, old, new]`` for each changed row, a key
    being a list of one value for each column of the primary key, and null for TRUNCATE.
    """

    id: int
    xid: int
    label: str
    kind: Kind
    rows: str
    at: datetime
    context: str | None = None

    def changes(self, source: Source) -> list[Change]:
        """Return the changes of this row, in order."""
        context = _context(self.context)
        return [
            Change(
                pk=None if entry[0] is None else source.pk(entry[0]),
                model_label=self.label,
                kind=self.kind,
                at=self.at,
                context=context,
                xid=self.xid,
                journal_id=self.id,
                index=index,
                source=source,
                images=tuple(entry[1:]),
            )
            for index, entry in enumerate(json.loads(self.rows, parse_float=Decimal))
        ]


@dataclass(frozen=True, eq=False)
class Change:
    """
    One committed change of a row.

    Unpacks to ``(pk, model_label)``.  `pk` is the key as Python value (a tuple when composite, None for TRUNCATE),
    `at` the time of the statement, `context` what ``change_context()`` attached, `xid` the writer's transaction.
    """

    pk: Any
    model_label: str
    kind: Kind
    at: datetime
    context: Mapping[str, Any] = field(repr=False)
    xid: int = field(repr=False)
    journal_id: int = field(repr=False)
    index: int = field(repr=False)
    source: Source = field(repr=False)
    images: tuple[Mapping[str, Any] | None, ...] = field(default=(), repr=False)
    _fetching: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.pk, self.model_label))

    @cached_property
    def old(self) -> Mapping[str, Any] | None:
        """The captured columns as they were, by field name; None for INSERT and TRUNCATE, or if none are captured."""
        return self._values(0)

    @cached_property
    def new(self) -> Mapping[str, Any] | None:
        """The captured columns as they are, by field name; None for DELETE and TRUNCATE, or if none are captured."""
        return self._values(1)

    @cached_property
    def changed(self) -> frozenset[str]:
        """The captured columns whose values differ between `old` and `new`."""
        old, new = self.old or {}, self.new or {}
        return frozenset(name for name in {*old, *new} if old.get(name) != new.get(name))

    @cached_property
    def keys(self) -> Mapping[str, Any]:
        """The columns of the primary key, by field name; empty for TRUNCATE."""
        return {} if self.pk is None else self.source.keys(self.pk)

    @property
    def instance(self) -> Any:
        """
        The row as it is now, or None when it is gone.

        Fetched once, however many subscribers of this process ask.  Asks the database, so not in async code.
        """
        with self._fetching:
            return self._instance

    @cached_property
    def _instance(self) -> Any:
        return None if self.pk is None else self.source.fetch(self.pk)

    def _values(self, place: int) -> Mapping[str, Any] | None:
        image = self.images[place] if self.images else None
        return None if image is None else self.source.values(image)


def _context(text: str | None) -> Mapping[str, Any]:
    # A setting anybody may set: what is no JSON object is kept, as what it is.
    if not text:
        return {}
    try:
        context = json.loads(text)
    except ValueError:
        return {"raw": text}
    return context if isinstance(context, dict) else {"raw": context}
