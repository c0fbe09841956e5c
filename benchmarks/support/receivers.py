"""
Receivers in a process of their own: sockets that count frames, and do nothing else with them.

A frame costs them the time in which its bytes are read and searched, some tenths of a microsecond where many come at
once, so that it is the server that is measured.
"""

from __future__ import annotations

import multiprocessing
import selectors
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection as Pipe
from typing import Any

from benchmarks.support.subscribers import Dialogue, SubscribersError, frame, handshake

TIMEOUT = 120.0
"""Seconds until what is waited for must have come."""

IN_FLIGHT = 50
"""Sockets that are being opened at the same time."""

CHUNK = 1 << 20

RESULT, PING = b'"type":"next"', b'"type": "ping"'
"""Once in each result, in each ping, and nowhere else."""

PONG = frame(b'{"type": "pong"}')

_processes = multiprocessing.get_context("spawn")


class Receivers:
    """The other process, asked from this one."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    def open(self, ports: Sequence[int], count: int, dialogue: Dialogue) -> None:
        """Open so many sockets, at each port in its turn, and let each go through a dialogue."""
        self._ask("open", list(ports), count, dialogue)

    def expect(self, count: int) -> None:
        """Count from now on, until every socket has so many results."""
        self._ask("expect", count)

    def say(self, text: str) -> None:
        """Let the first socket say something."""
        self._ask("say", text)

    def complete(self, timeout: float = TIMEOUT) -> float:
        """Wait until all have what was expected, and not more; return when the last had, by ``time.perf_counter``."""
        at: float = self._ask("complete", timeout)
        return at

    def counted(self) -> int:
        """Return how many results have come, to all together."""
        count: int = self._ask("counted")
        return count

    def _ask(self, method: str, *arguments: Any) -> Any:
        self._pipe.send((method, arguments))
        answer = self._pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer


@contextmanager
def receivers() -> Iterator[Receivers]:
    """Run the process; its sockets are closed with it."""
    here, there = _processes.Pipe()
    process = _processes.Process(target=_serve, args=(there,), daemon=True)
    process.start()
    there.close()
    try:
        yield Receivers(here)
    finally:
        here.close()
        process.join(1)
        process.kill()
        process.join()


def _serve(pipe: Pipe) -> None:
    # Ended by the end of the pipe, also where Ctrl-C reaches both processes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    crowd = _Crowd(pipe)
    while True:
        try:
            crowd.turn(None)
            while pipe.poll():
                method, arguments = pipe.recv()
                pipe.send(getattr(crowd, method)(*arguments))
        except EOFError:
            return
        except Exception as error:
            pipe.send(error if isinstance(error, SubscribersError) else SubscribersError(repr(error)))


class _Crowd:
    """All sockets; reads what they are sent, also while nobody asks."""

    def __init__(self, pipe: Pipe) -> None:
        self._selector = selectors.DefaultSelector()
        self._selector.register(pipe, selectors.EVENT_READ)
        self._members: list[_Member] = []
        self._expected = 0

    def turn(self, timeout: float | None) -> None:
        for key, _ in self._selector.select(timeout):
            if key.data is not None:
                key.data.readable(self._expected)

    def open(self, ports: Sequence[int], count: int, dialogue: Dialogue) -> None:
        begun = time.perf_counter()
        for number in range(count):
            self._wait_until(lambda: sum(not member.ready for member in self._members[-IN_FLIGHT:]) < IN_FLIGHT, begun)
            member = _Member(ports[number % len(ports)], dialogue, dialogue.first + number)
            self._selector.register(member.line, selectors.EVENT_READ, member)
            self._members.append(member)
        self._wait_until(lambda: all(member.ready for member in self._members), begun)

    def expect(self, count: int) -> None:
        self._expected = count
        for member in self._members:
            member.count, member.at = 0, 0.0

    def say(self, text: str) -> None:
        self._members[0].line.send(frame(text.encode()))

    def complete(self, timeout: float) -> float:
        begun = time.perf_counter() - TIMEOUT + timeout
        self._wait_until(lambda: all(member.count >= self._expected for member in self._members), begun)
        too_many = sum(member.count > self._expected for member in self._members)
        if too_many:
            raise SubscribersError(f"{too_many} sockets were sent more than {self._expected} results")
        return max(member.at for member in self._members)

    def counted(self) -> int:
        return sum(member.count for member in self._members)

    def _wait_until(self, happened: Any, begun: float) -> None:
        while not happened():
            left = begun + TIMEOUT - time.perf_counter()
            if left <= 0:
                counts = sorted(member.count for member in self._members)
                raise SubscribersError(
                    f"{sum(not member.ready for member in self._members)} sockets are not open; of {self._expected} "
                    f"results sockets have {counts[0]} to {counts[-1]}"
                )
            self.turn(left)


class _Member:
    """One receiver."""

    def __init__(self, port: int, dialogue: Dialogue, number: int) -> None:
        self._steps = list(dialogue.steps)
        self._number = number
        self._waits_for = b"\r\n\r\n"
        self._unread = b""
        self.ready = False
        self.count = 0
        self.at = 0.0
        self.line = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT)
        self.line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.line.send(handshake(dialogue.subprotocol))
        self.line.setblocking(False)

    def readable(self, expected: int) -> None:
        data = self.line.recv(CHUNK)
        if not data:
            raise SubscribersError(f"the server has closed a socket, behind {self._unread[-200:]!r}")
        # What the last piece may have had the beginning of.
        piece = self._unread + data
        if not self.ready:
            self._talk(piece)
            return
        self._unread = piece[-len(PING) + 1 :]
        self.count += piece.count(RESULT) - self._unread.count(RESULT)
        if pings := piece.count(PING) - self._unread.count(PING):
            self.line.send(PONG * pings)
        if self.count >= expected and not self.at:
            self.at = time.perf_counter()

    def _talk(self, piece: bytes) -> None:
        self._unread = piece
        if self._waits_for not in piece:
            return
        self._unread = b""
        if not self._steps:
            self.ready = True
            return
        messages, answer = self._steps.pop(0)
        self._waits_for = answer.encode()
        said = (message.replace("NUMBER", str(self._number)).encode() for message in messages)
        self.line.send(b"".join(map(frame, said)))
