"""Programs that are run to their end as somebody runs them who knows nothing of these tests."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

OF_THE_TESTS = {"PYTHONPATH", "DJANGO_SETTINGS_MODULE", "DATABASE_URL", "VIRTUAL_ENV", "MYPYPATH"}
"""Variables that the test run was given, or has set, and that would lead a program back to it."""

TIMEOUT = 300
"""Seconds that a program may take."""


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a program, without what the test run itself was given, and return its output; it must succeed."""
    inherited = {name: value for name, value in os.environ.items() if name not in OF_THE_TESTS}
    result = subprocess.run(
        command,
        cwd=cwd,
        env=inherited | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=TIMEOUT,
    )
    assert result.returncode == 0, f"{command} failed with {result.returncode}:\n{result.stdout}"
    return result.stdout
