"""
``info.context`` of an operation: a request, as resolvers and permissions written for HTTP expect it.

It is Django's own ``ASGIRequest``, made from the socket's handshake, with ``user``, ``session`` and ``scope``.  Every
execution gets a copy: what one keeps on it (a dataloader, a cache) must not be there for the next change.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from django.contrib.auth.models import AnonymousUser
from django.core.handlers.asgi import ASGIRequest

SCHEMES = {"ws": "http", "wss": "https"}

PRIVATE_HEADERS = frozenset({b"cookie", b"authorization"})


class OperationRequest(ASGIRequest):
    """
    The handshake of a socket as a GET request.

    `connection_params` is the payload of connection_init.
    """

    def __init__(self, scope: Mapping[str, Any], connection_params: Mapping[str, Any] | None = None) -> None:
        http = {**scope, "type": "http", "method": "GET", "scheme": SCHEMES.get(scope.get("scheme", "ws"), "http")}
        super().__init__(http, io.BytesIO())
        self.scope = dict(scope)
        self.user = scope.get("user") or AnonymousUser()
        self.session: Any = scope.get("session")
        self.connection_params = dict(connection_params or {})

    def copy(self) -> OperationRequest:
        """Return a request that shares nothing set on this one later, and on which nothing set reaches this one."""
        other = self.__class__.__new__(self.__class__)
        other.__dict__.update(self.__dict__)
        return other

    def shared(self, *, keep_user: bool) -> OperationRequest:
        """Return a request for an execution that several sockets share: no session, cookies, headers of one of them."""
        scope = {key: value for key, value in self.scope.items() if key not in {"session", "cookies", "user"}}
        scope["headers"] = [(k, v) for k, v in scope.get("headers", ()) if k.lower() not in PRIVATE_HEADERS]
        if keep_user:
            scope["user"] = self.user
        return self.__class__(scope)
