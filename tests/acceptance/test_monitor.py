"""The monitor in a browser: live, by keyboard, on a phone, in the dark, in Django's admin, and across a restart."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.test import Client
from playwright.sync_api import Browser, Locator, Page, expect
from playwright.sync_api import TimeoutError as NotInTime

from tests.acceptance.room import Room
from tests.acceptance.test_browser import LIVE_ATTEMPTS, PAUSE, Window, started
from tests.support.databases import Database
from tests.support.processes import ProjectServer

pytestmark = pytest.mark.postgres("18")

PHONE = {"width": 360, "height": 740}
DESKTOP = {"width": 1280, "height": 900}

MESSAGE = "conversations.message"
CONVERSATION = "conversations.conversation"

MOST_TABS = 40
"""Presses of the Tab key after which what was looked for counts as out of reach."""

RESTART = 30_000
"""Milliseconds in which the page must have found its server again; its pauses are 15 s at most."""

OF_THEIR_TRIGGERS = """
    select t.tgname, t.tgrelid::regclass::text from pg_trigger t
    where t.tgrelid = %s::regclass and t.tgname like 'pgnotify_gql%%'
"""


@pytest.fixture
def cookie(room: Room) -> str:
    """Of a session of alice's, who is a superuser."""
    client = Client()
    client.force_login(User.objects.get(username="alice"))
    return client.cookies[settings.SESSION_COOKIE_NAME].value


@pytest.fixture
def server(
    request: pytest.FixtureRequest, cookie: str, database_triggers: Database, uvicorn: Callable[..., ProjectServer]
) -> ProjectServer:
    """The example, or what a test gives for its settings."""
    module = getattr(request, "param", "example.settings")
    return uvicorn(database_triggers, environment={"DRAIN_WINDOW": "0.1", "DJANGO_SETTINGS_MODULE": module})


@pytest.fixture
def browser(server: ProjectServer, chromium: Path) -> Iterator[Browser]:
    """Started last and ended first: where Playwright runs, Django refuses to ask the database."""
    with started(chromium) as browser:
        yield browser


class Monitor:
    """The page of somebody who looks, once it is live."""

    def __init__(self, window: Window, room: Room) -> None:
        self.window = window
        self.page = window.page
        self.room = room

    def open(self) -> None:
        self.page.goto(f"{self.window.site}/monitor/")
        self.wait_until_live()

    def wait_until_live(self) -> None:
        expect(self.page.locator("#feed-state")).to_have_text("Live")
        for _ in range(LIVE_ATTEMPTS):
            try:
                self.line(self.room.probe(), "INSERT").wait_for(timeout=PAUSE)
            except NotInTime:
                continue
            return
        raise AssertionError("no change is shown")

    def line(self, pk: str, kind: str) -> Locator:
        return self.page.locator(f"#tail > li[data-pk='{pk}'][data-kind='{kind}']")

    def status(self, label: str) -> Locator:
        return self.page.locator(f"#triggers li[data-label='{label}'] .pm-badge")

    def leave_the_list(self) -> None:
        """The tail stands still under the pointer."""
        self.page.mouse.move(1, 1)

    def press_tab_until(self, element: Locator) -> None:
        for _ in range(MOST_TABS):
            if element.evaluate("element => element === document.activeElement"):
                return
            self.page.keyboard.press("Tab")
        raise AssertionError(f"the Tab key does not lead to {element}")

    def focus_is_visible(self) -> bool:
        """Whether the element with the focus is outlined, in a colour of some contrast to what is behind it."""
        return bool(
            self.page.evaluate(
                "() => { const style = getComputedStyle(document.activeElement);"
                " return style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2; }"
            )
        )


@contextmanager
def looking(
    browser: Browser, server: ProjectServer, cookie: str | None, room: Room, **options: Any
) -> Iterator[Monitor]:
    """Alice at the page, or whoever has no cookie; what goes wrong in the browser is an error of the test."""
    context = browser.new_context(**{"viewport": DESKTOP, **options})
    if cookie is not None:
        context.add_cookies([{"name": settings.SESSION_COOKIE_NAME, "value": cookie, "url": server.http_url}])
    window = Window(context, server.http_url)
    yield Monitor(window, room)
    context.close()
    assert window.complaints == []


def is_dark(page: Page, selector: str) -> bool:
    """Whether the ground of an element is darker than grey."""
    colour = page.locator(selector).first.evaluate("element => getComputedStyle(element).backgroundColor")
    return sum(map(int, re.findall(r"\d+", colour)[:3])) < 3 * 128


def scrolls_sideways(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))


