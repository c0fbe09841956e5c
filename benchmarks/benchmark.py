"""
What a benchmark declares: variants, each of which measures once when called, and what is compared with what.

A module of `benchmarks.figures` holds one, named `BENCHMARK`::

    @contextmanager
    def world(plan: Plan) -> Iterator[World]:
        with server(plan) as postgres:                    # everything that all variants need
            ours = Variant("with triggers", partial(measure, "watched"))
            bare = Variant("no trigger", partial(measure, "plain"))
            yield World([Comparison("16 clients", ours, bare, "transactions/s", AtLeast(0.85))])

    BENCHMARK = Benchmark("write-cost", "Write cost: what triggers cost writers", world)

The ratio of a comparison is that of ours to the baseline.  A variant may be in several comparisons: it is measured
once in each repeat.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

Value = TypeVar("Value")

Measured = float | Mapping[str, float]
"""One figure, or several by name, where one run gives them all."""


class Target(Protocol):
    """What a ratio should be."""

    def reached(self, ratio: float) -> bool: ...


@dataclass(frozen=True)
class AtLeast:
    """For speeds: ours is to be so many times the baseline, or more."""

    ratio: float

    def reached(self, ratio: float) -> bool:
        return ratio >= self.ratio

    def __str__(self) -> str:
        return f"≥ {self.ratio:g}"


@dataclass(frozen=True)
class AtMost:
    """For times and sizes: ours is to be so many times the baseline, or less."""

    ratio: float

    def reached(self, ratio: float) -> bool:
        return ratio <= self.ratio

    def __str__(self) -> str:
        return f"≤ {self.ratio:g}"


@dataclass(frozen=True, eq=False)
class Variant:
    """
    One thing that is measured: `run` measures it once.

    What a run has to prepare it prepares itself, and leaves out of the figure.  One that raises is not run again.
    """

    name: str
    run: Callable[[], Measured]


@dataclass(frozen=True)
class Comparison:
    """
    One line of the table; without a baseline the figure is only reported.

    `figure` names one of several that a run of `ours` gives, `baseline_figure` one of the baseline's, where it is
    another.  `size` is the place on the scale of the benchmark, for the plot.
    """

    name: str
    ours: Variant
    baseline: Variant | None
    unit: str
    target: Target | None = None
    figure: str = ""
    baseline_figure: str | None = None
    size: float | None = None


@dataclass(frozen=True)
class World:
    """What a benchmark measures once everything runs, and under which conditions."""

    comparisons: Sequence[Comparison]
    conditions: Mapping[str, str] = field(default_factory=dict)

    @property
    def variants(self) -> Sequence[Variant]:
        """Each once, so that those that are compared are next to each other."""
        named = [variant for each in self.comparisons for variant in (each.ours, each.baseline) if variant is not None]
        return list(dict.fromkeys(named))

    def place(self, variant: Variant) -> str:
        """Return where a variant is measured: the comparison it is first named in."""
        return next(each.name for each in self.comparisons if variant in (each.ours, each.baseline))


@dataclass(frozen=True)
class Plan:
    """How to measure; `tell` shows what is being prepared, which may take long."""

    quick: bool = False
    postgres: str = "18"
    tell: Callable[[str], None] = lambda sentence: None

    def pick(self, usual: Value, quick: Value) -> Value:
        """Return the size of something; quick ones show that a benchmark works, and no more."""
        return quick if self.quick else usual


@dataclass(frozen=True)
class Benchmark:
    """`scale` names what the sizes of its comparisons count, if they have any: it is then worth a plot."""

    name: str
    title: str
    world: Callable[[Plan], AbstractContextManager[World]]
    scale: str = ""
