"""What stands on a page, read from its text; for what Sphinx cannot know, which is what ought to be there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.support.processes import CHECKOUT

DOCS = CHECKOUT / "docs"
PACKAGE = CHECKOUT / "pgnotify_gql"

TITLE = re.compile(r"^(?P<title>\S[^\n]*)\n(?P<mark>[-=.~^])(?P=mark){2,}$", re.MULTILINE)


def page(name: str) -> str:
    """Return the text of a page of ``docs``, without ``.rst`` in its name."""
    return (DOCS / f"{name}.rst").read_text()


def sections(text: str) -> dict[str, str]:
    """Return the text below each title, up to the next title of whatever level."""
    titles = [match for match in TITLE.finditer(text) if match["title"].strip("=- ")]
    ends = [match.start() for match in titles[1:]] + [len(text)]
    return {match["title"].strip("`"): text[match.end() : end] for match, end in zip(titles, ends, strict=True)}


def anchors(text: str) -> set[str]:
    """Return what may stand behind the ``#`` of a link: titles, as docutils and GitHub make ids of them."""
    return {re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") for title in sections(text)}


def fields(text: str) -> dict[str, str]:
    """Return the entries of a field list (``:Type: a string``), each on one line."""
    found = re.findall(r"^:([A-Z]\w+): ((?:.|\n(?=   ))+)", text, re.MULTILINE)
    return {name: " ".join(body.split()) for name, body in found}


def directives(text: str, name: str) -> dict[str, str]:
    """Return the arguments of each directive of a kind, and the indented text below it, on one line."""
    found = re.findall(rf"^ *\.\. {name}:: *(\S[^\n]*)\n((?:\n|[ ]+[^\n]*\n?)*)", text, re.MULTILINE)
    return {argument.strip(): " ".join(body.split()) for argument, body in found}


def terms(text: str) -> set[str]:
    """Return what a definition list defines."""
    return {term.strip("`") for term in re.findall(r"^(\S[^\n]*)\n    \S", text, re.MULTILINE)}


def modules() -> Iterator[tuple[Path, ast.Module]]:
    """Yield the syntax of every module of the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path, ast.parse(path.read_text())
