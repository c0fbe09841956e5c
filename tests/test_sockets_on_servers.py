"""What matters most about sockets, on the servers that people run."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from random import Random
from typing import Any, cast

import pytest
from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.contrib.auth.models import User
from django.contrib.sessions.backends.db import SessionStore
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Close
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin, Subprotocol

from pgnotify_gql.transport.close_codes import PRIVATE_CODES, CloseCode
from tests.support.databases import Database
from tests.support.mutations import FIRST, frame
from tests.support.processes import CHECKOUT, ProjectServer, RedisServer, project_environment
from tests.support.subscribers import Chat

pytestmark = pytest.mark.postgres("18")

TRANSPORT, LEGACY = "graphql-transport-ws", "graphql-ws"

ME = {"data": {"me": None}}

FRAMES = 2_000
"""That something may have happened to, for each subprotocol of a server; an open socket receives each of them."""

FRAMES_OF_A_SOCKET = 40

CODES = {TRANSPORT: {4400, 4401, 4409, 4429}, LEGACY: {1000}}
"""With which such frames are answered."""


@pytest.fixture(params=["daphne", "uvicorn"])
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def chat(database_triggers: Database) -> Chat:
    return Chat(database_triggers)


@pytest.fixture
def server(request: pytest.FixtureRequest, chat: Chat, database_triggers: Database, kind: str) -> Iterator[Any]:
    server: ProjectServer = request.getfixturevalue(kind)(database_triggers)
    yield server
    assert "Traceback" not in server.log


@contextmanager
def opened(server: ProjectServer, subprotocol: str = TRANSPORT, **options: Any) -> Iterator[ClientConnection]:
    """Open a socket as a page of the server does; Channels' validator refuses clients without an origin."""
    options = {
        "origin": Origin(server.http_url),
        "subprotocols": [Subprotocol(subprotocol)],
        "max_size": None,
    } | options
    with connect(f"{server.ws_url}/graphql/?token=%ff", **options) as socket:
        yield cast(ClientConnection, socket)


def send(socket: ClientConnection, kind: str, **fields: Any) -> None:
    socket.send(json.dumps({"type": kind, **fields}))


def receive(socket: ClientConnection) -> dict[str, Any]:
    while (message := json.loads(socket.recv(timeout=20)))["type"] in {"ka", "ping"}:
        pass
    found: dict[str, Any] = message
    return found


def init(socket: ClientConnection) -> None:
    send(socket, "connection_init")
    assert receive(socket) == {"type": "connection_ack"}


def run(socket: ClientConnection, query: str) -> dict[str, Any]:
    """Run a query and return its result."""
    kind = "subscribe" if socket.subprotocol == TRANSPORT else "start"
    send(socket, kind, id="query", payload={"query": query})
    message = receive(socket)
    assert receive(socket)["type"] == "complete", message
    result: dict[str, Any] = message["payload"]
    return result


def ping(size: int) -> str:
    head, tail = '{"type":"ping","payload":{"x":"', '"}}'
    return head + "x" * (size - len(head) - len(tail)) + tail


def told(kind: str, code: int, reason: str) -> Close:
    """Return a close as the server passes it on: Daphne leaves reasons out, and sends 1000 and private codes only."""
    return Close(PRIVATE_CODES.get(CloseCode(code), code), "") if kind == "daphne" else Close(code, reason)


def close_of(socket: ClientConnection) -> Close:
    """Read to the close and return it."""
    with pytest.raises(ConnectionClosed) as caught:
        read_on(socket)
    assert caught.value.rcvd is not None, "cut off without a close"
    return caught.value.rcvd


def read_on(socket: ClientConnection) -> None:
    while True:
        socket.recv(timeout=20)


def test_queries_mutations_and_errors_travel_over_both_subprotocols(server: ProjectServer) -> None:
    for subprotocol, start in ((TRANSPORT, "subscribe"), (LEGACY, "start")):
        with opened(server, subprotocol) as socket:
            assert socket.subprotocol == subprotocol
            init(socket)
            assert run(socket, "{ me { username } }") == ME
            assert "log in" in str(run(socket, "mutation { deleteMessage(id: 1) { id } }")["errors"])
            for query, complaint in (("{", "Syntax Error"), ("{ unknown }", "Cannot query field")):
                send(socket, start, id="1", payload={"query": query})
                message = receive(socket)
                assert message["type"] == "error"
                assert complaint in str(message["payload"])
            assert run(socket, "{ me { username } }") == ME


