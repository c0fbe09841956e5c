"""
Changes made by hand, for unit tests of ``next``.

A change is made as the JSON that triggers would have written, and then decoded as in production.  It has the columns
that the watch captures and no others; what the watch would never tell is refused, so that a test cannot pass on it.
Neither `condition` nor `update_of` of a watch is looked at.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from copy import copy
from difflib import get_close_matches
from itertools import count
from typing import Any

from django.db.models import AutoField, Field, GeneratedField, IntegerField, Model
from django.db.models.expressions import DatabaseDefault
from django.db.models.fields.files import FieldFile

from ..capture.kinds import Kind
from ..capture.loaders import json_text
from ..capture.registry import registry
from ..capture.watch import Watch, column_of
from ..errors import WatchError
from ..journal import Change, JournalRow
from ..journal.change import EPOCH
from .images import encoded

Row = Model | type[Model]

Image = dict[str, Any]

_numbers = count(1)
"""Of changes."""

_keys = count(1_000_001)
"""That nobody gave; above those that tests tend to give."""


def insert(row: Row, /, *, context: Mapping[str, Any] | None = None, **new: Any) -> Change:
    """
    Return the INSERT of a row: an instance, or a model and values of its fields.

    The others have their defaults; a key that is a number is made up.  `context` is what ``change_context()`` attached.
    Raises TypeError for what is no captured field, and WatchError for a model that is not watched.
    """
    watch = _watch(row, Kind.INSERT)
    instance = _instance(watch, row, new)
    return _made(watch, Kind.INSERT, _key(watch, instance), (None, _image(watch, instance)), context, instance)


def update(
    row: Row, /, old: Mapping[str, Any] | None = None, *, context: Mapping[str, Any] | None = None, **new: Any
) -> Change:
    """Return the UPDATE that has left a row as it is, and before which it had the values in `old`; see ``insert``."""
    watch = _watch(row, Kind.UPDATE)
    instance = _instance(watch, row, new)
    before = _image(watch, _instance(watch, instance, old or {}))
    return _made(watch, Kind.UPDATE, _key(watch, instance), (before, _image(watch, instance)), context, instance)


def delete(row: Row, /, *, context: Mapping[str, Any] | None = None, **old: Any) -> Change:
    """Return the DELETE of a row, as it was; see ``insert``."""
    watch = _watch(row, Kind.DELETE)
    instance = _instance(watch, row, old)
    return _made(watch, Kind.DELETE, _key(watch, instance), (_image(watch, instance), None), context)


def truncate(model: type[Model], /, *, context: Mapping[str, Any] | None = None) -> Change:
    """Return the TRUNCATE of a model's table."""
    return _made(_watch(model, Kind.TRUNCATE), Kind.TRUNCATE, None, (), context)


def journal_row(change: Change, row_id: int) -> JournalRow:
    """Return the journal row of a change, with this id."""
    watch = registry.get(change.model_label)
    assert watch is not None, "a change of it could not have been made"
    key = None if change.pk is None else [encoded(field, change.keys[field.name]) for field in watch.key_fields]
    micros = round((change.at - EPOCH).total_seconds() * 1_000_000)
    rows = json_text([[key, *change.images]])
    return JournalRow(row_id, row_id, change.model_label, change.kind, rows, micros, json.dumps(dict(change.context)))


def _watch(row: Row, kind: Kind) -> Watch:
    model = row if isinstance(row, type) else type(row)
    label = model._meta.label_lower
    watch = registry.get(label)
    if watch is None:
        raise WatchError(f"{label} is not watched: call notify_on_model_changes({model.__name__})")
    if kind not in watch.kinds:
        raise WatchError(f"the watch of {label} does not capture {kind}: add it to kinds=")
    return watch


def _instance(watch: Watch, row: Row, values: Mapping[str, Any]) -> Model:
    """Return a row with these values.  Raises TypeError for names that an image does not have."""
    if isinstance(row, Model) and not values:
        return row
    instance = row() if isinstance(row, type) else copy(row)
    for name, value in values.items():
        field = watch.captured.get(name)
        if field is None:
            raise TypeError(_unknown(watch, name))
        related = isinstance(value, Model) and field.is_relation
        setattr(instance, field.name if related else field.attname, value)
    key: Field[Any, Any] = watch.key_fields[0]
    if (
        len(watch.key_fields) == 1
        and getattr(instance, key.attname) is None
        and isinstance(key, AutoField | IntegerField)
    ):
        setattr(instance, key.attname, next(_keys))
    return instance


def _unknown(watch: Watch, name: str) -> str:
    fields = {field.name for field in watch.local_fields}
    if name in fields:
        return f"the watch of {watch.label} does not capture '{name}': add it to columns=, or leave it out"
    close = get_close_matches(name, watch.captured, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}=?" if close else f"captured are {', '.join(sorted(watch.captured))}"
    return f"{watch.label} has no field '{name}': {hint}"


def _key(watch: Watch, instance: Model) -> list[Any]:
    values = {field.attname: getattr(instance, field.attname) for field in watch.key_fields}
    for name, value in values.items():
        if value is None or isinstance(value, DatabaseDefault):
            raise TypeError(f"a change of {watch.label} needs its key: give {name}=")
    return [encoded(field, values[field.attname]) for field in watch.key_fields]


def _image(watch: Watch, instance: Model) -> Image | None:
    if not watch.fields:
        return None
    return {column_of(field): encoded(field, _value(watch, instance, field)) for field in watch.fields}


def _value(watch: Watch, instance: Model, field: Field[Any, Any]) -> Any:
    missing = isinstance(field, GeneratedField) and field.attname not in vars(instance)
    value = None if missing else getattr(instance, field.attname)
    if missing or isinstance(value, DatabaseDefault):
        raise TypeError(f"the value of {watch.label}.{field.name} is made by the database: give {field.name}=")
    # Without a file the ORM would write an empty text, also where the row has null.
    return value.name if isinstance(value, FieldFile) else value


def _made(
    watch: Watch,
    kind: Kind,
    key: list[Any] | None,
    images: tuple[Image | None, ...],
    context: Mapping[str, Any] | None,
    instance: Model | None = None,
) -> Change:
    number = next(_numbers)
    rows = json_text([[key, *(images if watch.fields else ())]])
    micros = round(time.time() * 1_000_000)
    text = None if context is None else json.dumps(context)
    (change,) = JournalRow(number, number, watch.label, kind, rows, micros, text).changes(watch)
    # What would be fetched, or built from the image.
    change.__dict__["_instance"] = instance
    return change
