"""
``ModelSubscription``: from a model to a subscription field, without a resolver.

What a change means for a subscriber is told from the row's images and the field's arguments: it enters what was asked
for, changes in it, or leaves.  What he is sent of the row is what the output type's ``get_queryset`` finds for him,
asked anew for every change, with one query for all changes of a batch.

Nobody is told of a row that he could not see.  A row that has left, or is hidden now, cannot be asked for any more, so
``can_see`` decides from the captured columns whether the subscriber could see it as it was; where there is no such
decision it is withheld.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import graphene
from django.db import DataError, router
from django.db.models import Manager, Model, Q, QuerySet
from django.db.models.constants import LOOKUP_SEP
from graphene.utils.str_converters import to_snake_case
from graphene_django import DjangoObjectType
from graphene_django.registry import get_global_registry
from graphql import GraphQLResolveInfo

from ..capture.kinds import ALL_KINDS, Kind
from ..capture.registry import registry
from ..errors import ConfigurationError, TopicError
from ..hub import Topic
from ..hub.image_filter import ImageFilter, row_of
from ..journal import Change
from .arguments import TopicArgument, topic_arguments
from .row_change import RESERVED, ChangeKind, RowChange, Transition, row_change_type
from .subscription import STATE_ROWS, Subscription

REMEMBERED_TOPICS = 1_024
"""Topics of all fields with all arguments that are kept: to make one takes longer than to execute for it."""

Filter = Q | Callable[..., Q] | None


@dataclass(frozen=True)
class ModelOptions:
    """What ``class Meta`` of a model subscription said."""

    model: type[Model]
    output: Any
    arguments: tuple[TopicArgument, ...]
    kinds: frozenset[Kind]
    filter: Filter
    select_related: tuple[str, ...]
    prefetch_related: tuple[Any, ...]

    @property
    def asks(self) -> bool:
        """Return whether rows have to be asked for as the subscriber; otherwise one is the same for all."""
        # A static method has no function behind it.
        own = getattr(self.output.get_queryset, "__func__", None) is not DjangoObjectType.get_queryset.__func__
        # Nor is one the same where the model has its say in which rows there are, as for those deleted softly.
        managed = type(self.model._default_manager).get_queryset is not Manager.get_queryset
        return own or managed or bool(self.select_related or self.prefetch_related)


class ModelSubscription(Subscription, abstract=True):
    """
    The changes of a model's rows, as a subscription field.

    ::

        class MessageChanges(ModelSubscription):
            class Meta:
                output = MessageType                  # or model = Message, of which there is a DjangoObjectType
                required = ["conversation"]           # columns that are arguments: conversation: ID!
                optional = ["author__in"]             # and others that may be left out: authorIn: [ID!]
                filter = Q(draft=False)               # what every row must fulfil

            @classmethod
            def can_see(cls, change, info):           # DELETE and LEAVE: could the subscriber see the row as it was?
                return is_member(info.context.user, change.old["conversation"])

        class Subscriptions(graphene.ObjectType):
            message_changes = MessageChanges.Field()

    It is asked as ``messageChanges(conversation: 3, kinds: [INSERT]) { kind pk message { text } changedFields
    transition cursor }``.  Further options of class Meta: `kinds`, of which kind changes are at most; `object_field`,
    the name of the row's field (by default the model's); `select_related` and `prefetch_related`, for what resolvers
    of the row will need; `initial`, to send the rows that there are first.

    `filter` may also be a function of the arguments that returns a Q; what depends on the subscriber belongs into the
    output type's ``get_queryset``.  Arguments and filter name captured columns.  Raises ConfigurationError.
    """

    can_see: Any = None
    """
    ``can_see(cls, change, info)`` returns whether the subscriber could see the row as it was, from ``change.old``.

    Asked for a row that was deleted, has left, or is hidden now.  Without it nobody is told of those.
    """

    Arguments: Any
    _rows: ModelOptions
    _methods = (*Subscription._methods, "can_see")

    @classmethod
    def __init_subclass_with_meta__(
        cls,
        output: Any = None,
        description: str | None = None,
        *,
        model: type[Model] | None = None,
        required: Iterable[str] = (),
        optional: Iterable[str] = (),
        kinds: Iterable[Kind | str] | None = None,
        filter: Filter = None,  # noqa: A002  (the ORM's word)
        object_field: str | None = None,
        select_related: Iterable[str] = (),
        prefetch_related: Iterable[Any] = (),
        **options: Any,
    ) -> None:
        output = _output_of(cls, model, output)
        model = output._meta.model
        if "Arguments" in vars(cls):
            raise ConfigurationError(f"{cls.__name__}: arguments are named in class Meta, as `required` or `optional`")
        if inspect.iscoroutinefunction(cls.can_see):
            raise ConfigurationError(f"{cls.__name__}.can_see() must be a plain method")
        try:
            arguments = tuple(topic_arguments(model, output, required, optional))
        except ConfigurationError as error:
            raise ConfigurationError(f"{cls.__name__}: {error}") from error
        wanted = _kinds(cls, kinds)
        cls._rows = ModelOptions(
            model, output, arguments, wanted, filter, tuple(select_related), tuple(prefetch_related)
        )
        cls.Arguments = _arguments_class(arguments)
        named = object_field or to_snake_case(model.__name__)
        if named in RESERVED:
            raise ConfigurationError(f"{cls.__name__}: its type has a field '{named}' already: give `object_field`")
        payload = row_change_type(f"{cls.__name__}Payload", output, named)
        super().__init_subclass_with_meta__(payload, description, **options)

    @classmethod
    def subscribe(cls, info: GraphQLResolveInfo, /, *, kinds: Any = None, **arguments: Any) -> list[Topic]:
        """Return the topic of the arguments."""
        return [cls._topic(info, arguments)]

    @classmethod
    def next(
        cls, change: Change, info: GraphQLResolveInfo, /, *, kinds: Collection[Kind] | None = None, **arguments: Any
    ) -> RowChange | None:
        """Return what the subscriber is told of a change, or None."""
        if change.kind not in cls._rows.kinds or (kinds is not None and change.kind not in kinds):
            return None
        if change.kind is Kind.TRUNCATE:
            return RowChange(change.kind, None, Transition.LEAVE)
        transition = _transition(cls._topic(info, arguments), change)
        if transition is None:
            return None
        if transition is not Transition.LEAVE:
            row = cls._visible(change, info)
            if row is not None:
                return RowChange(change.kind, change.pk, transition, row, change.changed)
            # Hidden from this subscriber, or gone meanwhile.
            if transition is Transition.ENTER:
                return None
        if cls.can_see is None or not cls.can_see(change, info):
            return None
        return RowChange(change.kind, change.pk, Transition.LEAVE)

    @classmethod
    def state(cls, info: GraphQLResolveInfo, /, *, kinds: Any = None, **arguments: Any) -> Iterator[RowChange]:
        """Yield the rows that the subscriber can see."""
        conditions = cls._conditions(info, arguments)
        rows = cls._queryset(info, **conditions).filter(_condition(cls._rows.filter, arguments) or Q())
        for row in rows.iterator(chunk_size=STATE_ROWS):
            yield RowChange(None, row.pk, Transition.ENTER, row)

    @classmethod
    def mistakes(cls) -> Iterator[str]:
        """Yield a sentence for each thing that keeps it from working.  Asked once models are loaded."""
        options = cls._rows
        label = options.model._meta.label_lower
        watch = registry.get(label)
        if watch is None:
            yield f"{label} is not watched: call notify_on_model_changes({options.model.__name__})"
            return
        for argument in options.arguments:
            name = argument.condition.partition(LOOKUP_SEP)[0]
            if name not in watch.captured:
                yield f"the watch of {label} does not capture '{name}', which is an argument: add it to its columns="
        if isinstance(options.filter, Q):
            try:
                ImageFilter(watch, options.filter)
            except TopicError as error:
                yield str(error)

    @classmethod
    def withholds(cls) -> bool:
        """Return whether nobody is told of rows that have gone, for want of a can_see()."""
        return cls.can_see is None and not cls._rows.kinds.isdisjoint({Kind.UPDATE, Kind.DELETE})

    @classmethod
    def _check_state(cls, initial: bool) -> None:
        """Accept both: the state is ours."""

    @classmethod
    def _visible(cls, change: Change, info: GraphQLResolveInfo) -> Any:
        """Return the row as the subscriber sees it, or None."""
        if change.pk is None or not cls._rows.asks:
            return _copy(change.instance)
        batch = info.context.batch
        rows: dict[Any, Any] = batch.once((cls, "rows"), lambda: cls._fetched_together(batch.changes, info))
        if change.pk not in rows:
            rows.update(cls._fetched([change], info))
        return rows[change.pk]

    @classmethod
    def _fetched_together(cls, changes: Sequence[Change], info: GraphQLResolveInfo) -> dict[Any, Any]:
        try:
            return cls._fetched(changes, info)
        except (DataError, ValueError, ArithmeticError):
            # One of them has a value that Python cannot hold: each by itself, then, lest all of them fail.
            return {}

    @classmethod
    def _fetched(cls, changes: Sequence[Change], info: GraphQLResolveInfo) -> dict[Any, Any]:
        """Return the rows of all changes by key, with None for those that the subscriber cannot see."""
        keys = {
            change.pk: None for change in changes if change.kind in {Kind.INSERT, Kind.UPDATE} and change.pk is not None
        }
        return keys | {row.pk: row for row in cls._queryset(info, pk__in=list(keys))} if keys else {}

    @classmethod
    def _queryset(cls, info: GraphQLResolveInfo, /, **conditions: Any) -> QuerySet[Any]:
        options = cls._rows
        # Where it is written: a replica may not have the change yet.
        rows = options.model._default_manager.using(router.db_for_write(options.model)).filter(**conditions)
        if options.select_related:
            rows = rows.select_related(*options.select_related)
        found: QuerySet[Any] = options.output.get_queryset(rows.prefetch_related(*options.prefetch_related), info)
        return found

    @classmethod
    def _topic(cls, info: GraphQLResolveInfo, arguments: Mapping[str, Any]) -> Topic:
        def topic() -> Topic:
            condition = _condition(cls._rows.filter, arguments)
            return _topic(cls._rows.model, condition, tuple(cls._conditions(info, arguments).items()))

        made: Topic = info.context.batch.once((cls, "topic"), topic)
        return made

    @classmethod
    def _conditions(cls, info: GraphQLResolveInfo, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return {
            argument.condition: argument.value(arguments[argument.name], info)
            for argument in cls._rows.arguments
            if arguments.get(argument.name) is not None
        }


@lru_cache(maxsize=REMEMBERED_TOPICS)
def _topic(model: type[Model], condition: Q | None, conditions: tuple[tuple[str, Any], ...]) -> Topic:
    # A column may be named as a parameter is, but for its lookup.
    named = {name if LOOKUP_SEP in name else f"{name}{LOOKUP_SEP}exact": value for name, value in conditions}
    return Topic(model, filter=condition, **named)


def _condition(condition: Filter, arguments: Mapping[str, Any]) -> Q | None:
    return condition(**arguments) if callable(condition) and not isinstance(condition, Q) else condition


def _transition(topic: Topic, change: Change) -> Transition | None:
    """
    Return what a change means for those who wait for a topic, or None if nothing.

    None as well where an older trigger has not captured a column that decides, of which the watch has warned: nobody
    is sent a row of which it is not known whether he has asked for it.
    """
    try:
        was = change.kind is not Kind.INSERT and topic.matches(row_of(change, change.old))
        is_now = change.kind is not Kind.DELETE and topic.matches(row_of(change, change.new))
    except KeyError:
        return None
    if is_now:
        return Transition.CHANGE if was else Transition.ENTER
    return Transition.LEAVE if was else None


def _copy(row: Any) -> Any:
    """Return a row for one subscriber: what his resolvers keep on it, another's must not find."""
    if row is None:
        return None
    other = row.__class__.__new__(row.__class__)
    other.__dict__.update(row.__dict__)
    other._state = copy(row._state)
    other._state.fields_cache = dict(row._state.fields_cache)
    return other


