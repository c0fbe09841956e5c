"""
A small HTTP server for probes and for Prometheus: /healthz, /readyz and /metrics of a listener process.

In threads of its own, so that it answers, and says so, when the event loop does not turn.  It is for a network that is
trusted: it has no TLS, and only the metrics can have a token.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from socket import AF_INET, AF_INET6
from socketserver import TCPServer, ThreadingMixIn
from threading import Thread
from typing import Any, NamedTuple
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import StartResponse, WSGIEnvironment

from ..errors import ConfigurationError
from ..health import Health, Report
from ..metrics import ADVICE, exposition, may_read

logger = logging.getLogger("pgnotify_gql.listener")

LOCALHOST = "127.0.0.1"

REQUEST_TIMEOUT = 5.0
"""Seconds that a client has for each part of its request, and to read the answer."""

POLL_INTERVAL = 0.1
"""Seconds after which the server notices that it is to end."""

PORTS = range(1, 65_536)

TEXT = "text/plain; charset=utf-8"


class Answer(NamedTuple):
    """What is sent."""

    status: HTTPStatus
    media_type: str
    body: bytes


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT, [HOST]:PORT or PORT, which is one of this machine alone."""
    host, colon, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    # An IPv6 address without brackets would lose its last part to the port.
    if (colon and not bare) or (":" in bare and bare == host):
        raise ConfigurationError(_advice(text))
    if not re.fullmatch("[0-9]{1,5}", port) or int(port) not in PORTS:
        raise ConfigurationError(_advice(text))
    return bare or LOCALHOST, int(port)


def _advice(text: str) -> str:
    return (
        f"{text!r} is no address for --http (or LISTENER_HTTP): give a port, such as 9100, for this machine alone, or "
        "HOST:PORT, such as 0.0.0.0:9100 or [::]:9100, for others as well"
    )


@contextmanager
def serving(address: str, health: Health, *, token: str = "") -> Iterator[None]:
    """Answer at an address meanwhile, or nowhere if it is empty.  Raises ConfigurationError."""
    if not address:
        yield
        return
    with _listening(*parse_address(address)) as server:
        server.set_app(Answers(health, token))
        thread = Thread(target=server.serve_forever, args=(POLL_INTERVAL,), name="pgnotify_gql http", daemon=True)
        thread.start()
        logger.info("health and metrics are served on %s, port %d", server.server_name, server.server_port)
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def _listening(host: str, port: int) -> _Server:
    kind = _Server6 if ":" in host else _Server
    try:
        return kind((host, port), _Handler)
    except OSError as error:
        raise ConfigurationError(
            f"health and metrics cannot be served on {host}, port {port} ({error.strerror}): free it, or choose "
            "another with --http (or LISTENER_HTTP)"
        ) from error


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    address_family = AF_INET

    def server_bind(self) -> None:
        # WSGIServer's own asks the DNS for the name of the host, which may take long.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.debug("a request of %s failed", client_address, exc_info=True)


class _Server6(_Server):
    address_family = AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = REQUEST_TIMEOUT

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the name that the library gives it)
        logger.debug("%s: %s", self.client_address[0], format % args)


class Answers:
    """The WSGI application; `token` is what whoever reads the metrics must know, if it is not empty."""

    def __init__(self, health: Health, token: str = "") -> None:
        self._health = health
        self._token = token

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        answer = self._answer(environ)
        headers = [
            ("Content-Type", answer.media_type),
            ("Content-Length", str(len(answer.body))),
            ("Cache-Control", "no-store"),
        ]
        start_response(f"{answer.status.value} {answer.status.phrase}", headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [answer.body]

    def _answer(self, environ: WSGIEnvironment) -> Answer:
        if environ["REQUEST_METHOD"] not in {"GET", "HEAD"}:
            return _sentence(HTTPStatus.METHOD_NOT_ALLOWED, "ask with GET")
        path = environ.get("PATH_INFO", "").rstrip("/")
        if path == "/healthz":
            return _reported(self._health.liveness())
        if path == "/readyz":
            return _reported(self._health.readiness())
        if path == "/metrics":
            return self._metrics(environ.get("HTTP_AUTHORIZATION", ""))
        return _sentence(HTTPStatus.NOT_FOUND, "ask for /healthz, /readyz or /metrics")

    def _metrics(self, authorization: str) -> Answer:
        if not may_read(authorization, self._token):
            return _sentence(HTTPStatus.FORBIDDEN, "send METRICS_TOKEN: 'Authorization: Bearer ...'")
        found = exposition()
        if found is None:
            return _sentence(HTTPStatus.NOT_FOUND, ADVICE)
        return Answer(HTTPStatus.OK, *found)


def _reported(report: Report) -> Answer:
    status = HTTPStatus.OK if report.is_good else HTTPStatus.SERVICE_UNAVAILABLE
    return Answer(status, "application/json", json.dumps(report.as_json()).encode())


def _sentence(status: HTTPStatus, text: str) -> Answer:
    return Answer(status, TEXT, f"{text}\n".encode())
