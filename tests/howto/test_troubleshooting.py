"""What `docs/troubleshooting.rst` says one sees, seen: close codes, answers, log lines and refusals of commands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin, Subprotocol

from tests.howto.client import WAIT, Client, Result
from tests.howto.conftest import Make, Serve
from tests.howto.project import Project
from tests.howto.test_guides import Chat
from tests.support.databases import Database
from tests.support.processes import ProjectServer

pytestmark = [pytest.mark.postgres("18"), pytest.mark.timeout(240)]

ABNORMAL = 1006

BROKEN = """

class Broken(Messages):
    class Meta:
        output = MessageType

    @classmethod
    def next(cls, change, info):
        return 1 / 0


class Subscriptions(Subscriptions):
    broken = Broken.Field()
"""

INIT = json.dumps({"type": "connection_init"})


def configure(project: Project, settings: str) -> None:
    """Add to the settings of the project."""
    file = project.directory / "myproject" / "settings.py"
    file.write_text(f"{file.read_text()}\n{settings}\n")


@contextmanager
def raw(
    server: ProjectServer,
    *,
    path: str = "/graphql/",
    origin: str = "",
    subprotocol: str | None = "graphql-transport-ws",
) -> Iterator[ClientConnection]:
    """A socket on which nothing has been said."""
    socket = connect(
        server.ws_url + path,
        origin=Origin(origin or server.http_url),
        subprotocols=[Subprotocol(subprotocol)] if subprotocol else None,
        open_timeout=WAIT,
    )
    with closing(socket):
        yield socket


def code_after(socket: ClientConnection, *messages: str) -> int:
    """Say something; return the code with which the socket is closed."""
    try:
        for message in messages:
            socket.send(message)
            if message == INIT:
                socket.recv(WAIT)
        while True:
            socket.recv(WAIT)
    except ConnectionClosed as closed:
        return int(closed.rcvd.code) if closed.rcvd else ABNORMAL


def subscribe(number: str, query: str, **extensions: Any) -> str:
    payload = {"query": query, "extensions": extensions}
    return json.dumps({"id": number, "type": "subscribe", "payload": payload})


class TestSockets:
    def test_a_refused_handshake_and_every_code_that_a_client_can_bring_about(
        self, project_of: Make, serve: Serve
    ) -> None:
        project = project_of("index")
        configure(project, "PGNOTIFY_GQL |= {'INIT_TIMEOUT': 6, 'MESSAGE_RATE': 2, 'MAX_OPERATIONS': 1}")
        server = serve(project)
        with pytest.raises(InvalidStatus) as refused, raw(server, origin="https://elsewhere.example"):
            pass
        assert refused.value.response.status_code == 403
        live = "subscription { messages { id } }"
        with raw(server, subprotocol=None) as socket:
            assert code_after(socket) == 4406
        with raw(server) as socket:
            assert code_after(socket, "hello") == 4400
        with raw(server) as socket:
            assert code_after(socket, subscribe("1", live)) == 4401
        with raw(server) as socket:
            assert code_after(socket) == 4408
        with raw(server) as socket:
            assert code_after(socket, INIT, subscribe("1", live), subscribe("1", live)) == 4409
        with raw(server) as socket:
            assert code_after(socket, INIT, INIT) == 4429
        with raw(server) as socket:
            assert code_after(socket, INIT, *['{"type": "ping"}'] * 30) == 4429
        with raw(server) as socket:
            assert code_after(socket, INIT, subscribe("1", " " * 1_000_001)) == 4400  # Daphne's word for 1009

    def test_a_path_without_a_consumer_is_named_in_the_log(self, project_of: Make, running: ExitStack) -> None:
        server = running.enter_context(project_of("index").server())
        with pytest.raises(InvalidStatus) as refused, raw(server, path="/graphq/"):
            pass
        assert refused.value.response.status_code == 500
        server.wait_for_log("No route found for path 'graphq/'")


class TestAnswers:
    def test_errors_that_clients_are_told(
        self, project_of: Make, serve: Serve, running: ExitStack, sql: psycopg.Connection
    ) -> None:
        project, chat = project_of("index"), Chat(sql)
        configure(project, "PGNOTIFY_GQL |= {'MAX_OPERATIONS': 2}")
        subscriptions = project.directory / "chat" / "subscriptions.py"
        subscriptions.write_text(subscriptions.read_text() + BROKEN)
        ann, cookie = project.users["ann"]
        talk = chat.conversation(ann)
        server = running.enter_context(project.server())
        with Client(server, cookie=cookie) as client:
            client.acknowledged()
            number = client.subscribe("subscription { messages { id } }", cursor="mine")
            assert client.result(number)["errors"][0]["extensions"]["code"] == "INVALID_CURSOR"
            result = client.execute("{ __schema { types { name } } }")
            assert result["errors"][0]["extensions"]["code"] == "INTROSPECTION_DISABLED"
            broken = client.subscribe("subscription { broken { id } }")
            found: list[Result] = []

            def is_found(result: Result, text: str) -> bool:
                found.append(result)
                return True

            client.live(broken, lambda text: chat.say(talk, ann, text), is_found)
            (error,) = found[0]["errors"]
            assert error["message"] == "internal error"
            server.wait_for_log(f"could not be resolved \\(error {error['extensions']['id']}\\)")
            server.wait_for_log("ZeroDivisionError")
            client.subscribe("subscription { messages { id } }")
            third = client.subscribe("subscription { messages { id } }")
            assert client.result(third)["errors"][0]["message"] == "this socket has 2 operations, the most allowed"


class TestNothingArrives:
    def test_missing_triggers_are_named_by_the_check_the_command_and_whoever_subscribes(
        self, project_of: Make, serve: Serve, sql: psycopg.Connection
    ) -> None:
        project = project_of("index")
        project.manage("uninstall_triggers")
        ann, cookie = project.users["ann"]
        server = serve(project)
        with Client(server, cookie=cookie) as client:
            client.acknowledged().subscribe("subscription { messages { id } }")
            server.wait_for_log("somebody has subscribed to chat.message, which has no triggers in database default")
        assert "MISSING" in project.manage("install_triggers", "--check", status=1)
        assert "pgnotify_gql.W003" in project.manage("check", "--database", "default")
        key = Chat(sql).say(Chat(sql).conversation(ann), ann, "unheard")
        explained = project.manage("explain_change", "chat.Message", str(key))
        assert "has no triggers in database 'default', so nothing of it is captured" in explained
        assert "is not watched" in project.manage("explain_change", "chat.Membership", "1", status=1)

    def test_a_layer_in_memory_without_a_listener_is_named_by_the_check_and_whoever_subscribes(
        self, project_of: Make, serve: Serve
    ) -> None:
        project = project_of("index")
        configure(project, "PGNOTIFY_GQL = {}")
        assert "pgnotify_gql.W001" in project.manage("check")
        server = serve(project)
        with Client(server, cookie=project.users["ann"].cookie) as client:
            client.acknowledged().subscribe("subscription { messages { id } }")
            server.wait_for_log("the channel layer is in-memory and no listener runs in this process")
        assert "nobody" in project.manage("journal")


class TestCommands:
    def test_a_setting_that_is_mistyped_is_named(self, project_of: Make) -> None:
        project = project_of("index")
        configure(project, "PGNOTIFY_GQL = {'INLINE_LISTENNER': True, 'WORKERS': 0}")
        said = project.manage("check", status=1)
        assert "unknown key 'INLINE_LISTENNER': did you mean INLINE_LISTENER?" in said
        assert "PGNOTIFY_GQL['WORKERS'] must be a whole number above 0, not 0" in said

    def test_a_database_without_a_journal_is_named(self, tmp_path: Path, empty_database: Database) -> None:
        project = Project(tmp_path, "index", empty_database)
        for command in ("install_triggers", "journal", "tail_changes", "run_listener"):
            said = project.manage(command, status=1)
            assert "has no journal: run `manage.py migrate pgnotify_gql --database default` first" in said, command


class TestWriters:
    def test_a_transaction_that_has_rung_cannot_be_prepared(self, project_of: Make, sql: psycopg.Connection) -> None:
        project = project_of("index")
        ann = project.users["ann"].pk
        talk = Chat(sql).conversation(ann)
        assert "pgnotify_gql.W006" in project.manage("check", "--database", "default")
        sql.execute("begin")
        Chat(sql).say(talk, ann, "prepared")
        with pytest.raises(psycopg.errors.FeatureNotSupported, match="cannot PREPARE a transaction that has executed"):
            sql.execute("prepare transaction 'it'")
