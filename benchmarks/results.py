"""What was measured: every run, and what follows from the runs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.benchmark import Benchmark, Comparison, Measured, Variant


@dataclass(frozen=True)
class Spread:
    """The median of some runs, and the least and the most of them."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


Runs = Mapping[int, Measured]
"""What a variant gave, by the number of the repeat."""


@dataclass(frozen=True)
class Result:
    """A comparison with its figures of each repeat; `failed` says what went wrong with one of its variants."""

    comparison: Comparison
    ours: Sequence[float]
    baseline: Sequence[float]
    ratios: Sequence[float]
    """Of the repeats in which both were measured and the baseline is not 0."""
    failed: str = ""

    @property
    def ratio(self) -> Spread | None:
        """The median of the ratios of each repeat: what slows a repeat down slows both."""
        return Spread.of(self.ratios) if self.ratios else None

    @property
    def reached(self) -> bool | None:
        """Whether the target is reached; None where there is none, or nothing to tell it by."""
        if self.comparison.target is None or self.ratio is None or self.failed:
            return None
        return self.comparison.target.reached(self.ratio.median)


@dataclass(frozen=True)
class Report:
    """The results of one benchmark; `failed` says why there are none, or not all."""

    benchmark: Benchmark
    results: Sequence[Result] = ()
    conditions: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    failed: str = ""

    @property
    def complete(self) -> bool:
        return not self.failed and not any(result.failed for result in self.results)

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.benchmark.name,
            "title": self.benchmark.title,
            "scale": self.benchmark.scale,
            "conditions": dict(self.conditions),
            "seconds": round(self.seconds, 1),
            "failed": self.failed,
            "comparisons": [_as_json(result) for result in self.results],
        }


def result_of(comparison: Comparison, runs: Mapping[Variant, Runs], failures: Mapping[Variant, str]) -> Result:
    """Return the figures of a comparison out of the runs of all variants."""
    baseline_figure = comparison.figure if comparison.baseline_figure is None else comparison.baseline_figure
    ours = _figures(runs[comparison.ours], comparison.figure)
    baseline = _figures(runs[comparison.baseline], baseline_figure) if comparison.baseline else {}
    ratios = [ours[repeat] / baseline[repeat] for repeat in ours if baseline.get(repeat)]
    variants = filter(None, (comparison.ours, comparison.baseline))
    failed = "; ".join(f"{variant.name}: {failures[variant]}" for variant in variants if variant in failures)
    return Result(comparison, list(ours.values()), list(baseline.values()), ratios, failed)


def _figures(runs: Runs, name: str) -> dict[int, float]:
    return {repeat: value if isinstance(value, (int, float)) else value[name] for repeat, value in runs.items()}


def _as_json(result: Result) -> dict[str, Any]:
    comparison = result.comparison
    return {
        "name": comparison.name,
        "unit": comparison.unit,
        "size": comparison.size,
        "ours": {"name": comparison.ours.name, **_spread_as_json(result.ours)},
        "baseline": {"name": comparison.baseline.name, **_spread_as_json(result.baseline)}
        if comparison.baseline
        else None,
        "ratio": _spread_as_json(result.ratios),
        "target": str(comparison.target) if comparison.target else None,
        "reached": result.reached,
        "failed": result.failed,
    }


def _spread_as_json(values: Sequence[float]) -> dict[str, Any]:
    if not values:
        return {"runs": []}
    spread = Spread.of(values)
    return {"runs": list(values), "median": spread.median, "least": spread.least, "most": spread.most}
