"""GraphiQL in a browser, as it is served: it goes on showing what raw SQL writes after its server was restarted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Page, WebSocket, expect, sync_playwright

from tests.acceptance.room import Room
from tests.acceptance.test_browser import FLAGS
from tests.clients.clients import QUERY, Change
from tests.clients.story import LIMIT, Story
from tests.support.processes import ProjectServer

pytestmark = pytest.mark.postgres("18")


@pytest.fixture
def page(chromium: Path, server: ProjectServer, cookie: str) -> Iterator[Page]:
    """A page of the server, with alice's cookie."""
    name, _, value = cookie.partition("=")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, headless=True, args=FLAGS)
        context = browser.new_context()
        context.add_cookies([{"name": name, "value": value, "url": server.http_url}])
        page = context.new_page()
        page.set_default_timeout(LIMIT * 1_000)
        yield page
        browser.close()


class Graphiql:
    """GraphiQL, subscribed; what it was sent is read from its sockets, since it shows the last result only."""

    def __init__(self, page: Page, site: str, room: Room) -> None:
        self._page = page
        self._changes: list[Change] = []
        self._ends: list[str] = []
        page.on("websocket", self._opened)
        variables = json.dumps({"conversationId": str(room.id)})
        page.goto(f"{site}/graphiql/#{urlencode({'query': QUERY, 'variables': variables})}".replace("+", "%20"))
        page.locator(".graphiql-execute-button, .execute-button").click()

    @property
    def received(self) -> dict[str, list[Change]]:
        # What the browser tells is heard while something is asked of it.
        self._page.wait_for_timeout(1)
        return {"GraphiQL": self._changes[:]}

    @property
    def complaints(self) -> list[str]:
        return self._ends

    def shows(self, change: Change) -> None:
        """Wait until a change is shown."""
        result = self._page.locator(".result-window")
        expect(result).to_contain_text(f'"kind": "{change.kind}"')
        expect(result).to_contain_text(f'"pk": "{change.pk}"')

    def _opened(self, socket: WebSocket) -> None:
        socket.on("framereceived", self._hear)

    def _hear(self, frame: str | bytes) -> None:
        message = json.loads(frame)
        if message["type"] == "next" and "errors" not in message["payload"]:
            self._changes.append(Change.of(message["payload"]["data"]["messageChanges"]))
        elif message["type"] in ("next", "error", "complete"):
            self._ends.append(str(message))


def test_graphiql_shows_every_change_and_comes_back_after_restarts(
    page: Page, server: ProjectServer, room: Room
) -> None:
    graphiql = Graphiql(page, server.http_url, room)
    story = Story(room, server, graphiql)
    story.part("at first")
    graphiql.shows(story.last)
    story.restart()
    story.part("after a restart")
    graphiql.shows(story.last)
    story.crash()
    story.part("after a crash")
    graphiql.shows(story.last)
    story.check()
