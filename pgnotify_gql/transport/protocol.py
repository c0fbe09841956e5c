"""
What both WebSocket subprotocols have in common: a connection's states and its operations.

A connection is opened, initialised (``connection_init``), acknowledged, closed.  Nothing is run before it is
acknowledged.  Frames are handled without waiting, one after the other; whatever waits runs in a task of its own, which
the connection owns and ends: the initialisation, and one task for each operation.

The code knows no Django, no Channels and no GraphQL: it talks to a ``Socket``, an ``Engine`` that runs requests, and
``Hooks`` of the application.  A subclass is a subprotocol: it names the messages and says what is a violation.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from ..errors import PgnotifyGqlError
from ..hub.alarms import Alarms, alarms
from ..hub.payloads import Envelope, Frames, Payloads
from .close_codes import CloseCode
from .frames import Frame, FrameError, Request, shown
from .rate import Rate

logger = logging.getLogger("pgnotify_gql.transport")


BURST = 10.0
"""Seconds whose messages a client may send at once: pages subscribe to everything when they open."""


class Socket(Protocol):
    """Where frames go; no method waits."""

    def send(self, frame: str) -> None:
        """Send, or close the socket when there is no room for it."""

    def offer(self, frames: Frames) -> int:
        """Send as many of the first as there is room for; return how many."""

    async def room(self) -> None:
        """Wait until there is plenty of room, for as long as it takes."""

    def answered(self) -> None:
        """Note that the client answered a ping."""

    def close(self, code: CloseCode, reason: str) -> None:
        """Close behind the frames that were sent before; only the first close counts."""


class Results(Protocol):
    """Takes the JSON of each result of one operation, in order."""

    def send(self, payload: str) -> None:
        """Take a result, whatever becomes of the client."""

    def offer(self, payloads: Payloads) -> int:
        """Take as many of the first as there is room for; return how many."""

    async def room(self) -> None:
        """Wait until there is plenty of room, for as long as it takes."""


class Engine(Protocol):
    """Runs requests."""

    async def run(self, request: Request, results: Results) -> None:
        """
        Run one operation to its end.

        A subscription ends when it is cancelled.  Raises RequestError when the request cannot be run at all.
        """


class Hooks(Protocol):
    """What the application decides."""

    async def on_connect(self, payload: Mapping[str, Any]) -> Mapping[str, Any] | bool | None:
        """Return False to refuse the connection, or what to send with the acknowledgement."""


class RequestError(PgnotifyGqlError):
    """A request cannot be run: `errors` are GraphQL errors, formatted."""

    def __init__(self, errors: Sequence[Mapping[str, Any]]) -> None:
        super().__init__("; ".join(str(error.get("message")) for error in errors))
        self.errors = errors


class RefusedConnectionError(PgnotifyGqlError):
    """A connection is not accepted: `code` closes it, with the message as its reason."""

    def __init__(self, code: CloseCode, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Limits:
    """Times in seconds; `messages` is how many a client may send in a second, over a while."""

    init_timeout: float = 10.0
    keepalive: float = 20.0
    operations: int = 100
    messages: float = 100.0


class Connection(ABC):
    """One socket in one subprotocol."""

    subprotocol: ClassVar[str]
    ping: ClassVar[str | None] = None
    """The frame that a client must answer, if the subprotocol has one."""

    def __init__(self, socket: Socket, engine: Engine, hooks: Hooks, limits: Limits) -> None:
        self._socket = socket
        self._engine = engine
        self._hooks = hooks
        self._limits = limits
        self._operations: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._initialising = False
        self._acknowledged = False
        self._closed = False
        self._rate = Rate(limits.messages, max(1, int(limits.messages * BURST)))

    def opened(self) -> None:
        """Begin: the client has so long to initialise."""
        self._init_alarms.set(self)

    def received(self, text: str) -> None:
        """Handle a text frame."""
        if self._closed or not self._is_in_time():
            return
        try:
            self.handle(Frame.parse(text))
        except FrameError as error:
            self.unreadable(str(error))
        except RecursionError:
            # Just shallow enough to be read, and too deep to be written again.
            self.unreadable("the message is nested too deeply")
        except Exception:
            logger.exception("a message could not be handled")
            self.close(CloseCode.INTERNAL_SERVER_ERROR, "Internal server error")

    def received_bytes(self) -> None:
        """Handle a binary frame, which neither subprotocol has."""
        if not self._closed and self._is_in_time():
            self.unreadable("binary frames are not part of the protocol")

    async def closed(self) -> None:
        """End everything that runs for this connection; one operation's failure to end does not keep the others."""
        self._closed = True
        self._clear_alarms()
        tasks = [*self._operations.values(), *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @abstractmethod
    def handle(self, frame: Frame) -> None:
        """Handle one message.  Raises FrameError."""

    @abstractmethod
    def unreadable(self, complaint: str) -> None:
        """Answer a frame that cannot be understood."""

    @abstractmethod
    def acknowledge(self, payload: Mapping[str, Any] | None) -> None:
        """Send the acknowledgement."""

    @abstractmethod
    def refuse(self, code: CloseCode, complaint: str) -> None:
        """Answer an initialisation that was refused or failed."""

    @abstractmethod
    def keep_alive(self) -> None:
        """Send what keeps a silent connection open."""

    @abstractmethod
    def envelope(self, operation_id: str) -> Envelope:
        """Return what makes a frame of a result."""

    @abstractmethod
    def send_errors(self, operation_id: str, errors: Sequence[Mapping[str, Any]]) -> None:
        """Send the errors that end an operation."""

    @abstractmethod
    def send_complete(self, operation_id: str) -> None:
        """Send the end of an operation."""

    def close(self, code: CloseCode, reason: str) -> None:
        """Close, once, and end what runs without waiting for the client; frames that still arrive are ignored."""
        if self._closed:
            return
        self._closed = True
        self._clear_alarms()
        self._socket.close(code, reason)
        for operation in self._operations.values():
            operation.cancel()

    def initialise(self, payload: Mapping[str, Any]) -> None:
        """Ask the application, once."""
        self._initialising = True
        self._init_alarms.clear(self)
        self._spawn(self._initialise(payload), "initialisation")

    @property
    def initialising(self) -> bool:
        """Return whether a connection_init has been received, whatever came of it."""
        return self._initialising

    def start(self, operation_id: str, request: Request) -> None:
        """Run an operation; its id is taken from this moment on, before anything is awaited."""
        if len(self._operations) >= self._limits.operations:
            self.send_too_many(operation_id)
            return
        name = f"pgnotify_gql operation {shown(operation_id)}"
        self._operations[operation_id] = asyncio.create_task(self._operate(operation_id, request), name=name)

    def send_too_many(self, operation_id: str) -> None:
        """Send the error of an operation above the limit."""
        message = f"this socket has {self._limits.operations} operations, the most allowed"
        self.send_errors(operation_id, [{"message": message}])

    def stop(self, operation_id: str) -> bool:
        """End an operation for the client, and send nothing more of it; return whether there was one."""
        task = self._operations.pop(operation_id, None)
        if task is None:
            return False
        task.cancel()
        self._own(task)
        return True

    def _is_in_time(self) -> bool:
        if self._rate.taken(asyncio.get_running_loop().time()):
            return True
        self.close(CloseCode.TOO_MANY_REQUESTS, "Too many messages")
        return False

    def _expect_init(self) -> None:
        if not self._initialising:
            self.close(CloseCode.INITIALISATION_TIMEOUT, "Connection initialisation timeout")

    async def _initialise(self, payload: Mapping[str, Any]) -> None:
        try:
            answer = await self._hooks.on_connect(payload)
            if self._closed:
                return
            if answer is False:
                self.refuse(CloseCode.FORBIDDEN, "Forbidden")
                return
            # Set before the acknowledgement is sent: the client may subscribe as soon as it has it.
            self._acknowledged = True
            self.acknowledge(acknowledgement(answer))
        except RefusedConnectionError as refused:
            if not self._closed:
                self.refuse(refused.code, str(refused))
            return
        except Exception:
            logger.exception("on_connect failed, or returned what cannot be sent as JSON")
            self._acknowledged = False
            if not self._closed:
                self.refuse(CloseCode.INTERNAL_SERVER_ERROR, "Internal server error")
            return
        if not self._closed:
            self._keep_alive_alarms.set(self)

    def _keep_alive(self) -> None:
        if not self._closed:
            self._keep_alive_alarms.set(self)
            self.keep_alive()

    @property
    def _init_alarms(self) -> Alarms[Connection]:
        return alarms(self._limits.init_timeout, Connection._expect_init)

    @property
    def _keep_alive_alarms(self) -> Alarms[Connection]:
        return alarms(self._limits.keepalive, Connection._keep_alive)

    def _clear_alarms(self) -> None:
        self._init_alarms.clear(self)
        self._keep_alive_alarms.clear(self)

    async def _operate(self, operation_id: str, request: Request) -> None:
        results = _Results(self, operation_id, asyncio.current_task())
        errors: Sequence[Mapping[str, Any]] = ()
        try:
            await self._engine.run(request, results)
        except RequestError as error:
            errors = error.errors
        except Exception:
            # The id is the client's own text: as Python shows it, it cannot begin a line of its own.
            logger.exception("operation %r failed", shown(operation_id))
            errors = [{"message": "Internal server error"}]
        if not results.wanted:
            return
        # Free before the end is sent: the client may use the id again as soon as it has it.
        del self._operations[operation_id]
        if errors:
            self.send_errors(operation_id, errors)
        else:
            self.send_complete(operation_id)

    def _spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine, name=f"pgnotify_gql {name}")
        self._own(task)
        return task

    def _own(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Results:
    """Sends the results of the operation that a task of a connection runs, for as long as they are `wanted`."""

    __slots__ = ("_connection", "_envelope", "_id", "_task")

    def __init__(self, connection: Connection, operation_id: str, task: asyncio.Task[None] | None) -> None:
        self._connection = connection
        self._id = operation_id
        self._task = task
        self._envelope = connection.envelope(operation_id)

    @property
    def wanted(self) -> bool:
        # Completed by the client, or replaced under the same id: what comes late is not sent.
        connection = self._connection
        return connection._operations.get(self._id) is self._task and not connection._closed

    def send(self, payload: str) -> None:
        if self.wanted:
            self._connection._socket.send(self._envelope(payload))

    def offer(self, payloads: Payloads) -> int:
        return self._connection._socket.offer(payloads.framed(self._envelope)) if self.wanted else len(payloads)

    async def room(self) -> None:
        await self._connection._socket.room()


def acknowledgement(answer: Mapping[str, Any] | bool | None) -> Mapping[str, Any] | None:
    """Return what is sent with an acknowledgement.  Raises TypeError for what is no decision of ``on_connect``."""
    # A mistake that must not open the connection: an awaitable nobody awaited, or the empty token in
    # `return token and is_valid(token)`.
    if answer is None or answer is True:
        return None
    if isinstance(answer, Mapping):
        return dict(answer)
    raise TypeError(f"on_connect() returned {answer!r}: return False to refuse, a dictionary to send, True or None")
