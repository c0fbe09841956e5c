"""What people see in a browser, without a network: the chat page of two of them, and GraphiQL."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Locator, Request, expect, sync_playwright
from playwright.sync_api import TimeoutError as NotInTime

from tests.acceptance.demo import Demo
from tests.acceptance.room import Room

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

# Milliseconds: servers and the browser share two cores with other tests.
expect.set_options(timeout=20_000)

LIVE_ATTEMPTS = 50
PAUSE = 200
"""Milliseconds until the next probe."""


@contextmanager
def started(chromium: Path) -> Iterator[Browser]:
    """A browser without a network."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, headless=True, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def browser(chromium: Path) -> Iterator[Browser]:
    with started(chromium) as browser:
        yield browser


class Window:
    """A browser context (cookies of its own) with one page; whatever goes wrong in it is an error of the test."""

    def __init__(self, context: BrowserContext, site: str) -> None:
        self.site = site
        self.complaints: list[str] = []
        self.context = context
        self.page = context.new_page()
        self.page.set_default_timeout(10_000)
        self.page.on("request", self._check_host)
        self.page.on("websocket", lambda socket: self._check_url(socket.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._check_console)

    def log_in(self, name: str, path: str = "/") -> None:
        self.page.goto(f"{self.site}/login/?next={path}")
        self.page.click(f"#log-in-as-{name}")
        expect(self.page).to_have_url(re.compile(re.escape(self.site + path)))

    def _check_host(self, request: Request) -> None:
        self._check_url(request.url)

    def _check_console(self, line: ConsoleMessage) -> None:
        if line.type == "error":
            self.complaints.append(line.text)

    def _check_url(self, url: str) -> None:
        if urlsplit(url).scheme not in {"data", "blob"} and urlsplit(url).netloc != urlsplit(self.site).netloc:
            self.complaints.append(f"asked another host: {url}")


@pytest.fixture
def windows(browser: Browser, demo: Demo) -> Iterator[list[Window]]:
    """Two windows of two people."""
    contexts = [browser.new_context() for _ in range(2)]
    opened = [Window(context, demo.site) for context in contexts]
    yield opened
    for context in contexts:
        context.close()
    assert [window.complaints for window in opened] == [[], []]


class Chat:
    """The chat page of one user, on one conversation, when its subscription has taken effect."""

    def __init__(self, window: Window, name: str, room: Room) -> None:
        window.log_in(name)
        self.page = window.page
        self.page.locator(f"#conversations li[data-conversation-id='{room.id}'] button").click()
        expect(self.page.locator("#connection-state")).to_have_text("Live")
        for _ in range(LIVE_ATTEMPTS):
            pk = room.insert("Can you hear me?")
            try:
                self.line(pk, "INSERT").wait_for(timeout=PAUSE)
            except NotInTime:
                continue
            return

    def message(self, pk: str) -> Locator:
        return self.page.locator(f"#messages li[data-message-id='{pk}']")

    def pk_of(self, text: str) -> str:
        """The key of the newest message with a text, as soon as it is shown."""
        newest = self.page.locator("#messages li").filter(has_text=text).last
        expect(newest).to_be_visible()
        pk = newest.get_attribute("data-message-id")
        assert pk is not None
        return pk

    def line(self, pk: str, kind: str) -> Locator:
        """The line that tells how a change came in."""
        return self.page.locator(f"#feed li[data-pk='{pk}'][data-kind='{kind}']")

    def expect_line(self, pk: str, kind: str, via: str) -> None:
        line = self.line(pk, kind)
        expect(line.locator(".kind")).to_have_text(kind)
        expect(line.locator(".via")).to_have_text(via)
        expect(line.locator(".delay")).to_have_text(re.compile(r"^\d+ ms$"))


def test_the_page_shows_what_raw_sql_inserts_updates_and_deletes(windows: list[Window], demo_room: Room) -> None:
    alice = Chat(windows[0], "alice", demo_room)
    pk = demo_room.insert("Hello from SQL")
    expect(alice.message(pk).locator(".text")).to_have_text("Hello from SQL")
    alice.expect_line(pk, "INSERT", "SQL")
    demo_room.update(pk, "Hello again")
    expect(alice.message(pk).locator(".text")).to_have_text("Hello again")
    alice.expect_line(pk, "UPDATE", "SQL")
    demo_room.delete(pk)
    expect(alice.message(pk)).to_have_count(0)
    alice.expect_line(pk, "DELETE", "SQL")
    expect(alice.page.locator("#delays")).to_have_text(re.compile(r"median \d+ ms"))


def test_the_page_shows_what_another_person_writes_with_each_button(windows: list[Window], demo_room: Room) -> None:
    alice = Chat(windows[0], "alice", demo_room)
    bob = Chat(windows[1], "bob", demo_room)
    for button, text, via in (
        ("#send-orm", "Saved by bob", "save()"),
        ("#send-bulk", "Bulk-created by bob", "bulk_create()"),
    ):
        bob.page.fill("#text", text)
        bob.page.click(button)
        pk = alice.pk_of(text)
        alice.expect_line(pk, "INSERT", via)
        expect(bob.message(pk)).to_be_visible()

    bob.message(pk).locator(".tick").check()
    bob.page.fill("#text", "Updated by bob")
    bob.page.click("#edit-mine")
    expect(alice.message(pk).locator(".text")).to_have_text("Updated by bob")
    alice.expect_line(pk, "UPDATE", "QuerySet.update()")

    bob.message(pk).locator("[data-action=delete]").click()
    expect(alice.message(pk)).to_have_count(0)
    alice.expect_line(pk, "DELETE", "delete()")


def test_the_page_counts_what_is_unread_in_another_conversation(windows: list[Window], demo_room: Room) -> None:
    alice = Chat(windows[0], "alice", demo_room)
    other = Room(demo_room.connection, "Allotment")
    # A membership is not watched, so the number is told anew with the next message.
    demo_room.connection.execute(
        "update conversations_membership set last_read_message_id ="
        " (select max(id) from conversations_message) where conversation_id = %s",
        [other.id],
    )
    entry = alice.page.locator(f"#conversations li[data-conversation-id='{other.id}']")
    for number in ("1", "2"):
        other.insert("The tomatoes are ripe")
        expect(entry).to_have_attribute("data-unread", number)
    entry.locator("button").click()
    expect(entry).to_have_attribute("data-unread", "0")


def test_graphiql_works_without_a_network_and_receives_what_raw_sql_updates(
    windows: list[Window], demo_room: Room
) -> None:
    pk = demo_room.insert("before")
    window = windows[0]
    window.log_in("alice", "/graphiql/")
    query = f'subscription {{ messages(conversationId: "{demo_room.id}") {{ id text }} }}'
    # GraphiQL reads its query from the fragment, when it is loaded.
    window.page.goto("about:blank")
    window.page.goto(f"{window.site}/graphiql/#query={quote(query)}")
    window.page.locator(".graphiql-execute-button, .execute-button").click()
    result = window.page.locator(".result-window")
    for attempt in range(LIVE_ATTEMPTS):
        demo_room.update(pk, f"update {attempt} by raw SQL")
        try:
            result.get_by_text("by raw SQL").first.wait_for(timeout=PAUSE)
        except NotInTime:
            continue
        break
    demo_room.update(pk, "the last one by raw SQL")
    expect(result).to_contain_text("the last one by raw SQL")