def test_the_tail_shows_what_raw_sql_writes_and_no_value_of_it(
    browser: Browser, server: ProjectServer, cookie: str, room: Room
) -> None:
    with looking(browser, server, cookie, room) as monitor:
        monitor.open()
        pk = room.insert("a secret text")
        room.update(pk, "another secret text")
        room.delete(pk)
        for kind in ("INSERT", "UPDATE", "DELETE"):
            line = monitor.line(pk, kind)
            expect(line.locator(".pm-label")).to_have_text(MESSAGE)
            expect(line.locator(".pm-key")).to_have_text(pk)
            expect(line.locator(".pm-delay")).to_have_text(re.compile(r"^[\d.]+ m?s$"))
        expect(monitor.line(pk, "UPDATE").locator(".pm-changed")).to_have_text("text")
        assert "secret" not in monitor.page.content()


def test_the_plots_count_changes_by_model_and_tell_their_delay(
    browser: Browser, server: ProjectServer, cookie: str, room: Room
) -> None:
    with looking(browser, server, cookie, room) as monitor:
        monitor.open()
        expect(monitor.page.locator("#rate-legend li")).to_have_text(re.compile(rf"^{re.escape(MESSAGE)}[\d.]+/s$"))
        expect(monitor.page.locator("#delay-legend li")).to_have_count(2)
        expect(monitor.page.locator("#delay-legend")).to_have_text(re.compile(r"median[\d.]+ m?s\s*p99[\d.]+ m?s"))
        expect(monitor.page.locator("#rate-plot path")).to_have_attribute("d", re.compile("M"))


def test_the_tail_is_filtered_by_model_kind_and_text_in_the_key(
    browser: Browser, server: ProjectServer, cookie: str, room: Room
) -> None:
    with looking(browser, server, cookie, room) as monitor:
        monitor.open()
        page, pk = monitor.page, room.insert("hello")
        room.update(pk, "hello again")
        expect(monitor.line(pk, "UPDATE")).to_be_visible()

        page.locator(".pm-filter-kind[value='UPDATE']").uncheck()
        expect(monitor.line(pk, "UPDATE")).to_have_count(0)
        expect(monitor.line(pk, "INSERT")).to_be_visible()
        page.locator(".pm-filter-kind[value='UPDATE']").check()
        expect(monitor.line(pk, "UPDATE")).to_be_visible()

        page.fill("#filter-key", pk)
        expect(page.locator(f"#tail > li:not([data-pk*='{pk}'])")).to_have_count(0)
        expect(monitor.line(pk, "INSERT")).to_be_visible()
        other = room.insert("not shown")
        last = room.insert("nor this one")
        page.fill("#filter-key", "")
        expect(monitor.line(last, "INSERT")).to_be_visible()
        expect(monitor.line(other, "INSERT")).to_be_visible()

        page.select_option("#filter-model", CONVERSATION)
        expect(page.locator("#tail > li")).to_have_count(0)
        room.connection.execute("update conversations_conversation set title = title || '!' where id = %s", [room.id])
        expect(monitor.line(str(room.id), "UPDATE").locator(".pm-label")).to_have_text(CONVERSATION)


def test_the_tail_waits_while_it_is_paused_and_while_somebody_points_at_it(
    browser: Browser, server: ProjectServer, cookie: str, room: Room
) -> None:
    with looking(browser, server, cookie, room) as monitor:
        monitor.open()
        note, pause = monitor.page.locator("#tail-note"), monitor.page.locator("#pause")
        pause.click()
        expect(pause).to_have_attribute("aria-pressed", "true")
        pk = room.insert("while it is paused")
        expect(note).to_have_text("Paused; 1 change came meanwhile.")
        expect(monitor.line(pk, "INSERT")).to_have_count(0)
        pause.click()
        expect(monitor.line(pk, "INSERT")).to_be_visible()

        monitor.line(pk, "INSERT").hover()
        later = room.insert("while the pointer is there")
        expect(note).to_have_text("Held while you are in the list; 1 change came meanwhile.")
        monitor.leave_the_list()
        expect(monitor.line(later, "INSERT")).to_be_visible()


