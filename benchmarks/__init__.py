"""
Measurements, for people: `python -m benchmarks NAME...` measures each figure beside its baselines and prints ratios.

Each module of `benchmarks.figures` is one benchmark: it declares what is compared with what (`benchmarks.benchmark`),
and `benchmarks.runner` measures it.  They start their own servers, like the tests, and assert nothing.
"""
