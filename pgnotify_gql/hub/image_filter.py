"""
A Q object, evaluated on row images instead of in the database.

It says of an image what the ORM would have said of the row: a comparison with NULL holds neither plainly nor in a
conjunction, and its negation does, as in ``filter(~Q(...))``.  So only that is taken of which Python and PostgreSQL
think alike: columns of the watch, their plain lookups, and values; the order of text is the database's, and what lies
in other tables is not in an image.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from django.core.exceptions import FieldDoesNotExist
from django.db import models
from django.db.models import Q
from django.db.models.constants import LOOKUP_SEP

from ..capture.registry import registry
from ..capture.watch import Watch
from ..errors import TopicError, TopicValueError
from ..journal.change import Change
from .condition import condition_value

AnyField = Any
"""A field of a model; django-stubs' type lacks what those that are relations have."""

Row = Mapping[str, Any]

Test = Callable[[Row], bool]

Holds = Callable[[Any], bool]
"""Whether a comparison holds for a value that is not NULL."""

ORDERED = (
    models.IntegerField,
    models.AutoField,
    models.FloatField,
    models.DecimalField,
    models.DateField,
    models.TimeField,
    models.DurationField,
)
"""Fields whose values Python and PostgreSQL put into the same order; those that inherit from them as well."""

TEXT = (models.CharField, models.TextField)

COMPARED: Mapping[str, Callable[[Any, Any], bool]] = {
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}

SEARCHED: Mapping[str, Callable[[str, str], bool]] = {
    "contains": operator.contains,
    "startswith": str.startswith,
    "endswith": str.endswith,
}

SEARCHED_IN_ANY_CASE: Mapping[str, Callable[[str, str], bool]] = {
    "iexact": str.__eq__,
    **{f"i{name}": search for name, search in SEARCHED.items()},
}

LOOKUPS = ("exact", "in", "isnull", *COMPARED, "range", *SEARCHED, *SEARCHED_IN_ANY_CASE)


class ImageFilter:
    """
    A condition on the captured columns of a watch.

    Raises TopicError for a column that is not captured, and for what cannot be evaluated on images.
    """

    __slots__ = ("_test", "condition")

    def __init__(self, watch: Watch, condition: Q) -> None:
        self.condition = condition
        self._test: Test = _Compiler(watch).compile(condition)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImageFilter) and self.condition == other.condition

    def __hash__(self) -> int:
        return hash(self.condition)

    def matches(self, row: Row) -> bool:
        """Return whether a row fulfils it, given by the names of its fields.  Raises KeyError for a missing column."""
        return self._test(row)

    def concerns(self, change: Change) -> bool:
        """
        Return whether the row fulfils it, or did before.

        True also where an older trigger has not captured a column of it: whether it matches is for ``next()`` to say.
        """
        try:
            return any(self._test(row) for row in rows_of(change))
        except KeyError:
            return True

    def mismatch(self, change: Change) -> str | None:
        """
        Return which part of it does not hold for a change, or None where the change concerns it.

        It names columns and the values that are waited for, and tells nothing of the row.
        """
        if self.concerns(change):
            return None
        # Parts that can be told apart are those of a conjunction; each of them may hold, but for another image.
        watch = registry.get(change.model_label)
        parts = [] if watch is None else _conjuncts(watch, self.condition)
        failed = next((part for part in parts if not part.concerns(change)), self)
        return f"filter={failed.condition} does not hold, neither before nor after"


def _conjuncts(watch: Watch, condition: Q) -> list[ImageFilter]:
    """Return filters of which all must hold for a condition to hold; itself where it is not made of such."""
    if condition.negated or condition.connector != Q.AND or len(condition.children) < 2:
        return [ImageFilter(watch, condition)]
    return [ImageFilter(watch, child if isinstance(child, Q) else Q(child)) for child in condition.children]


def rows_of(change: Change) -> Sequence[Row]:
    """Return what is known of a row before and after a change, by the names of its fields; at least its key."""
    images = [image for image in (change.old, change.new) if image is not None]
    return [row_of(change, image) for image in images] or [row_of(change, None)]


def row_of(change: Change, image: Row | None) -> Row:
    """Return what is known of a row by one of its images, by the names of its fields; at least its key."""
    return {**(image or {}), **change.keys}


