"""
The consumer of GraphQL over SSE, in distinct connections mode: a request is one operation, its answer a stream of
events.

It is an ASGI application for HTTP, and mounted like the consumer of sockets; who asks is what Channels' middleware puts
into the scope.  Which pages may ask is told in ``cross_site``.

A result is an event ``next``, whose id is the result's cursor, where it has one.  When a stream ends without
``complete``, a browser's ``EventSource`` comes back by itself and sends the last id as ``Last-Event-ID``: it is given
what it missed, and then the live stream.  So to cut a stream does no harm, and that is the answer to whatever is wrong
with a client or a server: one that does not read for too long, and one that stops.

On failure of the operation its error is the last result, and the stream is complete; on failure of the connection the
operation ends.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from http import HTTPStatus

from django.core.exceptions import DisallowedHost, RequestAborted
from graphql import OperationType, get_operation_ast

from ..conf import Settings, get_settings
from ..errors import ClientStuckError, ConfigurationError
from ..hub import open_hub
from .client_outbox import ClientOutbox
from .close_codes import CloseCode
from .cross_site import Pages
from .draining import visits
from .engine import GraphqlEngine
from .frames import Request
from .graphql_over_http import HttpRequest, RefusedError, asked
from .mounting import GraphqlApplication, Receive, Scope, Send
from .protocol import RequestError

logger = logging.getLogger("pgnotify_gql.transport")

MEDIA_TYPE = "text/event-stream"

METHODS = "GET, POST"

KEEPALIVE = 12.0
"""Seconds between two comments, as the protocol has it: proxies close what is silent for a minute, some for 15 s."""

RETRY = (1_000, 3_000)
"""Milliseconds after which an EventSource whose stream was cut comes back: one time for each, so that those whose
server stopped do not all come at once."""

RETRY_SOON = 100
"""Milliseconds, when nothing is wrong with the server."""

COMPLETE = "event: complete\ndata:\n\n"
"""Without the line of data an EventSource would not tell the page."""

COMMENT = ":\n\n"


class GraphqlSseConsumer(GraphqlApplication):
    """
    Serves a graphene schema over server-sent events.

    Mount it with ``GraphqlSseConsumer.as_asgi(schema=schema)``, inside Channels' ``AuthMiddlewareStack``.
    """

    allowed_origins: Sequence[str] | None = None
    """Origins of pages that may ask, as Channels' ``OriginValidator`` takes them.  None: ALLOWED_HOSTS."""

    keepalive = KEEPALIVE

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, as ASGI has it."""
        if scope["type"] != "http":
            raise ValueError(f"{type(self).__name__} serves HTTP: mount it under 'http', not {scope['type']}")
        self.scope = dict(scope)
        try:
            settings = get_settings()
            http = HttpRequest(self.scope)
            self._require_acceptable(http)
            request = await asked(http, receive, settings.MAX_MESSAGE_BYTES)
            self._require_runnable(request)
            with visits().begun() as visit:
                async with open_hub() as hub:
                    stream = _EventStream(send, settings, server_waits=_server_waits(scope))
                    engine = GraphqlEngine(self._schema, self._documents, hub, lambda: http)
                    visit.attach(stream)
                    await self._serve(engine, _resumed(request, http), stream, receive)
        except RefusedError as refused:
            await _refuse(send, refused)
        except ConfigurationError as error:
            logger.error("streams cannot be served: %s", error)
            await _refuse(send, RefusedError(HTTPStatus.INTERNAL_SERVER_ERROR, "Internal server error"))
        except RequestAborted:
            pass  # by the client, who waits for no answer

    def _require_acceptable(self, http: HttpRequest) -> None:
        """Look at everything but what is asked.  Raises RefusedError."""
        if self.scope["method"] not in METHODS.split(", "):
            raise RefusedError(HTTPStatus.METHOD_NOT_ALLOWED, f"ask with {METHODS}", allow=METHODS)
        try:
            # As Django's own views have it: a page of a host that somebody points here would be of our origin.
            http.get_host()
        except DisallowedHost as error:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "the host is not one of this site") from error
        if not Pages(self.allowed_origins).may_ask(http.headers.get("Origin"), http.headers.get("Sec-Fetch-Site")):
            raise RefusedError(HTTPStatus.FORBIDDEN, "a page of this origin may not ask")
        # By name: a browser accepts */* for images and scripts, and what they ask for must not be run.
        if not any(f"{accepted.main_type}/{accepted.sub_type}" == MEDIA_TYPE for accepted in http.accepted_types):
            raise RefusedError(HTTPStatus.NOT_ACCEPTABLE, f"ask with 'Accept: {MEDIA_TYPE}'")

    def _require_runnable(self, request: Request) -> None:
        """Refuse a mutation over GET, which a link could make a browser ask for.  Raises RefusedError."""
        if self.scope["method"] != "GET":
            return
        document = self._documents.get(request.query)
        operation = None if document.node is None else get_operation_ast(document.node, request.operation_name)
        if operation is not None and operation.operation is OperationType.MUTATION:
            raise RefusedError(HTTPStatus.METHOD_NOT_ALLOWED, "a mutation needs POST", allow="POST")

    async def _serve(self, engine: GraphqlEngine, request: Request, stream: _EventStream, receive: Receive) -> None:
        """Run until everything is written, or the client is gone; and leave nothing behind."""
        ends = [
            asyncio.create_task(stream.run(), name="pgnotify_gql stream"),
            asyncio.create_task(_gone(receive), name="pgnotify_gql stream's client"),
        ]
        tasks = [
            *ends,
            asyncio.create_task(_operate(engine, request, stream), name="pgnotify_gql stream's operation"),
            asyncio.create_task(self._keep_alive(stream), name="pgnotify_gql stream's keep-alive"),
        ]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep_alive(self, stream: _EventStream) -> None:
        while True:
            await asyncio.sleep(self.keepalive)
            stream.keep_alive()


class _EventStream:
    """
    The answer to a request: events behind an outbox; implements ``protocol.Results``.

    A server whose sends do not wait for the client buffers without a limit, and unlike a socket's, this client cannot
    be asked what it has read.  So there a stream ends, and its client comes back for the rest, when it has written as
    much as may be unread on a socket: wherever that is possible, which is behind a result with a cursor.
    """

    def __init__(self, send: Send, settings: Settings, *, server_waits: bool) -> None:
        self._send = send
        self._outbox = ClientOutbox(self._write, settings, self._overflowed)
        self._most = None if server_waits else settings.OUTBOX_BYTES
        self._written = 0
        self._writing: asyncio.Task[None] | None = None

    def send(self, payload: str) -> None:
        self._outbox.put(next_event(payload))

    def offer(self, payload: str) -> bool:
        return self._outbox.offer(next_event(payload))

    async def room(self) -> None:
        await self._outbox.room()

    def keep_alive(self) -> None:
        self._outbox.offer(COMMENT)

    def complete(self) -> None:
        """End behind what was sent before; the client has no reason to come back."""
        self._outbox.put(COMPLETE)
        self._outbox.close()

    def close(self, code: CloseCode, reason: str) -> None:
        """End behind what was sent before, so that the client comes back; there are no codes here to tell it why."""
        self._outbox.close()

    def cut(self) -> None:
        """End at once, so that the client comes back; what waits for it is not written."""
        self._outbox.discard()
        if self._writing is not None:
            self._writing.cancel()

    async def run(self) -> None:
        """Write until closed."""
        headers = {"Content-Type": MEDIA_TYPE, "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        await self._send({"type": "http.response.start", "status": 200, "headers": _encoded(headers)})
        # Written at once: with it Daphne sends the headers, and an EventSource is open.
        await self._write(_retry(random.randint(*RETRY)))  # noqa: S311  (no secret)
        self._writing = asyncio.create_task(self._outbox.run(), name="pgnotify_gql outbox")
        try:
            await asyncio.wait({self._writing})
            if not self._writing.cancelled() and (error := self._writing.exception()) is not None:
                logger.debug("a stream could not be written to: %r", error)
                return
            # A server that waits for its clients waits here for one that is stuck, until it reads or leaves: ASGI has
            # no way to cut it off. Nothing else is kept for it by now.
            await self._send({"type": "http.response.body", "body": b""})
        finally:
            self._writing.cancel()

    async def _write(self, event: str) -> None:
        await self._send({"type": "http.response.body", "body": event.encode(), "more_body": True})
        self._written += len(event)
        if self._most is not None and self._written > self._most and event.startswith("id:"):
            self._outbox.offer(_retry(RETRY_SOON))
            self._outbox.close()

    def _overflowed(self) -> None:
        logger.warning("a client did not read fast enough; its stream is ended")
        self.cut()


@lru_cache(maxsize=1)
def next_event(payload: str) -> str:
    """Return the event of a result; a result that many are sent is looked into once."""
    extensions = json.loads(payload).get("extensions") if '"cursor"' in payload else None
    cursor = (extensions or {}).get("cursor")
    event = f"event: next\ndata: {payload}\n\n"
    return event if cursor is None else f"id: {cursor}\n{event}"


async def _operate(engine: GraphqlEngine, request: Request, stream: _EventStream) -> None:
    try:
        await engine.run(request, stream)
    except RequestError as error:
        stream.send(json.dumps({"errors": list(error.errors)}))
    except ClientStuckError as error:
        logger.warning("a stream is ended: %s", error)
        stream.cut()
        return
    except Exception:
        logger.exception("the operation of a stream failed")
        stream.send(json.dumps({"errors": [{"message": "Internal server error"}]}))
    stream.complete()


async def _gone(receive: Receive) -> None:
    """Return when the client is."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _refuse(send: Send, refused: RefusedError) -> None:
    body = json.dumps({"errors": [{"message": str(refused)}]}).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Cache-Control": "no-store"}
    if refused.allow is not None:
        headers["Allow"] = refused.allow
    await send({"type": "http.response.start", "status": int(refused.status), "headers": _encoded(headers)})
    await send({"type": "http.response.body", "body": body})


def _resumed(request: Request, http: HttpRequest) -> Request:
    last = http.headers.get("Last-Event-ID")
    if not last:
        return request
    # It wins over extensions.cursor: an EventSource asks for the same address every time, with the cursor that its
    # page began with, and adds the id of the last event that it has received.
    return replace(request, extensions={**(request.extensions or {}), "cursor": last})


def _server_waits(scope: Scope) -> bool:
    # Servers say which version of ASGI's specification for HTTP they follow. Daphne says none.
    return "spec_version" in scope.get("asgi", {})


def _retry(milliseconds: int) -> str:
    return f"retry: {milliseconds}\n\n"


def _encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]
