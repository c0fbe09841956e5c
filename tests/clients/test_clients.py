"""Each client receives every change of raw SQL once and in order, and again after its server was stopped or killed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.acceptance.room import Room
from tests.clients.clients import Driver
from tests.clients.conftest import DRIVERS
from tests.clients.story import Story
from tests.support.processes import ProjectServer

pytestmark = pytest.mark.postgres("18")

Make = Callable[..., Driver]


@pytest.fixture
def on_node(drivers: Path, node: Path, room: Room, server: ProjectServer, cookie: str) -> Make:
    """A driver in JavaScript: `on_node(name, script, path, library)`."""

    def make(name: str, script: str, path: str = "/graphql/", library: str = "") -> Driver:
        site = server.http_url if path.endswith("stream/") else server.ws_url
        headers = {"Cookie": cookie, "Origin": server.http_url}
        command = [str(node), str(drivers / script)]
        return Driver(command, name, url=site + path, headers=headers, conversation=str(room.id), library=library)

    return make


@pytest.fixture
def on_gql(room: Room, server: ProjectServer, cookie: str) -> Make:
    """A driver of gql: `on_gql(transport, subprotocol)`."""

    def make(transport: str, subprotocol: str) -> Driver:
        library = f"{transport} {subprotocol}"
        headers = {"Cookie": cookie, "Origin": server.http_url}
        command = [sys.executable, str(DRIVERS / "gql_client.py")]
        url = f"{server.ws_url}/graphql/"
        name = f"gql on {library}"
        return Driver(command, name, url=url, headers=headers, conversation=str(room.id), library=library)

    return make


@pytest.fixture
def tell(room: Room, server: ProjectServer) -> Callable[..., None]:
    """Let these drivers receive a whole story."""

    def tell(*drivers: Driver) -> None:
        story = Story(room, server, *drivers)
        with ExitStack() as running:
            for driver in drivers:
                running.enter_context(driver)
            story.tell()
        # Once more, now that nothing can come any more.
        story.check()

    return tell


def test_graphql_ws_of_two_major_versions_receives_every_change_and_comes_back_after_restarts(
    on_node: Make, tell: Callable[..., None]
) -> None:
    tell(
        on_node("graphql-ws 6", "graphql_ws.mjs", library="graphql-ws"),
        on_node("graphql-ws 5", "graphql_ws.mjs", library="graphql-ws-5"),
    )


@pytest.mark.parametrize("client", ["subscriptions_transport_ws", "apollo", "urql", "relay"])
def test_a_client_in_javascript_receives_every_change_and_comes_back_after_restarts(
    on_node: Make, tell: Callable[..., None], client: str
) -> None:
    tell(on_node(client, f"{client}.mjs"))


def test_graphql_sse_receives_every_change_and_comes_back_after_restarts(
    on_node: Make, tell: Callable[..., None]
) -> None:
    tell(on_node("graphql-sse", "graphql_sse.mjs", "/graphql/stream/"))


@pytest.mark.parametrize("subprotocol", ["graphql-transport-ws", "graphql-ws"])
def test_gql_with_both_transports_receives_every_change_and_comes_back_after_restarts(
    on_gql: Make, tell: Callable[..., None], subprotocol: str
) -> None:
    tell(on_gql("websockets", subprotocol), on_gql("aiohttp", subprotocol))
