"""Sockets whose clients do not read: who is closed, when, and that nothing stays behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import graphene
import pytest
from django.test import override_settings

from pgnotify_gql.transport import GraphqlSubscriptionConsumer, consumer
from pgnotify_gql.transport.consumer import _Socket
from tests.support.sockets import WAIT, open_socket, quiet

ALL = 100
"""More than anybody sends here."""

PATIENCE = 1.0
"""Seconds: long enough for a slow machine to take a step in time, when it waits for half of it."""


class Query(graphene.ObjectType):  # type: ignore[misc]
    hello = graphene.String()

    @staticmethod
    def resolve_hello(root: None, info: Any) -> str:
        return "world"


class Subscriptions(graphene.ObjectType):  # type: ignore[misc]
    count = graphene.Int()

    @staticmethod
    async def subscribe_count(root: None, info: Any) -> AsyncIterator[int]:
        for number in range(8):
            yield number

    @staticmethod
    def resolve_count(root: int, info: Any) -> int:
        return root


SCHEMA = graphene.Schema(query=Query, subscription=Subscriptions)

BOTH = pytest.mark.parametrize("subprotocol", ["graphql-transport-ws", "graphql-ws"])


class Transport(asyncio.Transport):
    """The server's end, which can be cut off."""

    def __init__(self) -> None:
        super().__init__()
        self.cut = asyncio.Event()

    def abort(self) -> None:
        self.cut.set()


class Server:
    """As Uvicorn: everything that is sent, also the close, waits for a client that `reads` as often as it is let."""

    def __init__(self) -> None:
        self.transport = Transport()
        self.reads = asyncio.Semaphore(ALL)
        self.takes_closes = False
        self.sends = 0
        self._application: Any = GraphqlSubscriptionConsumer.as_asgi(schema=SCHEMA)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self._send = send
        await self._application(scope, receive, self.send)

    async def send(self, event: Any) -> None:
        self.sends += 1
        if event["type"] != "websocket.close" or not self.takes_closes:
            await self.reads.acquire()
        await self._send(event)

    def stop_reading(self) -> None:
        self.reads = asyncio.Semaphore(0)

    def read(self, times: int) -> None:
        for _ in range(times):
            self.reads.release()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[_Socket]:
    """The sockets that are made by consumers."""
    made: list[_Socket] = []

    class Kept(_Socket):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(consumer, "_Socket", Kept)
    return made


@BOTH
@override_settings(PGNOTIFY_GQL={"SLOW_CLIENT_TIMEOUT": 0.2})
async def test_a_client_that_leaves_one_frame_unread_is_closed_so_that_it_comes_back(
    subprotocol: str, made: list[_Socket], caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever else waits for it; a limit need not be reached."""
    async with open_socket(GraphqlSubscriptionConsumer.as_asgi(schema=SCHEMA), subprotocol) as socket:
        await socket.init()
        socket.reads.clear()
        socket.subscribe("subscription { count }")
        closed = await socket.closed()
    assert (closed.code, closed.reason) == (1013, "Too many messages are waiting for this client")
    told = [record.message for record in caplog.records if record.name == "pgnotify_gql.transport"]
    assert told == ["a client did not read fast enough; its socket is closed with 1013"]
    assert made[0]._outbox._count == 0


@override_settings(PGNOTIFY_GQL={"SLOW_CLIENT_TIMEOUT": PATIENCE})
async def test_a_client_that_reads_slowly_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    async with open_socket(server) as socket:
        await socket.init()
        # The test's own clock: on a busy machine a pause may be longer than the patience.
        loop = asyncio.get_running_loop()
        began = now = loop.time()
        monkeypatch.setattr(loop, "time", lambda: now)
        server.stop_reading()
        socket.subscribe("subscription { count }")
        for number in range(5):
            server.read(1)
            assert (await socket.receive())["payload"] == {"data": {"count": number}}
            now += PATIENCE / 2
            await quiet()
        assert now - began > 2 * PATIENCE
        server.read(ALL)
        assert [(await socket.receive())["type"] for _ in range(4)] == ["next", "next", "next", "complete"]


@BOTH
@override_settings(PGNOTIFY_GQL={"SLOW_CLIENT_TIMEOUT": 0.2})
async def test_a_client_that_does_not_read_its_close_is_cut_off(
    subprotocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer, "CLOSE_TIMEOUT", 0.2)
    server = Server()
    async with open_socket(server, subprotocol) as socket:
        await socket.init()
        server.stop_reading()
        socket.subscribe("{ hello }")
        async with asyncio.timeout(WAIT):
            await server.transport.cut.wait()
        server.read(ALL)


@override_settings(PGNOTIFY_GQL={"SLOW_CLIENT_TIMEOUT": 0.2})
async def test_a_client_is_cut_off_also_when_the_close_went_into_a_buffer_of_the_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(consumer, "CLOSE_TIMEOUT", 0.2)
    server = Server()
    async with open_socket(server) as socket:
        await socket.init()
        server.stop_reading()
        server.takes_closes = True
        socket.subscribe("{ hello }")
        assert (await socket.closed()).code == 1013
        async with asyncio.timeout(WAIT):
            await server.transport.cut.wait()


async def test_a_client_that_reads_is_not_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer, "CLOSE_TIMEOUT", 0.0)
    server = Server()
    async with open_socket(server) as socket:
        await socket.init()
        socket.text("nonsense")
        assert (await socket.closed()).code == 4400
        await quiet()
    assert not server.transport.cut.is_set()


@override_settings(PGNOTIFY_GQL={"SLOW_CLIENT_TIMEOUT": 0.2})
async def test_another_close_waits_for_what_was_sent_before_it_and_not_for_ever(made: list[_Socket]) -> None:
    server = Server()
    async with open_socket(server) as socket:
        await socket.init()
        server.stop_reading()
        socket.subscribe("{ hello }")
        async with asyncio.timeout(WAIT):
            while made[0]._outbox._writing_since is None:  # noqa: ASYNC110  (the frame is under way)
                await asyncio.sleep(0)
        socket.text("nonsense")
        async with asyncio.timeout(WAIT):
            while made[0]._outbox._count or server.sends < 3:  # noqa: ASYNC110  (the close is under way)
                await asyncio.sleep(0.01)
        server.read(ALL)
        closed = await socket.closed()
        assert closed.code == 4400
