"""
A pytest plugin that limits a run to a major version of PostgreSQL: `pytest -p tests.support.versions --postgres 18`.

What is marked for other versions only runs with those, and what needs no database runs as ever. The rest is deselected,
not skipped: it was not wanted, so nothing is missing where REQUIRE_ALL is set.
"""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--postgres", metavar="VERSION", help="where there is a choice, run with this PostgreSQL only")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = config.getoption("--postgres")
    if wanted is None:
        return
    left_out = {item for item in items if _has_choice(item, wanted) and _version(item) != wanted}
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]


def _has_choice(item: pytest.Item, wanted: str) -> bool:
    marker = item.get_closest_marker("postgres")
    return _version(item) is not None and (marker is None or wanted in marker.args)


def _version(item: pytest.Item) -> str | None:
    """Return the version that a test was parametrized with, if any."""
    callspec = getattr(item, "callspec", None)
    version: str | None = None if callspec is None else callspec.params.get("postgres")
    return version