def test_everything_is_reached_and_used_with_the_keyboard(
    browser: Browser, server: ProjectServer, cookie: str, room: Room
) -> None:
    with looking(browser, server, cookie, room) as monitor:
        monitor.open()
        page, first, second = monitor.page, room.insert("one"), room.insert("two")
        expect(monitor.line(second, "INSERT")).to_be_visible()

        pause = page.locator("#pause")
        monitor.press_tab_until(page.locator("#filter-model"))
        monitor.press_tab_until(pause)
        assert monitor.focus_is_visible()
        page.keyboard.press("Space")
        expect(pause).to_have_attribute("aria-pressed", "true")

        newest = monitor.line(second, "INSERT").locator(".pm-change")
        monitor.press_tab_until(newest)
        assert monitor.focus_is_visible()
        page.keyboard.press("ArrowDown")
        below = monitor.line(first, "INSERT").locator(".pm-change")
        expect(below).to_be_focused()
        page.keyboard.press("Enter")
        expect(below).to_have_attribute("aria-expanded", "true")
        expect(monitor.line(first, "INSERT").locator(".pm-stages li").first).to_be_visible()
        page.keyboard.press("Enter")
        expect(below).to_have_attribute("aria-expanded", "false")
        page.keyboard.press("Home")
        expect(newest).to_be_focused()
        # The list is one stop: the next one is behind it.
        monitor.press_tab_until(page.locator("#triggers button"))
        assert monitor.focus_is_visible()


def test_a_change_that_is_opened_tells_why_each_operation_got_it(
    browser: Browser, server: ProjectServer, cookie: str, room: Room
) -> None:
    with looking(browser, server, cookie, room) as monitor:
        monitor.open()
        pk = room.insert("hello")
        line = monitor.line(pk, "INSERT")
        line.locator(".pm-change").click()
        expect(line.locator(".pm-stages li").first).to_have_attribute("data-ok", "true")
        outcome = line.locator(".pm-outcome")
        expect(outcome).to_have_attribute("data-outcome", "sent")
        expect(outcome).to_contain_text("changes of alice")
        room.update(pk, "hello again")
        line.get_by_role("button", name="Ask again").click()
        expect(line.locator(".pm-details summary")).to_have_text("1 other change of this row")
        expect(line.get_by_role("button", name="Ask again")).to_be_focused()


def test_a_truncate_has_no_row_to_explain(browser: Browser, server: ProjectServer, cookie: str, room: Room) -> None:
    with looking(browser, server, cookie, room) as monitor:
        monitor.open()
        room.connection.execute("truncate conversations_message")
        line = monitor.line("", "TRUNCATE")
        expect(line.locator(".pm-key")).to_have_text("all rows")
        line.locator(".pm-change").click()
        expect(line.locator(".pm-why")).to_contain_text("no row to explain")


def test_the_button_installs_what_is_missing(browser: Browser, server: ProjectServer, cookie: str, room: Room) -> None:
    found = room.connection.execute(OF_THEIR_TRIGGERS, ["conversations_conversation"]).fetchall()
    for name, table in found:
        room.connection.execute(f'drop trigger "{name}" on {table}'.encode())
    with looking(browser, server, cookie, room) as monitor:
        monitor.open()
        expect(monitor.status(MESSAGE)).to_have_text("INSTALLED")
        expect(monitor.status(CONVERSATION)).to_have_text("MISSING")
        button = monitor.page.locator("#triggers button")
        expect(button).to_have_text("Install what is missing (1)")
        button.click()
        expect(monitor.page.locator("#install-result")).to_have_text(f"{CONVERSATION}: installed (was MISSING)")
        expect(monitor.status(CONVERSATION)).to_have_text("INSTALLED")
        expect(button).to_have_text("Nothing to install")
        expect(button).to_be_focused()
        room.connection.execute("update conversations_conversation set title = 'new' where id = %s", [room.id])
        expect(monitor.page.locator(f"#tail > li[data-label='{CONVERSATION}']")).to_be_visible()


def test_listener_journal_hubs_and_operations_are_shown(
    browser: Browser, server: ProjectServer, cookie: str, room: Room
) -> None:
    with looking(browser, server, cookie, room) as monitor:
        monitor.open()
        page = monitor.page
        expect(page.locator("#journals [data-what='leader']")).to_contain_text(
            re.compile(r"backend \d+.*(awake|asleep)")
        )
        expect(page.locator("#journals [data-what='lag']")).to_have_text("none")
        expect(page.locator("#journals [data-what='slot 0']")).to_be_visible()
        expect(page.locator("#journals [data-what='retention']")).to_contain_text("1 h at least")
        expect(page.locator("#hubs-note")).to_have_text("1 server process with 1 socket answered within 0.5 s.")
        operation = page.locator("#hubs li[data-user='alice'][data-field='changes']")
        expect(operation).to_contain_text(f"Topic({MESSAGE})")
        expect(page.locator("#state-state")).to_have_text("State up to date")


