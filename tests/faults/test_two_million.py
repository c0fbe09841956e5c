"""
Many missed changes, streamed to a client that comes back: each once, in order, and in bounded memory.

PGNOTIFY_GQL_TEST_MISSED says how many; the bound is the same for two million.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from itertools import cycle
from threading import Event, Thread
from typing import Any

import psutil
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from tests.support import processes
from tests.support.databases import Database
from tests.support.feed import Room
from tests.support.processes import Process, ProjectServer, RedisServer, project_environment

logger = logging.getLogger(__name__)

MISSED = int(os.environ.get("PGNOTIFY_GQL_TEST_MISSED", "100000"))

SITE = "tests.support.resuming_site:application"

SIZES = (1, 10, 100, 3_000, 500, 20_000)
"""Rows of the bulk writes, in turn; a journal row has 1,000 of them at most."""

SINGLES = 25
"""Writes of a single row, each with a journal row of its own, behind every bulk write."""

MOST_GROWTH = 60_000_000
"""Bytes by which the server may grow, whatever was missed: two million results have a gigabyte."""

SAMPLES = 0.05
"""Seconds between two looks at the server's memory."""

SLOWEST = 1_000
"""Changes that arrive in a second at least, on a busy machine; ten times as many do on an idle one."""


class Memory:
    """The resident memory of a process, in bytes: as it was first, and at most since."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self.first = self.most = self._now()
        self._stopping = Event()

    @property
    def growth(self) -> int:
        return self.most - self.first

    @property
    def megabytes(self) -> tuple[float, float]:
        """Return what it was first, and the growth."""
        return self.first / 1e6, self.growth / 1e6

    @contextmanager
    def watched(self) -> Iterator[None]:
        thread = Thread(target=self._watch, name="memory", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            thread.join()

    def _watch(self) -> None:
        while not self._stopping.wait(SAMPLES):
            self.most = max(self.most, self._now())

    def _now(self) -> int:
        rss: int = self._process.memory_info().rss
        return rss


def write_missed(room: Room, count: int) -> None:
    """Write messages with the texts 1 to `count`, in bulk and one by one."""
    sizes, written = cycle(SIZES), 0
    while written < count:
        bulk = min(next(sizes), count - written)
        singles = min(SINGLES, count - written - bulk)
        room.connection.execute(
            "insert into conversations_message (conversation_id, author_id, text)"
            " select %s, %s, number::text from generate_series(%s::int, %s) as number",
            [room.conversation, room.author, written + 1, written + bulk],
        )
        written += bulk
        room.say(*[str(written + number) for number in range(1, singles + 1)])
        written += singles


@asynccontextmanager
async def subscribed(server: ProjectServer, cursor: str | None) -> AsyncIterator[ClientConnection]:
    """Subscribe to all messages."""
    opening = connect(f"{server.ws_url}/", subprotocols=[Subprotocol("graphql-transport-ws")], compression=None)
    async with opening as socket:
        await socket.send(json.dumps({"type": "connection_init"}))
        assert json.loads(await socket.recv())["type"] == "connection_ack"
        payload: dict[str, Any] = {"query": "subscription { current }"}
        if cursor is not None:
            payload["extensions"] = {"cursor": cursor}
        await socket.send(json.dumps({"type": "subscribe", "id": "1", "payload": payload}))
        yield socket


async def next_result(socket: ClientConnection) -> dict[str, Any]:
    while (message := json.loads(await socket.recv()))["type"] == "ping":
        await socket.send('{"type":"pong"}')
    assert message["type"] == "next", message
    result: dict[str, Any] = message["payload"]
    return result


async def up_to_marker(socket: ClientConnection) -> str:
    """Read up to the live marker, and return its cursor."""
    while not (result := await next_result(socket))["extensions"].get("live"):
        pass
    cursor: str = result["extensions"]["cursor"]
    return cursor


@pytest.mark.postgres("18")
@pytest.mark.timeout(120 + 2 * MISSED // SLOWEST)
async def test_whoever_comes_back_is_sent_all_that_was_missed_in_bounded_memory(
    running: ExitStack,
    database_triggers: Database,
    redis_server: RedisServer,
    run_listener: Callable[..., Process],
) -> None:
    run_listener(database_triggers, redis_server)
    variables = project_environment(database_triggers.url, redis_server, inline=False, environment=None)
    server, room = running.enter_context(processes.uvicorn(variables, SITE)), Room(database_triggers)
    async with subscribed(server, None) as socket:
        cursor = await up_to_marker(socket)
    async with subscribed(server, cursor) as socket:
        # It has done by now, once, whatever will be done.
        await up_to_marker(socket)
        room.say("0")
        cursor = (await next_result(socket))["extensions"]["cursor"]
    await asyncio.to_thread(write_missed, room, MISSED)
    assert server.process is not None
    memory, began = Memory(server.process.pid), time.monotonic()
    with memory.watched():
        async with subscribed(server, cursor) as socket:
            for number in range(1, MISSED + 1):
                assert (await next_result(socket))["data"] == {"current": str(number)}
            await up_to_marker(socket)
            took = time.monotonic() - began
            room.say("live")
            assert (await next_result(socket))["data"] == {"current": "live"}
    logger.info("%d changes in %.1f s; %.0f MB at first, %.1f MB more at most", MISSED, took, *memory.megabytes)
    assert memory.growth < MOST_GROWTH, "{:.0f} MB at first, {:.1f} more".format(*memory.megabytes)
    assert "Traceback" not in server.log