def _output_of(cls: type, model: Any, output: Any) -> Any:
    """Return the output type that class Meta names, or that of its model.  Raises ConfigurationError."""
    if output is None and model is None:
        raise ConfigurationError(f"{cls.__name__} needs a class Meta with `output = SomeDjangoObjectType` or `model`")
    if output is None:
        output = get_global_registry().get_type_for_model(model)
        if output is None:
            raise ConfigurationError(
                f"{cls.__name__}: there is no DjangoObjectType of {model.__name__}: "
                "define one before it, or name it as `output`"
            )
    is_type: bool = isinstance(output, type) and issubclass(output, DjangoObjectType)
    if not is_type:
        raise ConfigurationError(f"{cls.__name__}: output is to be a DjangoObjectType, not {output!r}")
    if model is not None and output._meta.model is not model:
        raise ConfigurationError(f"{cls.__name__}: {output.__name__} is not of the model {model.__name__}")
    return output


def _kinds(cls: type, kinds: Iterable[Kind | str] | None) -> frozenset[Kind]:
    try:
        # A single one is a string too.
        return ALL_KINDS if kinds is None else frozenset(map(Kind, [kinds] if isinstance(kinds, str) else kinds))
    except ValueError as error:
        raise ConfigurationError(f"{cls.__name__}: {error}; use some of {', '.join(Kind)}") from error


def _arguments_class(arguments: Iterable[TopicArgument]) -> type:
    mounted = {argument.name: argument.mounted() for argument in arguments}
    kinds = graphene.Argument(graphene.List(graphene.NonNull(ChangeKind)), description="Changes of these kinds only.")
    return type("Arguments", (), {**mounted, "kinds": kinds})
