"""Somebody who follows the tutorial: writes its files, types its commands, and sees what it says one sees."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import psutil

from tests.tutorial.blocks import Block

PROJECT = "live"
"""The directory that the page makes."""

COMMAND_TIMEOUT = 300
"""Seconds; pip downloads 40 MB."""

SEEN_WITHIN = 30
"""Seconds until a server says what the page says of it."""

ENDS_WITHIN = 30
"""Seconds until a program has ended that was told to."""

NOT_INHERITED = {"PYTHONPATH", "DJANGO_SETTINGS_MODULE", "DATABASE_URL", "VIRTUAL_ENV", "REDIS_URL", "PGNOTIFY_INLINE"}


class Reader:
    """
    Follows blocks in their order, in an empty `directory`.

    `instead` are the few words that are typed in place of the page's: what is not on PyPI yet, and a port that is free.
    """

    def __init__(self, directory: Path, instead: dict[str, str]) -> None:
        self.directory = directory
        self.project = directory / PROJECT
        self.database: Terminal | None = None
        self.server: Terminal | None = None
        self._instead = instead
        self._output = ""
        self._shown: Terminal | None = None

    def follow(self, blocks: Sequence[Block]) -> None:
        """Do what each block says.  A failing command, or what is not seen, is an error of the test."""
        for block in blocks:
            if block.is_seen:
                self._see(block)
            elif block.is_file:
                self._write(block)
            elif block.stays:
                self._shown = self._start(block)
            elif block.language == "sql":
                self._output, self._shown = self._run(self.psql, block.text), None
            else:
                self._output, self._shown = self._run(self._typed(block.text)), None

    @property
    def psql(self) -> str:
        """The command that the database's terminal shows, as one pastes it into a shell."""
        assert self.database is not None, "the page starts the database first"
        command = self.database.wait_for(r"(?m)^\S+/psql .*$")[0]
        return f"{command} --quiet --set ON_ERROR_STOP=1"

    def close(self) -> None:
        """Stop what was started; what has not ended by itself by now has failed the test already."""
        for terminal in (self.server, self.database):
            if terminal is not None:
                terminal.end()
        data = self.project / "pgdata"
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.cwd() == str(data):
                    process.kill()

    def _write(self, block: Block) -> None:
        file = self.project / block.path
        if block.appends:
            with file.open("a") as old:
                old.write("\n" + block.text)
        else:
            file.parent.mkdir(exist_ok=True)
            file.write_text(block.text)

    def _run(self, command: str, pasted: str = "") -> str:
        result = subprocess.run(
            ["bash", "-e", "-c", command],
            cwd=self.project if self.project.exists() else self.directory,
            env=self._environment,
            input=pasted,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=COMMAND_TIMEOUT,
        )
        assert result.returncode == 0, f"{command}\n{result.stdout}"
        return result.stdout

    def _start(self, block: Block) -> Terminal:
        terminal = Terminal(self._typed(block.text), self.project, self._environment)
        if "database" in block.caption:
            self.database = terminal
        else:
            self.server = terminal
        return terminal

    def _see(self, block: Block) -> None:
        expected = r"[\s\S]*?".join(map(re.escape, self._typed(block.text).rstrip().split("...")))
        if self._shown is not None:
            self._shown.wait_for(expected)
        else:
            assert re.search(expected, self._output), f"{block.text}\nis not in\n{self._output}"

    def _typed(self, text: str) -> str:
        for word, other in self._instead.items():
            text = text.replace(word, other)
        return text

    @property
    def _environment(self) -> dict[str, str]:
        """That of a terminal in which the environment was activated."""
        inherited = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
        path = os.pathsep.join([str(self.project / ".venv" / "bin"), os.environ.get("PATH", os.defpath)])
        return inherited | {"PATH": path, "PYTHONUNBUFFERED": "1"}


class Terminal:
    """A program that goes on in a terminal of its own: it can be read, and Ctrl-C and Enter can be pressed."""

    def __init__(self, command: str, directory: Path, environment: dict[str, str]) -> None:
        self._log = directory.parent / f"terminal-{time.monotonic_ns()}.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                cwd=directory,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        """What it has printed so far."""
        return self._log.read_text(errors="replace")

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until its output shows a regular expression."""
        deadline = time.monotonic() + SEEN_WITHIN
        while (found := re.search(pattern, self.log)) is None:
            assert self._process.poll() is None, f"it has ended:\n{self.log}"
            assert time.monotonic() < deadline, f"no {pattern!r} within {SEEN_WITHIN} s in\n{self.log}"
            time.sleep(0.05)
        return found

    def press_enter(self) -> int:
        """Press Enter, and return the exit status."""
        self._stdin.write(b"\n")
        return self._ended()

    def press_ctrl_c(self) -> int:
        """Press Ctrl-C, which every process of the terminal hears, and return the exit status."""
        os.killpg(self._process.pid, signal.SIGINT)
        return self._ended()

    def end(self) -> None:
        """Press Ctrl-C unless it has ended, and make sure that nothing goes on."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGINT)
        try:
            self._ended()
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._ended()

    def _ended(self) -> int:
        self._stdin.close()
        return self._process.wait(ENDS_WITHIN)

    @property
    def _stdin(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin


@contextmanager
def reading(directory: Path, instead: dict[str, str]) -> Iterator[Reader]:
    """A reader whose terminals are closed in the end."""
    reader = Reader(directory, instead)
    try:
        yield reader
    finally:
        reader.close()
