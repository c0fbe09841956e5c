"""Packages of npm, installed for a run of the tests: none of them is part of this repository."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.requirements import require

INSTALL_TIMEOUT = 120
"""Seconds."""


def install(directory: Path, *packages: str) -> None:
    """Install packages into an empty directory; the test is skipped, with the reason, where there is no registry."""
    npm = require("npm")
    (directory / "package.json").write_text('{"private": true}')
    command = [str(npm), "install", "--no-audit", "--no-fund", "--no-save", "--prefer-offline", *packages]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=INSTALL_TIMEOUT, check=False)
    if done.returncode:
        pytest.skip(f"npm could not install {', '.join(packages)}: {done.stderr.strip().splitlines()[-1]}")
