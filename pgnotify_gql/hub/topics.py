"""
Topics: what an operation waits for, and the index that finds who waits for a change.

A topic is a model, optionally with equality conditions on captured columns.  The index looks a change up by its
column values, once for each set of columns that somebody conditions on, so its cost grows with the matches and not
with the number of subscribers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Generic, TypeVar

from django.core.exceptions import ValidationError
from django.db import router
from django.db.models import Model

from ..capture.kinds import Kind
from ..capture.registry import registry
from ..conf import get_settings
from ..errors import TopicError
from ..journal.change import Change

T = TypeVar("T")


class Topic:
    """
    The changes of a model's rows; with conditions only of rows that have, or had, these values.

    Conditions name captured columns (``columns=`` of the watch) or the key; a foreign key takes a key or an instance.
    Raises TopicError when the model is not watched, its database is not followed, a column is not captured, or a value
    is not of its type.
    """

    __slots__ = ("columns", "database", "label", "values")

    def __init__(self, model: type[Model], **conditions: Any) -> None:
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
        conditioned: dict[str, Hashable] = {}
        for name, value in conditions.items():
            field = watch.captured.get(name)
            if field is None:
                raise TopicError(
                    f"Topic({model.__name__}, {name}=...): the watch of {watch.label} does not capture '{name}'; "
                    f"add it to its columns= (captured: {', '.join(sorted(watch.captured)) or 'none'})"
                )
            conditioned[field.name] = _value(field, name, value)
        self.columns = tuple(sorted(conditioned))
        self.values = tuple(conditioned[column] for column in self.columns)

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
        conditions = "".join(f", {name}={value!r}" for name, value in zip(self.columns, self.values, strict=True))
        return f"Topic({self.label}{conditions})"

    @property
    def _identity(self) -> tuple[Hashable, ...]:
        return self.label, self.columns, self.values


class TopicIndex(Generic[T]):
    """Who waits for which topic."""

    def __init__(self) -> None:
        self._waiting: defaultdict[str, dict[tuple[str, ...], dict[tuple[Hashable, ...], dict[T, None]]]] = defaultdict(
            dict
        )

    def add(self, topic: Topic, waiter: T) -> None:
        """Let `waiter` wait for a topic."""
        by_values = self._waiting[topic.label].setdefault(topic.columns, {})
        by_values.setdefault(topic.values, {})[waiter] = None

    def remove(self, topic: Topic, waiter: T) -> None:
        """Let `waiter` wait no longer; harmless when it did not."""
        by_columns = self._waiting.get(topic.label, {})
        by_values = by_columns.get(topic.columns, {})
        waiters = by_values.get(topic.values, {})
        waiters.pop(waiter, None)
        if not waiters:
            by_values.pop(topic.values, None)
        if not by_values:
            by_columns.pop(topic.columns, None)
        if not by_columns:
            self._waiting.pop(topic.label, None)

    def waiting_for(self, label: str) -> list[T]:
        """Return everybody who waits for some topic of a model."""
        by_columns = self._waiting.get(label, {})
        return list(dict.fromkeys(w for by_values in by_columns.values() for ws in by_values.values() for w in ws))

    def find(self, change: Change) -> list[T]:
        """Return everybody who waits for a change, each once; everybody of the model for TRUNCATE."""
        if change.kind is Kind.TRUNCATE:
            return self.waiting_for(change.model_label)
        found: dict[T, None] = {}
        for columns, by_values in self._waiting.get(change.model_label, {}).items():
            for values in _values_of(change, columns, by_values):
                # A JSON column may hold what cannot be looked up, and so equals nothing that somebody waits for.
                with suppress(TypeError):
                    found.update(by_values.get(values, {}))
        return list(found)


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


def _value(field: Any, name: str, value: Any) -> Hashable:
    try:
        converted: Hashable = field.to_python(_key(field, value) if isinstance(value, Model) else value)
        hash(converted)
    except (ValidationError, TypeError, ValueError) as error:
        raise TopicError(f"{name}={value!r} is no value of {field.model._meta.label_lower}.{field.name}") from error
    return converted


def _key(field: Any, instance: Model) -> Any:
    """Return the key of an instance of the model that the field refers to.  Raises TypeError for another model."""
    model = (field.related_model or field.model)._meta.concrete_model
    if not issubclass(type(instance)._meta.concrete_model or type(instance), model):
        raise TypeError(f"not an instance of {model.__name__}")
    return instance.pk
