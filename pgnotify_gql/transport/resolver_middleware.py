"""
Graphene's middleware: functions around every resolver, which sites use to permit, to log and to measure.

What ``GRAPHENE["MIDDLEWARE"]`` of graphene_django's settings names stands around the resolvers of sockets and streams
as it does around those of its view, or whatever is mounted with ``as_asgi(middleware=[...])`` instead.  A result of a
subscription is an execution of its own: its field is resolved, through the middleware, for each change.

Where there is any, executions are left to graphql-core altogether, and take about twice as long.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from graphene_django import settings as graphene_django
from graphene_django.debug import DjangoDebugMiddleware
from graphql import MiddlewareManager

from ..errors import ConfigurationError


def middleware_manager(middleware: Iterable[Any] | MiddlewareManager | None) -> MiddlewareManager | None:
    """
    Return what graphql-core takes: of the settings where None is given, and None where there is no middleware.

    Raises ConfigurationError for what is no middleware.
    """
    if isinstance(middleware, MiddlewareManager):
        return middleware
    found = [*_of_settings()] if middleware is None else [*middleware]
    made = [one() if inspect.isclass(one) else one for one in found]
    for one in made:
        if not (callable(one) or callable(getattr(one, "resolve", None))):
            raise ConfigurationError(
                f"{one!r} is no middleware of graphene: it needs a method resolve(next, root, info, **arguments), "
                "or to be such a function"
            )
    return MiddlewareManager(*made) if made else None


def _of_settings() -> Iterable[Any]:
    # Added by graphene_django itself with DEBUG: it collects the SQL of one request of its view, and would of a socket
    # for as long as that is open.
    return [one for one in graphene_django.graphene_settings.MIDDLEWARE or () if one is not DjangoDebugMiddleware]
