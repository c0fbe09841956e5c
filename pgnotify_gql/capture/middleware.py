"""
The context of HTTP requests: who asked, and by which request a change came.

A request costs nothing until it writes: then its context is asked for, once, and put into the transaction of the
write (`attribution` tells how, and what is not attributed).  Inside the view, `change_context` adds to it.

Outside the request, and so not attributed: what a middleware further out writes (sessions are saved there), the body
of a streaming response, which is made after the middleware has returned, and what other threads do that the view
starts by itself.  A task that it starts keeps the context.

Queries and mutations over sockets and streams do not come through middleware; what answers them says `attributing`.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.module_loading import import_string

from .attribution import attach, attributed_to
from .setting import Context, Json, encode

__all__ = ["ChangeContextMiddleware", "Context"]

# Visible ASCII without spaces, as the ids of proxies and clients are; the length bounds what a stranger may have
# repeated in the journal.
_SANE_ID = re.compile(r"[!-~]{1,128}")

_REQUEST_ID = "_pgnotify_gql_request_id"


class ChangeContextMiddleware:
    """
    Attaches `request_id` and `user` to the changes that a request makes.

    Put it after AuthenticationMiddleware, if there is one.  A subclass that overrides `context` attaches other things.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)
        attach()

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if self._is_async:
            return self._respond_async(request)
        with attributed_to(_RequestContext(self, request)):
            response: HttpResponseBase = self.get_response(request)
            return response

    async def _respond_async(self, request: HttpRequest) -> HttpResponseBase:
        with attributed_to(_RequestContext(self, request)):
            response: HttpResponseBase = await self.get_response(request)
            return response

    def context(self, request: HttpRequest) -> Context:
        """
        Return the context of a request: a JSON object.

        `request_id` is what the client or a proxy sent as X-Request-ID, or a new one; it is a hint, not a proof.
        `user` is the primary key, a string unless it is a number, and is left out of an anonymous request.

        Called in sync code, at the first statement that may write, and again after `request.user` has become another
        object (a login).  It may query.  What it raises, the statement raises, and so TypeError and ValueError when its
        result is no JSON object, or too long.
        """
        found: dict[str, Json] = {"request_id": _request_id(request)}
        user = getattr(request, "user", None)
        if user is not None and user.is_authenticated:
            found["user"] = user.pk if isinstance(user.pk, int | str) else str(user.pk)
        return found


@contextmanager
def attributing(request: HttpRequest) -> Iterator[None]:
    """Attribute what is written inside as the middleware would, if the settings name it."""
    middleware = _of_settings()
    if middleware is None:
        yield
        return
    with attributed_to(_RequestContext(middleware, request)):
        yield


def _of_settings() -> ChangeContextMiddleware | None:
    for found in map(import_string, settings.MIDDLEWARE):
        if isinstance(found, type) and issubclass(found, ChangeContextMiddleware):
            return found(_nowhere)
    return None


def _nowhere(request: HttpRequest) -> HttpResponseBase:
    raise AssertionError("nothing comes through this one")


class _RequestContext:
    """What the middleware says about one request, remembered."""

    def __init__(self, middleware: ChangeContextMiddleware, request: HttpRequest) -> None:
        self._middleware = middleware
        self._request = request
        self._user: object = None
        self._context: Context | None = None

    def __call__(self) -> Context:
        # Lazy, so that comparing it asks nobody.
        user = getattr(self._request, "user", None)
        if self._context is None or user is not self._user:
            context = self._middleware.context(self._request)
            encode(context)
            self._context, self._user = context, user
        return self._context


def _request_id(request: HttpRequest) -> str:
    given = request.headers.get("X-Request-ID", "")
    if _SANE_ID.fullmatch(given):
        return given
    made: str = vars(request).setdefault(_REQUEST_ID, uuid4().hex)
    return made
