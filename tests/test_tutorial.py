"""
The tutorial, followed to the letter: from an empty directory to a page that changes by itself, in a browser.

Everything is as the page says, in its order: the environment is made anew and filled from PyPI, the files and commands
are those of docs/tutorial.rst.  Two things are typed otherwise: the wheel of this checkout in place of the name that it
will have on PyPI, and a port that is free in place of 8000.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, expect
from playwright.sync_api import Error as BrowserError

from tests.acceptance.demo import empty_directory
from tests.acceptance.test_browser import Window, started
from tests.support.ports import free_port
from tests.support.postgres import PostgresServer
from tests.support.processes import CHECKOUT
from tests.tutorial.blocks import PAGE, sections
from tests.tutorial.reader import Reader, reading

# An environment is made and filled from PyPI, which is most of it.
pytestmark = [pytest.mark.timeout(400), pytest.mark.postgres("18")]

STATE_WITHIN = 30
"""Seconds in which a page is live, behind a server that is still starting."""

ALL_OF_IT = ["Install", "A database", "Settings", "A model that is watched", "A subscription", "A socket", "A page"]


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def reader(postgres: PostgresServer, port: int) -> Iterator[Reader]:
    """Somebody with an empty directory; `postgres` sees to it that there is a user for PostgreSQL where we are root."""
    with empty_directory() as directory:
        command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(directory), str(CHECKOUT)]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        (wheel,) = directory.glob("*.whl")
        instead = {'"pgnotify_gql[': f'"{wheel}[', "runserver": f"runserver {port}", ":8000": f":{port}"}
        with reading(directory, instead) as reader:
            yield reader


@pytest.fixture
def browser(chromium: Path) -> Iterator[Browser]:
    with started(chromium) as browser:
        yield browser


class Live:
    """The page of the tutorial in a window of its own, and what it shows."""

    def __init__(self, browser: Browser, port: int) -> None:
        self.site = f"http://127.0.0.1:{port}"
        self.window = Window(browser.new_context(), self.site)
        self.page = self.window.page
        self.state: Locator = self.page.locator("#state")
        self.messages: Locator = self.page.locator("#messages li")

    def open(self, state: str) -> None:
        """Load the page until it is in a state; the server may be about to start again."""
        deadline = time.monotonic() + STATE_WITHIN
        while True:
            try:
                self.page.goto(self.site)
                expect(self.state).to_have_text(state, timeout=3_000)
            except (BrowserError, AssertionError):
                if time.monotonic() > deadline:
                    raise
            else:
                return

    def shows(self, *texts: str) -> None:
        """Wait until the list is this."""
        expect(self.messages).to_have_text(list(texts))

    def add_in_the_admin(self, text: str) -> None:
        """Log in and add a message, in a second window of the same browser."""
        other = self.window.context.new_page()
        other.goto(f"{self.site}/admin/chat/message/add/")
        other.fill("#id_username", "admin")
        other.fill("#id_password", "admin")
        other.click("[type=submit]")
        other.fill("#id_text", text)
        other.click("[name=_save]")
        expect(other.locator(".messagelist")).to_contain_text("was added successfully")
        other.close()


def test_no_block_of_the_page_is_overlooked() -> None:
    assert PAGE.read_text().count(".. code-block::") == sum(map(len, sections().values()))


def test_who_follows_the_tutorial_has_a_page_that_changes_by_itself_and_misses_nothing(
    reader: Reader, browser: Browser, port: int
) -> None:
    page = sections()
    for title in [*ALL_OF_IT, "Run it"]:
        reader.follow(page.pop(title))
    staff = Live(browser, port)
    staff.open("subscribed")
    staff.shows()

    shell, psql = page.pop("Write something")
    staff.add_in_the_admin("From the admin")
    staff.shows("From the admin")
    reader.follow([shell])
    staff.shows("From the admin", "Number 1", "Number two", "Number 3")
    reader.follow([psql])
    staff.shows("From the admin", "NUMBER 1", "NUMBER TWO", "NUMBER 3", "Hello from psql")
    assert staff.window.complaints == []

    *steps, psql = page.pop("Who sees what")
    reader.follow(steps)
    staff.open("live")
    visitor = Live(browser, port)
    visitor.open("live")
    for live in (staff, visitor):
        expect(live.messages).to_have_count(5)
    reader.follow([psql])
    staff.shows("From the admin", "NUMBER TWO", "NUMBER 3", "Hello from psql", "The safe is open")
    visitor.shows("From the admin", "NUMBER TWO", "NUMBER 3")

    psql, server = page.pop("Nothing is missed")
    assert reader.server is not None
    reader.server.press_ctrl_c()
    for live in (staff, visitor):
        expect(live.state).to_contain_text("closed")
    reader.follow([psql, server])
    for live in (staff, visitor):
        expect(live.state).to_have_text("live", timeout=STATE_WITHIN * 1_000)
    visitor.shows("From the admin", "NUMBER TWO", "Written while nobody listened")
    staff.shows("From the admin", "NUMBER TWO", "Hello from psql", "The safe is open", "Written while nobody listened")

    reader.follow(page.pop("Tests"))
    assert page == {}

    assert reader.server.press_ctrl_c() == 0
    assert reader.database is not None
    assert reader.database.press_enter() == 0
