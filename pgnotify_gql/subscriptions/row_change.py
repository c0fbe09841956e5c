"""What subscribers of a model are sent: one change of a row, as a GraphQL type."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Any

import graphene
from django.core.exceptions import FieldDoesNotExist
from graphene.utils.str_converters import to_camel_case
from graphql import GraphQLObjectType, GraphQLResolveInfo, GraphQLSchema

from ..capture.kinds import Kind
from ..hub import Event


class Transition(StrEnum):
    """What a change means for whoever looks at the rows that fulfil some conditions."""

    ENTER = "ENTER"
    """The row is one of them now, and was not before."""

    CHANGE = "CHANGE"
    """It was before, and is."""

    LEAVE = "LEAVE"
    """It is one of them no more, or can be seen no more."""


_DESCRIPTIONS = {
    Kind.INSERT: "A row was inserted.",
    Kind.UPDATE: "A row was updated.",
    Kind.DELETE: "A row was deleted.",
    Kind.TRUNCATE: "All rows were removed at once.",
    Transition.ENTER: "The row is now among those that were asked for.",
    Transition.CHANGE: "The row was among those that were asked for, and still is.",
    Transition.LEAVE: "The row is no longer among those that were asked for, or can be seen no longer.",
}

ChangeKind = graphene.Enum.from_enum(
    Kind, name="ChangeKind", description=lambda value: _DESCRIPTIONS[value] if value else "What happened to a row."
)
ChangeTransition = graphene.Enum.from_enum(
    Transition,
    name="ChangeTransition",
    description=lambda value: _DESCRIPTIONS[value] if value else "What a change means for the rows asked for.",
)


RESERVED = frozenset({"kind", "pk", "changed_fields", "transition", "cursor"})
"""Fields of every such type beside the row."""


@dataclass(frozen=True)
class RowChange:
    """One change of a row for one subscriber; without a `kind` it is a row of the initial state."""

    kind: Kind | None
    pk: Any
    transition: Transition
    instance: Any = None
    changed: Iterable[str] = field(default=())


def row_change_type(name: str, output: Any, object_field: str) -> Any:
    """Return the GraphQL type of a RowChange whose row is of the type `output`."""

    def resolve_pk(change: RowChange, info: GraphQLResolveInfo) -> str | None:
        # Of several columns: a list, in the order of the key.
        return json.dumps(change.pk, default=str) if isinstance(change.pk, tuple) else change.pk

    def resolve_object(change: RowChange, info: GraphQLResolveInfo) -> Any:
        return change.instance

    def resolve_changed_fields(change: RowChange, info: GraphQLResolveInfo) -> list[str]:
        names = _graphql_names(info.schema, output)
        return sorted(names[column] for column in change.changed if column in names)

    def resolve_cursor(change: RowChange, info: GraphQLResolveInfo) -> str | None:
        return info.root_value.cursor.token if isinstance(info.root_value, Event) else None

    fields = {
        "kind": graphene.Field(ChangeKind, description="What happened; null for a row of the initial state."),
        "pk": graphene.ID(description="The row's primary key; null when all rows were removed at once."),
        object_field: graphene.Field(output, description="The row as it is now; null when it has left."),
        "changed_fields": graphene.List(
            graphene.NonNull(graphene.String), required=True, description="Fields of the row whose values have changed."
        ),
        "transition": graphene.Field(ChangeTransition, required=True),
        "cursor": graphene.String(description="Where to go on behind this change; null within the initial state."),
        "resolve_pk": staticmethod(resolve_pk),
        f"resolve_{object_field}": staticmethod(resolve_object),
        "resolve_changed_fields": staticmethod(resolve_changed_fields),
        "resolve_cursor": staticmethod(resolve_cursor),
        "__doc__": f"One committed change of a {output._meta.name}.",
    }
    return type(name, (graphene.ObjectType,), fields)


@lru_cache(maxsize=256)
def _graphql_names(schema: GraphQLSchema, output: Any) -> dict[str, str]:
    """
    Return the names that columns of a model have in its GraphQL type.

    Columns that the type does not show are not among them: that they have changed is nobody's business either.
    """
    known = schema.get_type(output._meta.name)
    shown = known.fields if isinstance(known, GraphQLObjectType) else {}
    names: dict[str, str] = {}
    for name, mounted in output._meta.fields.items():
        called = next(
            (each for each in (getattr(mounted, "name", None), to_camel_case(name), name) if each in shown), None
        )
        # A foreign key may be shown by its column's name as well. What is no column has not changed.
        with suppress(FieldDoesNotExist):
            if called is not None:
                names[output._meta.model._meta.get_field(name).name] = called
    return names
