"""
Arguments of a subscription field that stand for conditions of its topic, typed as the model's columns are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import graphene
from django.core.exceptions import FieldDoesNotExist
from django.db.models import Model
from django.db.models.constants import LOOKUP_SEP
from graphene.relay.id_type import DefaultGlobalIDType
from graphene.relay.node import AbstractNode
from graphene.types.unmountedtype import UnmountedType
from graphene_django.converter import convert_django_field_with_choices
from graphene_django.registry import get_global_registry
from graphql import GraphQLError, GraphQLResolveInfo

from ..errors import ConfigurationError

LOOKUPS = ("", "exact", "in")


@dataclass(frozen=True)
class TopicArgument:
    """
    One argument: `condition` is that of the topic, as in ``author__in``; `node` the type whose global ids it takes.

    Named as the condition is, with a single underscore: ``author_in``, in GraphQL ``authorIn``.
    """

    condition: str
    type: Any
    node: Any = None
    required: bool = False

    @property
    def name(self) -> str:
        """Return its name in Python."""
        return self.condition.replace(LOOKUP_SEP, "_")

    @property
    def is_list(self) -> bool:
        """Return whether it takes several values."""
        return self.condition.endswith(f"{LOOKUP_SEP}in")

    def mounted(self) -> graphene.Argument:
        """Return what graphene makes the argument of."""
        wanted = graphene.List(graphene.NonNull(self.type)) if self.is_list else self.type
        return graphene.Argument(wanted, required=self.required)

    def value(self, given: Any, info: GraphQLResolveInfo) -> Any:
        """Return what the topic is to be conditioned on.  Raises GraphQLError for an id that is not of the node."""
        return tuple(self._one(each, info) for each in given) if self.is_list else self._one(given, info)

    def _one(self, given: Any, info: GraphQLResolveInfo) -> Any:
        if self.node is not None:
            return _key_of(self.node, self.name, given, info)
        return given.value if isinstance(given, Enum) else given


def topic_arguments(
    model: type[Model], output: Any, required: Iterable[str], optional: Iterable[str]
) -> Iterator[TopicArgument]:
    """
    Yield the arguments for conditions on columns of a model, whose GraphQL type is `output`.

    Raises ConfigurationError for a name that is no column of the model, and for a column without a GraphQL type.
    """
    known = {"kinds"}
    for option, conditions in (("required", required), ("optional", optional)):
        if isinstance(conditions, str):
            raise ConfigurationError(f"{option}='{conditions}': give a list of columns")
        for condition in conditions:
            argument = _argument(model, output, condition, is_required=option == "required")
            if argument.name in known:
                raise ConfigurationError(f"there is an argument '{argument.name}' already: leave '{condition}' out")
            known.add(argument.name)
            yield argument


def _argument(model: type[Model], output: Any, condition: str, *, is_required: bool) -> TopicArgument:
    name, _, lookup = condition.partition(LOOKUP_SEP)
    try:
        field: Any = model._meta.pk if name == "pk" else model._meta.get_field(name)
    except FieldDoesNotExist as error:
        raise ConfigurationError(_no_column(model, name)) from error
    if not getattr(field, "column", None) or field.many_to_many:
        # A key of several columns, or in another table.
        raise ConfigurationError(_no_column(model, name))
    if lookup not in LOOKUPS:
        raise ConfigurationError(
            f"'{condition}' is no argument: there are {name} and {name}__in; for other conditions write a filter"
        )
    if field.is_relation or field.primary_key:
        of = get_global_registry().get_type_for_model(field.related_model) if field.is_relation else output
        return TopicArgument(condition, graphene.ID, of if of and _node_of(of) else None, is_required)
    return TopicArgument(condition, _type_of(field), None, is_required)


def _no_column(model: type[Model], name: str) -> str:
    columns = ", ".join(field.name for field in model._meta.concrete_fields if field.column)
    return f"{model.__name__} has no column '{name}' to make an argument of (columns: {columns})"


def _type_of(field: Any) -> Any:
    try:
        converted = convert_django_field_with_choices(field, get_global_registry())
    except Exception as error:  # graphene-django has no class for it
        raise ConfigurationError(f"{field.model.__name__}.{field.name} cannot be an argument: {error}") from error
    found = converted.get_type() if isinstance(converted, UnmountedType) else getattr(converted, "type", None)
    if isinstance(found, graphene.NonNull):
        found = found.of_type
    is_scalar = isinstance(found, type) and issubclass(found, (graphene.Scalar, graphene.Enum))
    # JSON is a scalar of GraphQL, but nothing that a topic could be looked up by.
    is_json = isinstance(found, type) and issubclass(found, graphene.JSONString)
    if not is_scalar or is_json:
        raise ConfigurationError(f"{field.model.__name__}.{field.name} cannot be an argument: it is no scalar")
    return found


def _node_of(output: Any) -> Any:
    """Return the interface by which a type is a relay node, or None."""
    return next((each for each in output._meta.interfaces if issubclass(each, AbstractNode)), None)


def _key_of(output: Any, name: str, given: Any, info: GraphQLResolveInfo) -> Any:
    node = _node_of(output)
    try:
        named, key = node.resolve_global_id(info, given)
    except Exception as error:
        raise GraphQLError(f"{name}: '{given}' is no global id") from error
    # Others than these do not tell of which type they are.
    if issubclass(node._meta.global_id_type, DefaultGlobalIDType) and named != output._meta.name:
        raise GraphQLError(f"{name}: '{given}' is no global id of {output._meta.name}")
    return key
