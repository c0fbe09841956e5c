"""
How cost grows with size: one SVG for each unit of a benchmark whose comparisons have sizes.

Needs matplotlib, which the extra `bench` installs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.results import Report, Result, Spread

# Text stays text, ids do not depend on the time: the same figures make the same file.
mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "pgnotify_gql"})

WIDTH, HEIGHT = 6.4, 4.0
"""Inches."""


def plot(directory: Path, reports: Sequence[Report]) -> Iterator[Path]:
    """Draw everything that has sizes; yield the files."""
    directory.mkdir(parents=True, exist_ok=True)
    for report in reports:
        sized = [result for result in report.results if result.comparison.size is not None and result.ours]
        units = sorted({result.comparison.unit for result in sized})
        for unit in units:
            name = report.benchmark.name if len(units) == 1 else f"{report.benchmark.name}-{_plain(unit)}"
            path = directory / f"{name}.svg"
            _draw(path, report, unit, [result for result in sized if result.comparison.unit == unit])
            yield path


def _draw(path: Path, report: Report, unit: str, results: Sequence[Result]) -> None:
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    for label, points in _lines(results).items():
        sizes = [size for size, _ in points]
        medians = [spread.median for _, spread in points]
        errors = [
            [spread.median - spread.least for _, spread in points],
            [spread.most - spread.median for _, spread in points],
        ]
        axes.errorbar(sizes, medians, yerr=errors, label=label, marker="o", capsize=3)
    sizes = sorted({result.comparison.size for result in results if result.comparison.size is not None})
    if sizes[0] > 0 and sizes[-1] / sizes[0] >= 50:
        axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,g}" for size in sizes])
    axes.set_ylim(bottom=0)
    axes.set(title=report.benchmark.title, xlabel=report.benchmark.scale, ylabel=unit)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, metadata={"Date": None})


def _lines(results: Sequence[Result]) -> dict[str, list[tuple[float, Spread]]]:
    """Return the points of each line, in order of size; a line is whatever has a name of its own."""
    lines: dict[str, dict[float, Spread]] = {}
    for result in results:
        comparison, size = result.comparison, result.comparison.size
        assert size is not None
        lines.setdefault(comparison.ours.name, {})[size] = Spread.of(result.ours)
        if comparison.baseline is not None and result.baseline:
            lines.setdefault(comparison.baseline.name, {})[size] = Spread.of(result.baseline)
    return {name: sorted(points.items()) for name, points in lines.items()}


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
