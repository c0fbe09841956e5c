"""
Clients that do not read, on real servers: they cost bounded memory, disturb nobody, and miss nothing.

What a server must not keep is written several times over: without the bounds it would grow by hundreds of megabytes.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import psutil
import pytest

from pgnotify_gql.transport.close_codes import PRIVATE_CODES, CloseCode
from tests.faults.raw_client import LEGACY, SMALL, TIMEOUT, TRANSPORT, RawClient
from tests.support.databases import Database
from tests.support.feed import Room, eventually
from tests.support.ports import free_port
from tests.support.processes import ProjectServer, project_environment

pytestmark = pytest.mark.postgres("18")

OUTBOX = 400_000
"""Bytes that may wait for a client."""

LENGTH = 500
"""Characters of a text.  With cursor and frame a result has some 850 bytes."""

CHANGES = 6_000
"""So many results have 5 MB: 12 times what may wait for a client."""

BULK = 100
"""Rows that are written by one statement."""

STALLED = 100

PATIENCE = 600
"""Seconds that a client may be stuck, but where it is that that is tested."""

TRIES = 10
"""How often a client may come too late for the close that it was sent."""

BESIDES = 30_000_000
"""Bytes that a server may grow by beside what waits for clients: transports keep 64 KiB for each of a hundred, and what
is under way when a writer is faster than the server (changes, rows of the journal) has its own bounds."""

BOTH = (TRANSPORT, LEGACY)


@pytest.fixture(params=["daphne", "uvicorn"])
def kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


class Site:
    """A server with a room, somebody who reads, and others who do not."""

    def __init__(self, server: ProjectServer, database: Database) -> None:
        assert server.process is not None
        self.server = server
        self.room = Room(database)
        self.written: list[str] = []
        self.reader = RawClient(server.ws_url, receive_buffer=None)
        self.delays: list[float] = []
        self._opened = [self.reader]
        self._process = psutil.Process(server.process.pid)
        self._committed: dict[str, float] = {}

    @property
    def memory(self) -> int:
        """Resident bytes of the server."""
        resident: int = self._process.memory_info().rss
        return resident

    @property
    def connections(self) -> int:
        """How many clients the server holds connections to."""
        return sum(
            bool(found.raddr) and found.laddr.port == self.server.port for found in self._process.net_connections("tcp")
        )

    def write(self, count: int) -> None:
        """Write at full speed: new messages, many with a statement, and between them changes of one, each by itself."""
        (edited,) = self.room.say(self._text())
        end = len(self.written) + count
        while len(self.written) < end:
            self.room.connection.execute(
                "insert into conversations_message (conversation_id, author_id, text)"
                " select %s, %s, text from unnest(%s::text[]) as text",
                [self.room.conversation, self.room.author, [self._text() for _ in range(BULK)]],
            )
            for _ in range(3):
                self.room.edit(edited, self._text())

    def write_one(self) -> None:
        """Write one, and note when it was committed."""
        text = self._text()
        self._committed[text] = time.monotonic()
        self.room.say(text)

    def has_all(self, client: RawClient) -> Callable[[], bool]:
        """Whether a client has received the last text, on every operation."""
        return lambda: all(texts[-1:] == self.written[-1:] for texts in client.texts.values())

    def check(self, texts: Sequence[str]) -> None:
        """Assert that these are all texts from the first one of them on, once and in order."""
        first = self.written.index(texts[0])
        assert [text.split()[0] for text in texts] == [text.split()[0] for text in self.written[first:]]

    async def in_thread(self, write: Callable[..., None], *arguments: Any) -> None:
        """Write, and wait until the reader has received it."""
        await asyncio.to_thread(write, *arguments)
        await eventually(self.has_all(self.reader), TIMEOUT)

    async def client(self, subprotocol: str, receive_buffer: int | None = SMALL) -> RawClient:
        """Return one that is connected; it leaves at the end, if not before."""
        self._opened.append(RawClient(self.server.ws_url, subprotocol, receive_buffer=receive_buffer))
        return await self._opened[-1].open()

    async def stalled(
        self, count: int = STALLED, subprotocols: Sequence[str] = BOTH, operations: int = 1
    ) -> list[RawClient]:
        """Return clients, of each subprotocol in turn, that have subscribed, received a result, and read no more."""
        names = [str(number) for number in range(operations)]
        clients = []
        for number in range(count):
            client = await self.client(subprotocols[number % len(subprotocols)])
            for name in names:
                await client.subscribe(name)
            clients.append(client)
        waiting = [asyncio.create_task(client.until(client.has_received)) for client in clients]
        while not all(task.done() for task in waiting):
            # A client cannot know when its subscription has taken effect: until then it receives none of these.
            await self.in_thread(self.write_one)
            await asyncio.wait(waiting, timeout=0.1)
        await asyncio.gather(*waiting)
        return clients

    async def grown(self, changes: int = CHANGES) -> int:
        """Write, and return by how much the server's memory has grown at most until the reader has received it."""
        before = peak = self.memory
        writing = asyncio.create_task(self.in_thread(self.write, changes))
        while not writing.done():
            peak = max(peak, self.memory)
            await asyncio.wait({writing}, timeout=0.02)
        await writing
        return max(peak, self.memory) - before

    async def delay(self, count: int = 50) -> float:
        """Return the median of seconds from a commit to the reader."""
        self.delays.clear()
        for _ in range(count):
            await self.in_thread(self.write_one)
        return statistics.median(self.delays)

    def _text(self) -> str:
        self.written.append(f"{len(self.written)} {'x' * LENGTH}")
        return self.written[-1]

    def _received(self, text: str) -> None:
        if text in self._committed:
            self.delays.append(time.monotonic() - self._committed[text])

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Site]:
        """Warm up: from then on a server without clients that stall does not grow."""
        self.reader.received = self._received
        await self.reader.open()
        await self.reader.subscribe()
        reading = asyncio.create_task(self.reader.read_on())
        while not self.reader.texts["1"]:
            await asyncio.to_thread(self.write_one)
            await asyncio.sleep(0.05)
        await self.in_thread(self.write, CHANGES)
        try:
            yield self
            self.check(self.reader.texts["1"])
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            for client in self._opened:
                client.leave()


