"""
Many subscribers in a process of their own: sockets that cost little here, so that it is the server that is measured.

They speak WebSocket by hand, without threads, tasks or a library: what a subscriber has to do for a frame is to look
for a number in it, and that takes a few microseconds.
"""

from __future__ import annotations

import multiprocessing
import selectors
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from typing import Any, NoReturn

ANSWER_TIMEOUT = 60.0
"""Seconds until what is waited for must have come."""

LIVE_TIMEOUTS = 0.5, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0
"""Seconds that a change may take to reach all before it is tried with another: longer each time, since thousands whose
executions are their own may need seconds, and each change adds to what they have to do."""

IN_FLIGHT = 50
"""Sockets that are being opened at the same time; servers keep so many waiting."""

CHUNK = 65_536

NUMBER = "NUMBER"
"""Stands, in what a subscriber says, for a number of its own."""

CHANGE = b"change "
"""What stands before the number of a change in a frame; behind it stands a point."""

TEXT, CLOSE, PING, PONG = 0x81, 0x88, 0x89, 0x8A
"""First bytes of frames that come in one piece, as servers send them where nobody asks for fragments."""

_processes = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Dialogue:
    """
    What a subscriber says, once its socket is open: messages, and what the answer to the last of them contains.

    Without any it is content with an open socket.  `first` is the own number of the first subscriber.
    """

    steps: Sequence[tuple[Sequence[str], str]] = ()
    first: int = 0
    subprotocol: str = "graphql-transport-ws"


class SubscribersError(Exception):
    """Something did not come, or was not understood."""


