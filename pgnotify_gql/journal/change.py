"""
A change: one committed row change, decoded and immutable.

The journal keeps JSON; keys are decoded here at once, row images when somebody asks.  What a value becomes is the
watch's knowledge, which comes in through ``Source``: this layer knows no model.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cached_property
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

from ..capture.kinds import Kind


class Source(Protocol):
    """What a watch knows about the rows of its table."""

    @property
    def label(self) -> str: ...

    def pk(self, key: Sequence[Any]) -> Any: ...

    def keys(self, pk: Any) -> Mapping[str, Any]: ...

    def values(self, image: Mapping[str, Any]) -> Mapping[str, Any]: ...

    def instance(self, image: Mapping[str, Any]) -> Any: ...

    def fetch(self, pk: Any) -> Any: ...


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

ABSENT = object()
"""Stands for a column that an image does not hold; equal to no value."""


Columns: TypeAlias = tuple[int, int, str, str, str, int, str | None]
"""The columns of a journal row, in the order of ``JournalRow``; what a backlog passes on without looking at it."""

LABEL: Final = 2
ROWS: Final = 4
MICROS: Final = 5
"""Where in them stand the label, the text of the rows, and the time."""


class JournalRow(NamedTuple):
    """
    One row of the journal.

    `micros` is when its statement was run, in microseconds since 1970.

    `rows` is the JSON that PostgreSQL wrote: a list with ``[key]`` or ``[key, old, new]`` for each changed row, a key
    being a list of one value for each column of the primary key, and null for TRUNCATE.  `kind` is text as it stands
    there: triggers may be newer than this process.
    """

    id: int
    xid: int
    label: str
    kind: str
    rows: str
    micros: int
    context: str | None = None

    @property
    def at(self) -> datetime:
        """Return when its statement was run."""
        return EPOCH + timedelta(microseconds=self.micros)

    def changes(self, source: Source) -> list[Change]:
        """Return the changes of this row, in order.  Raises ValueError for what this version cannot decode."""
        kind, at, context = Kind(self.kind), self.at, _context(self.context)
        return [
            Change(
                pk=None if entry[0] is None else source.pk(entry[0]),
                model_label=self.label,
                kind=kind,
                at=at,
                context=context,
                xid=self.xid,
                journal_id=self.id,
                index=index,
                source=source,
                images=tuple(entry[1:]),
            )
            for index, entry in enumerate(_parse(self.rows))
        ]


@dataclass(frozen=True, eq=False)
class Change:
    """
    One committed change of a row.

    Unpacks to ``(pk, model_label)``.  `pk` is the key as Python value: a tuple when composite, None for TRUNCATE, and
    None where the triggers no longer found a column of the key.  `at` is the time of the statement, `context` what
    ``change_context()`` attached, `xid` the writer's transaction.
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
        """
        The captured columns as they were, by field name; None for INSERT and TRUNCATE, or if none are captured.

        A column that the triggers did not know, or no longer found in the table, is not there.
        """
        return self._values(0)

    @cached_property
    def new(self) -> Mapping[str, Any] | None:
        """
        The captured columns as they are, by field name; None for DELETE and TRUNCATE, or if none are captured.

        A column that the triggers did not know, or no longer found in the table, is not there.
        """
        return self._values(1)

    @cached_property
    def changed(self) -> frozenset[str]:
        """
        The captured columns whose values differ between `old` and `new`; of one image alone, those that are not null.

        A column that only one image holds (see `old`) is among them.
        """
        # What PostgreSQL wrote is compared, not what became of it: a NaN differs from itself, and so may objects that
        # an application's field makes.
        old, new = self.images or (None, None)
        if old is None or new is None:
            alone = old or new or {}
            return frozenset(self.source.values({name: raw for name, raw in alone.items() if raw is not None}))
        differing = {name for name in {*old, *new} if _differ(old.get(name, ABSENT), new.get(name, ABSENT))}
        images = ({name: raw for name, raw in image.items() if name in differing} for image in (old, new))
        return frozenset(name for image in images for name in self.source.values(image))

    @cached_property
    def keys(self) -> Mapping[str, Any]:
        """The columns of the primary key, by field name; empty when there is no `pk`."""
        return {} if self.pk is None else self.source.keys(self.pk)

    @property
    def instance(self) -> Any:
        """
        The row as a model instance: one for all subscribers of this process, so leave it as it is.

        Built from the new image where that holds every column of the model, and then the row as this change left it.
        Otherwise fetched, once: the row as it is now, or None when it is gone.  Fetching asks the database, so not in
        async code.  A value that Python cannot hold, for which the ORM raises, is text in the one and an error in the
        other.

        None for DELETE and TRUNCATE in every case: a row that is gone must not be sent as if it were there.  Its values
        are in `old`.
        """
        with self._fetching:
            return self._instance

    @cached_property
    def _instance(self) -> Any:
        if self.pk is None or self.kind in {Kind.DELETE, Kind.TRUNCATE}:
            return None
        image = self.images[1] if self.images else None
        built = None if image is None else self.source.instance(image)
        return self.source.fetch(self.pk) if built is None else built

    def _values(self, place: int) -> Mapping[str, Any] | None:
        image = self.images[place] if self.images else None
        return None if image is None else self.source.values(image)


def _parse(rows: str) -> Any:
    """Return JSON with every digit, and the sign of a float's zero."""
    # The hook costs 0.1 us for every integer, so it is called for JSON that needs it only.
    if not NEGATIVE_ZERO.search(rows):
        try:
            return DECODER.decode(rows)
        except ValueError:
            pass
    return EXACT_DECODER.decode(rows)


def _integer(digits: str) -> int | float | Decimal:
    if digits == "-0":
        return -0.0
    try:
        return int(digits)
    except ValueError:
        # Longer than int() takes (sys.set_int_max_str_digits), as a numeric may be.
        return Decimal(digits)


NEGATIVE_ZERO = re.compile(r"-0[],}]")
"""How a float -0.0 ends; text may look like it, to no harm."""

DECODER = json.JSONDecoder(parse_float=Decimal)

EXACT_DECODER = json.JSONDecoder(parse_float=Decimal, parse_int=_integer)


def _differ(old: Any, new: Any) -> bool:
    # By their text too where Python finds equal what PostgreSQL does not: true and 1 in JSON, 1.0 and 1.00.
    return bool(old != new) or (not isinstance(old, str) and repr(old) != repr(new))


def _context(text: str | None) -> Mapping[str, Any]:
    # A setting anybody may set: what is no JSON object is kept, as what it is.
    if not text:
        return {}
    try:
        context = json.loads(text)
    except ValueError:
        return {"raw": text}
    return context if isinstance(context, dict) else {"raw": context}
