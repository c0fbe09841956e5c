"""The wire: a server's connection is found behind whatever middleware made of `send`, and its buffer is waited for."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from channels.sessions import InstanceSessionWrapper
from django.utils.functional import SimpleLazyObject

from pgnotify_gql.transport import wire
from pgnotify_gql.transport.wire import AsyncioWire, TwistedWire, UnknownWire, wire_under
from tests.support.sockets import WAIT, quiet


class TwistedTransport:
    """What a wire uses of Twisted's transports."""

    def __init__(self) -> None:
        self.connected = True
        self.producer: Any = "that of the handshake"
        self.aborted = False

    def registerProducer(self, producer: Any, streaming: bool) -> None:  # noqa: N802  (Twisted's names)
        assert streaming
        if self.producer is not None:
            raise RuntimeError("a producer was never unregistered")
        self.producer = producer

    def unregisterProducer(self) -> None:  # noqa: N802
        self.producer = None

    def abortConnection(self) -> None:  # noqa: N802
        assert self.connected
        self.aborted = True


class AsyncioTransport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True


class Daphne:
    """As Daphne has it: `send` is a method of the server, bound to the protocol of the connection."""

    def __init__(self) -> None:
        self.protocol = SimpleNamespace(transport=TwistedTransport())
        self.send = partial(self.handle_reply, self.protocol)

    async def handle_reply(self, protocol: Any, message: Any) -> None:
        pass


class Uvicorn:
    """As Uvicorn has it: `send` is a method of the protocol."""

    def __init__(self) -> None:
        self.transport = AsyncioTransport()

    async def send(self, message: Any) -> None:
        pass


def in_a_closure(send: Any) -> Any:
    user = SimpleLazyObject(never)

    async def wrapped(message: Any) -> None:
        assert user is not None
        await send(message)

    return wrapped


def in_a_session(send: Any) -> Any:
    """As Channels' SessionMiddleware does."""
    return InstanceSessionWrapper({"type": "websocket", "cookies": {}}, send).send


class Wrapper:
    def __init__(self, send: Any) -> None:
        self.inner = send

    async def __call__(self, message: Any) -> None:
        await self.inner(message)


def never() -> Any:
    raise AssertionError("a lazy object was made to load")


@pytest.fixture(autouse=True)
def told() -> Iterator[None]:
    wire._warn.cache_clear()
    yield
    wire._warn.cache_clear()


WRAPPERS = [lambda send: send, in_a_closure, in_a_session, Wrapper, partial]


@pytest.mark.parametrize("inner", WRAPPERS)
@pytest.mark.parametrize("outer", WRAPPERS)
async def test_the_connection_is_found_behind_middleware(outer: Any, inner: Any) -> None:
    uvicorn, daphne = Uvicorn(), Daphne()
    found = wire_under(outer(inner(uvicorn.send)))
    assert isinstance(found, AsyncioWire)
    found.cut()
    assert uvicorn.transport.aborted
    found = wire_under(outer(inner(daphne.send)))
    assert isinstance(found, TwistedWire)
    found.cut()
    assert daphne.protocol.transport.aborted


async def test_a_twisted_connection_is_waited_for_while_its_buffer_is_full() -> None:
    daphne = Daphne()
    found = wire_under(daphne.send)
    producer = daphne.protocol.transport.producer
    await found.writable()
    producer.pauseProducing()
    waiting = asyncio.create_task(found.writable())
    await quiet()
    assert not waiting.done()
    producer.resumeProducing()
    await waiting
    producer.pauseProducing()
    waiting = asyncio.create_task(found.writable())
    await quiet()
    assert not waiting.done()
    # The connection is lost.
    producer.stopProducing()
    await waiting


async def test_a_server_whose_send_waits_by_itself_is_never_waited_for() -> None:
    found = wire_under(Uvicorn().send)
    assert found.is_writable
    async with asyncio.timeout(WAIT):
        await found.writable()


async def test_a_connection_that_has_ended_cannot_be_cut() -> None:
    daphne = Daphne()
    found = wire_under(daphne.send)
    daphne.protocol.transport.connected = False
    found.cut()
    assert not daphne.protocol.transport.aborted


async def test_an_unknown_server_is_served_without(caplog: pytest.LogCaptureFixture) -> None:
    class Http:
        transport = "of something else"

        async def send(self, message: Any) -> None:
            pass

    def unfinished(*, finish: bool) -> Any:
        async def send(message: Any) -> None:
            await later(message)

        later: Any
        if finish:
            later = send
        return send

    for send in (Http().send, unfinished(finish=False), Wrapper(None)):
        found = wire_under(send)
        assert isinstance(found, UnknownWire)
        await found.writable()
        found.cut()
    assert not caplog.records


async def test_a_connection_of_daphne_that_cannot_be_found_is_told_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "twisted.internet.reactor", SimpleNamespace(running=True))
    for _ in range(2):
        assert isinstance(wire_under(Wrapper(None)), UnknownWire)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "what clients of graphql-ws leave unread is not bounded" in record.message


async def test_what_leads_in_circles_or_to_no_end_is_given_up() -> None:
    circle = Wrapper(None)
    circle.inner = circle
    assert isinstance(wire_under(circle), UnknownWire)
    uvicorn = Uvicorn()
    endless: Any = uvicorn.send
    for _ in range(wire.MOST_LOOKED_AT):
        endless = Wrapper(endless)
    assert isinstance(wire_under(endless), UnknownWire)
