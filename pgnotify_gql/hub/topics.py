"""
Topics: what an operation waits for, and the index that finds who waits for a change.

A topic is a model, optionally with equality conditions on captured columns, and with a filter for what is not equality.
The index looks a change up by its column values, once for each set of columns that somebody conditions on, so its cost
grows with the matches and not with the number of subscribers; filters are evaluated on what it has found, each once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import product
from math import prod
from typing import Any, Generic, TypeVar

from django.db import router
from django.db.models import Model, Q
from django.db.models.constants import LOOKUP_SEP

from ..capture.kinds import Kind
from ..capture.registry import registry
from ..capture.watch import Watch
from ..conf import get_settings
from ..errors import TopicError, TopicValueError
from ..journal.change import Change
from .condition import condition_value
from .image_filter import ImageFilter, Row, rows_of

MOST_ALTERNATIVES = 1_000
"""Values, or combinations of values, that one topic may have: the index holds an entry for each."""

T = TypeVar("T")


class Topic:
    """
    The changes of a model's rows; with conditions only of rows that have, or had, these values.

    Conditions name captured columns (``columns=`` of the watch) or the key, for a value or with ``__in`` for a list of
    them; a foreign key takes a key or an instance.  `filter` is a Q object for what is not equality; it is evaluated on
    row images (see ``image_filter``), and so names captured columns as well.

    Raises TopicError when the model is not watched, its database is not followed, a column is not captured, or the
    filter cannot be evaluated; and TopicValueError for a value that is not of its column's type.
    """

    __slots__ = ("alternatives", "columns", "database", "filter", "label")

    def __init__(self, model: type[Model], *, filter: Q | None = None, **conditions: Any) -> None:  # noqa: A002  (the ORM's word)
        watch = registry.get(model._meta.label_lower)
        if watch is None:
            raise TopicError(
                f"{model._meta.label_lower} is not watched: call notify_on_model_changes({model.__name__}) "
                "and run `manage.py install_triggers`"
            )
        self.label = watch.label
        self.database = router.db_for_write(watch.model)
        if self.database not in get_settings().DATABASES:
            raise TopicError(
                f"{watch.label} is in database '{self.database}', which is not followed: "
                f"add it to PGNOTIFY_GQL['DATABASES']"
            )
        conditioned = _conditioned(watch, conditions)
        self.columns = tuple(sorted(conditioned))
        wanted = [conditioned[column] for column in self.columns]
        if prod(map(len, wanted)) > MOST_ALTERNATIVES:
            raise TopicValueError(f"a topic of {watch.label} waits for more than {MOST_ALTERNATIVES:,} values")
        self.alternatives = frozenset(product(*wanted))
        self.filter = ImageFilter(watch, filter) if filter else None

    @classmethod
    def of(cls, item: Topic | type[Model]) -> Topic:
        """Return a topic for what ``subscribe`` may return: a topic, or a model for all of its rows."""
        if isinstance(item, Topic):
            return item
        if isinstance(item, type) and issubclass(item, Model):
            return cls(item)
        raise TopicError(f"subscribe() returns models and Topic(Model, column=value), not {item!r}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Topic) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    def __repr__(self) -> str:
        conditions = [self._condition(place) for place in range(len(self.columns))]
        if self.filter is not None:
            conditions.append(f"filter={self.filter.condition}")
        return f"Topic({', '.join([self.label, *conditions])})"

    def matches(self, row: Row) -> bool:
        """Return whether a row is one of these, given by its fields' names.  Raises KeyError for a missing column."""
        values = tuple(row[column] for column in self.columns)
        return _is_among(values, self.alternatives) and (self.filter is None or self.filter.matches(row))

    def mismatch(self, change: Change) -> str | None:
        """
        Return which condition a change of the model does not fulfil, or None where it fulfils all.

        It names columns and the values that are waited for, and tells nothing of the row.
        """
        if change.kind is Kind.TRUNCATE:
            return None
        rows = rows_of(change)
        try:
            images = [tuple(row[column] for column in self.columns) for row in rows]
        except KeyError:
            images = list(self.alternatives)  # as for the index: journaled by an older trigger
        if not any(_is_among(values, self.alternatives) for values in images):
            for place in range(len(self.columns)):
                wanted = {values[place] for values in self.alternatives}
                if not any(_is_among(values[place], wanted) for values in images):
                    return f"{self._condition(place)} does not hold, neither before nor after"
            return f"{', '.join(self.columns)} do not fulfil their conditions together, neither before nor after"
        return None if self.filter is None else self.filter.mismatch(change)

    def _condition(self, place: int) -> str:
        column, values = self.columns[place], sorted({values[place] for values in self.alternatives}, key=repr)
        return f"{column}={values[0]!r}" if len(values) == 1 else f"{column}__in={values!r}"

    @property
    def _identity(self) -> tuple[Hashable, ...]:
        return self.label, self.columns, self.alternatives, self.filter


