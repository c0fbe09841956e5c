"""Both type checkers, in strict mode, on a project as a user writes it."""

import sys
from pathlib import Path

import pytest

from tests.support.programs import run

USER = {"DJANGO_SETTINGS_MODULE": "settings", "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
"""The environment of the user's project."""

# A checker takes ten seconds of one core when nothing is cached.
pytestmark = pytest.mark.timeout(300)

IMPORT_ALL = """
import django
django.setup()
import importlib
for name in ("asgi", "migrations.0001_initial", "services", "tests", "urls"):
    importlib.import_module(f"shop.{name}")
"""


def test_mypy_in_strict_mode_finds_exactly_the_mistakes_of_a_user(user_python: Path, user_project: Path) -> None:
    found = run(user_python, "-m", "mypy", "--no-incremental", ".", cwd=user_project, **USER)
    assert found.startswith("Success: no issues found in "), found


def test_pyright_in_strict_mode_finds_exactly_the_mistakes_of_a_user(
    user_python: Path, user_project: Path, node: Path
) -> None:
    found = run(sys.executable, "-m", "pyright", "--pythonpath", user_python, ".", cwd=user_project, **USER)
    assert found.startswith("0 errors, "), found


def test_the_project_that_is_checked_can_be_run(user_python: Path, user_project: Path) -> None:
    assert run(user_python, "-c", IMPORT_ALL, cwd=user_project, **USER) == ""
