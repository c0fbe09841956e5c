"""Progress while it runs: a bar in a terminal, a line for each run elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.benchmark import Benchmark, Measured
from benchmarks.report import number


class Shown:
    """Implements ``runner.Progress``."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._console = bar.console
        self._task = bar.add_task("", total=None)

    def preparing(self, benchmark: Benchmark, what: str) -> None:
        self._say(f"{benchmark.name}: {what}")
        self._bar.update(self._task, description=escape(f"{benchmark.name}: {what}"), completed=0, total=None)

    def measuring(self, benchmark: Benchmark, what: str, repeat: int, done: int, total: int) -> None:
        what = f"{benchmark.name}, repeat {repeat + 1}: {what}"
        self._say(f"{what} ({done} of {total} runs done)")
        self._bar.update(self._task, description=escape(what), completed=done, total=total)

    def measured(self, measured: Measured) -> None:
        figures = measured if isinstance(measured, Mapping) else {"": measured}
        self._say("  " + ", ".join(f"{name} {number(value)}".strip() for name, value in figures.items()))

    def failed(self, what: str, why: str) -> None:
        self._console.print(escape(f"{what} failed: {why}"), style="red", soft_wrap=True)

    def _say(self, sentence: str) -> None:
        if not self._console.is_terminal:
            self._console.print(escape(sentence), soft_wrap=True)


@contextmanager
def shown(console: Console) -> Iterator[Shown]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield Shown(bar)
