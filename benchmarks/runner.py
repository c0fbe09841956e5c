"""
Measures a benchmark: every variant once in each repeat, so that whatever else the machine does hits all alike.

Every second repeat goes through the variants backwards, so that none of them gains by its place.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

from benchmarks.benchmark import Benchmark, Measured, Plan, Variant, World
from benchmarks.results import Report, result_of

logger = logging.getLogger("benchmarks")

REPEATS = 5
"""At least so many, or a median tells little; fewer are only good to try a benchmark."""


class Progress(Protocol):
    """Where it is told what happens."""

    def preparing(self, benchmark: Benchmark, what: str) -> None: ...

    def measuring(self, benchmark: Benchmark, what: str, repeat: int, done: int, total: int) -> None: ...

    def measured(self, measured: Measured) -> None: ...

    def failed(self, what: str, why: str) -> None: ...


def measure(benchmark: Benchmark, plan: Plan, repeats: int, progress: Progress) -> Report:
    """
    Return what a benchmark gives.

    A variant that raises is told and not run again, the others go on; a benchmark that cannot begin has no results.
    KeyboardInterrupt ends it with what has been measured.
    """
    begun = time.perf_counter()
    runs = _Runs(benchmark, progress)
    world, failed = World([]), ""
    try:
        progress.preparing(benchmark, "preparing")
        with benchmark.world(replace(plan, tell=lambda what: progress.preparing(benchmark, what))) as world:
            runs.measure(world, repeats)
    except KeyboardInterrupt:
        failed = "interrupted"
    except Exception as error:
        logger.debug("%s failed", benchmark.name, exc_info=True)
        failed = _sentence(error)
        progress.failed(benchmark.name, failed)
    results = [result_of(each, runs.figures, runs.failures) for each in world.comparisons if runs.figures]
    return Report(benchmark, results, world.conditions, time.perf_counter() - begun, failed)


class _Runs:
    """The runs of the variants of one benchmark."""

    def __init__(self, benchmark: Benchmark, progress: Progress) -> None:
        self.figures: dict[Variant, dict[int, Measured]] = {}
        self.failures: dict[Variant, str] = {}
        self._benchmark = benchmark
        self._progress = progress

    def measure(self, world: World, repeats: int) -> None:
        self.figures = {variant: {} for variant in world.variants}
        total = len(world.variants) * repeats
        for done, (repeat, variant) in enumerate(_in_turn(world.variants, repeats)):
            if variant not in self.failures:
                what = f"{world.place(variant)}, {variant.name}"
                self._progress.measuring(self._benchmark, what, repeat, done, total)
                with self._failing(variant, what):
                    measured = self.figures[variant][repeat] = variant.run()
                    self._progress.measured(measured)

    @contextmanager
    def _failing(self, variant: Variant, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            logger.debug("%s, %s failed", self._benchmark.name, what, exc_info=True)
            self.failures[variant] = _sentence(error)
            self._progress.failed(f"{self._benchmark.name}, {what}", self.failures[variant])


def _in_turn(variants: Sequence[Variant], repeats: int) -> Iterator[tuple[int, Variant]]:
    for repeat in range(repeats):
        for variant in variants if repeat % 2 == 0 else reversed(variants):
            yield repeat, variant


def _sentence(error: Exception) -> str:
    return " ".join([repr(error), *getattr(error, "__notes__", [])])[:2000]
