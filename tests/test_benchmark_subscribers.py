"""
The figures of latency, routing and sockets on small sizes, and the subscribers that they count with.

No time is asserted: only that what is measured happens, and that nothing is counted that did not.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from websockets.sync.server import ServerConnection, serve
from websockets.typing import Subprotocol

from benchmarks.figures.latency import Asleep, Latency, Way, flowing
from benchmarks.figures.routing import Routing
from benchmarks.figures.sockets import MEMORY, RATE, Sockets
from benchmarks.support.asgi import SERVERS
from benchmarks.support.messages import SITE, Rows, make_bare_messages, make_conversations
from benchmarks.support.subscribers import NUMBER, Dialogue, SubscribersError, subscribers
from tests.support.databases import Database
from tests.support.ports import free_port

HELLO = Dialogue([(["hello NUMBER"], "welcome")], first=7)


@contextmanager
def serving(handler: Callable[[ServerConnection], None]) -> Iterator[int]:
    """Handle each socket in a thread; gives the port."""
    port = free_port()
    with serve(handler, "127.0.0.1", port, subprotocols=[Subprotocol(Dialogue().subprotocol)]) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield port
        finally:
            server.shutdown()
            thread.join()


def test_a_subscriber_says_one_thing_after_the_other_with_a_number_of_its_own() -> None:
    said = []

    def handler(socket: ServerConnection) -> None:
        own = [socket.recv(), socket.recv()]
        socket.send("welcome")
        said.append([*own, socket.recv()])
        socket.send("done")
        socket.recv()

    dialogue = Dialogue([(["hello", f"I am {NUMBER}"], "welcome"), (["x" * 1000], "done")], first=7)
    with serving(handler) as port, subscribers() as crowd:
        assert crowd.open(port, 2, dialogue) > 0
    assert sorted(said) == [["hello", "I am 7", "x" * 1000], ["hello", "I am 8", "x" * 1000]]


def test_changes_arrive_in_frames_of_any_length_and_of_one_that_was_overtaken_the_later_state_is_its_arrival() -> None:
    def handler(socket: ServerConnection) -> None:
        for text in ("change 0.", "change 1." + "x" * 200, "change 4." + "x" * 70_000, "change 2.", "change 5."):
            socket.send(text)
        socket.ping().wait(10)
        socket.recv()

    with serving(handler) as port, subscribers() as crowd:
        begun = time.perf_counter()
        crowd.open(port, 2, Dialogue())
        assert crowd.reached(5)
        assert not crowd.reached(6, timeout=0.05)
        ended = time.perf_counter()
        arrivals = crowd.arrivals()
        assert crowd.arrivals() == {}
    assert sorted(arrivals) == [0, 1, 2, 3, 4, 5]
    assert all(len(at) == 2 and begun < min(at) <= max(at) < ended for at in arrivals.values())
    assert arrivals[2] == arrivals[3] == arrivals[4]


def test_a_ping_of_the_server_is_answered() -> None:
    answered = []

    def handler(socket: ServerConnection) -> None:
        answered.append(socket.ping().wait(10))
        socket.send("change 1.")
        socket.recv()

    with serving(handler) as port, subscribers() as crowd:
        crowd.open(port, 1, Dialogue())
        assert crowd.reached(1)
    assert answered == [True]


def test_a_socket_that_the_server_closes_is_told_from_then_on_whatever_is_asked() -> None:
    def handler(socket: ServerConnection) -> None:
        socket.recv()

    with serving(handler) as port, subscribers() as crowd:
        with pytest.raises(SubscribersError, match="has closed the socket of subscriber 7"):
            crowd.open(port, 1, HELLO)
        with pytest.raises(SubscribersError):
            crowd.arrivals()


@pytest.mark.postgres("18")
def test_latency_counts_every_change_at_every_subscriber_of_ours_and_of_the_baseline(database: Database) -> None:
    ours, bare = make_conversations(database, messages=3), make_bare_messages(database, 3)
    environment = {"DATABASE_URL": database.url, "DEBUG": "0", "PGNOTIFY_INLINE": "1"}
    cases: list[tuple[str, Rows, Dialogue, Way]] = [
        (f"{SITE}:consumer", ours.messages, ours.same("fetched"), Asleep(database.connect())),
        ("benchmarks.support.bare:telling", bare, Dialogue(), flowing),
    ]
    for application, rows, dialogue, way in cases:
        with SERVERS["Uvicorn"](environment, application) as process:
            assert process.port is not None
            latency = Latency(process.port, rows, dialogue)
            figures = latency.milliseconds(count=2, change=way, warm_up=1, changes=2)
            assert 0 < figures["p50"] <= figures["p99"]


@pytest.mark.postgres("18")
def test_routing_measures_one_result_for_each_change_among_operations_that_wait_for_others(database: Database) -> None:
    routing = Routing(database, make_conversations(database, 4), changes=2)
    figures = routing.microseconds(3)
    assert figures["median"] > 0
    assert figures["mean"] > 0


@pytest.mark.postgres("18")
def test_sockets_are_all_live_when_their_memory_has_been_measured(database: Database) -> None:
    conversations = make_conversations(database, 110)
    sockets = Sockets(database, conversations, SERVERS["Uvicorn"], warm_up=100)
    figures = sockets.ours(f"{SITE}:authenticated", conversations.own("private"), 10)
    assert figures[RATE] > 0
    assert MEMORY in figures