@dataclass(slots=True)
class _Waiters(Generic[T]):
    """Who waits for the same values: those who want all that has them, and others by their filter."""

    unfiltered: dict[T, None] = field(default_factory=dict)
    filtered: dict[ImageFilter, dict[T, None]] = field(default_factory=dict)

    def by(self, condition: ImageFilter | None) -> dict[T, None]:
        return self.unfiltered if condition is None else self.filtered.setdefault(condition, {})

    def remove(self, condition: ImageFilter | None, waiter: T) -> None:
        waiters = self.by(condition)
        waiters.pop(waiter, None)
        if condition is not None and not waiters:
            del self.filtered[condition]

    def all(self) -> Iterator[T]:
        yield from self.unfiltered
        for waiters in self.filtered.values():
            yield from waiters

    def __bool__(self) -> bool:
        return bool(self.unfiltered or self.filtered)


class TopicIndex(Generic[T]):
    """Who waits for which topic."""

    def __init__(self) -> None:
        self._waiting: defaultdict[str, dict[tuple[str, ...], dict[tuple[Hashable, ...], _Waiters[T]]]] = defaultdict(
            dict
        )

    def add(self, topic: Topic, waiter: T) -> None:
        """Let `waiter` wait for a topic."""
        by_values = self._waiting[topic.label].setdefault(topic.columns, {})
        for values in topic.alternatives:
            by_values.setdefault(values, _Waiters()).by(topic.filter)[waiter] = None

    def remove(self, topic: Topic, waiter: T) -> None:
        """Let `waiter` wait no longer; harmless when it did not."""
        by_columns = self._waiting.get(topic.label, {})
        by_values = by_columns.get(topic.columns, {})
        for values in topic.alternatives:
            waiters = by_values.get(values)
            if waiters is not None:
                waiters.remove(topic.filter, waiter)
                if not waiters:
                    del by_values[values]
        if not by_values:
            by_columns.pop(topic.columns, None)
        if not by_columns:
            self._waiting.pop(topic.label, None)

    def has(self, label: str) -> bool:
        """Return whether somebody waits for some topic of a model."""
        return label in self._waiting

    def waiting_for(self, label: str) -> list[T]:
        """Return everybody who waits for some topic of a model."""
        by_columns = self._waiting.get(label, {})
        return list(
            dict.fromkeys(w for by_values in by_columns.values() for ws in by_values.values() for w in ws.all())
        )

    def find(self, change: Change) -> list[T]:
        """Return everybody who waits for a change, each once; everybody of the model for TRUNCATE."""
        if change.kind is Kind.TRUNCATE:
            return self.waiting_for(change.model_label)
        found: dict[T, None] = {}
        # Several values may lead to the same filter.
        concerned: dict[ImageFilter, bool] = {}
        for columns, by_values in self._waiting.get(change.model_label, {}).items():
            for values in _values_of(change, columns, by_values):
                waiters = None
                # A JSON column may hold what cannot be looked up, and so equals nothing that somebody waits for.
                with suppress(TypeError):
                    waiters = by_values.get(values)
                if waiters is None:
                    continue
                found.update(waiters.unfiltered)
                for condition, filtered in waiters.filtered.items():
                    if condition not in concerned:
                        concerned[condition] = condition.concerns(change)
                    if concerned[condition]:
                        found.update(filtered)
        return list(found)


def _is_among(value: Any, wanted: Collection[Any]) -> bool:
    try:
        return value in wanted
    except TypeError:
        return False  # a JSON column may hold what cannot be looked up


def _conditioned(watch: Watch, conditions: Mapping[str, Any]) -> dict[str, set[Hashable]]:
    """Return which values are waited for, by the names of fields.  Raises TopicError."""
    conditioned: dict[str, set[Hashable]] = {}
    for condition, value in conditions.items():
        name, _, lookup = condition.partition(LOOKUP_SEP)
        column = watch.captured.get(name)
        if column is None or lookup not in {"", "exact", "in"}:
            raise TopicError(_refused(watch, condition, name))
        if lookup == "in" and (isinstance(value, str) or not isinstance(value, Iterable)):
            raise TopicValueError(f"{condition} takes a list of values, not {value!r}")
        values = {condition_value(column, condition, each) for each in (value if lookup == "in" else [value])}
        if not values:
            raise TopicValueError(f"{condition} is empty, and would wait for nothing: name a value at least")
        # A column that is named twice has to fulfil both.
        conditioned[column.name] = conditioned[column.name] & values if column.name in conditioned else values
    return conditioned


def _refused(watch: Watch, condition: str, name: str) -> str:
    known = ", ".join(sorted(watch.captured)) or "none"
    if name in watch.captured:
        return (
            f"Topic({watch.model.__name__}, {condition}=...): conditions are {name}=... and {name}__in=[...]; "
            f"for others give filter=Q({condition}=...)"
        )
    return (
        f"Topic({watch.model.__name__}, {condition}=...): the watch of {watch.label} does not capture '{name}'; "
        f"add it to its columns= (captured: {known})"
    )


def _values_of(
    change: Change, columns: tuple[str, ...], known: Mapping[tuple[Hashable, ...], Any]
) -> Iterator[tuple[Hashable, ...]]:
    if not columns:
        yield ()
        return
    keys = change.keys
    images = [image for image in (change.old, change.new) if image is not None]
    try:
        for image in images or [{}]:
            yield tuple(keys[column] if column in keys else image[column] for column in columns)
    except KeyError:
        # Journaled by an older trigger without this column: whether it matches is for next() to say.
        yield from known