def test_nothing_is_wider_than_a_phone(browser: Browser, server: ProjectServer, cookie: str, room: Room) -> None:
    with looking(browser, server, cookie, room, viewport=PHONE, has_touch=True, is_mobile=True) as monitor:
        monitor.open()
        pk = room.insert("hello")
        line = monitor.line(pk, "INSERT")
        line.locator(".pm-change").tap()
        expect(line.locator(".pm-outcome")).to_be_visible()
        monitor.page.locator("details:not([open]) > summary").first.tap()
        expect(monitor.page.locator("#hubs li").first).to_be_attached()
        assert not scrolls_sideways(monitor.page)


def test_it_is_dark_where_the_system_is(browser: Browser, server: ProjectServer, cookie: str, room: Room) -> None:
    for scheme in ("dark", "light"):
        with looking(browser, server, cookie, room, color_scheme=scheme) as monitor:
            monitor.open()
            assert is_dark(monitor.page, "body") == (scheme == "dark")
            assert is_dark(monitor.page, ".pm-card") == (scheme == "dark")


@pytest.mark.parametrize("server", ["tests.acceptance.strict_settings"], indirect=True, ids=["strict"])
def test_it_works_under_a_strict_content_security_policy(
    browser: Browser, server: ProjectServer, cookie: str, room: Room
) -> None:
    with looking(browser, server, cookie, room) as monitor:
        # Whatever it forbids is a complaint in the console.
        monitor.open()
        line = monitor.line(room.insert("hello"), "INSERT")
        line.locator(".pm-change").click()
        expect(line.locator(".pm-outcome")).to_be_visible()
        expect(monitor.status(MESSAGE)).to_have_text("INSTALLED")


def test_it_goes_on_where_it_was_after_a_restart_of_the_server(
    browser: Browser, server: ProjectServer, cookie: str, room: Room
) -> None:
    with looking(browser, server, cookie, room) as monitor:
        monitor.open()
        page, before = monitor.page, room.insert("before")
        expect(monitor.line(before, "INSERT")).to_be_visible()
        server.stop()
        missed = room.insert("while there was no server")
        expect(page.locator("#feed-state")).not_to_have_text("Live")
        expect(page.locator("#state-state")).to_contain_text("State not up to date: The server does not answer.")
        server.start()
        expect(page.locator("#feed-state")).to_have_text("Live", timeout=RESTART)
        expect(monitor.line(missed, "INSERT")).to_be_visible(timeout=RESTART)
        expect(monitor.line(before, "INSERT")).to_have_count(1)
        expect(page.locator("#state-state")).to_have_text("State up to date", timeout=RESTART)
        # A browser calls it an error when nobody answers.
        refused = [line for line in monitor.window.complaints if "ERR_CONNECTION_REFUSED" in line]
        monitor.window.complaints = [line for line in monitor.window.complaints if line not in refused]


@pytest.mark.parametrize("server", ["tests.acceptance.admin_settings"], indirect=True, ids=["with the admin"])
def test_in_the_admin_it_has_its_login_its_frame_and_its_theme(
    browser: Browser, server: ProjectServer, room: Room
) -> None:
    with looking(browser, server, None, room, color_scheme="light") as monitor:
        page = monitor.page
        page.goto(f"{server.http_url}/monitor/")
        expect(page).to_have_url(f"{server.http_url}/admin/login/?next=/monitor/")
        page.fill("#id_username", "alice")
        page.fill("#id_password", "alice")
        page.keyboard.press("Enter")
        expect(page).to_have_url(f"{server.http_url}/monitor/")
        monitor.wait_until_live()
        expect(page.locator("#site-name")).to_have_text("Django administration")
        assert not is_dark(page, ".pm-card")
        page.locator("#header .theme-toggle").click()
        expect(page.locator("html")).to_have_attribute("data-theme", "dark")
        assert is_dark(page, ".pm-card")
        page.set_viewport_size({"width": 360, "height": 740})
        assert not scrolls_sideways(page)


def test_a_part_that_cannot_be_told_is_a_sentence_and_the_others_stay(
    browser: Browser, server: ProjectServer, cookie: str, room: Room
) -> None:
    with looking(browser, server, cookie, room) as monitor:
        monitor.open()
        operation = monitor.page.locator("#hubs li[data-user='alice']")
        expect(operation).to_be_visible()
        room.connection.execute("drop schema pgnotify_gql cascade")
        told = monitor.page.locator("#journals .pm-notice")
        expect(told).to_contain_text("has no journal: run `manage.py migrate pgnotify_gql", timeout=RESTART)
        expect(operation).to_be_visible()
        expect(monitor.page.locator("#state-state")).to_have_text("State up to date")
