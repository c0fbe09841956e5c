"""
Links between files lead somewhere.

Roles (``:doc:``, ``:ref:``) are Sphinx's to check.  These are the plain ones, which lead somewhere also where a file is
read as it is.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, anchors
from tests.support.processes import CHECKOUT

LINK = re.compile(r"`[^`<]*<(?P<target>[^>`\s]+)>`__?")

FILES = [*sorted(CHECKOUT.glob("*.rst")), *sorted(DOCS.rglob("*.rst"))]


def local_links(path: Path) -> list[str]:
    targets = [match["target"] for match in LINK.finditer(path.read_text())]
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def leads_somewhere(path: Path, target: str) -> bool:
    name, _, anchor = target.partition("#")
    led_to = path.parent / name if name else path
    return led_to.exists() and (not anchor or anchor in anchors(led_to.read_text()))


def test_links_are_found() -> None:
    assert "docs/delivery.rst" in local_links(CHECKOUT / "README.rst")
    assert leads_somewhere(CHECKOUT / "README.rst", "docs/delivery.rst#resuming")
    assert not leads_somewhere(CHECKOUT / "README.rst", "docs/delivery.rst#nowhere")
    assert not leads_somewhere(CHECKOUT / "README.rst", "docs/nowhere.rst")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(CHECKOUT).as_posix())
def test_every_plain_link_to_a_file_leads_somewhere(path: Path) -> None:
    assert [target for target in local_links(path) if not leads_somewhere(path, target)] == []


def test_the_readme_leads_to_every_page_that_stands_first_in_a_part_of_the_index() -> None:
    parts = re.findall(r"\.\. toctree::\n(?: +:[^\n]*\n)*\n +(\S+)", (DOCS / "index.rst").read_text())
    assert len(parts) > 4
    links = set(local_links(CHECKOUT / "README.rst"))
    assert [part for part in parts if f"docs/{part}.rst" not in links] == []
