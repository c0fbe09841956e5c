"""
What is mounted with ``as_asgi(schema=...)``: an ASGI application of one schema.

The schema's documents are parsed and validated once for all that ask for them, so they belong to the mounted
application; each socket, and each request, is an instance of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from functools import update_wrapper
from typing import Any

from graphql import GraphQLSchema

from ..conf import Settings, get_settings
from ..errors import ConfigurationError
from ..hub.outbox import Outbox
from .documents import Documents

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


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


class GraphqlApplication(ABC):
    """Serves one socket or one request; `scope` is its own, and may be written to (``self.scope["user"] = ...``)."""

    scope: dict[str, Any]

    def __init__(self, schema: GraphQLSchema, documents: Documents) -> None:
        self._schema = schema
        self._documents = documents

    @classmethod
    def as_asgi(cls, *, schema: Any) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
        """Return the ASGI application of a ``graphene.Schema``.  Raises ConfigurationError for anything else."""
        graphql_schema = getattr(schema, "graphql_schema", schema)
        if not isinstance(graphql_schema, GraphQLSchema):
            raise ConfigurationError(f"{cls.__name__}.as_asgi(schema=...) takes a graphene.Schema, not {schema!r}")
        documents = Documents(graphql_schema, most_tokens=get_settings().MAX_QUERY_TOKENS)

        async def application(scope: Scope, receive: Receive, send: Send) -> None:
            await cls(graphql_schema, documents)(scope, receive, send)

        return update_wrapper(application, cls, updated=())

    @abstractmethod
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve, as ASGI has it."""
