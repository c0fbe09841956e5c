"""
The runner of the benchmarks: in which order it measures, what follows from the figures, and what it does with failures.

No time is asserted anywhere: the figures are made up.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.benchmark import AtLeast, AtMost, Benchmark, Comparison, Measured, Plan, Variant, World
from benchmarks.conditions import conditions
from benchmarks.figures import Figures
from benchmarks.results import Report, Spread
from benchmarks.runner import measure


class Recorded:
    """What the runner tells while it runs; implements ``runner.Progress``."""

    def __init__(self) -> None:
        self.preparations: list[str] = []
        self.failures: list[tuple[str, str]] = []
        self.places: list[tuple[int, int]] = []

    def preparing(self, benchmark: Benchmark, what: str) -> None:
        self.preparations.append(what)

    def measuring(self, benchmark: Benchmark, what: str, repeat: int, done: int, total: int) -> None:
        self.places.append((done, total))

    def measured(self, measured: Measured) -> None:
        pass

    def failed(self, what: str, why: str) -> None:
        self.failures.append((what, why))


class Script:
    """Variants with figures that are given beforehand; `order` is the order they ran in."""

    def __init__(self) -> None:
        self.order: list[str] = []

    def variant(self, name: str, *figures: Measured | Exception | type[BaseException]) -> Variant:
        left = iter(figures)

        def run() -> Measured:
            self.order.append(name)
            figure = next(left)
            if isinstance(figure, (Exception, type)):
                raise figure
            return figure

        return Variant(name, run)


def benchmark_of(*comparisons: Comparison, name: str = "sample", scale: str = "") -> Benchmark:
    @contextmanager
    def world(plan: Plan) -> Iterator[World]:
        yield World(comparisons, {"weather": "fair"})

    return Benchmark(name, f"A {name}", world, scale)


def report_of(*comparisons: Comparison, repeats: int = 3, progress: Recorded | None = None) -> Report:
    return measure(benchmark_of(*comparisons), Plan(), repeats, progress or Recorded())


@pytest.fixture
def script() -> Script:
    return Script()


def test_every_variant_is_measured_once_in_each_repeat_and_every_second_repeat_goes_backwards(script: Script) -> None:
    ours, bare, other = (script.variant(name, 1, 1, 1) for name in ("ours", "bare", "other"))
    report_of(Comparison("small", ours, bare, "s"), Comparison("large", other, bare, "s"))
    assert script.order == ["ours", "bare", "other", "other", "bare", "ours", "ours", "bare", "other"]


def test_progress_tells_how_many_runs_are_done_of_how_many(script: Script) -> None:
    progress = Recorded()
    report_of(
        Comparison("it", script.variant("ours", 1, 1), script.variant("bare", 1, 1), "s"), repeats=2, progress=progress
    )
    assert progress.places == [(0, 4), (1, 4), (2, 4), (3, 4)]


def test_the_ratio_is_the_median_of_the_ratios_of_each_repeat_and_not_the_ratio_of_the_medians(script: Script) -> None:
    ours, bare = script.variant("ours", 10, 300, 40), script.variant("bare", 20, 100, 50)
    (result,) = report_of(Comparison("it", ours, bare, "rows/s")).results
    assert (result.ours, result.baseline) == ([10, 300, 40], [20, 100, 50])
    assert result.ratios == [0.5, 3, 0.8]
    assert result.ratio == Spread(median=0.8, least=0.5, most=3)


@pytest.mark.parametrize(
    ("target", "reached"), [(AtLeast(0.5), True), (AtLeast(0.6), False), (AtMost(0.5), True), (AtMost(0.4), False)]
)
def test_a_target_is_reached_or_not_by_the_median_ratio(
    script: Script, target: AtLeast | AtMost, reached: bool
) -> None:
    ours, bare = script.variant("ours", 5, 5, 50), script.variant("bare", 10, 10, 10)
    (result,) = report_of(Comparison("it", ours, bare, "s", target)).results
    assert result.reached is reached


def test_a_figure_without_a_baseline_is_reported_and_compared_with_nothing(script: Script) -> None:
    (result,) = report_of(Comparison("lag", script.variant("ours", 3, 4, 5), None, "rows", AtMost(1))).results
    assert result.ours == [3, 4, 5]
    assert result.ratio is None
    assert result.reached is None


def test_one_run_may_give_several_figures_of_which_each_comparison_names_one(script: Script) -> None:
    ours = script.variant("ours", *({"p50": number, "p99": 10 * number} for number in (1, 2, 3)))
    bare = script.variant("bare", *({"p50": 2, "p99": 5} for _ in range(3)))
    p99, within = report_of(
        Comparison("p99", ours, bare, "ms", figure="p99"),
        Comparison("tail", ours, ours, "ms", figure="p99", baseline_figure="p50"),
    ).results
    assert p99.ratios == [2, 4, 6]
    assert within.ratios == [10, 10, 10]
    assert script.order.count("ours") == 3


def test_a_repeat_in_which_the_baseline_measured_nothing_has_no_ratio(script: Script) -> None:
    (result,) = report_of(
        Comparison("it", script.variant("ours", 1, 1, 1), script.variant("bare", 0, 2, 4), "s")
    ).results
    assert result.ratios == [0.5, 0.25]


def test_a_variant_that_fails_is_told_and_not_run_again_and_the_others_go_on(script: Script) -> None:
    bad, bare = script.variant("bad", 1, ValueError("no disk")), script.variant("bare", 2, 2, 2)
    good = script.variant("good", 4, 4, 4)
    progress = Recorded()
    report = report_of(
        Comparison("first", bad, bare, "s", AtLeast(0)), Comparison("second", good, bare, "s"), progress=progress
    )
    first, second = report.results
    assert script.order.count("bad") == 2
    assert first.ours == [1]
    assert first.ratios == [0.5]
    assert first.failed == "bad: ValueError('no disk')"
    assert first.reached is None
    assert second.ratios == [2, 2, 2]
    assert not second.failed
    assert progress.failures == [("sample, first, bad", "ValueError('no disk')")]
    assert not report.complete


def test_a_benchmark_that_cannot_begin_has_a_reason_and_no_results() -> None:
    @contextmanager
    def world(plan: Plan) -> Iterator[World]:
        plan.tell("looking for a server")
        raise LookupError("PostgreSQL 99 is not installed")
        yield

    progress = Recorded()
    report = measure(Benchmark("sample", "A sample", world), Plan(), 3, progress)
    assert report.results == []
    assert "PostgreSQL 99 is not installed" in report.failed
    assert progress.preparations == ["preparing", "looking for a server"]
    assert not report.complete


def test_a_run_that_is_interrupted_keeps_what_it_has_and_leaves_the_world_in_good_order(script: Script) -> None:
    closed = []
    comparison = Comparison("it", script.variant("ours", 3, KeyboardInterrupt), script.variant("bare", 2, 2), "s")

    @contextmanager
    def world(plan: Plan) -> Iterator[World]:
        try:
            yield World([comparison])
        finally:
            closed.append(True)

    report = measure(Benchmark("sample", "A sample", world), Plan(), 3, Recorded())
    assert report.failed == "interrupted"
    assert [result.ours for result in report.results] == [[3]]
    assert closed == [True]


Main = Callable[..., int]


@pytest.fixture
def run_main(script: Script) -> Main:
    """Call the command line with one benchmark, "sample", whose ratios are 0.5, and another, "failing"."""

    def run(*arguments: str) -> int:
        ours, bare, bad = (
            script.variant("ours", 1, 1),
            script.variant("bare", 2, 2),
            script.variant("bad", ValueError()),
        )
        benchmarks = {
            "sample": benchmark_of(Comparison("it", ours, bare, "s", AtLeast(0.9), size=8)),
            "failing": benchmark_of(Comparison("it", bad, None, "s"), name="failing"),
        }
        return main([*arguments, "--repeats", "2"], benchmarks)

    return run


def test_the_exit_status_is_0_whatever_the_figures_are_and_the_table_tells(
    run_main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main("sample") == 0
    output = capsys.readouterr().out
    (line,) = (line for line in output.splitlines() if "it: ours" in line)
    assert " ".join(line.split()) == "it: ours, against bare s 1 (1..1) 2 (2..2) 0.5 (0.5..0.5) ≥ 0.9 no"
    assert "sample, weather: fair" in output


def test_the_exit_status_is_1_when_something_could_not_be_measured(
    run_main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main() == 1
    output = capsys.readouterr().out
    assert "failing failed: bad: ValueError()" in output
    assert "0.5 (0.5..0.5)" in output


def test_an_unknown_name_is_told_with_those_that_there_are_and_nothing_is_measured(
    run_main: Main, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main("sample", "sampel") == 2
    assert "there is no benchmark sampel; there are: sample, failing" in capsys.readouterr().err
    assert script.order == []


def test_the_list_has_the_names_and_the_titles_and_nothing_is_measured(
    run_main: Main, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main("--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=1) for line in lines] == [["sample", "A sample"], ["failing", "A failing"]]
    assert script.order == []


def test_the_json_has_every_run_the_medians_the_ratios_and_the_conditions(run_main: Main, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    assert run_main("sample", "--json", str(file)) == 0
    content = json.loads(file.read_text())
    assert content["conditions"].keys() == conditions().keys()
    (benchmark,) = content["benchmarks"]
    assert benchmark["name"] == "sample"
    assert benchmark["conditions"] == {"weather": "fair"}
    assert benchmark["comparisons"] == [
        {
            "name": "it",
            "unit": "s",
            "size": 8,
            "ours": {"name": "ours", "runs": [1, 1], "median": 1, "least": 1, "most": 1},
            "baseline": {"name": "bare", "runs": [2, 2], "median": 2, "least": 2, "most": 2},
            "ratio": {"runs": [0.5, 0.5], "median": 0.5, "least": 0.5, "most": 0.5},
            "target": "≥ 0.9",
            "reached": False,
            "failed": "",
        }
    ]


def test_what_has_sizes_is_plotted_and_what_has_none_is_not(script: Script, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    ours, bare, other = (script.variant(name, 1) for name in ("ours", "bare", "other"))
    benchmarks = {
        "sized": benchmark_of(Comparison("it", ours, bare, "s", size=8), name="sized", scale="cats"),
        "unsized": benchmark_of(Comparison("it", other, None, "s"), name="unsized"),
    }
    assert main(["--plot", str(tmp_path / "plots"), "--repeats", "1"], benchmarks) == 0
    (plot,) = (tmp_path / "plots").iterdir()
    assert plot.name == "sized.svg"
    drawn = plot.read_text()
    assert all(f">{text}<" in drawn for text in ("A sized", "cats", "ours", "bare"))


def test_the_conditions_name_the_machine_the_versions_and_the_load() -> None:
    found = conditions()
    assert int(found["cores"]) >= 1
    assert "psycopg 3." in found["packages"]
    assert all(found[name] for name in ("date", "cpu", "memory", "kernel", "python", "load before"))


def test_every_module_of_figures_is_a_benchmark_of_its_own_name() -> None:
    figures = Figures()
    assert {"write-cost", "write-gain", "bulk", "journal", "backlog", "listener"} <= set(figures)
    titles = [benchmark.title for benchmark in figures.values()]
    assert no_two_alike(titles)


def no_two_alike(texts: Sequence[str]) -> bool:
    return all(one != other for one, other in pairwise(sorted(texts)))


def test_a_name_that_no_module_has_is_no_benchmark() -> None:
    with pytest.raises(KeyError):
        Figures()["write_cost"]
