"""
The progress of a run: a display that is redrawn in a terminal, plain lines elsewhere.

Nothing of it goes to standard output where the report is JSON.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

LINE_INTERVAL = 10.0
"""Seconds between two plain lines."""

RECENT = 8
"""What happened last, in lines of the display."""


@dataclass(frozen=True)
class Status:
    """How far a run is; times in seconds."""

    phase: str
    elapsed: float
    duration: float
    changes: int
    deliveries: int
    connected: int
    subscribers: int
    reconnections: int
    faults: int
    current: Sequence[str] = ()
    missing: int | None = None

    @property
    def sentence(self) -> str:
        """All in one line."""
        parts = [
            f"{self.phase}, {self.elapsed:.0f} of {self.duration:.0f} s",
            f"{self.changes:,} changes",
            f"{self.deliveries:,} deliveries",
            f"{self.connected} of {self.subscribers} subscribers connected",
            f"{self.reconnections:,} reconnections",
            f"{self.faults:,} faults",
        ]
        if self.missing is not None:
            parts.append(f"{self.missing:,} deliveries to come")
        return ", ".join(parts)


class Progress(Protocol):
    """Where a run tells how it goes on."""

    def say(self, sentence: str) -> None:
        """Tell what happens."""

    def show(self, status: Status) -> None:
        """Tell how far it is; called often."""


class Silence:
    """For those who want to see the report alone."""

    def say(self, sentence: str) -> None:
        pass

    def show(self, status: Status) -> None:
        pass


class Lines:
    """A line for each event, and one now and then."""

    def __init__(self, write: Callable[[str], Any]) -> None:
        self._write = write
        self._shown = 0.0
        self._phase = ""

    def say(self, sentence: str) -> None:
        self._write(sentence)

    def show(self, status: Status) -> None:
        if time.monotonic() > self._shown + LINE_INTERVAL or status.phase != self._phase:
            self._shown, self._phase = time.monotonic(), status.phase
            self._write(status.sentence)


class Display:
    """A table, a bar, and what happened last."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._recent: list[str] = []

    def say(self, sentence: str) -> None:
        self._recent = [*self._recent, f"{time.strftime('%H:%M:%S')}  {sentence}"][-RECENT:]

    def show(self, status: Status) -> None:
        table = Table.grid(padding=(0, 2))
        missing = "" if status.missing is None else f"{status.missing:,} to come"
        for name, value in (
            (status.phase, f"{status.elapsed:.0f} of {status.duration:.0f} s"),
            ("changes", f"{status.changes:,}"),
            ("deliveries", f"{status.deliveries:,}  {missing}"),
            ("subscribers", f"{status.connected} of {status.subscribers} connected, {status.reconnections:,} again"),
            ("faults", f"{status.faults:,}  {', '.join(status.current)}"),
        ):
            table.add_row(Text(name, style="bold"), value)
        bar = ProgressBar(total=status.duration, completed=min(status.elapsed, status.duration), width=60)
        # In a row, which ends its line; a bar by itself does not.
        table.add_row("", bar)
        self._live.update(Group(table, *(Text(line, style="dim") for line in self._recent)))


@contextmanager
def progress(stream: Any, write: Callable[[str], Any]) -> Iterator[Progress]:
    """Show progress on a stream if it is a terminal, and else by writing lines."""
    if not stream.isatty():
        yield Lines(write)
        return
    with Live(console=Console(file=stream), transient=True, refresh_per_second=4) as live:
        yield Display(live)
