"""How a server process takes leave of its clients, without a server: sockets, the window, and the signal."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise

import pytest
from django.test import RequestFactory, override_settings

from pgnotify_gql.transport import draining, readiness
from pgnotify_gql.transport.close_codes import CloseCode
from pgnotify_gql.transport.draining import Visits, visits
from tests.support.feed import eventually

WINDOW = 0.4


class FakeSocket:
    """Remembers when, and how, it was closed."""

    def __init__(self) -> None:
        self.code: CloseCode | None = None
        self.at = 0.0

    def close(self, code: CloseCode, reason: str) -> None:
        self.code = code
        self.at = asyncio.get_running_loop().time()


class Server:
    """Whoever had the signal before."""

    def __init__(self) -> None:
        self.told = 0

    def received(self, number: int, frame: object) -> None:
        self.told += 1


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    before = signal.signal(signal.SIGTERM, server.received)
    yield server
    assert signal.getsignal(signal.SIGTERM) == server.received, "the signal was not given back"
    signal.signal(signal.SIGTERM, before)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


async def test_every_socket_is_closed_once_with_a_code_that_clients_retry_spread_over_the_window(
    server: Server,
) -> None:
    here, sockets = Visits(WINDOW), [FakeSocket() for _ in range(20)]
    with ExitStack() as held:
        for socket in sockets:
            held.enter_context(here.begun()).attach(socket)
        began = asyncio.get_running_loop().time()
        terminate()
        await eventually(lambda: all(socket.code for socket in sockets))
        assert server.told == 0
    await eventually(lambda: server.told == 1)
    assert {socket.code for socket in sockets} == {CloseCode.SERVICE_RESTART}
    times = [socket.at for socket in sockets]
    assert times == sorted(times)
    steps = [later - earlier for earlier, later in pairwise(times)]
    # A busy machine may be late with some of them, and then hurries with the next; none is early.
    assert all(at - began >= WINDOW * number / 20 - 0.001 for number, at in enumerate(times)), times
    assert sum(step > 0 for step in steps) > 10


async def test_the_server_is_told_as_soon_as_the_last_client_has_left(server: Server) -> None:
    here, socket = Visits(60), FakeSocket()
    with here.begun() as visit:
        visit.attach(socket)
        terminate()
        await eventually(lambda: socket.code is not None)
    await eventually(lambda: server.told == 1, 10)


async def test_a_client_that_does_not_leave_keeps_the_server_for_a_limited_time(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draining, "FAREWELL", 0.1)
    with Visits(WINDOW).begun() as visit:
        visit.attach(FakeSocket())
        terminate()
        await eventually(lambda: server.told == 1)


async def test_a_second_signal_goes_to_the_server_at_once(server: Server) -> None:
    with Visits(60).begun() as visit:
        visit.attach(FakeSocket())
        terminate()
        terminate()
        assert server.told == 1
        terminate()
        assert server.told == 2


async def test_a_socket_that_opens_while_others_leave_is_closed_at_once(server: Server) -> None:
    here, early, late = Visits(WINDOW), FakeSocket(), FakeSocket()
    with here.begun() as visit:
        visit.attach(early)
        terminate()
        await eventually(lambda: here.draining)
        with here.begun() as other:
            assert late.code is None
            other.attach(late)
            assert late.code is CloseCode.SERVICE_RESTART
    await eventually(lambda: server.told == 1)


async def test_a_client_that_is_still_being_let_in_is_closed_as_soon_as_it_is(server: Server) -> None:
    here, socket = Visits(WINDOW), FakeSocket()
    with here.begun() as visit:
        terminate()
        await eventually(lambda: here.draining)
        visit.attach(socket)
        await eventually(lambda: socket.code is CloseCode.SERVICE_RESTART)
    await eventually(lambda: server.told == 1)


async def test_without_a_socket_the_signal_is_the_servers(server: Server) -> None:
    here = Visits(WINDOW)
    for _ in range(2):
        with here.begun(), here.begun():
            assert signal.getsignal(signal.SIGTERM) != server.received
        assert signal.getsignal(signal.SIGTERM) == server.received
    terminate()
    assert server.told == 1
    assert not here.draining


async def test_whoever_takes_the_signal_after_us_keeps_it_and_may_pass_it_on(server: Server) -> None:
    here, socket, later = Visits(WINDOW), FakeSocket(), Server()
    with here.begun() as visit:
        visit.attach(socket)
        ours = signal.getsignal(signal.SIGTERM)
        assert callable(ours)
        signal.signal(signal.SIGTERM, later.received)
        ours(signal.SIGTERM, None)
        await eventually(lambda: socket.code is not None)
    await eventually(lambda: server.told == 1)
    assert signal.getsignal(signal.SIGTERM) == later.received
    signal.signal(signal.SIGTERM, server.received)


async def test_where_signals_do_not_reach_nothing_is_taken(server: Server) -> None:
    """As under ``runserver``, whose event loop is in another thread."""

    def elsewhere() -> None:
        async def visit() -> None:
            with Visits(WINDOW).begun():
                assert signal.getsignal(signal.SIGTERM) == server.received

        asyncio.run(visit())

    await asyncio.to_thread(elsewhere)
    assert threading.current_thread() is threading.main_thread()


async def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with Visits(WINDOW).begun():
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


async def test_where_nobody_had_the_signal_it_has_its_usual_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[tuple[int, object]] = []
    # It would end this process.
    monkeypatch.setattr(signal, "raise_signal", lambda number: raised.append((number, signal.getsignal(number))))
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        here = Visits(WINDOW)
        with here.begun():
            terminate()
            await eventually(lambda: here.draining)
            assert raised == []
        await eventually(lambda: raised)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert raised == [(signal.SIGTERM, signal.SIG_DFL)]


async def test_readiness_is_red_from_the_signal_on(server: Server) -> None:
    request = RequestFactory().get("/readyz/")
    with override_settings(PGNOTIFY_GQL={"DRAIN_WINDOW": 0.1}), visits().begun() as visit:
        visit.attach(FakeSocket())
        assert readiness(request).status_code == 200
        terminate()
        await eventually(lambda: readiness(request).status_code == 503)
        assert "no-store" in readiness(request)["Cache-Control"]
    await eventually(lambda: server.told == 1)
    assert readiness(request).status_code == 503
