"""Apollo, urql, Relay and graphql-ws with the modules of the guide: what is written with no server up arrives."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.clients.conftest import PACKAGES
from tests.howto.conftest import Make, Serve
from tests.howto.pages import HOWTO, PAGES, Block, blocks, files
from tests.howto.test_guides import Chat
from tests.support.npm import install
from tests.support.processes import Process

DRIVER = Path(__file__).parent / "resume.mjs"

CLIENTS = ("plain", "apollo", "urql", "relay")

LIMIT = 60.0
"""Seconds; graphql-ws waits for some before it connects again."""

PROBE = 0.3
"""Seconds until the next probe."""


@pytest.fixture(scope="session")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The modules of the guide beside their packages; skips the test where there is no registry."""
    directory = tmp_path_factory.mktemp("howto")
    install(directory, *(package for package in PACKAGES if "sse" not in package and "transport-ws" not in package))
    (directory / "package.json").write_text('{"private": true, "type": "module"}')
    for path, text in files(HOWTO / "resuming.rst", "javascript").items():
        (directory / path).write_text(text)
    shutil.copy(DRIVER, directory)
    return directory / DRIVER.name


class Driver(Process):
    """The process of the four clients."""

    def lines(self) -> Iterator[dict[str, Any]]:
        complete, _, _ = self.log.rpartition("\n")
        yield from map(json.loads, complete.splitlines())

    def texts(self, client: str) -> list[str]:
        return [line["text"] for line in self.lines() if line.get("client") == client and "text" in line]

    def until(self, condition: Callable[[], bool], limit: float = LIMIT) -> bool:
        deadline = time.monotonic() + limit
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True


JAVASCRIPT = [block for page in PAGES for block in blocks(page, "javascript")]


@pytest.mark.parametrize("block", JAVASCRIPT, ids=str)
def test_a_block_of_javascript_is_javascript(block: Block, node: Path, tmp_path: Path) -> None:
    module = tmp_path / "block.mjs"
    module.write_text(block.text)
    done = subprocess.run([str(node), "--check", str(module)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.postgres("18")
@pytest.mark.timeout(240)
def test_what_is_written_while_the_server_is_away_arrives_once_and_in_order(
    project_of: Make, serve: Serve, sql: psycopg.Connection, modules: Path, node: Path
) -> None:
    project, chat = project_of("resuming"), Chat(sql)
    ann, cookie = project.users["ann"]
    talk = chat.conversation(ann)
    server = serve(project)
    options = json.dumps({"origin": server.http_url, "cookie": cookie})
    with Driver([str(node), str(modules), options], banner='"started"') as driver:
        probes: list[str] = []

        def live() -> bool:
            probes.append(f"probe {len(probes)}")
            chat.say(talk, ann, probes[-1])
            return driver.until(lambda: all(driver.texts(client)[-1:] == probes[-1:] for client in CLIENTS), PROBE)

        assert driver.until(live), driver.log
        written = [f"before {number}" for number in range(5)]
        for text in written:
            chat.say(talk, ann, text)
        assert driver.until(lambda: all(driver.texts(client)[-1:] == written[-1:] for client in CLIENTS)), driver.log

        server.kill()
        while_away = [f"while away {number}" for number in range(20)]
        for text in while_away:
            chat.say(talk, ann, text)
        server.start()
        chat.say(talk, ann, "the end")
        written += [*while_away, "the end"]
        assert driver.until(lambda: all("the end" in driver.texts(client) for client in CLIENTS)), driver.log
        for client in CLIENTS:
            assert [text for text in driver.texts(client) if text not in probes] == written, client
        assert not [line for line in driver.lines() if "error" in line or "resync" in line]
        assert len([line for line in driver.lines() if "connected" in line]) == 2
