"""The clients that people use, unmodified, across restarts of their server: each comes back with its last cursor."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from gql import Client, GraphQLRequest
from gql.transport.exceptions import TransportError
from gql.transport.websockets import WebsocketsTransport

from tests.faults.load import Load
from tests.support import processes
from tests.support.databases import Database
from tests.support.feed import Room, eventually
from tests.support.npm import install
from tests.support.processes import CHECKOUT, Process, ProjectServer, RedisServer, project_environment

pytestmark = pytest.mark.postgres("18")

SITE = "tests.support.resuming_site:application"

CLIENT = CHECKOUT / "tests/support/resuming_client.cjs"

PACKAGES = ("graphql-ws@5.16.2", "graphql@16", "ws@8")
"""Of the last version of graphql-ws that runs on every Node since 10; the messages of its later ones are the same."""

LIMIT = 60.0
"""Seconds."""


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script beside its packages, in a directory of this run; skips the tests where there is no registry."""
    directory = tmp_path_factory.mktemp("node")
    install(directory, *PACKAGES)
    shutil.copy(CLIENT, directory)
    return directory / CLIENT.name


class Site:
    """A server that is stopped in all ways, and starts again at its port, while others write."""

    def __init__(self, server: ProjectServer, room: Room, load: Load) -> None:
        self.server = server
        self.room = room
        self.load = load

    @property
    def url(self) -> str:
        return f"{self.server.ws_url}/"

    async def run(self, received: Callable[[], list[str]]) -> None:
        """Restart it under the load, and wait until everything was received."""
        with self.load.running():
            for stop in (self._terminate, self._kill, self._terminate):
                before = len(received())
                await eventually(lambda before=before: len(received()) > before + 50, LIMIT)  # type: ignore[misc]
                await asyncio.to_thread(stop)
                await eventually(self.load.grown_by(20), LIMIT)
                await asyncio.to_thread(self.server.start)
        await eventually(lambda: self.load.arrived(received(), self.room.connection), LIMIT)
        self.room.say("the end")
        await eventually(lambda: "the end" in received(), LIMIT)
        self.load.check([text for text in received() if text != "the end"], self.room.connection)

    def _terminate(self) -> None:
        self.server.stop(signal.SIGTERM)

    def _kill(self) -> None:
        self.server.kill()


@pytest.fixture(params=["daphne", "uvicorn"])
def site(
    request: pytest.FixtureRequest,
    running: ExitStack,
    database_triggers: Database,
    redis_server: RedisServer,
    run_listener: Callable[..., Process],
) -> Iterator[Site]:
    run_listener(database_triggers, redis_server)
    make = {"daphne": processes.daphne, "uvicorn": processes.uvicorn}[request.param]
    variables = project_environment(
        database_triggers.url, redis_server, inline=False, environment={"DRAIN_WINDOW": "0.2"}
    )
    room = Room(database_triggers)
    site = Site(running.enter_context(make(variables, SITE)), room, Load(room, database_triggers.connect))
    yield site
    assert "Traceback" not in site.server.log


class TestGraphqlWs:
    """The npm package, in Node, with its own logic of connecting again."""

    async def test_it_receives_everything_once_and_in_order(self, site: Site, installed: Path, node: Path) -> None:
        with Process([str(node), str(installed), site.url, "current"], banner='"live":') as client:

            def printed() -> list[Any]:
                complete, _, _ = client.log.rpartition("\n")
                return [json.loads(line) for line in complete.splitlines()]

            def results(lines: list[Any]) -> list[str]:
                found = [line for line in lines if line.get("data") and not line["extensions"].get("initial")]
                return [result["data"]["current"] for result in found]

            await site.run(lambda: results(printed()))
            # One look: a marker may still come.
            lines = printed()
            connections = [line for line in lines if "connected" in line]
            markers = [line for line in lines if line.get("extensions", {}).get("live")]
            assert len(connections) == 4
            # One each time that it has caught up; and no resync, no error, no end.
            assert len(markers) >= 2
            assert len(lines) == len(connections) + len(markers) + len(results(lines)) + len(site.load.writers)


class Since(GraphQLRequest):
    """A request of gql that goes on from the cursor of the last result."""

    def __init__(self, document: str) -> None:
        super().__init__(document)
        self.cursor: str | None = None

    @property
    def payload(self) -> dict[str, Any]:
        extensions = {} if self.cursor is None else {"extensions": {"cursor": self.cursor}}
        return super().payload | extensions


class TestGql:
    """The library from PyPI; it connects once, so that connecting again is the application's."""

    @pytest.mark.parametrize("subprotocol", ["graphql-transport-ws", "graphql-ws"])
    async def test_it_receives_everything_once_and_in_order(self, site: Site, subprotocol: str) -> None:
        request, received, other = Since("subscription { current }"), list[str](), list[Any]()

        async def receive() -> None:
            while True:
                with suppress(TransportError, OSError):
                    transport = WebsocketsTransport(site.url, subprotocols=[subprotocol])
                    async with Client(transport=transport):
                        # session.subscribe() would leave out what has no data: the markers, and a resync.
                        async for result in transport.subscribe(request):
                            assert result.extensions is not None
                            request.cursor = result.extensions.get("cursor", request.cursor)
                            if result.data is None or "initial" in result.extensions:
                                other.append(result)
                            else:
                                received.append(result.data["current"])
                await asyncio.sleep(0.05)

        receiving = asyncio.create_task(receive())
        try:
            await eventually(lambda: request.cursor is not None or receiving.done())
            await site.run(lambda: received)
        finally:
            receiving.cancel()
            with suppress(asyncio.CancelledError):
                await receiving
        assert not [result for result in other if "resync" in result.extensions or result.errors]
