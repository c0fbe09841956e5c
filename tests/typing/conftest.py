"""Fixtures of the type checks."""

import shutil
from pathlib import Path

import pytest

from tests.typing.environment import installed

PROJECT = Path(__file__).parent / "project"


@pytest.fixture(scope="session")
def user_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment in which the package is installed."""
    return installed(tmp_path_factory.mktemp("environment"))


@pytest.fixture
def user_project(tmp_path: Path) -> Path:
    """A copy of the user's project, away from the configuration of this repository."""
    return shutil.copytree(PROJECT, tmp_path / "project", ignore=shutil.ignore_patterns("__pycache__"))
