"""
GraphQL over HTTP: what a request asks to run, read and checked.

With GET it is in the parameters ``query``, ``operationName``, ``variables`` and ``extensions`` (the last two as JSON),
with POST the same in a JSON object.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from django.core.exceptions import RequestAborted, SuspiciousOperation

from ..errors import PgnotifyGqlError
from .context import OperationRequest
from .frames import FrameError, Request, decoded
from .mounting import Receive

TEXTS = ("query", "operationName")
OBJECTS = ("variables", "extensions")


class RefusedError(PgnotifyGqlError):
    """A request is answered with a `status` that is no success; `allow` names the methods that might have been."""

    def __init__(self, status: HTTPStatus, message: str, *, allow: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.allow = allow


class HttpRequest(OperationRequest):
    """What came with a GraphQL request over HTTP, as a GET request: whatever it asks for has been read."""


async def asked(http: HttpRequest, receive: Receive, most: int) -> Request:
    """
    Return what a request asks to run, in `most` bytes at most.

    Raises RefusedError, and RequestAborted when the client leaves before it has said so.
    """
    payload = _parameters(http, most) if http.scope["method"] == "GET" else await _body(http, receive, most)
    try:
        return Request.of(payload)
    except FrameError as error:
        raise RefusedError(HTTPStatus.BAD_REQUEST, str(error)) from error


def _parameters(http: HttpRequest, most: int) -> dict[str, Any]:
    if len(http.scope["query_string"]) > most:
        raise RefusedError(HTTPStatus.REQUEST_URI_TOO_LONG, f"A query string may have {most} bytes")
    try:
        given = http.GET
    except SuspiciousOperation as error:
        raise RefusedError(HTTPStatus.BAD_REQUEST, "there are too many parameters") from error
    # A form sends what was left empty as well.
    texts = {name: given[name] for name in TEXTS if given.get(name)}
    if "query" in given and given.get("extensions"):
        # It may name a document of the site's list.
        texts.setdefault("query", "")
    return texts | {name: _json(given[name], f"'{name}'") for name in OBJECTS if given.get(name)}


async def _body(http: HttpRequest, receive: Receive, most: int) -> Mapping[str, Any]:
    if http.content_type != "application/json":
        raise RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send the request as application/json")
    body, more = bytearray(), True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise RequestAborted
        body += event.get("body", b"")
        more = event.get("more_body", False)
        if len(body) > most:
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"A request may have {most} bytes")
    payload = _json(body, "the request")
    if not isinstance(payload, dict):
        raise RefusedError(HTTPStatus.BAD_REQUEST, "the request is not a JSON object")
    return payload


def _json(text: str | bytearray, what: str) -> Any:
    try:
        return decoded(text if isinstance(text, str) else text.decode())
    except (ValueError, RecursionError) as error:
        raise RefusedError(HTTPStatus.BAD_REQUEST, f"{what} is not JSON") from error