class _Compiler:
    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def compile(self, node: Any, negated: bool = False, inverted: bool = False) -> Test:
        """
        Return the test of a node that is negated by those around it, and inverted within the nearest XOR.

        SQL has three truths, of which a filter and each operand of Django's XOR count one; there a comparison with NULL
        may be taken for what does not make them true: false, and true where it is inverted.  But under an odd number
        of NOTs Django adds IS NOT NULL, and then it is false.  Both differ within an XOR that is negated only.
        """
        if isinstance(node, tuple):
            name, value = node
            return self._comparison(name, value, null=inverted and not negated)
        if not isinstance(node, Q):
            raise self._error(f"cannot evaluate {node!r} on row images: use lookups of captured columns")
        children = [child for child in node.children if not _says_nothing(child)]
        if not children:
            return _always
        negated, inverted = negated ^ node.negated, inverted ^ node.negated
        # Django dissolves that of one operand.
        if node.connector == Q.XOR and (len(children) > 1 or node.negated):
            inverted = False
        test = _CONNECTED[node.connector]([self.compile(child, negated, inverted) for child in children])
        return (lambda row: not test(row)) if node.negated else test

    def _comparison(self, name: str, value: Any, null: bool) -> Test:
        field, lookup = self._resolve(name)
        if lookup in {"in", "range"} and _is_list(value):
            value = list(value)
        for each in value if isinstance(value, list) else [value]:
            if hasattr(each, "resolve_expression"):
                # Not the repr of a QuerySet, which asks the database.
                shown = type(each).__name__ if hasattr(each, "query") else repr(each)
                raise self._error(f"cannot evaluate {shown} on row images: compare '{field.name}' with a value")
        if lookup == "isnull":
            return self._isnull(field, name, value)
        if value is None:
            if lookup in {"exact", "iexact"}:
                return self._isnull(field, name, True)
            raise self._error(f"compares '{name}' with None: use {field.name}__isnull")
        if lookup == "in" and isinstance(value, list):
            # As in SQL, NULL is not among the values.  None of them at all is false even of NULL.
            value = [each for each in value if each is not None]
            null = null and bool(value)
        make: Callable[..., Holds] = getattr(self, f"_{_METHODS.get(lookup, lookup)}")
        holds, key = make(field, name, lookup, value), field.name

        def test(row: Row) -> bool:
            value = row[key]
            if value is None:
                return null
            try:
                return holds(value)
            except (TypeError, AttributeError):
                return False  # what cannot be hashed, or is of an application's own type, is like no value given

        return test

    def _resolve(self, name: str) -> tuple[AnyField, str]:
        column, *rest = name.split(LOOKUP_SEP)
        field = self._field(column, name)
        if field.is_relation and rest:
            target = field.target_field
            if rest[0] == target.name or (rest[0] == "pk" and target.primary_key):
                del rest[0]
        lookup = LOOKUP_SEP.join(rest) or "exact"
        if lookup in LOOKUPS:
            return field, lookup
        if field.is_relation:
            raise self._error(f"needs '{name}', which is in another table: images have the row's own columns only")
        raise self._error(f"cannot evaluate '{name}' on row images: of a column there are {', '.join(LOOKUPS)}")

    def _isnull(self, field: AnyField, name: str, value: Any) -> Test:
        if not isinstance(value, bool):
            raise TopicValueError(f"{name} takes True or False, not {value!r}")
        key = field.name
        return lambda row: (row[key] is None) is value

    def _exact(self, field: AnyField, name: str, lookup: str, value: Any) -> Holds:
        wanted = condition_value(field, name, value)
        return _is_nan if _is_nan(wanted) else lambda value: bool(value == wanted)

    def _in(self, field: AnyField, name: str, lookup: str, value: Any) -> Holds:
        wanted = frozenset(condition_value(field, name, each) for each in self._list(name, value))
        nan = any(map(_is_nan, wanted))
        return lambda value: value in wanted or (nan and _is_nan(value))

    def _ordered(self, field: AnyField, name: str, lookup: str, value: Any) -> Holds:
        self._require(field, ORDERED, name, "an order that is the same in PostgreSQL and in Python")
        if lookup in {"gte", "lt"} and isinstance(field, models.IntegerField) and isinstance(value, float):
            # As the ORM does it: otherwise a float's fraction is cut off.
            value = math.ceil(value) if math.isfinite(value) else value
        compare, limit = COMPARED[lookup], self._limit(field, name, value)
        return lambda value: compare(_order(value, limit), 0)

    def _range(self, field: AnyField, name: str, lookup: str, value: Any) -> Holds:
        self._require(field, ORDERED, name, "an order that is the same in PostgreSQL and in Python")
        limits = [self._limit(field, name, each) for each in self._list(name, value)]
        if len(limits) != 2:
            raise TopicValueError(f"{name} takes two values, not {value!r}")
        least, most = limits
        return lambda value: _order(value, least) >= 0 and _order(value, most) <= 0

    def _search(self, field: AnyField, name: str, lookup: str, value: Any) -> Holds:
        self._require(field, TEXT, name, "text")
        search, pattern = SEARCHED[lookup], str(value)
        return lambda value: search(value, pattern)

    def _isearch(self, field: AnyField, name: str, lookup: str, value: Any) -> Holds:
        self._require(field, TEXT, name, "text")
        search, pattern = SEARCHED_IN_ANY_CASE[lookup], _upper(str(value))
        return lambda value: search(_upper(value), pattern)

    def _list(self, name: str, value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise TopicValueError(f"{name} takes a list of values, not {value!r}")
        return value

    def _limit(self, field: AnyField, name: str, value: Any) -> Any:
        limit = condition_value(field, name, value)
        if limit is None:
            raise self._error(f"compares '{name}' with None: use {field.name}__isnull")
        return limit

    def _field(self, column: str, name: str) -> AnyField:
        field = self._watch.captured.get(column)
        if field is not None:
            return field
        known = ", ".join(sorted(self._watch.captured)) or "none"
        try:
            other = self._watch.model._meta.get_field(column)
        except FieldDoesNotExist:
            raise self._error(f"names '{name}', which {self._watch.label} does not have (captured: {known})") from None
        if other not in self._watch.local_fields:
            raise self._error(f"needs '{name}', which is not in its own table: images have the row's own columns only")
        raise self._error(
            f"needs '{column}', which the watch of {self._watch.label} does not capture; "
            f"add it to its columns= (captured: {known})"
        )

    def _require(self, field: AnyField, kinds: tuple[type[Any], ...], name: str, what: str) -> None:
        if not isinstance(field.target_field if field.is_relation else field, kinds):
            raise self._error(f"cannot evaluate '{name}' on row images: {type(field).__name__} has not {what}")

    def _error(self, reason: str) -> TopicError:
        return TopicError(f"Topic({self._watch.model.__name__}, filter=...) {reason}")


_METHODS: Mapping[str, str] = {
    **dict.fromkeys(COMPARED, "ordered"),
    **dict.fromkeys(SEARCHED, "search"),
    **dict.fromkeys(SEARCHED_IN_ANY_CASE, "isearch"),
}
"""Which method tests what, where its name is not that of the lookup."""

_CONNECTED: Mapping[str, Callable[[Sequence[Test]], Test]] = {
    Q.AND: lambda tests: lambda row: all(test(row) for test in tests),
    Q.OR: lambda tests: lambda row: any(test(row) for test in tests),
    # Of several, as in Django: an odd number of them.
    Q.XOR: lambda tests: lambda row: sum(test(row) for test in tests) % 2 == 1,
}


def _always(row: Row) -> bool:
    return True


def _upper(text: str) -> str:
    # Letter by letter, as PostgreSQL does it: an ß has no single upper case, and stays.
    return "".join([upper if len(upper := letter.upper()) == 1 else letter for letter in text])


def _says_nothing(node: Any) -> bool:
    """Return whether a node is empty, which the ORM passes over, negated or not."""
    return isinstance(node, Q) and all(map(_says_nothing, node.children))


def _is_list(value: Any) -> bool:
    # A QuerySet is one too, but looking into it would ask the database.
    return isinstance(value, Iterable) and not isinstance(value, str) and not hasattr(value, "resolve_expression")


def _is_nan(value: Any) -> bool:
    return bool(value != value)


def _order(value: Any, limit: Any) -> int:
    """
    Return whether a value comes before a limit (-1), after it (1), or is equal (0), as in PostgreSQL.

    There a NaN equals itself and is greater than all others; and what Python cannot hold (``infinity``, a year BC) is
    text in an image, and lies beyond what it can.
    """
    if isinstance(value, str) and not isinstance(limit, str):
        return -1 if value.startswith("-") or value.endswith("BC") else 1
    if _is_nan(value) or _is_nan(limit):
        return _is_nan(value) - _is_nan(limit)
    return bool(value > limit) - bool(value < limit)