@asynccontextmanager
async def site(kind: str, database: Database, **settings: Any) -> AsyncIterator[Site]:
    port = free_port()
    host, application = ("-b", "--host")[kind == "uvicorn"], "tests.faults.slow_site:application"
    command = [sys.executable, "-m", kind, host, "127.0.0.1", ("-p", "--port")[kind == "uvicorn"], str(port)]
    # Servers ping by themselves, and cut whoever does not answer: later than these tests end, since it is our bounds
    # that are to be seen.
    command += [("--ping-interval", "--ws-ping-interval")[kind == "uvicorn"], str(PATIENCE)]
    limits = {"OUTBOX_BYTES": OUTBOX, "OUTBOX_MESSAGES": 1_000_000, "SLOW_CLIENT_TIMEOUT": PATIENCE} | settings
    environment = {
        "DEBUG": "0",  # with it Django remembers queries
        "DJANGO_SETTINGS_MODULE": "tests.faults.slow_settings",
        "SLOW_CLIENTS": json.dumps(limits),
    }
    variables = project_environment(database.url, None, inline=True, environment=environment)
    with ProjectServer([*command, application], port=port, environment=variables) as server:
        async with Site(server, database).serving() as serving:
            yield serving
        assert "Traceback" not in server.log


# A server that has megabytes to send to each of a hundred takes a minute for it, and a busy machine several.
@pytest.mark.timeout(300)
async def test_a_hundred_stalled_clients_cost_what_may_wait_for_them_and_disturb_nobody(
    kind: str, database_triggers: Database
) -> None:
    async with site(kind, database_triggers) as served:
        undisturbed = await served.delay()
        clients = await served.stalled()
        assert await served.grown() < STALLED * OUTBOX + BESIDES
        # Once is enough: a client in the way would be there each time, whatever else the machine does is not.
        delays = [await served.delay() for _ in range(5)]
        assert min(delays) < 3 * undisturbed + 0.02
        # Twice: what the first ones have cost is there for others when they have left.
        for client in clients[20:]:
            client.leave()
        await served.stalled(STALLED - 20)
        assert await served.grown() < BESIDES
        for client in clients[:4]:
            client.widen()
        await asyncio.gather(*[client.until(served.has_all(client)) for client in clients[:4]])
        for client in clients[:4]:
            served.check(client.texts["0"])
            assert not client.resyncs


async def test_a_stalled_client_with_a_hundred_operations_costs_no_more_than_one(
    kind: str, database_triggers: Database
) -> None:
    async with site(kind, database_triggers) as served:
        await served.stalled(10, operations=100)
        assert await served.grown(1_000) < 10 * OUTBOX + BESIDES


async def test_a_stalled_client_is_closed_so_that_it_comes_back_and_has_missed_nothing(
    kind: str, database_triggers: Database
) -> None:
    code = PRIVATE_CODES[CloseCode.TRY_AGAIN_LATER] if kind == "daphne" else CloseCode.TRY_AGAIN_LATER
    told = "a client did not read fast enough; its socket is closed with 1013\n"
    async with site(kind, database_triggers, SLOW_CLIENT_TIMEOUT=6) as served:
        gone: list[RawClient] = []
        # Without pings to answer, a client is sent what the system's buffers take: megabytes.
        for subprotocol, changes in ((TRANSPORT, CHANGES // 4), (LEGACY, CHANGES)):
            # Daphne gives a client one second to read what is left of its connection, and behind it the close.  On a
            # busy machine one may need longer, and is cut off as rightly as those that do not read at all.
            for _ in range(TRIES):
                clients = await served.stalled(2, [subprotocol])
                gone += clients
                writing = asyncio.create_task(served.in_thread(served.write, changes))
                await eventually(lambda: served.server.log.count(told) == len(gone), TIMEOUT)  # noqa: B023  (waited for)
                await clients[0].drain()
                await writing
                if kind == "uvicorn" or clients[0].close_code is not None:
                    break
            assert clients[0].close_code == code
        # The others never read, and are cut off.
        await eventually(lambda: served.connections == 1, TIMEOUT)
        for client in gone:
            again = await served.client(client.subprotocol, None)
            await again.subscribe("0", client.cursors["0"])
            await again.until(served.has_all(again))
            served.check([*client.texts["0"], *again.texts["0"]])
            assert not again.resyncs
