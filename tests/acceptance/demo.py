"""The demo in a process group of its own, as a terminal would start it, in a directory where nothing is yet."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.support.ports import free_port
from tests.support.processes import CHECKOUT, Process

READY = r"(?m)^Ctrl-C stops everything"


class Demo(Process):
    """`python -m example.demo`; ready as soon as it has said all it has to say."""

    def __init__(self, directory: Path, *, banner: str = READY, **environment: str) -> None:
        """It counts as started when it prints `banner`; `environment` may have a PORT, by default a free one."""
        self.directory = directory
        port = environment.pop("PORT", None) or str(free_port())
        variables = {"PORT": port, "PYTHONPATH": str(CHECKOUT), "DATABASE_URL": "", **environment}
        super().__init__([sys.executable, "-m", "example.demo"], banner=banner, environment=variables)
        self._cwd = str(directory)

    @property
    def site(self) -> str:
        """The URL that it printed for the chat, without the final slash."""
        return self.printed("Conversations").rstrip("/")

    @property
    def psql(self) -> str:
        """The command that it printed, as one pastes it into a shell."""
        return self.printed("Raw SQL")

    @property
    def conninfo(self) -> str:
        """The database's URL: what the command gives to psql."""
        return shlex.split(self.psql)[-1]

    @property
    def sample_insert(self) -> str:
        """The statement that it printed for pasting there."""
        return self.printed("Paste there")

    def printed(self, label: str) -> str:
        found = re.search(rf"(?m)^{re.escape(label)} +(\S.*)$", self.log)
        assert found is not None, self.log
        return found[1]

    def press_ctrl_c(self) -> None:
        """What a terminal does: the signal goes to every process of the group."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGINT)

    def kill_alone(self) -> None:
        """As the kernel does when memory runs out: the database goes on without its owner."""
        self.send_signal(signal.SIGKILL)
        self.wait()

    def kill_with_database(self) -> None:
        """As a power cut does."""
        kill_all(self.database_processes())
        self.kill_alone()

    def ends_within(self, seconds: float) -> int:
        """Return the exit status; an error if it takes longer."""
        begun = time.monotonic()
        status = self.wait(timeout=seconds + 10)
        took = time.monotonic() - begun
        assert took < seconds, f"it took {took:.1f} s to stop:\n{self.log}"
        return status

    def database_processes(self) -> list[int]:
        """The processes of PostgreSQL that work on this demo's data, whoever their parent is by now."""
        data = self.directory / ".demo" / "pgdata"
        return [process.pid for process in psutil.process_iter() if _works_in(process, data)]


def kill_all(pids: Iterable[int]) -> None:
    """Kill processes, some of which may end by themselves when others are killed."""
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            psutil.Process(pid).kill()


def _works_in(process: psutil.Process, directory: Path) -> bool:
    try:
        return process.cwd() == str(directory)
    except psutil.Error:
        return False


@contextmanager
def empty_directory() -> Iterator[Path]:
    """
    A new directory, removed in the end together with whoever still works in it.

    Not one of pytest's, whose parents are closed to the user that PostgreSQL runs as when we are root.
    """
    path = Path(tempfile.mkdtemp(prefix="demo-")).resolve()
    try:
        yield path
    finally:
        kill_all(Demo(path).database_processes())
        shutil.rmtree(path, ignore_errors=True)


def refusal(directory: Path, **environment: str) -> str:
    """Return what the demo says when it does not start; it must be one sentence, with exit status 1."""
    result = subprocess.run(
        [sys.executable, "-m", "example.demo"],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(CHECKOUT), "DATABASE_URL": "", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1, (result.stdout, result.stderr)
    assert result.stderr.startswith("demo: "), result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr.strip()


def run_in_django(conninfo: str, program: str) -> str:
    """Run a program with the example's models in a Django process that has nothing to do with the server."""
    result = subprocess.run(
        [sys.executable, "manage.py", "shell", "-v", "0", "-c", program],
        cwd=CHECKOUT,
        env=os.environ | {"DATABASE_URL": conninfo},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def paste_into_shell(command: str) -> str:
    """Run a command line in a shell, as somebody does who copied it from the terminal; return its output."""
    result = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=20, check=False)  # noqa: S602 (what a user does)
    assert result.returncode == 0, result.stderr
    return result.stdout
