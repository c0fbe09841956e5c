"""
A watch: the declaration that the changes of a model are captured, and with which columns.

A watch is declared while models are being loaded, so it looks at nothing then; its fields are resolved when triggers
are rendered or changes are decoded.  A mistake is reported by the system checks and by ``install_triggers``, and
raises ``WatchError`` wherever else it is met.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from django.core.exceptions import FieldDoesNotExist
from django.db import router
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Field, GeneratedField, Model, Q

from ..errors import WatchError
from ..names import IDENTIFIER_BYTES
from .kinds import ALL_KINDS, Kind
from .loaders import Load
from .row_query import Fetch, row_query
from .values import decoder, is_missing, warn_of_missing

_ABSENT = object()

Columns = Sequence[str] | Literal["__all__"] | None


def column_of(field: Field[Any, Any]) -> str:
    """
    Return the name that PostgreSQL knows the column of a concrete field by.

    As in Django, a ``db_column`` that begins and ends with quotes is taken as quoted already, a quote within a name is
    written twice in either case, and so is a percent sign, which the ORM sends through the driver's placeholders.
    PostgreSQL cuts what is too long.
    """
    assert field.column is not None, "Django's type also covers fields without a column"
    name = field.column
    if name.startswith('"') and name.endswith('"'):
        name = name[1:-1]
    name = name.replace('""', '"').replace("%%", "%")
    return name.encode()[:IDENTIFIER_BYTES].decode(errors="ignore")


def table_of(model: type[Model], connection: BaseDatabaseWrapper) -> str:
    """Return the table of a model as it can stand in SQL: quoted, with its schema if ``db_table`` has one."""
    quoted: str = connection.ops.quote_name(model._meta.db_table)
    return quoted.replace("%%", "%")


@dataclass(frozen=True)
class Watch:
    """
    Captures `kinds` of changes of `model`.

    `columns` names the fields whose old and new values are captured beside the key: none by default, a list of
    field names, or ``"__all__"``, from which `exclude` takes away.  With `update_of` an UPDATE counts only when one of
    these fields changed; with `condition` a change counts only when the row fulfils it, before or after.  `replicated`
    tables are captured row by row, also what logical replication writes.
    """

    model: type[Model]
    columns: tuple[str, ...] | Literal["__all__"] = ()
    kinds: frozenset[Kind] = ALL_KINDS
    exclude: tuple[str, ...] = ()
    update_of: tuple[str, ...] = ()
    condition: Q | None = None
    replicated: bool = False

    @property
    def label(self) -> str:
        """Return the model's label, as in ``conversations.message``."""
        return self.model._meta.label_lower

    @cached_property
    def key_fields(self) -> tuple[Field[Any, Any], ...]:
        """Return the fields of the primary key, in order."""
        return tuple(self.model._meta.pk_fields)

    @cached_property
    def fields(self) -> tuple[Field[Any, Any], ...]:
        """Return the captured fields, the key's not among them unless named.

        Raises WatchError for a name that is no column of the model's table.
        """
        if self.columns != "__all__":
            return tuple(self._field(name) for name in self.columns)
        excluded = {self._field(name) for name in self.exclude}
        # By column: a model as migrations know it has its fields in another order, and is to have the same digest.
        fields = [field for field in self.local_fields if field not in excluded and not _is_virtual(field)]
        return tuple(sorted(fields, key=column_of))

    @cached_property
    def decisive_fields(self) -> tuple[Field[Any, Any], ...]:
        """Return the fields of `update_of`.  Raises WatchError for a name that is no column of the model's table."""
        return tuple(self._field(name) for name in self.update_of)

    @cached_property
    def condition_fields(self) -> tuple[Field[Any, Any], ...]:
        """Return the fields of the model's own table that `condition` names."""
        names = set() if self.condition is None else set(self.condition.referenced_base_fields)
        if "pk" in names:
            names.update(field.name for field in self.key_fields)
        return tuple(field for field in self.local_fields if names & {field.name, field.attname})

    @cached_property
    def local_fields(self) -> tuple[Field[Any, Any], ...]:
        """Return the fields that have a column in the model's own table."""
        # Without those a child model has from its parent: they are in the parent's table.
        concrete = self.model._meta.concrete_model or self.model
        return tuple(concrete._meta.local_concrete_fields)

    @cached_property
    def _columns(self) -> tuple[tuple[Field[Any, Any], str], ...]:
        return tuple((field, column_of(field)) for field in self.fields)

    @cached_property
    def captured(self) -> Mapping[str, Field[Any, Any]]:
        """Return captured fields and key fields by every name an application may use: name, attname, ``pk``."""
        names: dict[str, Field[Any, Any]] = {}
        for field in (*self.key_fields, *self.fields):
            names[field.name] = names[field.attname] = field
        if len(self.key_fields) == 1:
            names["pk"] = self.key_fields[0]
        return names

    def pk(self, key: Sequence[Any]) -> Any:
        """
        Return the primary key as Python value, a tuple when it is composite.

        None when it is not known: the trigger function did not find a column of it, or was made for another key.
        """
        if len(key) != len(self._key_decoders) or None in key:
            warn_of_missing(self.label, ", ".join(column_of(field) for field in self.key_fields))
            return None
        values = tuple(decode(raw) for decode, raw in zip(self._key_decoders, key, strict=True))
        return values[0] if len(values) == 1 else values

    def keys(self, pk: Any) -> Mapping[str, Any]:
        """Return the key's columns by field name."""
        values = (pk,) if len(self.key_fields) == 1 else pk
        return {field.name: value for field, value in zip(self.key_fields, values, strict=True)}

    def values(self, image: Mapping[str, Any]) -> Mapping[str, Any]:
        """
        Return the Python values of a row image, by field name.

        Without columns that are not watched any more, and without those that the trigger function did not find.
        """
        values = {}
        for name, column, in_key, decode in self._decoders:
            raw = image.get(column, _ABSENT)
            if raw is _ABSENT:
                continue
            if (raw is None and in_key) or is_missing(raw):
                warn_of_missing(self.label, column)
                continue
            values[name] = decode(raw)
        return values

    def instance(self, image: Mapping[str, Any]) -> Model | None:
        """
        Return the row of an image as a model instance, or None when the image does not hold every column of the model.

        Those of a model that inherits from another table are not all in the image of one table.
        """
        fields = self._instance_fields
        if not fields:
            return None
        values = self.values(image)
        if any(field.name not in values for field in fields):
            return None
        names = [field.attname for field in fields]
        return self.model.from_db(router.db_for_write(self.model), names, [values[field.name] for field in fields])

    def fetch(self, pk: Any) -> Model | None:
        """
        Return the row as it is now, or None when it is gone.  Asks the database it is written to.

        A replica may not have it yet.
        """
        alias = router.db_for_write(self.model)
        fetch = self._row_queries.get(alias)
        if fetch is None:
            fetch = self._row_queries[alias] = row_query(self.model, alias)
        return fetch(pk)

    def fetch_by(self, alias: str, fetch: Fetch | None) -> None:
        """Fetch the rows of a database in another way from now on (None: by a query, as usual)."""
        if fetch is None:
            self._row_queries.pop(alias, None)
        else:
            self._row_queries[alias] = fetch

    @cached_property
    def _row_queries(self) -> dict[str, Fetch]:
        return {}

    @cached_property
    def _key_decoders(self) -> tuple[Load, ...]:
        return tuple(decoder(field) for field in self.key_fields)

    @cached_property
    def _decoders(self) -> tuple[tuple[str, str, bool, Load], ...]:
        return tuple((field.name, column, field in self.key_fields, decoder(field)) for field, column in self._columns)

    @cached_property
    def _instance_fields(self) -> tuple[Field[Any, Any], ...]:
        # In Django's order; empty when not all of them are captured.
        fields = self.model._meta.concrete_fields
        return tuple(fields) if set(fields) <= set(self.fields) else ()

    def _field(self, name: str) -> Field[Any, Any]:
        try:
            field = self.model._meta.get_field(name)
        except FieldDoesNotExist as error:
            raise WatchError(self._unknown(name)) from error
        if field.many_to_many:
            raise WatchError(
                f"the watch of {self.label} names '{name}', which is a table of its own: "
                f"watch {self.model.__name__}.{name}.through"
            )
        if field not in self.local_fields:
            raise WatchError(self._unknown(name))
        return field

    def _unknown(self, name: str) -> str:
        known = ", ".join(field.name for field in self.local_fields)
        return (
            f"the watch of {self.label} names the column '{name}', which its table does not have: "
            f'use one of {known}, or "__all__"'
        )


def _is_virtual(field: Field[Any, Any]) -> bool:
    # PostgreSQL does not compute virtual columns for triggers.
    return isinstance(field, GeneratedField) and not getattr(field, "db_persist", True)
