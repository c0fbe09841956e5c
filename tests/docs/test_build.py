"""Sphinx takes every page, and every example on them does what it says."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from tests.docs.pages import DOCS
from tests.support.processes import CHECKOUT
from tests.support.programs import run

FEWEST_EXAMPLES = 15
"""Sphinx is content when it finds none at all, as a setting may have it."""

# Ten seconds on an idle machine.
pytestmark = pytest.mark.timeout(300)


def test_the_pages_build_without_a_warning_and_their_examples_do_what_they_say(tmp_path: Path) -> None:
    # In one test: the examples are run on what the build has read.
    sphinx = (
        sys.executable,
        "-m",
        "sphinx",
        "--fail-on-warning",
        "--keep-going",
        "--nitpicky",
        "--quiet",
        "-d",
        tmp_path / "doctrees",
    )
    run(*sphinx, "-b", "html", DOCS, tmp_path / "html", cwd=CHECKOUT)
    assert (tmp_path / "html" / "reference" / "settings.html").exists()
    run(*sphinx, "-b", "doctest", DOCS, tmp_path / "doctest", cwd=CHECKOUT)
    (examples,) = re.findall(r"^ +(\d+) tests?$", (tmp_path / "doctest" / "output.txt").read_text(), re.MULTILINE)
    assert int(examples) >= FEWEST_EXAMPLES


@pytest.mark.parametrize("name", ["README.rst", "CHANGELOG.rst", "CONTRIBUTING.rst", "SECURITY.rst"])
def test_a_file_that_is_read_without_sphinx_needs_none(name: str) -> None:
    run(sys.executable, "-m", "docutils", "--halt=2", "--report=2", name, os.devnull, cwd=CHECKOUT)
