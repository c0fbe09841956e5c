"""
``info.context`` of an operation: a request, as resolvers and permissions written for HTTP expect it.

It is Django's own ``ASGIRequest``, made from the socket's handshake, with ``user``, ``session`` and ``scope``.  Every
execution gets a copy: what one keeps on it (a dataloader, a cache) must not be there for the next change.

Most executions never look at what Django makes of a handshake, above all ``META``, which takes 2 kB of every idle
socket and 60 us of its beginning.  So it is made when it is first asked for, once for all copies.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from django.contrib.auth.models import AnonymousUser
from django.core.handlers.asgi import ASGIRequest

from ..hub import Batch

SCHEMES = {"ws": "http", "wss": "https"}

SHARED_KEYS = frozenset({"type", "asgi", "http_version", "scheme", "path", "raw_path", "root_path", "server"})
"""What a shared request keeps of the scope.  Listed is what may be kept, because nobody can list what must not: tokens
travel in query strings, subprotocols and headers of any name, and every middleware adds its own keys."""

SHARED_HEADERS = frozenset({b"host", b"x-forwarded-host", b"x-forwarded-port", b"x-forwarded-proto"})
"""What absolute addresses are made of."""


class OperationRequest(ASGIRequest):
    """
    The handshake of a socket as a GET request.

    `connection_params` is the payload of connection_init; `batch` is what this execution is done together with.
    """

    def __init__(self, scope: Mapping[str, Any], connection_params: Mapping[str, Any] | None = None) -> None:
        self.scope = dict(scope)
        self._handshake = _Handshake(self.scope)
        self.user = scope.get("user") or AnonymousUser()
        self.session: Any = scope.get("session")
        self.connection_params = dict(connection_params or {})
        self.batch = Batch()

    def copy(self, batch: Batch) -> OperationRequest:
        """Return a request that shares nothing set on this one later, and on which nothing set reaches this one."""
        other = self.__class__.__new__(self.__class__)
        other.__dict__.update(self.__dict__)
        other.batch = batch
        return other

    def of_user(self, user: Any) -> OperationRequest:
        """Return the same request of a user as he is now."""
        other = self.copy(Batch())
        other.user = user
        other.scope = {**self.scope, "user": user}
        return other

    def shared(self, *, keep_user: bool) -> OperationRequest:
        """Return a request for an execution that several sockets share: it has nothing that one of them brought."""
        scope = {key: value for key, value in self.scope.items() if key in SHARED_KEYS}
        scope["headers"] = [(k, v) for k, v in self.scope.get("headers", ()) if k.lower() in SHARED_HEADERS]
        if keep_user:
            scope["user"] = self.user
        return self.__class__(scope)

    if not TYPE_CHECKING:  # which knows the attributes of Django's request, and must go on to miss others

        def __getattr__(self, name: str) -> Any:
            mine = self.__dict__
            # Asked for before there is one, by whatever copies an object.
            if "_handshake" in mine:
                for key, value in mine["_handshake"].attributes.items():
                    mine.setdefault(key, value)
            if name in mine:
                return mine[name]
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'", name=name, obj=self)

    def _get_scheme(self) -> str:
        # Django asks the scope, which is the socket's.
        scheme: str = self.scope.get("scheme", "http")
        return SCHEMES.get(scheme, scheme)


class _Handshake:
    """What Django makes of a scope."""

    def __init__(self, scope: Mapping[str, Any]) -> None:
        self._scope = scope

    @cached_property
    def attributes(self) -> Mapping[str, Any]:
        """Return the attributes of a request, but for the scope."""
        # Django reads the query string as UTF-8 and would fail; a client may send any bytes.
        query = bytes(self._scope.get("query_string", b"")).decode(errors="replace")
        http = {**self._scope, "type": "http", "method": "GET", "query_string": query}
        attributes = dict(ASGIRequest(http, io.BytesIO()).__dict__)
        del attributes["scope"]
        return attributes
