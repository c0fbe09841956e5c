"""
The subprotocol ``graphql-transport-ws``, which the library graphql-ws speaks.

A violation closes the socket with its code; clients rely on which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..hub.payloads import Envelope
from . import frames
from .close_codes import CloseCode
from .frames import Frame, FrameError
from .protocol import Connection


class GraphqlTransportWs(Connection):
    """One method for each message; guards in the order of the specification."""

    subprotocol = "graphql-transport-ws"
    ping = frames.message("ping")

    def handle(self, frame: Frame) -> None:
        handlers = {
            "connection_init": self._connection_init,
            "ping": self._ping,
            "pong": self._pong,
            "subscribe": self._subscribe,
            "complete": self._complete,
        }
        handler = handlers.get(frame.type)
        if handler is None:
            raise FrameError(f"'{frames.shown(frame.type)}' is no message that a client sends")
        handler(frame)

    def unreadable(self, complaint: str) -> None:
        self.close(CloseCode.BAD_REQUEST, complaint)

    def acknowledge(self, payload: Mapping[str, Any] | None) -> None:
        self._socket.send(frames.message("connection_ack", payload=payload))

    def refuse(self, code: CloseCode, complaint: str) -> None:
        self.close(code, complaint)

    def keep_alive(self) -> None:
        self._socket.send(self.ping)

    def envelope(self, operation_id: str) -> Envelope:
        return frames.ResultEnvelope.of("next", operation_id)

    def send_errors(self, operation_id: str, errors: Sequence[Mapping[str, Any]]) -> None:
        self._socket.send(frames.message("error", id=operation_id, payload=list(errors)))

    def send_complete(self, operation_id: str) -> None:
        self._socket.send(frames.message("complete", id=operation_id))

    def _connection_init(self, frame: Frame) -> None:
        payload = frame.payload()
        if self.initialising:
            self.close(CloseCode.TOO_MANY_REQUESTS, "Too many initialisation requests")
            return
        self.initialise(payload or {})

    def _ping(self, frame: Frame) -> None:
        self._socket.send(frames.message("pong", payload=frame.payload()))

    def _pong(self, frame: Frame) -> None:
        frame.payload()
        self._socket.answered()

    def _subscribe(self, frame: Frame) -> None:
        operation_id, request = frame.id(), frame.request()
        if not self._acknowledged:
            self.close(CloseCode.UNAUTHORIZED, "Unauthorized")
        elif operation_id in self._operations:
            self.close(CloseCode.SUBSCRIBER_EXISTS, f"Subscriber for {frames.shown(operation_id)} already exists")
        else:
            self.start(operation_id, request)

    def _complete(self, frame: Frame) -> None:
        # Not echoed, and an unknown id is ignored: it may have been completed by us at the same moment.
        self.stop(frame.id())