def test_a_client_without_our_subprotocols_is_told_by_the_close(server: ProjectServer, kind: str) -> None:
    for offered in (None, [Subprotocol("graphql-sse")]):
        with opened(server, subprotocols=offered) as socket:
            assert close_of(socket) == told(kind, 4406, "Subprotocol not acceptable")


def test_a_page_of_another_site_is_refused(server: ProjectServer) -> None:
    for origin in (Origin("https://evil.example"), Origin("null"), None):
        with pytest.raises(InvalidStatus) as caught, opened(server, origin=origin):
            pass
        assert caught.value.response.status_code == 403


def test_bad_frames_are_told_in_one_close_and_disturb_no_other_socket(server: ProjectServer, kind: str) -> None:
    with opened(server) as other:
        init(other)
        for frame, code, reason in (
            (ping(1_000_001), 1009, "Messages may have 1000000 bytes"),
            ("nonsense", 4400, "the message is not JSON"),
            (b"{}", 4400, "binary frames are not part of the protocol"),
            ('{"type": "\\ud800"}', 4400, "'?' is no message that a client sends"),
            (json.dumps({"type": "🦜" * 1_000}), 4400, "'" + "🦜" * 30),
            ("[" * 100_000, 4400, "the message is not JSON"),
        ):
            with opened(server) as socket:
                init(socket)
                socket.send(frame)
                assert close_of(socket) == told(kind, code, reason)
            assert run(other, "{ me { username } }") == ME


def test_a_frame_of_10_mb_ends_its_socket_and_disturbs_no_other(server: ProjectServer, kind: str) -> None:
    with opened(server) as other, opened(server) as socket:
        init(other)
        init(socket)
        if kind == "daphne":
            # Its own limit is a mebibyte, above which it cuts the connection off.
            with suppress(ConnectionClosed):
                socket.send(ping(10_000_000))
            with pytest.raises(ConnectionClosed):
                read_on(socket)
        else:
            socket.send(ping(10_000_000))
            assert close_of(socket) == Close(1009, "Messages may have 1000000 bytes")
        assert run(other, "{ me { username } }") == ME


def test_on_the_legacy_subprotocol_bad_frames_leave_the_socket_open(server: ProjectServer) -> None:
    with opened(server, LEGACY) as socket:
        init(socket)
        for frame in ("nonsense", b"{}", "[" * 100_000):
            socket.send(frame)
            assert receive(socket)["type"] == "connection_error"
        assert run(socket, "{ me { username } }") == ME


@pytest.mark.parametrize("subprotocol", CODES)
def test_random_and_mutated_frames_are_answered_as_specified_and_the_server_goes_on(
    server: ProjectServer, subprotocol: str
) -> None:
    random, received, closed = Random(1), 0, Counter[int | None]()
    with opened(server) as other:
        init(other)
        while received < FRAMES:
            with opened(server, subprotocol) as socket:
                count, close = converse(socket, random)
            received += count
            closed[close.code if close else None] += 1
            assert close is None or len(close.reason.encode()) <= 123
        # Which of them come up depends on how fast an operation ends, that of an id which is used again.
        assert closed.keys() <= CODES[subprotocol] | {None}
        assert len(closed) > 1
        assert run(other, "{ me { username } }") == ME
    with opened(server, subprotocol) as socket:
        init(socket)
        assert run(socket, "{ me { username } }") == ME


def converse(socket: ClientConnection, random: Random) -> tuple[int, Close | None]:
    """Send frames until the socket is closed, or for long enough; return how many, and the close."""
    oddity = random.choice([0.01, 0.1, 0.5])
    for number in range(FRAMES_OF_A_SOCKET):
        text = frame(random, str(socket.subprotocol), oddity, "{ me { username } }")
        # A client cannot send half a surrogate pair but escaped.
        data = (FIRST if number == 0 and random.random() < 0.9 else text).encode(errors="replace")
        try:
            socket.send(data, text=random.random() >= 0.01 * oddity)
            await_answer(socket, f"marker {number}")
        except ConnectionClosed:
            return number + 1, close_of(socket)
    return FRAMES_OF_A_SOCKET, None


