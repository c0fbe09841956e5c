"""The example's own tests, run as its developers run them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.databases import Database
from tests.support.processes import project_environment

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(180)
def test_manage_py_test_runs_the_tests_of_the_example(database: Database) -> None:
    environment = {**os.environ, **project_environment(database.url, None, inline=False, environment=None)}
    command = [sys.executable, "-W", "error::DeprecationWarning:example", "manage.py", "test", "example", "--no-input"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=170)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "OK" in run.stderr
