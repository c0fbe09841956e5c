"""`python -m benchmarks`: measure, print a table, and write JSON and plots if asked to."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.benchmark import Benchmark, Plan
from benchmarks.conditions import conditions
from benchmarks.progress import shown
from benchmarks.report import print_report, write_json
from benchmarks.results import Report
from benchmarks.runner import REPEATS, measure

WIDTH = 160
"""Columns where the output is no terminal: the table is wide."""


def main(arguments: Sequence[str] | None = None, benchmarks: Mapping[str, Benchmark] | None = None) -> int:
    """
    Return the exit status: 0 whatever the figures are, 1 if something could not be measured.

    `benchmarks` are those to choose from, by name; by default all there are.
    """
    options = _parser().parse_args(arguments)
    if benchmarks is None:
        benchmarks = _all_benchmarks()
    if options.list:
        sys.stdout.writelines(f"{name:20} {benchmark.title}\n" for name, benchmark in benchmarks.items())
        return 0
    unknown = [name for name in options.names if name not in benchmarks]
    if unknown:
        sys.stderr.write(f"there is no benchmark {', '.join(unknown)}; there are: {', '.join(benchmarks)}\n")
        return 2
    return _measure([benchmarks[name] for name in options.names or benchmarks], options)


def _measure(benchmarks: Sequence[Benchmark], options: argparse.Namespace) -> int:
    if options.plot:
        # Before hours of measuring: it may not be installed.
        from benchmarks import plot
    logging.basicConfig(level=logging.ERROR)
    logging.getLogger("benchmarks").setLevel(logging.DEBUG if options.debug else logging.ERROR)
    # A run that is told to end stops its servers.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    before = conditions()
    plan = Plan(quick=options.quick, postgres=options.postgres)
    reports: list[Report] = []
    errors = Console(stderr=True)
    with shown(errors) as progress:
        for benchmark in benchmarks:
            reports.append(measure(benchmark, plan, options.repeats, progress))
            if options.json:
                # After each: a long run that is killed leaves what it has.
                write_json(options.json, reports, before)
            if reports[-1].failed == "interrupted":
                break
    print_report(_console(), reports, before)
    if options.plot:
        for path in plot.plot(options.plot, reports):
            errors.print(f"plotted {path}")
    return 0 if all(report.complete for report in reports) else 1


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def _all_benchmarks() -> Mapping[str, Benchmark]:
    from benchmarks.support import django

    django.set_up()
    from benchmarks.figures import Figures

    return Figures()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure figures beside their baselines.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to measure (default: everything)")
    parser.add_argument("--list", action="store_true", help="list the names and end")
    parser.add_argument(
        "--repeats", type=_positive, default=REPEATS, help="how often to measure each variant (default %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes and short times: it works, and no more")
    parser.add_argument("--postgres", default="18", metavar="VERSION", help="major version (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run and the conditions to a file")
    parser.add_argument("--plot", type=Path, metavar="DIRECTORY", help="draw what grows with a size, as SVG")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of what fails")
    return parser


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
