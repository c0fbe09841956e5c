"""
The benchmarks, one a module, each named `BENCHMARK` there.

A new module is found by itself.
"""

import importlib
import pkgutil
from collections.abc import Mapping

from benchmarks.benchmark import Benchmark


def all_benchmarks() -> Mapping[str, Benchmark]:
    """Return every benchmark by its name.  Django must be set up, see `benchmarks.support.django`."""
    modules = (importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__))
    benchmarks: list[Benchmark] = [module.BENCHMARK for module in modules]
    return {benchmark.name: benchmark for benchmark in sorted(benchmarks, key=lambda each: each.name)}
