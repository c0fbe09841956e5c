"""
The legacy subprotocol ``graphql-ws``, which the library subscriptions-transport-ws speaks.

It is forgiving: an unreadable frame is answered with ``connection_error`` and the socket stays open.  Its clients send
``start`` right behind ``connection_init``, so a start that comes while the initialisation is under way waits for it;
one without an initialisation, or after a refused one, never runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..hub.payloads import Envelope
from . import frames
from .close_codes import CloseCode
from .frames import Frame, FrameError, Request
from .protocol import Connection


class GraphqlWs(Connection):
    """One method for each message."""

    subprotocol = "graphql-ws"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._early: dict[str, Request] = {}

    def handle(self, frame: Frame) -> None:
        handlers = {
            "connection_init": self._connection_init,
            "start": self._start,
            "stop": self._stop,
            "connection_terminate": self._connection_terminate,
        }
        handler = handlers.get(frame.type)
        if handler is None:
            raise FrameError(f"'{frames.shown(frame.type)}' is no message that a client sends")
        handler(frame)

    def unreadable(self, complaint: str) -> None:
        self._socket.send(frames.message("connection_error", payload={"message": complaint}))

    def acknowledge(self, payload: Mapping[str, Any] | None) -> None:
        self._socket.send(frames.message("connection_ack", payload=payload))
        self.keep_alive()
        early, self._early = self._early, {}
        for operation_id, request in early.items():
            self.start(operation_id, request)

    def refuse(self, code: CloseCode, complaint: str) -> None:
        self._early.clear()
        self._socket.send(frames.message("connection_error", payload={"message": complaint}))
        self.close(code, complaint)

    def close(self, code: CloseCode, reason: str) -> None:
        """Close as every connection does; a client that is to come back is acknowledged first, if it was not."""
        if code is CloseCode.SERVICE_RESTART and not self._acknowledged and not self._closed:
            # A client that came back has sent its starts as soon as the socket was open. It sends them again only after
            # a connection that was acknowledged, and would come back without them. Nothing can run here any more.
            self._socket.send(frames.message("connection_ack"))
        super().close(code, reason)

    def keep_alive(self) -> None:
        self._socket.send(frames.message("ka"))

    def envelope(self, operation_id: str) -> Envelope:
        return frames.ResultEnvelope.of("data", operation_id)

    def send_errors(self, operation_id: str, errors: Sequence[Mapping[str, Any]]) -> None:
        # This protocol's error carries one; the first is the one that stopped the request.
        self._socket.send(frames.message("error", id=operation_id, payload=errors[0]))

    def send_complete(self, operation_id: str) -> None:
        self._socket.send(frames.message("complete", id=operation_id))

    def _connection_init(self, frame: Frame) -> None:
        payload = frame.payload()
        if self.initialising:
            raise FrameError("the connection is initialised already")
        self.initialise(payload or {})

    def _start(self, frame: Frame) -> None:
        operation_id, request = frame.id(), frame.request()
        if self._acknowledged:
            # A duplicate id replaces the older operation.
            self.stop(operation_id)
            self.start(operation_id, request)
        elif not self.initialising:
            self.send_errors(operation_id, [{"message": "send connection_init first"}])
        elif operation_id in self._early or len(self._early) < self._limits.operations:
            self._early[operation_id] = request
        else:
            self.send_too_many(operation_id)

    def _stop(self, frame: Frame) -> None:
        operation_id = frame.id()
        if self._early.pop(operation_id, None) is not None or self.stop(operation_id):
            self.send_complete(operation_id)

    def _connection_terminate(self, frame: Frame) -> None:
        self.close(CloseCode.NORMAL, "")
