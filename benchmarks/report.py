"""The table for people, and JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.results import Report, Result, Spread


def write_json(path: Path, reports: Sequence[Report], conditions: Mapping[str, str]) -> None:
    content = {"conditions": dict(conditions), "benchmarks": [report.as_json() for report in reports]}
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def print_report(console: Console, reports: Sequence[Report], conditions: Mapping[str, str]) -> None:
    console.print(_table(reports))
    for report in reports:
        for what, why in _failures(report):
            console.print(Text(f"{what} failed: {why}", style="red"))
    for name, value in _all_conditions(reports, conditions).items():
        console.print(Text(f"{name}: {value}", style="dim"), soft_wrap=True)


def _table(reports: Sequence[Report]) -> Table:
    table = Table(box=box.SIMPLE, caption="Medians, and in brackets the least and the most of all repeats.")
    for heading in ("figure", "unit", "ours", "baseline", "ratio", "target", "reached"):
        table.add_column(heading, justify="right" if heading in {"ours", "baseline", "ratio", "target"} else "left")
    for report in reports:
        table.add_section()
        table.add_row(Text(report.benchmark.title, style="bold"))
        for result in report.results:
            table.add_row(*_row(result))
    return table


def _row(result: Result) -> list[Text]:
    comparison = result.comparison
    other = comparison.baseline if comparison.baseline is not comparison.ours else None
    against = f", against {other.name}" if other else ""
    reached = {True: Text("yes", style="green"), False: Text("no", style="red"), None: Text("")}[result.reached]
    return [
        Text(f"  {comparison.name}: {comparison.ours.name}{against}"),
        Text(comparison.unit),
        Text(_spread(result.ours)),
        Text(_spread(result.baseline)),
        Text(_spread(result.ratios)),
        Text(str(comparison.target or "")),
        Text("failed", style="red") if result.failed else reached,
    ]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = Spread.of(values)
    return f"{number(spread.median)} ({number(spread.least)}..{number(spread.most)})"


def number(value: float) -> str:
    """Return it with three digits, or with all before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _failures(report: Report) -> list[tuple[str, str]]:
    failures = [(report.benchmark.name, report.failed)] if report.failed else []
    told = {result.failed for result in report.results if result.failed}
    return failures + [(report.benchmark.name, failed) for failed in sorted(told)]


def _all_conditions(reports: Sequence[Report], conditions: Mapping[str, str]) -> dict[str, str]:
    return dict(conditions) | {
        f"{report.benchmark.name}, {name}": value for report in reports for name, value in report.conditions.items()
    }
