"""
Which row is meant: the watch of a model that somebody names, and a primary key that he writes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from django.apps import apps
from django.db import models

from ..capture.registry import registry
from ..capture.watch import Watch
from ..errors import PgnotifyGqlError, TopicValueError
from ..hub.condition import condition_value
from ..journal.change import Change

NUMBERS = frozenset({
    models.AutoField, models.BigAutoField, models.SmallAutoField, models.IntegerField, models.BigIntegerField,
    models.SmallIntegerField, models.PositiveIntegerField, models.PositiveBigIntegerField,
    models.PositiveSmallIntegerField,
})  # fmt: skip
TEXTS = frozenset({models.CharField, models.TextField, models.SlugField, models.EmailField, models.UUIDField})
"""Django's own fields, of which it is known how the journal has their values."""

PLAIN = re.compile(r"[A-Za-z0-9_ .:@-]*")
"""Texts that every writer of JSON writes alike."""


class QuestionError(PgnotifyGqlError):
    """What is asked about cannot be: no such model, no watch of it, no key of it."""


def find_watch(name: str) -> Watch:
    """Return the watch of a model, named in any case.  Raises QuestionError."""
    label = name.lower()
    watch = registry.get(label)
    if watch is not None:
        return watch
    known = {model._meta.label_lower: model.__name__ for model in apps.get_models(include_auto_created=True)}
    if label in known:
        raise QuestionError(
            f"{label} is not watched, so none of its changes is captured: call notify_on_model_changes({known[label]}) "
            "and run `manage.py install_triggers`"
        )
    watched = [other.label for other in registry]
    model = label.rpartition(".")[2]
    close = [other for other in watched if other.rpartition(".")[2] == model]
    close = close or get_close_matches(label, watched, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"watched are {', '.join(watched) or 'none'}"
    raise QuestionError(f"there is no model '{name}': {hint}")


@dataclass(frozen=True)
class RowKey:
    """
    The key of one row, as changes have it, and as it is shown.

    `journaled_parts` are texts that a journal row with a change of it contains.
    """

    value: Any
    text: str
    journaled_parts: Sequence[str]

    @classmethod
    def read(cls, watch: Watch, given: Any) -> RowKey:
        """Return the key that is given as value or as text, a composite one as JSON list.  Raises QuestionError."""
        fields = watch.key_fields
        parts = [given] if len(fields) == 1 else _list(given)
        if len(parts) != len(fields):
            names = ", ".join(field.name for field in fields)
            raise QuestionError(
                f"{given!r} is no key of {watch.label}: give a JSON list of {names}, such as '[1, \"a\"]'"
            )
        values = tuple(_value(watch, field, part) for field, part in zip(fields, parts, strict=True))
        tokens = [_token(field, value) for field, value in zip(fields, values, strict=True)]
        known = [token for token in tokens if token is not None]
        if len(values) == 1:
            return cls(values[0], str(values[0]), [f"[{token}]" for token in known])
        return cls(values, json.dumps(values, default=str), known)

    def is_of(self, change: Change) -> bool:
        """Return whether a change is one of the row."""
        return bool(change.pk == self.value)


def _list(given: Any) -> list[Any]:
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            return []
    return list(given) if isinstance(given, (list, tuple)) else []


def _value(watch: Watch, field: Any, given: Any) -> Any:
    try:
        value = condition_value(field, field.name, given)
    except TopicValueError:
        value = None
    if value is None:
        raise QuestionError(
            f"{given!r} is no key of {watch.label}: '{field.name}' is of type {type(_target(field)).__name__}"
        )
    return value


def _token(field: Any, value: Any) -> str | None:
    kind = type(_target(field))
    if kind in NUMBERS and isinstance(value, int):
        return str(value)
    text = str(value)
    return f'"{text}"' if kind in TEXTS and PLAIN.fullmatch(text) else None


def _target(field: Any) -> Any:
    while field.is_relation:
        field = field.target_field
    return field
