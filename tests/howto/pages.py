"""
What the pages have in them: blocks of code, the files that these are of, and commands.

The first line of a block names its file in a comment, as in ``# chat/models.py``.  Words behind a comma say that it is
a part, which goes below what is there: ``# chat/models.py, below the models``.  A block without a name is an excerpt.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import CHECKOUT

DOCS = CHECKOUT / "docs"

HOWTO = DOCS / "howto"

PAGES = [
    *sorted(HOWTO.glob("*.rst")),
    *(DOCS / name for name in ("troubleshooting.rst", "comparison.rst", "architecture.rst")),
    *(CHECKOUT / name for name in ("CONTRIBUTING.rst", "SECURITY.rst", "CHANGELOG.rst")),
]

NAME = re.compile(r"(?:#|//|--) (?P<path>[\w./-]+\.(?:py|mjs|js|sql))(?P<part>, .*)?\n")


@dataclass(frozen=True)
class Block:
    """One block of code of a page."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def path(self) -> str | None:
        """The file that it is of, or a part of."""
        found = NAME.match(self.text)
        return found["path"] if found else None

    @property
    def is_part(self) -> bool:
        found = NAME.match(self.text)
        return bool(found and found["part"])

    def __str__(self) -> str:
        return f"{self.page.relative_to(CHECKOUT)}:{self.line}"


def blocks(page: Path, *languages: str) -> list[Block]:
    """The blocks of a page that are in one of these languages."""
    return [block for block in _blocks(page) if block.language in languages]


def files(page: Path, *languages: str) -> dict[str, str]:
    """The files that a page has all of, or parts of, by their paths."""
    found: dict[str, str] = {}
    for block in blocks(page, *languages):
        if block.path is not None:
            before = found.get(block.path, "")
            found[block.path] = f"{before}\n\n{block.text}" if before else block.text
    return found


def parts(page: Path) -> set[str]:
    """The files of which a page has only parts, which go below what there is."""
    whole = {block.path for block in _blocks(page) if block.path and not block.is_part}
    return {block.path for block in _blocks(page) if block.path and block.is_part} - whole


def commands(page: Path) -> list[str]:
    """What a page has one type, without the prompt; a line that ends with a backslash goes on."""
    typed = "\n".join(block.text for block in blocks(page, "console")).replace("\\\n", " ")
    return [" ".join(line[2:].split()) for line in typed.splitlines() if line.startswith("$ ")]


def _blocks(page: Path) -> Iterator[Block]:
    lines = page.read_text().splitlines()
    for number, line in enumerate(lines):
        directive = re.fullmatch(r"( *)\.\. code-block:: ([\w-]+)", line)
        if directive is None:
            continue
        margin = len(directive[1])
        body = []
        for following in lines[number + 1 :]:
            if following.strip() and len(following) - len(following.lstrip()) <= margin:
                break
            body.append(following)
        text = textwrap.dedent("\n".join(body)).strip("\n") + "\n"
        yield Block(page, number + 1, directive[2], text)
