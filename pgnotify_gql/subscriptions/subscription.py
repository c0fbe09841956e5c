"""
``Subscription``: what an application writes for one field of its subscription type.

``subscribe`` says what to wait for, ``next`` what a change means for this subscriber; the query's selection is executed
on what ``next`` returns.  Both run as the subscriber, in a worker thread unless they are asynchronous.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import graphene
from django.db.models import QuerySet
from graphene.types.base import BaseOptions
from graphene.utils.props import props
from graphql import GraphQLResolveInfo

from ..errors import ConfigurationError
from ..hub import Audience, Current, Event, Interest, Topic, current_hub
from .fields import SubscriptionField

if TYPE_CHECKING:
    # graphene is untyped, and whatever were asked of a class that inherits from an untyped one would be there.
    class SubclassWithMeta:
        def __init_subclass__(cls, **options: Any) -> None: ...

        @classmethod
        def __init_subclass_with_meta__(cls, **options: Any) -> None: ...
else:
    from graphene.utils.subclass_with_meta import SubclassWithMeta

STATE_ROWS = 1_000
"""Rows of a query set in memory while it is sent as a state."""


class SubscriptionOptions(BaseOptions):  # type: ignore[misc]  # graphene is untyped
    """What ``class Meta`` and ``class Arguments`` said."""

    output: Any = None
    initial: bool = False
    arguments: dict[str, Any]


class Subscription(SubclassWithMeta):
    """
    A subscription field.

    ::

        class MessagesSubscription(Subscription):
            class Meta:
                output = MessageType

            class Arguments:
                conversation_id = graphene.ID(required=True)

            @classmethod
            def subscribe(cls, info, conversation_id):
                return [Topic(Message, conversation=conversation_id)]

            @classmethod
            def next(cls, change, info, conversation_id):
                return Message.objects.for_user(info.context.user).filter(pk=change.pk).first()

        class Subscriptions(graphene.ObjectType):
            messages = MessagesSubscription.Field()

    `audience` says who may share an execution: by default nobody, every subscriber's is its own.

    With ``initial = True`` in class Meta, ``state`` is asked first: subscribers are sent the current state, then every
    change that is not in it.
    """

    audience: Audience = Audience.NOBODY
    _meta: SubscriptionOptions
    _methods: tuple[str, ...] = ("subscribe", "next", "state", "depends_on")

    @classmethod
    def __init_subclass_with_meta__(
        cls, output: Any = None, description: str | None = None, *, initial: bool = False, **options: Any
    ) -> None:
        if output is None:
            raise ConfigurationError(f"{cls.__name__} needs a class Meta with `output = SomeType`")
        for name in ("subscribe", "next"):
            if getattr(cls, name) is None:
                raise ConfigurationError(f"{cls.__name__} needs a classmethod {name}()")
        for name in cls._methods:
            if inspect.isfunction(inspect.getattr_static(cls, name)):
                raise ConfigurationError(f"{cls.__name__}.{name}() is called on the class: put @classmethod above it")
        cls._check_state(initial)
        meta = SubscriptionOptions(cls)
        meta.name = options.pop("name", None) or cls.__name__
        # The class' own docstring only: that of Subscription describes no field.
        meta.description = description or (inspect.cleandoc(cls.__doc__) if cls.__doc__ else None)
        meta.output = output
        meta.initial = initial
        arguments = getattr(cls, "Arguments", None)
        meta.arguments = props(arguments) if arguments else {}
        cls._meta = meta
        if options:
            raise ConfigurationError(f"{cls.__name__}: class Meta has the unknown option '{next(iter(options))}'")
        super().__init_subclass_with_meta__()

    subscribe: Any = None
    """``subscribe(cls, info, **arguments)`` returns models and topics, or raises GraphQLError."""

    depends_on: Any = None
    """
    ``depends_on(cls, info, **arguments)`` returns models and topics whose changes may end, or alter, the subscription.

    When one of them changes, ``subscribe`` is asked again at once, with the user as he is in the database now; nothing
    is sent until it has answered.  If it raises, that is the end of the subscription; otherwise it goes on from where
    it stood, with the topics that ``subscribe`` returned.
    """

    next: Any = None
    """``next(cls, change, info, **arguments)`` returns the value for this change, or None for nothing to send."""

    state: Any = None
    """
    ``state(cls, info, **arguments)`` returns the values of the current state, each as ``next`` would return it.

    An iterable; a query set is read in parts.  It runs in a read-only transaction of its own.
    """

    @classmethod
    def Field(cls, **options: Any) -> graphene.Field:  # noqa: N802  (graphene's word)
        """Return the field to mount on the subscription type; takes graphene.Field's options."""
        return SubscriptionField(cls, **options)

    @classmethod
    async def resolve_interest(cls, root: Any, info: GraphQLResolveInfo, /, **arguments: Any) -> Interest:
        """Return what the field waits for; graphql-core's subscribe resolver."""
        # Arguments may have any name, that of a parameter on the way included.
        call = current_hub().executor.call
        topics = _topics(await call(partial(cls.subscribe, info, **arguments)))
        dependencies = _topics(await call(partial(cls.depends_on, info, **arguments))) if cls.depends_on else ()
        initial = partial(cls._current, info, arguments) if cls._meta.initial else None
        return Interest(topics, Audience(cls.audience), initial, dependencies=dependencies)

    @classmethod
    def resolve_event(cls, event: Event | Current, info: GraphQLResolveInfo, /, **arguments: Any) -> Any:
        """Return the value of the field for a change, or one of the current state; graphql-core's resolver."""
        if isinstance(event, Current):
            return event.value
        value = cls.next(event.change, info, **arguments)
        return _awaited(event, value) if inspect.isawaitable(value) else _noted(event, value)

    @classmethod
    def _current(cls, info: GraphQLResolveInfo, arguments: Mapping[str, Any], context: Any) -> Iterable[Any]:
        values = cls.state(info._replace(context=context), **arguments)
        return values.iterator(chunk_size=STATE_ROWS) if isinstance(values, QuerySet) else values

    @classmethod
    def _check_state(cls, initial: bool) -> None:
        if initial and cls.state is None:
            raise ConfigurationError(f"{cls.__name__} has `initial = True` and needs a classmethod state()")
        if not initial and cls.state is not None:
            raise ConfigurationError(f"{cls.__name__}.state() is not asked without `initial = True` in class Meta")
        if inspect.iscoroutinefunction(cls.state) or inspect.isasyncgenfunction(cls.state):
            raise ConfigurationError(f"{cls.__name__}.state() must be a plain method: it runs in a transaction")


def _topics(returned: Any) -> tuple[Topic, ...]:
    """Return what ``subscribe`` or ``depends_on`` returned as topics.  Raises TopicError."""
    several = [returned] if isinstance(returned, Topic) or not isinstance(returned, Sequence) else returned
    return tuple(dict.fromkeys(map(Topic.of, several)))


async def _awaited(event: Event, value: Any) -> Any:
    return _noted(event, await value)


def _noted(event: Event, value: Any) -> Any:
    event.skipped = value is None
    return value
