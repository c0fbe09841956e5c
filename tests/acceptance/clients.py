"""
The independent clients that receive: the library websockets with messages written by hand, and gql.

`CLIENTS` has each of them with each subprotocol.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from itertools import count
from typing import Any

from gql import Client, GraphQLRequest
from gql.transport.aiohttp_websockets import AIOHTTPWebsocketsTransport
from gql.transport.exceptions import TransportConnectionFailed
from gql.transport.websockets import WebsocketsTransport
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosedError
from websockets.typing import Origin, Subprotocol

from tests.acceptance.room import Room
from tests.acceptance.site import Visitor

TIMEOUT = 15
"""Seconds after which what should have come counts as missing."""

FIRST_PAUSE = 0.05
"""Seconds until the second probe; each later pause is twice as long, since a machine may be slow."""

CHANGES = """
subscription ($conversationId: ID!) {
  messageChanges(conversationId: $conversationId) { kind pk at via message { id text author { username } } }
}
"""
MESSAGES = """
subscription ($conversationId: ID!) { messages(conversationId: $conversationId) { id text author { username } } }
"""
CONVERSATIONS = "subscription { conversations { id title unread } }"

Data = Mapping[str, Any]
Results = AsyncIterator[Data]
ClientFactory = Callable[..., AbstractAsyncContextManager[Results]]


class Watcher:
    """
    One subscription and what it receives, in order.

    It reads all the time, as a client should. Rows in `room.probes` are left out.
    """

    def __init__(self, room: Room, results: Results) -> None:
        self._room = room
        self._results = results
        self._arrived: asyncio.Queue[Data] = asyncio.Queue()
        self.server_may_vanish = False
        """Whether a lost connection is what the test wants, and no error."""

    async def read(self) -> None:
        try:
            async for data in self._results:
                self._arrived.put_nowait(next(iter(data.values())))
        except (ConnectionClosedError, TransportConnectionFailed):
            if not self.server_may_vanish:
                raise

    async def live(self) -> None:
        """
        Return once the subscription has taken effect: nothing written from now on is missed.

        The subprotocols have no message that says so, hence the probes.
        """
        for attempt in count():
            probe = self._room.probe()
            with suppress(TimeoutError):
                async with asyncio.timeout(FIRST_PAUSE * 2**attempt):
                    while key(await self._arrived.get()) != probe:
                        pass
                    return

    async def next(self) -> Data:
        """The next result."""
        async with asyncio.timeout(TIMEOUT):
            while key(data := await self._arrived.get()) in self._room.probes:
                pass
        return data

    async def take(self, number: int) -> list[Data]:
        """The next results; the error for a missing one tells what came instead."""
        taken: list[Data] = []
        while len(taken) < number:
            try:
                taken.append(await self.next())
            except TimeoutError as error:
                raise AssertionError(f"{len(taken)} of {number} results came: {taken[-20:]}") from error
        return taken

    async def up_to(self, pk: str) -> list[Data]:
        """All results up to the one of a row."""
        taken = [await self.next()]
        while key(taken[-1]) != pk:
            taken.append(await self.next())
        return taken

    def rest(self) -> list[Data]:
        """What has arrived and was not taken."""
        waiting = [self._arrived.get_nowait() for _ in range(self._arrived.qsize())]
        return [data for data in waiting if key(data) not in self._room.probes]


def key(data: Data) -> str:
    """The key of the row that a result is about."""
    return str(data.get("pk", data.get("id")))


@asynccontextmanager
async def watching(
    client: ClientFactory, visitor: Visitor, room: Room, query: str = CHANGES, *, live: bool = True
) -> AsyncIterator[Watcher]:
    """Subscribe to a room; with `live` the subscription has taken effect."""
    variables = {"conversationId": str(room.id)} if "$conversationId" in query else {}
    async with client(visitor, query, variables) as results:
        watcher = Watcher(room, results)
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(watcher.read(), name="watcher")
            try:
                if live:
                    await watcher.live()
                yield watcher
            finally:
                reading.cancel()


class BareSocket:
    """A socket of the library websockets, in one of the subprotocols."""

    WORDS = {
        "graphql-transport-ws": ("subscribe", "next"),
        "graphql-ws": ("start", "data"),
    }

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        assert connection.subprotocol is not None
        self._start, self._result = self.WORDS[connection.subprotocol]

    @classmethod
    @asynccontextmanager
    async def opened(cls, visitor: Visitor, subprotocol: str) -> AsyncIterator["BareSocket"]:
        """A socket that is acknowledged."""
        headers = visitor.headers
        async with connect(
            visitor.socket_url,
            origin=Origin(headers.pop("Origin")),
            additional_headers=headers,
            subprotocols=[Subprotocol(subprotocol)],
        ) as connection:
            socket = cls(connection)
            await socket.send({"type": "connection_init"})
            assert (await socket.receive())["type"] == "connection_ack"
            yield socket

    async def send(self, message: Mapping[str, Any]) -> None:
        await self._connection.send(json.dumps(message))

    async def receive(self) -> dict[str, Any]:
        """The next message that is not about keeping the connection alive."""
        async with asyncio.timeout(TIMEOUT):
            while True:
                message: dict[str, Any] = json.loads(await self._connection.recv())
                if message["type"] == "ping":
                    await self.send({"type": "pong"})
                elif message["type"] != "ka":
                    return message

    async def subscribe(self, query: str, variables: Mapping[str, Any], operation_id: str = "1") -> None:
        payload = {"query": query, "variables": variables}
        await self.send({"id": operation_id, "type": self._start, "payload": payload})

    async def results(self) -> AsyncGenerator[Data]:
        """The data of every result; an error is an error of the test."""
        while True:
            message = await self.receive()
            assert message["type"] == self._result, message
            assert "errors" not in message["payload"], message
            yield message["payload"]["data"]


@asynccontextmanager
async def bare(
    visitor: Visitor, query: str, variables: Mapping[str, Any], *, subprotocol: str
) -> AsyncIterator[Results]:
    async with BareSocket.opened(visitor, subprotocol) as socket:
        await socket.subscribe(query, variables)
        yield socket.results()


@asynccontextmanager
async def gql(
    visitor: Visitor, query: str, variables: Mapping[str, Any], *, transport: type, subprotocol: str
) -> AsyncIterator[Results]:
    made = transport(visitor.socket_url, headers=visitor.headers, subprotocols=[subprotocol])
    async with Client(transport=made) as session:
        yield session.subscribe(GraphQLRequest(query, variable_values=dict(variables)))


SUBPROTOCOLS = ("graphql-transport-ws", "graphql-ws")

CLIENTS: dict[str, ClientFactory] = {
    f"{name} {subprotocol}": partial(make, subprotocol=subprotocol)
    for subprotocol in SUBPROTOCOLS
    for name, make in (
        ("websockets", bare),
        ("gql on websockets", partial(gql, transport=WebsocketsTransport)),
        ("gql on aiohttp", partial(gql, transport=AIOHTTPWebsocketsTransport)),
    )
}
PLAIN = CLIENTS["websockets graphql-transport-ws"]
"""For tests that are about something else than the client."""
