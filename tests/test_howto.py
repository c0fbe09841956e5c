"""
The guides and the pages beside them: blocks are code, commands are those that there are, links lead somewhere.

What the guides promise is tried in `tests/howto`.
"""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest
from django.core.management import get_commands, load_command_class
from django.core.management.base import BaseCommand, CommandError

from pgnotify_gql.transport.close_codes import PRIVATE_CODES, CloseCode
from tests.howto.pages import DOCS, HOWTO, NAME, PAGES, Block, blocks, commands
from tests.support.processes import CHECKOUT
from tests.test_operations_page import logged_events

TROUBLESHOOTING = DOCS / "troubleshooting.rst"

PYTHON = [block for page in PAGES for block in blocks(page, "python")]

TYPED = [(page, command) for page in PAGES for command in commands(page)]

OF_OTHERS = {"listen"}
"""Commands of packages that the guides lead away from."""


def test_there_are_pages_and_blocks() -> None:
    assert len(PAGES) > 12
    assert len(PYTHON) > 25
    assert len(TYPED) > 25


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_a_block_of_python_is_python(block: Block) -> None:
    ast.parse(block.text, str(block))


@pytest.mark.parametrize("block", [block for block in PYTHON if block.page.parent == HOWTO], ids=str)
def test_a_block_of_a_guide_names_its_file(block: Block) -> None:
    assert NAME.match(block.text), "its first line is a comment with the path, so that it can be run"


@pytest.mark.parametrize(("page", "command"), TYPED, ids=[f"{page.stem}: {command}" for page, command in TYPED])
def test_a_command_of_a_page_is_one_that_there_is(page: Path, command: str) -> None:
    words = shlex.split(command)
    if words[:2] != ["python", "manage.py"]:
        assert words[0] in {"pip", "daphne", "make", "bash", "python", "git", "psql", "curl", "export"}, command
        return
    name, *arguments = words[2:]
    if name in OF_OTHERS:
        return
    application = get_commands()[name]
    made = application if isinstance(application, BaseCommand) else load_command_class(application, name)
    try:
        made.create_parser("manage.py", name).parse_args(arguments)
    except CommandError as error:
        raise AssertionError(f"{page.name}: {command}: {error}") from None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_between_the_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r":doc:`(?:[^`<]*<)?([^`>]+)>?`", page.read_text()):
        assert (page.parent / f"{target}.rst").is_file(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_that_are_named_in_the_pages_are_there(page: Path) -> None:
    named = re.findall(
        r"``((?:pgnotify_gql|tests|migrations_templates|example|benchmarks|docs)/[\w./-]+)``", page.read_text()
    )
    assert [name for name in named if not (CHECKOUT / name).exists()] == []


class TestTroubleshooting:
    """Whoever sees something looks for it by its words."""

    text = TROUBLESHOOTING.read_text() if TROUBLESHOOTING.exists() else ""

    @pytest.mark.parametrize("code", sorted({int(code) for code in CloseCode} | set(PRIVATE_CODES.values()) | {1006}))
    def test_it_has_every_close_code(self, code: int) -> None:
        assert re.search(rf"\b{code}\b", self.text)

    def test_messages_that_it_quotes_from_the_log_are_in_the_code(self) -> None:
        known = {event.message for event in logged_events()}
        # A quotation has the values left out: "...".
        quoted = re.findall(r"log: ``([^`]+)``", " ".join(self.text.split()))
        assert len(quoted) > 12
        assert [message for message in quoted if not any(_is_of(message, event) for event in known)] == []


def _is_of(quoted: str, message: str) -> bool:
    """Whether a message may read so; `...` stands for anything."""
    pattern = re.escape(quoted).replace(re.escape("..."), ".*")
    return re.search(pattern, re.sub(r"%(\.\d+)?[srdgf]", "VALUE", message)) is not None
