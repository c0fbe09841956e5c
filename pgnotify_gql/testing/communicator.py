"""The client of a test: it speaks the protocol with the real consumer, through the real hub."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from itertools import count
from types import SimpleNamespace, TracebackType
from typing import Any, Self

from django.conf import settings
from django.contrib.auth import get_user
from graphql import GraphQLSchema

from ..errors import ConfigurationError
from ..transport import GraphqlSubscriptionConsumer
from .client_socket import CLOSED, Application, ClientSocket
from .errors import GraphqlResultError, SocketClosedError, SubscriptionTestError
from .journals import Journals
from .server import InProcessServer
from .serving import serving
from .subscription import TestSubscription
from .twins import in_test_thread

LEGACY = "graphql-ws"


class GraphqlCommunicator:
    """
    A socket of one client, open from ``open()`` to ``close()``; a context manager, also an asynchronous one.

    `application` is a graphene schema, which is served by ``GraphqlSubscriptionConsumer``, or an ASGI application with
    its middleware.  `user` and `session` are put into the scope; Channels' middleware leaves them there.  `headers` are
    those of the handshake and `params` the payload of ``connection_init``.
    """

    def __init__(
        self,
        application: Any,
        user: Any = None,
        session: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
        subprotocol: str = "graphql-transport-ws",
        path: str = "/graphql/",
    ) -> None:
        self._application, self._is_schema = _application(application)
        self._user = user
        self._session = session
        self._headers = headers or {}
        self._params = params
        self._subprotocol = subprotocol
        self._path = path
        self._numbers = count(1)
        self._opened = ExitStack()
        self._socket: ClientSocket | None = None
        self._holding: InProcessServer | None = None
        self._journals: Journals | None = None
        self.acknowledgement: Mapping[str, Any] | None = None
        """What the server sent with its acknowledgement."""

    def open(self) -> Self:
        """Connect and initialise.  Raises SocketClosedError where the server refuses, and ConfigurationError."""
        if self._socket is not None:
            raise SubscriptionTestError("this communicator is open already")
        with ExitStack() as opening:
            self._holding = server = opening.enter_context(serving())
            # As long as somebody may come back with a cursor of this client.
            self._journals = server.journals
            self._socket = socket = ClientSocket(self._application, self._scope())
            running = server.start(socket.run)
            opening.callback(self._disconnect, server, socket, running)
            opening.callback(setattr, self, "_socket", None)
            server.wait(socket.accepted)
            server.run(lambda: socket.send("connection_init", payload=self._params))
            self.acknowledgement = server.wait(socket.acknowledged)
            server.settle()
            self._opened = opening.pop_all()
        return self

    def close(self) -> None:
        """Leave; nothing happens if it has left."""
        self._opened.close()

    def subscribe(
        self,
        query: str,
        variables: Mapping[str, Any] | None = None,
        operation_name: str | None = None,
        cursor: str | None = None,
    ) -> TestSubscription:
        """
        Begin a subscription; every change from here on is for it, and with a `cursor` what came behind that.

        What was changed before is delivered to those who have subscribed already, as ``pump()`` would do.

        Raises GraphqlResultError where it is refused, NotCapturedError, and NotSettledError.
        """
        self._server.prepare()
        subscription = TestSubscription(self, str(next(self._numbers)))
        extensions = None if cursor is None else {"cursor": cursor}
        self._send(subscription, query, variables, operation_name, extensions)
        self._settle()
        if subscription._errors:
            raise GraphqlResultError(subscription._errors)
        return subscription

    def execute(
        self, query: str, variables: Mapping[str, Any] | None = None, operation_name: str | None = None
    ) -> dict[str, Any]:
        """Run a query or a mutation and return its data.  Raises GraphqlResultError if there are errors."""
        operation = _Execution(self, str(next(self._numbers)))
        self._send(operation, query, variables, operation_name, None)
        self._server.wait(operation.done)
        self._settle()
        data: dict[str, Any] = operation.next()
        return data

    def closed(self) -> SocketClosedError:
        """Return with which `code` and `reason` the server has closed.  Raises SubscriptionTestError if it has not."""
        self._server.settle()
        assert self._socket is not None
        if self._socket.closed is None:
            raise SubscriptionTestError("the socket is open")
        return self._socket.closed

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    aopen = in_test_thread(open)  # noqa: A003  (the method)
    aclose = in_test_thread(close)
    asubscribe = in_test_thread(subscribe)
    aexecute = in_test_thread(execute)
    aclosed = in_test_thread(closed)

    async def __aenter__(self) -> Self:
        return await self.aopen()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    @property
    def _server(self) -> InProcessServer:
        if self._socket is None or self._holding is None:
            raise SubscriptionTestError("this communicator is not open: use it as a context manager, or call open()")
        return self._holding

    def _send(
        self,
        subscription: TestSubscription,
        query: str,
        variables: Mapping[str, Any] | None,
        operation_name: str | None,
        extensions: Mapping[str, Any] | None,
    ) -> None:
        server, socket = self._server, self._require_open()
        asked = {"query": query, "variables": variables, "operationName": operation_name, "extensions": extensions}
        payload = {key: value for key, value in asked.items() if value is not None}
        socket.listen(subscription.id, subscription._take)
        kind = "start" if self._subprotocol == LEGACY else "subscribe"
        server.run(lambda: socket.send(kind, id=subscription.id, payload=payload))

    def _complete(self, subscription: TestSubscription) -> None:
        server, socket = self._server, self._require_open()
        kind = "stop" if self._subprotocol == LEGACY else "complete"
        server.run(lambda: socket.send(kind, id=subscription.id))
        server.settle()
        subscription.is_completed = True

    def _settle(self) -> None:
        self._server.settle()

    def _require_open(self) -> ClientSocket:
        assert self._socket is not None
        if self._socket.closed is not None:
            raise self._socket.closed
        return self._socket

    def _scope(self) -> dict[str, Any]:
        host = _host()
        headers = {"host": host, "origin": f"http://{host}"} | {k.lower(): v for k, v in self._headers.items()}
        scope: dict[str, Any] = {
            "type": "websocket",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "ws",
            "path": self._path.partition("?")[0],
            "raw_path": self._path.partition("?")[0].encode(),
            "root_path": "",
            "query_string": self._path.partition("?")[2].encode(),
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "client": ["127.0.0.1", 50_000],
            "server": [host, 80],
            "subprotocols": [self._subprotocol],
        }
        if self._session is not None:
            scope["session"] = self._session
            if self._user is None and self._is_schema:
                request: Any = SimpleNamespace(session=self._session)
                scope["user"] = get_user(request)
        if self._user is not None:
            scope["user"] = self._user
        return scope

    def _disconnect(self, server: InProcessServer, socket: ClientSocket, running: Future[None]) -> None:
        if not running.done():
            server.run(socket.leave)
        # What the application has raised was told where it was waited for.
        with suppress(Exception):
            server.wait(running)


class _Execution(TestSubscription):
    """A query or mutation, which ends by itself."""

    def __init__(self, communicator: GraphqlCommunicator, operation_id: str) -> None:
        super().__init__(communicator, operation_id)
        self.done: Future[None] = Future()

    def _take(self, kind: str, payload: Any) -> None:
        super()._take(kind, payload)
        if (self.is_completed or kind == CLOSED) and not self.done.done():
            self.done.set_result(None)


def _application(given: Any) -> tuple[Application, bool]:
    """Return the ASGI application, and whether a schema was given.  Raises ConfigurationError for neither."""
    if isinstance(getattr(given, "graphql_schema", given), GraphQLSchema) or not callable(given):
        return GraphqlSubscriptionConsumer.as_asgi(schema=given), True
    if isinstance(given, type):
        raise ConfigurationError(f"give {given.__name__}.as_asgi(schema=...) to a GraphqlCommunicator, not the class")
    application: Application = given
    return application, False


def _host() -> str:
    """Return a host whose pages validators of the Origin let in; they keep ALLOWED_HOSTS as it was before the tests."""
    concrete = [host.removeprefix(".") for host in settings.ALLOWED_HOSTS if host not in {"*", "testserver"}]
    return concrete[0] if concrete else "testserver"
