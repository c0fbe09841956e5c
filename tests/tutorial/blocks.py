"""
The blocks of docs/tutorial.rst: files to write, commands to type, SQL to paste, and what one is to see then.

A block says by its caption where it belongs; what is to be seen has none, and stands behind what makes it be seen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from textwrap import dedent

from tests.support.processes import CHECKOUT

PAGE = CHECKOUT / "docs" / "tutorial.rst"

HEADING = re.compile(r"(?m)^(\S.*)\n([=\-])\2{3,}$")

BLOCK = re.compile(
    r"""(?mx)
    ^\.\.[ ]code-block::[ ](?P<language>\w+)\n
    (?:[ ]{3}:caption:[ ](?P<caption>.+)\n)?
    \n
    (?P<text>(?:(?:[ ]{3}.*)?\n)+)
    """
)

AT_THE_END = ", at the end"
STAYS = ", which is then "


@dataclass(frozen=True)
class Block:
    """One block; `caption` is empty for what is to be seen."""

    section: str
    language: str
    caption: str
    text: str

    @property
    def is_seen(self) -> bool:
        """Return whether it shows what the block before it makes one see."""
        return not self.caption

    @property
    def is_file(self) -> bool:
        """Return whether it is (part of) a file."""
        return bool(self.caption) and self.language not in {"bash", "sql"}

    @property
    def appends(self) -> bool:
        """Return whether the file is there, and this comes behind it."""
        return self.caption.endswith(AT_THE_END)

    @property
    def path(self) -> str:
        """Return the name of the file."""
        return self.caption.removesuffix(AT_THE_END)

    @property
    def stays(self) -> bool:
        """Return whether the command is one that goes on, in a terminal of its own."""
        return STAYS in self.caption


def sections() -> dict[str, list[Block]]:
    """Return the blocks of the page by section, both in the order of the page."""
    return {section: list(blocks) for section, blocks in groupby(_blocks(), lambda block: block.section)}


def _blocks() -> Iterator[Block]:
    page = PAGE.read_text()
    headings = [(match.start(), match[1]) for match in HEADING.finditer(page)]
    for match in BLOCK.finditer(page):
        section = [title for start, title in headings if start < match.start()][-1]
        text = dedent(match["text"]).strip("\n") + "\n"
        yield Block(section, match["language"], match["caption"] or "", text)
