"""
The benchmarks, one a module, which has it as `BENCHMARK`.

A new module is found by itself; its name with dashes is that of its benchmark.
"""

import importlib
import pkgutil
from collections.abc import Iterator, Mapping

from benchmarks.benchmark import Benchmark


class Figures(Mapping[str, Benchmark]):
    """Every benchmark by its name, imported when it is asked for.  Django must be set up then."""

    def __getitem__(self, name: str) -> Benchmark:
        if name not in set(self):
            raise KeyError(name)
        benchmark: Benchmark = importlib.import_module(f"{__name__}.{name.replace('-', '_')}").BENCHMARK
        assert benchmark.name == name, f"the benchmark of module {name} calls itself {benchmark.name}"
        return benchmark

    def __iter__(self) -> Iterator[str]:
        return (module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))

    def __len__(self) -> int:
        return len(list(self))
