"""
The subprotocols as a model: what a server says to every frame, without a socket, a task or a schema.

It is written from the protocols' texts and not from our code, which is compared with it step by step (`lockstep`).
Its methods have the names of the messages that a client sends.  What needs the event loop, such as the start of an
operation, is due until the next `turn`.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

Message = dict[str, Any]
Check = Callable[[Any], bool]

INTERNAL = "Internal server error"


@dataclass(frozen=True)
class Refusal:
    """What an application says that refuses an initialisation in its own words."""

    code: int
    reason: str


class Complaint(str):
    """Equals whatever says in a few words what is wrong with a frame; the words are the server's own."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and 0 < len(other) <= 123

    __hash__ = str.__hash__


COMPLAINT = Complaint("what is wrong, short")


def read(text: str) -> Any:
    """Return the value of a JSON text; None as well if it is none, or has numbers that cannot be written again."""
    try:
        return json.loads(text, parse_constant=_refused, parse_float=_finite)
    except (ValueError, RecursionError):
        return None


def optional(kind: type) -> Check:
    return lambda value: value is None or isinstance(value, kind)


def an_id(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def a_request(value: Any) -> bool:
    return isinstance(value, dict) and all(check(value.get(name)) for name, check in REQUEST.items())


OBJECT = optional(dict)
REQUEST: Mapping[str, Check] = {
    "query": lambda value: isinstance(value, str),
    "operationName": optional(str),
    "variables": OBJECT,
    "extensions": OBJECT,
}


@dataclass(eq=False)
class Operation:
    """What a client asked to run."""

    id: str
    payload: Mapping[str, Any]


class Specification(ABC):
    """One connection; `most` operations run at once, times are in seconds."""

    messages: ClassVar[Mapping[str, Mapping[str, Check]]]
    """What a client may send, with the fields that matter."""
    result: ClassVar[str]
    keepalive_message: ClassVar[str]

    def __init__(self, most: int, init_timeout: float, keepalive: float) -> None:
        self.sent: list[Message] = []
        self.closed: tuple[int, str] | None = None
        self.gone = False
        """The client has left."""
        self.initialised = self.acknowledged = False
        self.asked: list[Mapping[str, Any]] = []
        """Payloads that the application had to decide on."""
        self.operations: dict[str, Operation] = {}
        """Those whose ids are in use."""
        self.begun: list[Operation] = []
        """All that were given to the engine, in order."""
        self.pongs = 0
        self._most = most
        self._init_timeout = init_timeout
        self._keepalive = keepalive
        self._now = self._next_keepalive = 0.0
        self._decision: Any = self  # undecided
        self._due: deque[Callable[[], None]] = deque()

    @property
    def over(self) -> bool:
        return self.gone or self.closed is not None

    def receive(self, text: str) -> None:
        """Take a text frame."""
        if self.over:
            return
        message = self._understood(text)
        if message is None:
            self.misunderstood()
        else:
            getattr(self, message["type"])(message)

    def receive_bytes(self) -> None:
        """Take a binary frame."""
        if not self.over:
            self.misunderstood()

    def decide(self, decision: Any) -> None:
        """Decide on the initialisation as the application does: with what its hook returns, or with an exception."""
        self._decision = decision
        if self.initialised:
            self._due.append(self._decided)

    def emit(self, operation: Operation, payload: str) -> None:
        """Have an operation make a result."""
        if self._runs(operation):
            self.sent.append({"id": operation.id, "type": self.result, "payload": json.loads(payload)})

    def end(self, operation: Operation, errors: Sequence[Mapping[str, Any]] = ()) -> None:
        """Have an operation end by itself."""
        self._due.append(partial(self._ended, operation, errors))

    def close(self, code: int, reason: str) -> None:
        if not self.over:
            self.closed = code, reason
            self.operations.clear()

    def leave(self) -> None:
        """Have the client leave."""
        self.gone = True
        self.operations.clear()

    def turn(self) -> None:
        """Let everything happen that is due."""
        while self._due:
            self._due.popleft()()

    def elapse(self, seconds: float) -> None:
        """Let time pass, no more than an interval at once."""
        self._now += seconds
        if self.over:
            return
        if self.acknowledged and self._now >= self._next_keepalive:
            self._next_keepalive = self._now + self._keepalive
            self.sent.append({"type": self.keepalive_message})
        elif not self.initialised and self._now >= self._init_timeout:
            self.close(4408, "Connection initialisation timeout")

    @abstractmethod
    def misunderstood(self) -> None:
        """Answer what is no message of a client."""

    @abstractmethod
    def acknowledge(self, payload: Message) -> None:
        """Answer an initialisation that was accepted."""

    @abstractmethod
    def refuse(self, code: int, reason: str) -> None:
        """Answer an initialisation that was not."""

    @abstractmethod
    def errors_of(self, errors: Sequence[Mapping[str, Any]]) -> Any:
        """Return the payload of an error."""

    def initialise(self, message: Message) -> None:
        self.initialised = True
        self.asked.append(message.get("payload") or {})
        if self._decision is not self:
            self._due.append(self._decided)

    def run(self, operation: Operation) -> None:
        if len(self.operations) < self._most:
            self.operations[operation.id] = operation
            self._due.append(partial(self._begin, operation))
        else:
            self.fail(operation.id, f"this socket has {self._most} operations, the most allowed")

    def fail(self, operation_id: str, message: str) -> None:
        self.sent.append({"id": operation_id, "type": "error", "payload": self.errors_of([{"message": message}])})

    def _understood(self, text: str) -> Message | None:
        message = read(text)
        if not isinstance(message, dict) or not isinstance(message.get("type"), str):
            return None
        fields = self.messages.get(message["type"])
        if fields is None or not all(check(message.get(name)) for name, check in fields.items()):
            return None
        return message

    def _runs(self, operation: Operation) -> bool:
        return self.operations.get(operation.id) is operation

    def _begin(self, operation: Operation) -> None:
        if self._runs(operation):
            self.begun.append(operation)

    def _ended(self, operation: Operation, errors: Sequence[Mapping[str, Any]]) -> None:
        if not self._runs(operation):
            return
        del self.operations[operation.id]
        end: Message = {"id": operation.id, "type": "complete"}
        self.sent.append(end | {"type": "error", "payload": self.errors_of(errors)} if errors else end)

    def _decided(self) -> None:
        decision = self._decision
        if self.over:
            return
        if decision is False:
            self.refuse(4403, "Forbidden")
        elif isinstance(decision, Refusal):
            self.refuse(decision.code, decision.reason)
        elif decision is None or decision is True or _can_be_sent(decision):
            self.acknowledged = True
            self._next_keepalive = self._now + self._keepalive
            self.acknowledge({"payload": decision} if isinstance(decision, dict) else {})
        else:
            self.refuse(4500, INTERNAL)


class GraphqlTransportWsSpecification(Specification):
    messages: ClassVar[Mapping[str, Mapping[str, Check]]] = {
        "connection_init": {"payload": OBJECT},
        "ping": {"payload": OBJECT},
        "pong": {"payload": OBJECT},
        "subscribe": {"id": an_id, "payload": a_request},
        "complete": {"id": an_id},
    }
    result = "next"
    keepalive_message = "ping"

    def connection_init(self, message: Message) -> None:
        if self.initialised:
            self.close(4429, "Too many initialisation requests")
        else:
            self.initialise(message)

    def ping(self, message: Message) -> None:
        payload = message.get("payload")
        self.sent.append({"type": "pong"} if payload is None else {"type": "pong", "payload": payload})

    def pong(self, message: Message) -> None:
        self.pongs += 1

    def subscribe(self, message: Message) -> None:
        if not self.acknowledged:
            self.close(4401, "Unauthorized")
        elif message["id"] in self.operations:
            self.close(4409, COMPLAINT)
        else:
            self.run(Operation(message["id"], message["payload"]))

    def complete(self, message: Message) -> None:
        self.operations.pop(message["id"], None)

    def misunderstood(self) -> None:
        self.close(4400, COMPLAINT)

    def acknowledge(self, payload: Message) -> None:
        self.sent.append({"type": "connection_ack", **payload})

    def refuse(self, code: int, reason: str) -> None:
        self.close(code, reason)

    def errors_of(self, errors: Sequence[Mapping[str, Any]]) -> Any:
        return list(errors)


class GraphqlWsSpecification(Specification):
    messages: ClassVar[Mapping[str, Mapping[str, Check]]] = {
        "connection_init": {"payload": OBJECT},
        "start": {"id": an_id, "payload": a_request},
        "stop": {"id": an_id},
        "connection_terminate": {},
    }
    result = "data"
    keepalive_message = "ka"

    def __init__(self, most: int, init_timeout: float, keepalive: float) -> None:
        super().__init__(most, init_timeout, keepalive)
        self.waiting: dict[str, Operation] = {}
        """What was started while the initialisation was under way."""

    def connection_init(self, message: Message) -> None:
        if self.initialised:
            self.misunderstood()
        else:
            self.initialise(message)

    def start(self, message: Message) -> None:
        operation = Operation(message["id"], message["payload"])
        if self.acknowledged:
            self.operations.pop(operation.id, None)
            self.run(operation)
        elif not self.initialised:
            self.fail(operation.id, "send connection_init first")
        elif operation.id in self.waiting or len(self.waiting) < self._most:
            self.waiting[operation.id] = operation
        else:
            self.fail(operation.id, f"this socket has {self._most} operations, the most allowed")

    def stop(self, message: Message) -> None:
        found = self.waiting.pop(message["id"], None) or self.operations.pop(message["id"], None)
        if found is not None:
            self.sent.append({"id": message["id"], "type": "complete"})

    def connection_terminate(self, message: Message) -> None:
        self.close(1000, "")

    def misunderstood(self) -> None:
        self._connection_error(COMPLAINT)

    def close(self, code: int, reason: str) -> None:
        # Its clients start again, at the next server, only what they had started on an acknowledged connection.
        if code == 1012 and not self.acknowledged and not self.over:
            self.sent.append({"type": "connection_ack"})
        super().close(code, reason)

    def acknowledge(self, payload: Message) -> None:
        self.sent += [{"type": "connection_ack", **payload}, {"type": "ka"}]
        for operation in self.waiting.values():
            self.run(operation)
        self.waiting.clear()

    def refuse(self, code: int, reason: str) -> None:
        self._connection_error(reason)
        self.close(code, reason)

    def errors_of(self, errors: Sequence[Mapping[str, Any]]) -> Any:
        return errors[0]

    def _connection_error(self, message: str) -> None:
        self.sent.append({"type": "connection_error", "payload": {"message": message}})


def _can_be_sent(decision: Any) -> bool:
    try:
        json.dumps(decision, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return isinstance(decision, dict)


def _refused(constant: str) -> float:
    raise ValueError(constant)


def _finite(text: str) -> float:
    return float(text) if math.isfinite(float(text)) else _refused(text)
