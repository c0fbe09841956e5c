"""Both type checkers, in strict mode, on a project as a user writes it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# A checker takes ten seconds of one core when nothing is cached.
pytestmark = pytest.mark.timeout(300)

IMPORT_ALL = """
import django
django.setup()
import importlib
for name in ("asgi", "migrations.0001_initial", "services", "tests", "urls"):
    importlib.import_module(f"shop.{name}")
"""


def run(*command: str | Path, cwd: Path) -> str:
    """Run a program in the user's project and return its output, after its status if that is not 0."""
    unset = {"PYTHONPATH", "DJANGO_SETTINGS_MODULE", "DATABASE_URL", "VIRTUAL_ENV", "MYPYPATH"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {"DJANGO_SETTINGS_MODULE": "settings", "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    result = subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=240,
    )
    return result.stdout if result.returncode == 0 else f"status {result.returncode}\n{result.stdout}"


def test_mypy_in_strict_mode_finds_exactly_the_mistakes_of_a_user(user_python: Path, user_project: Path) -> None:
    found = run(user_python, "-m", "mypy", "--no-incremental", ".", cwd=user_project)
    assert found.startswith("Success: no issues found in "), found


def test_pyright_in_strict_mode_finds_exactly_the_mistakes_of_a_user(
    user_python: Path, user_project: Path, node: Path
) -> None:
    found = run(sys.executable, "-m", "pyright", "--pythonpath", user_python, ".", cwd=user_project)
    assert found.startswith("0 errors, "), found


def test_the_project_that_is_checked_can_be_run(user_python: Path, user_project: Path) -> None:
    assert run(user_python, "-c", IMPORT_ALL, cwd=user_project) == ""
