"""
What is mounted with ``as_asgi(schema=...)``: an ASGI application of one schema.

The schema's documents are parsed and validated once for all that ask for them, so they belong to the mounted
application; each socket, and each request, is an instance of its own.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from datetime import datetime
from functools import update_wrapper
from typing import Any, ParamSpec, TypeVar

from graphql import GraphQLSchema, MiddlewareManager, validate_schema

from ..conf import Settings, allows_introspection, get_settings
from ..errors import ConfigurationError
from ..hub import Topic
from ..hub.hub import Hub
from ..hub.outbox import Outbox
from .allowed_documents import AllowedDocuments
from .authentication import is_authenticated, own_row, recheck, session_expiry
from .documents import Documents
from .engine import OnOperation
from .frames import Request
from .presence import Leave, Presence
from .protocol import acknowledgement
from .query_limits import QueryLimits
from .resolver_middleware import middleware_manager

logger = logging.getLogger("pgnotify_gql.transport")

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

P = ParamSpec("P")
R = TypeVar("R")


def _overridable(method: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, R | Awaitable[R]]:
    """Tell type checkers that a plain method may override an asynchronous one."""
    return method


def client_outbox(
    send: Callable[[str], Awaitable[None]], settings: Settings, stuck: Callable[[], None], ping: str | None = None
) -> Outbox:
    """Return the outbox of one client, bounded as the settings say; the arguments are those of ``Outbox``."""
    return Outbox(
        send,
        messages=settings.OUTBOX_MESSAGES,
        size=settings.OUTBOX_BYTES,
        patience=settings.SLOW_CLIENT_TIMEOUT,
        stuck=stuck,
        ping=ping,
    )


def _documents(schema: GraphQLSchema, settings: Settings) -> Documents:
    if settings.ALLOWED_DOCUMENTS:
        # The site's own, which are not limited.
        return Documents(schema, allowed=AllowedDocuments.read(settings.ALLOWED_DOCUMENTS))
    return Documents(
        schema,
        most_tokens=settings.MAX_QUERY_TOKENS,
        limits=QueryLimits(
            settings.MAX_QUERY_DEPTH,
            settings.MAX_QUERY_COMPLEXITY,
            settings.MAX_QUERY_ALIASES,
            allows_introspection(),
        ),
    )


class GraphqlApplication(ABC):
    """
    Serves one socket or one request; `scope` is its own, and may be written to (``self.scope["user"] = ...``).

    Subclasses may override what the application decides; each may be a plain method, which runs in a worker thread, or
    an asynchronous one.
    """

    scope: dict[str, Any]

    expires_at: datetime | float | None = None
    """When the authentication ends, for ``on_connect`` to set: an aware datetime, or seconds since 1970, as the ``exp``
    of a token is.  A socket is closed with 4403 then, and a stream ends."""

    @_overridable
    async def on_connect(self, payload: Mapping[str, Any]) -> Mapping[str, Any] | bool | None:
        """
        Decide on a ``connection_init``, whose payload is given, or on a request for a stream, which has none.

        Return False to refuse (4403, or status 403), a dictionary to send with the acknowledgement, or nothing.
        """
        return None

    @_overridable
    async def on_operation(self, request: Request) -> bool | None:
        """
        Decide on an operation before it is run: its `query`, `operation_name`, `variables` and `extensions`.

        Return False, or raise GraphQLError, to refuse it; a socket stays open.
        """
        return None

    def on_recheck(self) -> Any:
        """
        Return whether the user may stay: every AUTH_INTERVAL, and whenever something says that he may have changed.

        This looks at Django's session and at the user in the database, and puts him as he is now into the scope.
        """
        user = recheck(self.scope)
        if user is None:
            return False
        self.scope["user"] = user
        return True

    def depends_on(self) -> Iterable[Topic]:
        """Return topics of which a change has the user looked at: his own row, where the model of users is watched."""
        return own_row(self.scope.get("user"))

    def __init__(
        self, schema: GraphQLSchema, documents: Documents, middleware: MiddlewareManager | None = None
    ) -> None:
        if not isinstance(documents, Documents):
            # A router calls what it was given with scope, receive and send.
            name = type(self).__name__
            raise ConfigurationError(f"{name} is no ASGI application by itself: mount {name}.as_asgi(schema=schema)")
        self._schema = schema
        self._documents = documents
        self._middleware = middleware

    @classmethod
    def as_asgi(
        cls, *, schema: Any, middleware: Iterable[Any] | MiddlewareManager | None = None
    ) -> Callable[[Scope, Receive, Send], Any]:
        """
        Return the ASGI application of a ``graphene.Schema``.  Raises ConfigurationError for anything else.

        `middleware` stands around every resolver, as graphene has it; None: that of ``GRAPHENE["MIDDLEWARE"]``.
        """
        graphql_schema = getattr(schema, "graphql_schema", schema)
        if not isinstance(graphql_schema, GraphQLSchema):
            raise ConfigurationError(f"{cls.__name__}.as_asgi(schema=...) takes a graphene.Schema, not {schema!r}")
        if errors := validate_schema(graphql_schema):
            raise ConfigurationError(f"the schema is not valid: {' '.join(error.message for error in errors)}")
        if graphql_schema.subscription_type is None:
            logger.warning("the schema has no subscriptions: give graphene.Schema the argument subscription=")
        documents = _documents(graphql_schema, cls._limits())
        around = middleware_manager(middleware)

        async def application(scope: Scope, receive: Receive, send: Send) -> None:
            await cls(graphql_schema, documents, around)(scope, receive, send)

        # Typed as returning anything, because path(), whose routes URLRouter takes, is typed for views only.
        return update_wrapper(application, cls, updated=())

    @classmethod
    def _limits(cls) -> Settings:
        """Return the settings that say what clients may ask."""
        return get_settings()

    @property
    def _operation_hook(self) -> OnOperation | None:
        # Where it is ours it has nothing to say, and a call of it would cost each operation.
        own = type(self).on_operation is not GraphqlApplication.on_operation
        return self.on_operation if own else None

    async def _admitted(
        self, hub: Hub, payload: Mapping[str, Any], leave: Leave
    ) -> tuple[Mapping[str, Any] | bool | None, Presence | None]:
        """
        Ask the application, and let the user stay until `leave`; return the decision, and what is to be ended.

        Raises RefusedConnectionError, TypeError for what is no decision, and what ``on_connect`` raises.
        """
        decision: Mapping[str, Any] | bool | None = await hub.executor.call(self.on_connect, payload)
        if decision is not False:
            acknowledgement(decision)
        user = self.scope.get("user")
        if decision is False or not (is_authenticated(user) or self.expires_at is not None):
            return decision, None
        presence = Presence(hub, leave, self.on_recheck, lambda: session_expiry(self.scope))
        try:
            topics = await hub.executor.call(self.depends_on) if is_authenticated(user) else ()
            await presence.begin(user, topics, self.expires_at)
        except BaseException:
            await presence.end()
            raise
        return decision, presence

    @abstractmethod
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve, as ASGI has it."""
