"""
Frames as values: what a client sent, checked, and what we send.

Reading raises ``FrameError`` with a short reason; nothing half-read gets further.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import PgnotifyGqlError

SHOWN = 40
"""Characters of a client's own text in an error message, which must fit into a close reason."""


class FrameError(PgnotifyGqlError):
    """A frame cannot be understood; the message says what is wrong with it."""


@dataclass(frozen=True)
class Request:
    """What a client asks to run."""

    query: str
    operation_name: str | None = None
    variables: Mapping[str, Any] | None = None
    extensions: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, payload: Mapping[str, Any]) -> Request:
        """Return the request that an object of JSON is.  Raises FrameError."""
        query = payload.get("query")
        if not isinstance(query, str):
            raise FrameError("the payload needs a 'query' that is a string")
        return cls(
            query,
            _optional(payload, "operationName", str, "'operationName' must be a string"),
            _optional(payload, "variables", dict, "'variables' must be an object"),
            _optional(payload, "extensions", dict, "'extensions' must be an object"),
        )


@dataclass(frozen=True)
class Frame:
    """A client's message: its type, and the rest as it came."""

    type: str
    fields: Mapping[str, Any]

    @classmethod
    def parse(cls, text: str) -> Frame:
        """Return the message of a text frame.  Raises FrameError."""
        try:
            message = decoded(text)
        except (ValueError, RecursionError) as error:
            raise FrameError("the message is not JSON") from error
        if not isinstance(message, dict):
            raise FrameError("the message is not a JSON object")
        kind = message.get("type")
        if not isinstance(kind, str):
            raise FrameError("the message has no 'type' that is a string")
        return cls(kind, message)

    def id(self) -> str:
        """Return the operation's id.  Raises FrameError."""
        value = self.fields.get("id")
        if not isinstance(value, str) or not value:
            raise FrameError(f"'{shown(self.type)}' needs an 'id' that is a non-empty string")
        return value

    def payload(self) -> Mapping[str, Any] | None:
        """Return the optional payload.  Raises FrameError when it is no object."""
        complaint = f"the payload of '{shown(self.type)}' must be an object"
        payload: Mapping[str, Any] | None = _optional(self.fields, "payload", dict, complaint)
        return payload

    def request(self) -> Request:
        """Return the payload as what is asked to run.  Raises FrameError."""
        payload = self.payload()
        if payload is None:
            raise FrameError(f"'{shown(self.type)}' needs a payload")
        return Request.of(payload)


def decoded(text: str) -> Any:
    """Return the value of a JSON text, which could be written again.  Raises ValueError and RecursionError."""
    return DECODER.decode(text)


def message(kind: str, *, id: str | None = None, payload: Any = None) -> str:  # noqa: A002  (the protocol's word)
    """Return a frame to send; what is None is left out."""
    frame = {"id": id, "type": kind, "payload": payload}
    return ENCODER.encode({key: value for key, value in frame.items() if value is not None})


@dataclass(frozen=True, slots=True)
class ResultEnvelope:
    """What stands before and behind a payload that is JSON already: encoded once, sent to many."""

    head: str
    tail: str

    @classmethod
    def of(cls, kind: str, id: str) -> ResultEnvelope:  # noqa: A002
        """Return what makes messages of an operation."""
        return cls(f'{{"id":{json.dumps(id)},"type":"{kind}","payload":', "}")

    def __call__(self, payload: str) -> str:
        """Return a frame."""
        return f"{self.head}{payload}{self.tail}"


def shown(text: str) -> str:
    """Return a client's own text, short enough to be shown in an error."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _no_json(text: str) -> float:
    # Python reads NaN and Infinity and would echo them in a pong, where the client could not read them.
    raise ValueError(f"{text} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _no_json(text)


# Made once: json.loads and json.dumps make one each time, which takes a third of their time.
DECODER = json.JSONDecoder(parse_constant=_no_json, parse_float=_finite)
ENCODER = json.JSONEncoder(allow_nan=False)


def _optional(fields: Mapping[str, Any], name: str, wanted: type, complaint: str) -> Any:
    value = fields.get(name)
    if value is not None and not isinstance(value, wanted):
        raise FrameError(complaint)
    return value