class Subscribers:
    """The other process, asked from this one."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    def open(self, port: int, count: int, dialogue: Dialogue) -> float:
        """Open so many more sockets; return the seconds until the last has had its last answer."""
        seconds: float = self._ask("open", port, count, dialogue)
        return seconds

    def reached(self, number: int, timeout: float = ANSWER_TIMEOUT) -> bool:
        """Wait until all have a change with that number, or a later one; return whether they do."""
        reached: bool = self._ask("reached", number, timeout)
        return reached

    def until_live(self, change: Callable[[], int]) -> None:
        """Make changes, given a function that returns the number of the one it has made, until one reaches all."""
        # No message tells when a subscription has taken effect.
        if not any(self.reached(change(), timeout) for timeout in LIVE_TIMEOUTS):
            raise SubscribersError("no change has reached every subscriber")

    def arrivals(self) -> Mapping[int, Sequence[float]]:
        """
        Take when each change had arrived, at every socket, by ``time.perf_counter``.

        Who is sent a later state of a row has no need of the one before: both have then arrived.
        """
        arrivals: Mapping[int, Sequence[float]] = self._ask("arrivals")
        return arrivals

    def _ask(self, method: str, *arguments: Any) -> Any:
        self._pipe.send((method, arguments))
        answer = self._pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer


@contextmanager
def subscribers() -> Iterator[Subscribers]:
    """Run the process; its sockets are closed with it."""
    here, there = _processes.Pipe()
    process = _processes.Process(target=_serve, args=(there,), daemon=True)
    process.start()
    there.close()
    try:
        yield Subscribers(here)
    finally:
        here.close()
        process.join(1)
        process.kill()
        process.join()


def _serve(pipe: Pipe) -> None:
    # Ended by the end of the pipe, also where Ctrl-C reaches both processes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    crowd = _Crowd(pipe)
    failed: Exception | None = None
    while True:
        # Whatever goes wrong while nobody asks is told when somebody does, and from then on.
        try:
            if failed is None:
                crowd.turn()
        except Exception as error:
            failed = _told(error)
        while failed is not None or pipe.poll():
            try:
                method, arguments = pipe.recv()
            except EOFError:
                return
            answer = failed or _answer(crowd, method, arguments)
            failed = answer if isinstance(answer, Exception) else None
            pipe.send(answer)


def _answer(crowd: _Crowd, method: str, arguments: Sequence[Any]) -> Any:
    try:
        return getattr(crowd, method)(*arguments)
    except Exception as error:
        return _told(error)


def _told(error: Exception) -> SubscribersError:
    return error if isinstance(error, SubscribersError) else SubscribersError(repr(error))


class _Crowd:
    """All sockets; reads what they are sent, also while nobody asks."""

    def __init__(self, pipe: Pipe) -> None:
        self._selector = selectors.DefaultSelector()
        self._selector.register(pipe, selectors.EVENT_READ)
        self._members: list[_Member] = []

    def turn(self, timeout: float | None = None) -> None:
        """Handle whatever can be read, and wait for something if there is nothing."""
        for key, _ in self._selector.select(timeout):
            if key.data is not None:
                key.data.readable()

    def open(self, port: int, count: int, dialogue: Dialogue) -> float:
        begun = time.perf_counter()
        talking: list[_Member] = []
        for _ in range(count):
            while len(talking) >= IN_FLIGHT:
                self._turn_before(begun + ANSWER_TIMEOUT)
                talking = [member for member in talking if not member.ready]
            talking.append(self._begin(port, dialogue))
        while not all(member.ready for member in talking):
            self._turn_before(begun + ANSWER_TIMEOUT)
        return time.perf_counter() - begun

    def reached(self, number: int, timeout: float) -> bool:
        deadline = time.perf_counter() + timeout
        while not all(member.next > number for member in self._members) and time.perf_counter() < deadline:
            self.turn(deadline - time.perf_counter())
        return all(member.next > number for member in self._members)

    def arrivals(self) -> dict[int, list[float]]:
        found: dict[int, list[float]] = {}
        for member in self._members:
            for number, at in member.arrived.items():
                found.setdefault(number, []).append(at)
            member.arrived = {}
        return found

    def _begin(self, port: int, dialogue: Dialogue) -> _Member:
        line = socket.create_connection(("127.0.0.1", port), timeout=ANSWER_TIMEOUT)
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        line.setblocking(False)
        member = _Member(line, dialogue, dialogue.first + len(self._members), lambda: self._selector.unregister(line))
        self._selector.register(line, selectors.EVENT_READ, member)
        self._members.append(member)
        return member

    def _turn_before(self, deadline: float) -> None:
        self.turn(deadline - time.perf_counter())
        if time.perf_counter() > deadline:
            waiting = [member for member in self._members if not member.ready]
            raise SubscribersError(f"{len(waiting)} sockets had no answer within {ANSWER_TIMEOUT:g} s: {waiting[0]}")


class _Member:
    """One subscriber; `next` is the number of the change that it has not had yet."""

    def __init__(self, line: socket.socket, dialogue: Dialogue, number: int, gone: Callable[[], Any]) -> None:
        self._line = line
        self._number = number
        self._gone = gone
        self._steps = deque(dialogue.steps)
        self._waits_for = b""
        self._unread = b""
        self._open = False
        self.ready = False
        self.next = 0
        self.arrived: dict[int, float] = {}
        line.send(handshake(dialogue.subprotocol))

    def __str__(self) -> str:
        return f"subscriber {self._number}, waiting for {self._waits_for!r}, unread {self._unread[:200]!r}"

    def readable(self) -> None:
        data = self._line.recv(CHUNK)
        at = time.perf_counter()
        if not data:
            self._end()
        self._unread += data
        if not self._open:
            self._finish_handshake()
        while self._open and (found := self._next_frame()) is not None:
            kind, payload = found
            if kind == PING:
                self._line.send(frame(payload, PONG))
            elif kind == CLOSE:
                self._end()
            else:
                self._take(payload, at)

    def _end(self) -> NoReturn:
        self._gone()
        raise SubscribersError(f"the server has closed the socket of {self}")

    def _finish_handshake(self) -> None:
        head, end, rest = self._unread.partition(b"\r\n\r\n")
        if not end:
            return
        if not head.startswith(b"HTTP/1.1 101"):
            raise SubscribersError(f"no socket was opened: {head[:200]!r}")
        self._open, self._unread = True, rest
        self._speak()

    def _speak(self) -> None:
        if not self._steps:
            self.ready = True
            return
        messages, answer = self._steps.popleft()
        self._waits_for = answer.encode()
        self._line.send(b"".join(frame(message.replace(NUMBER, str(self._number)).encode()) for message in messages))

    def _next_frame(self) -> tuple[int, bytes] | None:
        """Return the kind and the payload of the next frame, once it has come in whole."""
        unread = self._unread
        if len(unread) < 2:
            return None
        size, begin = unread[1], 2
        if size == 126:
            size, begin = int.from_bytes(unread[2:4]), 4
        elif size == 127:
            size, begin = int.from_bytes(unread[2:10]), 10
        if len(unread) < begin + size:
            return None
        self._unread = unread[begin + size :]
        return unread[0], unread[begin : begin + size]

    def _take(self, frame: bytes, at: float) -> None:
        if not self.ready:
            if self._waits_for in frame:
                self._speak()
            return
        place = frame.find(CHANGE)
        if place < 0:
            return
        place += len(CHANGE)
        number = int(frame[place : frame.index(b".", place)])
        for arrived in range(self.next, number + 1):
            self.arrived[arrived] = at
        self.next = max(self.next, number + 1)


def handshake(subprotocol: str) -> bytes:
    return (
        "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: http://127.0.0.1\r\n"
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Protocol: {subprotocol}\r\n\r\n"
    ).encode()


def frame(payload: bytes, kind: int = TEXT) -> bytes:
    # Masked, as a client must, with a mask of zeros, which changes nothing.
    size = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + len(payload).to_bytes(2)
    return bytes([kind]) + size + bytes(4) + payload
