"""
Programs that tests start as processes of their own: Redis, PgBouncer, and this project's servers and
listener.

All are mirakuru executors, which wait until the program is ready and leave no process behind.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from pathlib import Path
from typing import Any, Self

import redis
from mirakuru import Executor
from mirakuru.exceptions import ExecutorError, ProcessExitedWithError

from tests.support.databases import Database
from tests.support.ports import free_port
from tests.support.requirements import require

CHECKOUT = Path(__file__).parents[2]

START_TIMEOUT = 30
"""Seconds until a program must be ready; on a busy machine Django's servers need three."""

POLL_INTERVAL = 0.05
"""Seconds between two looks at a program that starts or stops."""

LOG_EXCERPT = 10_000
"""How many characters of a program's output an error shows, from its end."""


class Process(Executor):
    """
    A program that is ready as soon as its port answers, or its output shows `banner` (a regular expression).

    Its output goes to a file, not to a pipe: nobody reads a pipe while the test runs, and a full one blocks
    the program. `log` is that output, also once the program has ended.
    """

    def __init__(
        self,
        command: list[str],
        *,
        port: int | None = None,
        banner: str | None = None,
        environment: dict[str, str] | None = None,
        popen_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.port = port
        self.banner = banner
        self.returncode: int | None = None
        self._log_file = tempfile.TemporaryFile()  # noqa: SIM115 (readable as long as this object lives)
        weakref.finalize(self, self._log_file.close)
        super().__init__(
            command,
            cwd=str(CHECKOUT),
            timeout=START_TIMEOUT,
            sleep=POLL_INTERVAL,
            envvars={"PYTHONUNBUFFERED": "1", **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=self._log_file,
            stderr=subprocess.STDOUT,
            popen_kwargs=popen_kwargs,
        )

    @property
    def log(self) -> str:
        size = os.fstat(self._log_file.fileno()).st_size
        return os.pread(self._log_file.fileno(), size, 0).decode(errors="replace")

    def start(self) -> Self:
        try:
            return super().start()
        except ExecutorError as error:
            error.add_note(self.log[-LOG_EXCERPT:])
            raise

    def pre_start_check(self) -> bool:
        return self.port is not None and self._port_answers()

    def check_subprocess(self) -> bool:
        ended = self.process is not None and self.process.poll() == 0
        ready = super().check_subprocess()
        if ended and not ready:
            # mirakuru would wait on for a program that ended without an error.
            raise ProcessExitedWithError(self, 0)
        return ready

    def after_start_check(self) -> bool:
        if self.banner is not None:
            return re.search(self.banner, self.log) is not None
        return self._port_answers()

    def _port_answers(self) -> bool:
        assert self.port is not None
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def wait_for_log(self, pattern: str, timeout: float = 10) -> re.Match[str]:
        """Wait until the output shows the regular expression; the program goes on either way."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if match := re.search(pattern, self.log, re.MULTILINE):
                return match
            time.sleep(POLL_INTERVAL)
        raise AssertionError(f"no {pattern!r} within {timeout} s in:\n{self.log[-LOG_EXCERPT:]}")

    def send_signal(self, number: int) -> None:
        """Send a signal to the program alone and do not wait."""
        assert self.process is not None
        self.process.send_signal(number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def pause(self) -> None:
        """Freeze it: its connections stay open, and nobody answers on them."""
        self.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.send_signal(signal.SIGCONT)

    def wait(self, timeout: float = 10) -> int:
        """The exit status, once the program has ended; from then on `stop()` accepts every status."""
        assert self.process is not None
        self.returncode = self.process.wait(timeout)
        return self.returncode

    def stop(self, stop_signal: int | None = None, expected_returncode: int | None = None) -> Self:
        """Ask it to end; an error if it had ended by itself, with a failure that the test did not look at."""
        if self.returncode is not None:
            return self.kill()
        if self.running():
            # A paused program would not hear of its end.
            self.resume()
        return super().stop(stop_signal, expected_returncode)


class RedisServer(Process):
    """A Redis that keeps nothing on disk."""

    def __init__(self) -> None:
        port = free_port()
        command = [str(require("redis-server")), "--bind", "127.0.0.1", "--port", str(port)]
        super().__init__([*command, "--save", "", "--appendonly", "no", "--dir", tempfile.gettempdir()], port=port)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def flush(self) -> None:
        with redis.Redis.from_url(self.url) as client:
            client.flushall()


class PgBouncer(Process):
    """A PgBouncer before one database, in transaction mode by default."""

    def __init__(self, database: Database, *, pool_mode: str = "transaction", **settings: str | float) -> None:
        port = free_port()
        self.database = database
        self.directory = Path(tempfile.mkdtemp(prefix="pgbouncer-"))
        weakref.finalize(self, shutil.rmtree, self.directory, ignore_errors=True)
        server = database.server
        configuration = self.directory / "pgbouncer.ini"
        configuration.write_text(
            f"""
[databases]
{database.name} = host={server.directory} port={server.port} user={server.user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {pool_mode}
"""
            + "".join(f"{name} = {value}\n" for name, value in settings.items())
        )
        popen_kwargs: dict[str, Any] = {}
        if server.system_user is not None:
            # Like PostgreSQL it refuses to run as root.
            shutil.chown(self.directory, server.system_user)
            shutil.chown(configuration, server.system_user)
            popen_kwargs["user"] = server.system_user
        super().__init__([str(require("pgbouncer")), str(configuration)], port=port, popen_kwargs=popen_kwargs)

    @property
    def conninfo(self) -> str:
        return f"host=127.0.0.1 port={self.port} user={self.database.server.user} dbname={self.database.name}"

    @property
    def url(self) -> str:
        return f"postgresql://{self.database.server.user}@127.0.0.1:{self.port}/{self.database.name}"

    def stop(self, stop_signal: int | None = None, expected_returncode: int | None = None) -> Self:
        # It has nothing to save, and some versions wait for their clients first.
        return self.kill()


class ProjectServer(Process):
    """The example project behind an ASGI server."""

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"


def project_environment(
    database_url: str, redis: RedisServer | None, *, inline: bool, environment: dict[str, str] | None
) -> dict[str, str]:
    """The environment variables that example.settings reads."""
    variables = {"DATABASE_URL": database_url, "PGNOTIFY_INLINE": "1" if inline else "0"}
    if redis is not None:
        variables["REDIS_URL"] = redis.url
    return variables | (environment or {})


APPLICATION = "example.asgi:application"


def daphne(environment: dict[str, str], application: str = APPLICATION, *arguments: str) -> ProjectServer:
    port = free_port()
    command = [sys.executable, "-m", "daphne", "-b", "127.0.0.1", "-p", str(port), *arguments, application]
    return ProjectServer(command, port=port, environment=environment)


def uvicorn(environment: dict[str, str], application: str = APPLICATION, *arguments: str) -> ProjectServer:
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "--host", "127.0.0.1", "--port", str(port), *arguments]
    return ProjectServer([*command, application], port=port, environment=environment)


def listener(environment: dict[str, str], *arguments: str, banner: str) -> Process:
    return Process([sys.executable, "manage.py", "run_listener", *arguments], banner=banner, environment=environment)