def await_answer(socket: ClientConnection, marker: str) -> None:
    """Read until all that was sent before has been handled."""
    if socket.subprotocol == TRANSPORT:
        send(socket, "ping", payload={"marker": marker})
        answer: dict[str, Any] = {"type": "pong", "payload": {"marker": marker}}
    else:
        send(socket, marker)
        complaint = f"'{marker}' is no message that a client sends"
        answer = {"type": "connection_error", "payload": {"message": complaint}}
    while receive(socket) != answer:
        pass


def test_a_client_that_disconnects_in_the_middle_leaves_nothing_behind(
    server: ProjectServer, database_triggers: Database
) -> None:
    for _ in range(3):
        with opened(server) as socket:
            init(socket)
            for number in range(10):
                query = "subscription { conversations { id } }"
                send(socket, "subscribe", id=str(number), payload={"query": query})
            assert run(socket, "{ me { username } }") == ME
    connection = database_triggers.connect()
    listeners = "select count(*) from pg_stat_activity where application_name like 'pgnotify_gql %'"
    deadline = time.monotonic() + 20
    while connection.execute(listeners).fetchone() != (0,):
        assert time.monotonic() < deadline, "hub or listener outlive the last socket"
        time.sleep(0.01)


def test_a_client_that_does_not_read_is_told_to_come_back_and_others_are_served(
    server: ProjectServer, chat: Chat, kind: str
) -> None:
    query = big_query(chat)
    headers = {"Cookie": f"{settings.SESSION_COOKIE_NAME}={session_of(chat.alice)}"}
    with opened(server) as other, opened(server, additional_headers=headers, max_queue=1) as socket:
        init(other)
        init(socket)
        for number in range(60):
            send(socket, "subscribe", id=str(number), payload={"query": query})
        server.wait_for_log("a client did not read fast enough; its socket is closed with 1013", timeout=30)
        assert run(other, "{ me { username } }") == ME
        assert close_of(socket) == told(kind, 1013, "Too many messages are waiting for this client")


def big_query(chat: Chat) -> str:
    """Return a query with an answer of a megabyte, for whoever is logged in."""
    chat.insert(*["x" * 2_000] * 500)
    return f"{{ messages(conversationId: {chat.both.pk}, last: 500) {{ text }} }}"


DISCONNECT = """
from django.contrib.auth.models import User
from pgnotify_gql.transport import disconnect_user
disconnect_user(User.objects.get(username="alice"))
"""


def test_a_user_is_disconnected_from_all_processes_by_another_one(
    chat: Chat,
    database_triggers: Database,
    redis_server: RedisServer,
    daphne: Callable[..., ProjectServer],
    uvicorn: Callable[..., ProjectServer],
) -> None:
    servers = {
        "daphne": daphne(database_triggers, redis_server, inline=False),
        "uvicorn": uvicorn(database_triggers, redis_server, inline=False),
    }
    hers, his = ({"Cookie": f"{settings.SESSION_COOKIE_NAME}={session_of(user)}"} for user in (chat.alice, chat.bob))
    with ExitStack() as sockets:
        of_alice = [
            (kind, sockets.enter_context(opened(server, subprotocol, additional_headers=hers)))
            for kind, server in servers.items()
            for subprotocol in (TRANSPORT, LEGACY)
        ]
        of_bob = [sockets.enter_context(opened(server, additional_headers=his)) for server in servers.values()]
        for socket in [*(socket for _, socket in of_alice), *of_bob]:
            init(socket)
        program = [sys.executable, "manage.py", "shell", "-v", "0", "-c", DISCONNECT]
        environment = os.environ | project_environment(
            database_triggers.url, redis_server, inline=False, environment=None
        )
        done = subprocess.run(program, cwd=CHECKOUT, env=environment, timeout=60, check=False, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        for kind, socket in of_alice:
            assert close_of(socket) == told(kind, 4403, "Forbidden")
        for socket in of_bob:
            assert run(socket, "{ me { username } }") == {"data": {"me": {"username": "bob"}}}
    for server in servers.values():
        assert "Traceback" not in server.log


def session_of(user: User) -> str | None:
    """Log a user in, and return the key of the session."""
    session = SessionStore()
    session[SESSION_KEY] = str(user.pk)
    session[HASH_SESSION_KEY] = user.get_session_auth_hash()
    session[BACKEND_SESSION_KEY] = "django.contrib.auth.backends.ModelBackend"
    session.create()
    return session.session_key
