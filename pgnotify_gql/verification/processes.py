"""
The processes of a run: servers and listeners of its own, which end with it.

Each is the leader of a process group, so that Ctrl-C in a terminal reaches the run alone, and has a pipe from the run
as its standard input, whose end is its own.  Output goes into a file.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from .child import Task
from .errors import VerificationError
from .options import SERVERS, Options

START_TIMEOUT = 60.0
"""Seconds until a server answers; on a busy machine Django needs some."""

STOP_TIMEOUT = 30.0
"""Seconds that an orderly end may take."""

RESTART_DELAY = 1.0
"""Seconds until one that ended by itself is started again, so that one that cannot run does not do so all the time."""

LOOK_INTERVAL = 0.05

LOG_EXCERPT = 1_500
"""Characters from the end of a log that an error shows."""

FIRST_PORT, LAST_PORT = 20_000, 32_000
"""Below the range that systems take ports of outgoing connections from: it must be free again after a kill."""


class Child:
    """One process, started as often as it takes."""

    def __init__(self, name: str, command: Sequence[str], task: Task, log: Path, port: int | None = None) -> None:
        self.name = name
        self.port = port
        self.log = log
        self.busy = False
        """Whether some fault has it in hand."""
        self._command = command
        self._environment = os.environ | task.environment() | {"PYTHONUNBUFFERED": "1"}
        self._process: Process | None = None
        self._watching: asyncio.Task[None] | None = None
        self._meant_to_end = False
        self.ended_by_itself: Callable[[int], None] = lambda status: None
        """Called with the exit status when it ends and nobody has asked for it; it is started again then."""

    async def start(self) -> None:
        """Start it, and wait until it answers.  Raises VerificationError when it does not, or ends."""
        self._meant_to_end = False
        with self.log.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdin=PIPE, stdout=output, stderr=STDOUT, env=self._environment, process_group=0
            )
        self._watching = asyncio.create_task(self._watch(self._process), name=f"pgnotify_gql watch {self.name}")
        try:
            async with asyncio.timeout(START_TIMEOUT):
                while self.port is not None and not await self._answers():  # noqa: ASYNC110  (it cannot tell us)
                    await asyncio.sleep(LOOK_INTERVAL)
        except TimeoutError as error:
            raise VerificationError(
                f"{self.name} does not answer within {START_TIMEOUT:g} s:\n{self.excerpt}"
            ) from error

    def kill(self) -> None:
        """End it at once."""
        self._end(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to end in good order."""
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        """Freeze it."""
        self._send(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._send(signal.SIGCONT)

    async def ended(self) -> bool:
        """Wait until it has ended; return False, when it has been killed because it did not."""
        if self._watching is None:
            return True
        _, pending = await asyncio.wait({self._watching}, timeout=STOP_TIMEOUT)
        if pending:
            self.kill()
            await asyncio.wait(pending)
        return not pending

    @property
    def url(self) -> str:
        """Where it serves sockets."""
        return f"ws://127.0.0.1:{self.port}/"

    @property
    def alive(self) -> bool:
        """Whether it has been started, and has not ended."""
        return self._watching is not None and not self._watching.done()

    @property
    def excerpt(self) -> str:
        """The end of its output."""
        return self.log.read_text(errors="replace")[-LOG_EXCERPT:] if self.log.exists() else ""

    def _end(self, number: signal.Signals) -> None:
        self._meant_to_end = True
        self._send(number)

    def _send(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            if self._process is not None:
                self._process.send_signal(number)

    async def _watch(self, process: Process) -> None:
        status = await process.wait()
        if not self._meant_to_end:
            self.ended_by_itself(status)

    async def _answers(self) -> bool:
        assert self.port is not None
        if self._watching is not None and self._watching.done():
            raise VerificationError(f"{self.name} ended as it started:\n{self.excerpt}")
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        return True


class Processes:
    """All servers and listeners of a run."""

    def __init__(self, options: Options, logs: Path, remark: Callable[[str], None]) -> None:
        self.servers = [_server(number, options, logs) for number in range(1, options.servers + 1)]
        self.listeners = [_listener(number, options, logs) for number in range(1, options.listeners + 1)]
        self.unexpected_exits = 0
        self.remark = remark
        self._restarts: set[asyncio.Task[None]] = set()

    @property
    def urls(self) -> list[str]:
        """Where the servers are."""
        return [server.url for server in self.servers]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start them all, and end them all.  Raises VerificationError when one does not start."""
        children = [*self.listeners, *self.servers]
        try:
            await asyncio.gather(*(child.start() for child in children))
            for child in children:
                child.ended_by_itself = self._restarting(child)
            yield
        finally:
            restarts = list(self._restarts)
            for task in restarts:
                task.cancel()
            # What is just being started is ended by that.
            await asyncio.gather(*restarts, return_exceptions=True)
            for child in children:
                child.resume()
                child.terminate()
            await asyncio.gather(*(child.ended() for child in children))

    @property
    def excerpts(self) -> str:
        """The ends of all outputs, one after the other."""
        return "\n".join(f"{child.name}:\n{child.excerpt}" for child in [*self.listeners, *self.servers])

    def require_alive(self) -> None:
        """Raise VerificationError when one has ended by itself: no use in trying it again before anything has begun."""
        for child in [*self.listeners, *self.servers]:
            if not child.alive:
                raise VerificationError(f"{child.name} ended by itself:\n{child.excerpt}")

    def _restarting(self, child: Child) -> Callable[[int], None]:
        async def restart() -> None:
            await asyncio.sleep(RESTART_DELAY)
            await child.start()

        def restart_soon(status: int) -> None:
            self.unexpected_exits += 1
            self.remark(f"{child.name} ended by itself with status {status}, and is started again: see {child.log}")
            task = asyncio.create_task(restart(), name=f"pgnotify_gql restart {child.name}")
            self._restarts.add(task)
            task.add_done_callback(self._restarts.discard)

        return restart_soon


def _server(number: int, options: Options, logs: Path) -> Child:
    port = _free_port()
    module, *arguments = SERVERS[options.server]
    command = [sys.executable, "-m", module, *arguments, str(port), "pgnotify_gql.verification.asgi:application"]
    task = Task(options.database, options.session_name("hub"), options.inline)
    return Child(f"server {number}", command, task, logs / f"server_{number}.log", port)


def _listener(number: int, options: Options, logs: Path) -> Child:
    command = [sys.executable, "-m", "pgnotify_gql.verification.listener"]
    task = Task(options.database, options.session_name("listener"))
    return Child(f"listener {number}", command, task, logs / f"listener_{number}.log")


def _free_port() -> int:
    for port in random.sample(range(FIRST_PORT, LAST_PORT), LAST_PORT - FIRST_PORT):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise VerificationError(f"every port from {FIRST_PORT} to {LAST_PORT} is in use")
