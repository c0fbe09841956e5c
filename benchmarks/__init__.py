"""
Measurements, for people: each module is a program (`python -m benchmarks.latency`) that prints a table.

They start their own servers, like the tests, and assert nothing.
"""
