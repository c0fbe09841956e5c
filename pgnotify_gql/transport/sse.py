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
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from http import HTTPStatus

from django.core.exceptions import DisallowedHost, RequestAborted
from graphql import GraphQLError, OperationType, get_operation_ast

from .. import metrics
from ..conf import get_settings, shows_errors
from ..errors import ConfigurationError
from ..hub import open_hub
from ..hub.hub import Hub
from .cross_site import Pages
from .draining import visits
from .engine import GraphqlEngine
from .event_stream import MEDIA_TYPE, EventStream, encoded, server_waits
from .frames import Request
from .graphql_over_http import HttpRequest, RefusedError, asked
from .masking import masking
from .mounting import GraphqlApplication, Receive, Scope, Send
from .protocol import RefusedConnectionError, RequestError
from .tasks import running

logger = logging.getLogger("pgnotify_gql.transport")

METHODS = "GET, POST"

KEEPALIVE = 12.0
"""Seconds between two comments, as the protocol has it: proxies close what is silent for a minute, some for 15 s."""


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
            # What is not in the list of documents is not looked at; the stream tells why.
            with suppress(GraphQLError):
                request = self._documents.resolved(request)
                self._require_runnable(request)
            metrics.STREAMS.inc()
            try:
                await self._serve(_resumed(request, http), http, receive, send)
            finally:
                metrics.STREAMS.dec()
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

    async def _serve(self, request: Request, http: HttpRequest, receive: Receive, send: Send) -> None:
        """Run until all is written, or the client is gone, and leave nothing behind.  Raises ConfigurationError."""
        async with running(_gone(receive), "stream's client") as gone:
            with visits().begun() as visit:
                async with open_hub() as hub:
                    stream = EventStream(send, get_settings(), server_waits=server_waits(self.scope))
                    engine = GraphqlEngine(
                        self._schema,
                        self._documents,
                        hub,
                        lambda: http.of_user(self.scope.get("user") or http.user),
                        masking(shows_errors()),
                        self._operation_hook,
                        self._middleware,
                    )
                    async with (
                        self._staying(hub, stream),
                        running(_operate(engine, request, stream), "stream's operation"),
                        running(self._keep_alive(stream), "stream's keep-alive"),
                        running(stream.write(), "stream's writer") as writing,
                    ):
                        visit.attach(stream)
                        await _first(writing, gone)
                if not gone.done():
                    async with running(stream.end(), "stream's end") as ending:
                        await _first(ending, gone)

    @asynccontextmanager
    async def _staying(self, hub: Hub, stream: EventStream) -> AsyncIterator[None]:
        """Let the user stay meanwhile.  Raises RefusedError."""
        try:
            decision, presence = await self._admitted(hub, {}, stream.close)
        except RefusedConnectionError as error:
            raise RefusedError(HTTPStatus.TOO_MANY_REQUESTS, str(error)) from error
        except Exception as error:
            logger.exception("on_connect failed")
            raise RefusedError(HTTPStatus.INTERNAL_SERVER_ERROR, "Internal server error") from error
        if decision is False:
            raise RefusedError(HTTPStatus.FORBIDDEN, "Forbidden")
        try:
            yield
        finally:
            if presence is not None:
                await presence.end()

    async def _keep_alive(self, stream: EventStream) -> None:
        while True:
            await asyncio.sleep(self.keepalive)
            stream.keep_alive()


async def _operate(engine: GraphqlEngine, request: Request, stream: EventStream) -> None:
    try:
        await engine.run(request, stream)
    except RequestError as error:
        stream.send(json.dumps({"errors": list(error.errors)}))
    except Exception:
        logger.exception("the operation of a stream failed")
        stream.send(json.dumps({"errors": [{"message": "Internal server error"}]}))
    stream.complete()


async def _gone(receive: Receive) -> None:
    """Return when the client is."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _first(*tasks: asyncio.Task[None]) -> None:
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


async def _refuse(send: Send, refused: RefusedError) -> None:
    body = json.dumps({"errors": [{"message": str(refused)}]}).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Cache-Control": "no-store"}
    if refused.allow is not None:
        headers["Allow"] = refused.allow
    await send({"type": "http.response.start", "status": int(refused.status), "headers": encoded(headers)})
    await send({"type": "http.response.body", "body": body})


def _resumed(request: Request, http: HttpRequest) -> Request:
    last = http.headers.get("Last-Event-ID")
    if not last:
        return request
    # It wins over extensions.cursor: an EventSource asks for the same address every time, with the cursor that its
    # page began with, and adds the id of the last event that it has received.
    return replace(request, extensions={**(request.extensions or {}), "cursor": last})
