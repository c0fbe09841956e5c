"""The guide for several processes: its settings and probes, and a listener that is lost while a page is open."""

from __future__ import annotations

import shlex
from contextlib import ExitStack
from urllib.request import urlopen

import psycopg
import pytest

from tests.howto.client import WAIT, Client
from tests.howto.conftest import Make, Serve
from tests.howto.pages import HOWTO, commands
from tests.howto.project import Project
from tests.howto.test_guides import Chat
from tests.support.processes import RedisServer

pytestmark = [pytest.mark.postgres("18"), pytest.mark.timeout(240)]

BRIEF = ("migrate", "install_triggers", "journal", "tail_changes")
"""Of the commands of the page those that end by themselves, soon."""


def typed(guide: str) -> list[list[str]]:
    """The arguments of each `python manage.py` of a guide."""
    lines = [shlex.split(command) for command in commands(HOWTO / f"{guide}.rst")]
    return [line[2:] for line in lines if line[:2] == ["python", "manage.py"]]


def answers(url: str) -> int:
    with urlopen(url, timeout=WAIT) as response:
        return int(response.status)


class TestDeploying:
    def test_two_servers_go_on_when_the_leading_listener_is_lost(
        self,
        project_of: Make,
        serve: Serve,
        sql: psycopg.Connection,
        redis_server: RedisServer,
        running: ExitStack,
    ) -> None:
        project: Project = project_of("deploying", redis_url=redis_server.url)
        chat = Chat(sql)
        leader = running.enter_context(project.listener())
        leader.wait_for_log("leading database default")
        standby = running.enter_context(project.listener())
        standby.wait_for_log("standing by")
        ann, cookie = project.users["ann"]
        talk = chat.conversation(ann)
        servers = [serve(project), serve(project)]
        for server in servers:
            assert [answers(f"{server.http_url}/{name}/") for name in ("healthz", "readyz", "metrics")] == [200] * 3
        with ExitStack() as sockets:
            clients = [sockets.enter_context(Client(server, cookie=cookie)) for server in servers]
            numbers = [client.acknowledged().subscribe("subscription { messages { text } }") for client in clients]
            for client, number in zip(clients, numbers, strict=True):
                client.live(number, lambda text: chat.say(talk, ann, text))
            leader.kill()
            written = [f"number {count}" for count in range(5)]
            for text in written:
                chat.say(talk, ann, text)
            for client, number in zip(clients, numbers, strict=True):
                seen = []
                while written[-1] not in seen:
                    seen.append(client.data(number)["text"])
                assert [text for text in seen if text in written] == written
        standby.wait_for_log("leading database default")

    def test_the_commands_of_each_deployment_run_in_the_order_of_the_page(
        self, project_of: Make, redis_server: RedisServer
    ) -> None:
        project: Project = project_of("deploying", redis_url=redis_server.url)
        for arguments in typed("deploying"):
            if arguments[0] in BRIEF:
                project.manage(*arguments)


class TestUpgrading:
    def test_the_commands_of_the_page_run_and_write_the_migration_that_it_promises(self, project_of: Make) -> None:
        project: Project = project_of("upgrading")
        for arguments in typed("upgrading"):
            project.manage(*arguments)
        written = [path.name for path in (project.directory / "chat" / "migrations").glob("0*.py")]
        assert sorted(written) == ["0001_initial.py", "0002_install_triggers.py"]
