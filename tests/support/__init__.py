"""
The real things that tests run against: PostgreSQL, Redis, PgBouncer and the project's own processes.

Everything here starts on a port or socket of its own, keeps its files in a temporary directory, and is
stopped when its fixture ends, after a failing test and after Ctrl-C too. The fixtures are in
`tests/conftest.py`.
"""
