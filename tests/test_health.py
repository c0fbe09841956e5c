"""Health of listener processes and servers: what probes are answered, in every state."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import AsyncRequestFactory, override_settings
from mirakuru.exceptions import ProcessExitedWithError

from example.conversations.models import Message
from pgnotify_gql.errors import ConfigurationError
from pgnotify_gql.health import ALIVE_WITHIN, Health
from pgnotify_gql.listener.stage import Stage, State
from pgnotify_gql.management.health_server import parse_address, serving
from pgnotify_gql.transport import draining
from pgnotify_gql.transport import health as health_view
from tests.support.databases import Database
from tests.support.feed import Recorder, eventually, leading
from tests.support.ports import free_port
from tests.support.processes import Process, ProjectServer, RedisServer
from tests.support.scraping import Samples, get, get_json
from tests.support.subscribers import Chat, declare, inline_feed, returns, subscribers

Start = Callable[..., Process]

PATIENCE = 15.0


class FakeListener:
    """In the state that a test puts it into."""

    def __init__(self, stage: Stage, epoch: int | None = None) -> None:
        self.state = State(stage, 1_782_914_607.123, epoch)
        self.silent_for = 0.0


class Clock:
    """Shows the time that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class TestLiveness:
    def test_is_there_for_as_long_as_the_event_loop_turns(self) -> None:
        clock = Clock()
        health = Health({"default": FakeListener(Stage.CONNECTING)}, patience=PATIENCE, clock=clock)
        assert health.liveness().is_good
        clock.now += ALIVE_WITHIN
        assert health.liveness().is_good
        clock.now += 2
        assert health.liveness().problems == ["the event loop has not turned for 12 s"]
        assert not health.readiness().is_good

    async def test_is_noted_by_the_event_loop(self) -> None:
        clock = Clock()
        health = Health({}, patience=PATIENCE, clock=clock)
        clock.now += 60
        assert not health.liveness().is_good
        beating = asyncio.create_task(health.beat())
        await eventually(lambda: health.liveness().is_good)
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)

    def test_ends_with_a_listener(self) -> None:
        health = Health({"a": FakeListener(Stage.LEADING, 1), "b": FakeListener(Stage.LEADING, 1)}, patience=PATIENCE)
        health.note_ended("b")
        assert health.liveness().problems == ["the listener of database b has ended"]


class TestReadiness:
    @pytest.mark.parametrize("stage", [Stage.LEADING, Stage.STANDING_BY])
    def test_is_there_for_a_leader_and_for_a_standby(self, stage: Stage) -> None:
        assert Health({"default": FakeListener(stage)}, patience=PATIENCE).readiness().is_good

    def test_is_not_there_while_one_of_several_is_connecting(self) -> None:
        listeners = {"a": FakeListener(Stage.LEADING, 1), "b": FakeListener(Stage.CONNECTING)}
        report = Health(listeners, patience=PATIENCE).readiness()
        assert report.problems == ["the listener of database b is connecting"]

    def test_is_not_there_for_a_leader_whose_database_does_not_answer(self) -> None:
        listener = FakeListener(Stage.LEADING, 1)
        health = Health({"default": listener}, patience=PATIENCE)
        listener.silent_for = PATIENCE
        assert health.readiness().is_good
        listener.silent_for = PATIENCE + 3
        assert health.readiness().problems == ["database default has not answered its leader for 18 s"]
        assert health.liveness().is_good

    def test_is_json_with_an_entry_for_each_database(self) -> None:
        listeners = {"a": FakeListener(Stage.LEADING, 7), "b": FakeListener(Stage.STANDING_BY)}
        report = Health(listeners, patience=PATIENCE).readiness()
        since = "2026-07-01T14:03:27.123+00:00"
        assert json.loads(json.dumps(report.as_json())) == {
            "ok": True,
            "problems": [],
            "databases": {
                "a": {"state": "leading", "since": since, "epoch": 7},
                "b": {"state": "standing by", "since": since, "epoch": None},
            },
        }


class TestAnAddress:
    @pytest.mark.parametrize(
        ("text", "address"),
        [
            ("9100", ("127.0.0.1", 9100)),
            ("0.0.0.0:9100", ("0.0.0.0", 9100)),  # noqa: S104
            ("listener.internal:80", ("listener.internal", 80)),
            ("[::1]:9100", ("::1", 9100)),
            ("[::]:65535", ("::", 65_535)),
        ],
    )
    def test_is_a_host_with_a_port_or_a_port(self, text: str, address: tuple[str, int]) -> None:
        assert parse_address(text) == address

    @pytest.mark.parametrize(
        "text", ["localhost", ":9100", "::1:9100", "host:", "host:0", "host:65536", "1e3", "-1", "host:9²", "9" * 5000]
    )
    def test_of_another_kind_is_refused_with_what_to_write(self, text: str) -> None:
        with pytest.raises(ConfigurationError, match=r"HOST:PORT, such as 0\.0\.0\.0:9100"):
            parse_address(text)

    @pytest.mark.parametrize("option", [True, False])
    def test_that_is_wrong_ends_the_command_with_a_sentence(self, option: bool) -> None:
        with (
            override_settings(PGNOTIFY_GQL={} if option else {"LISTENER_HTTP": "nowhere"}),
            pytest.raises(CommandError, match="'nowhere' is no address for --http"),
        ):
            call_command("run_listener", http="nowhere" if option else None)

    def test_that_nobody_can_resolve_ends_the_command_with_a_sentence(self) -> None:
        with pytest.raises(CommandError, match="choose another with --http"):
            call_command("run_listener", http="nowhere.invalid:9100")


class TestTheServer:
    """Of a listener process, without a listener."""

    def test_answers_with_200_or_503_and_json(self) -> None:
        listener, port = FakeListener(Stage.CONNECTING), free_port()
        with serving(str(port), Health({"default": listener}, patience=PATIENCE)):
            status, report = get_json(f"http://127.0.0.1:{port}/readyz")
            assert (status, report["ok"]) == (503, False)
            assert report["databases"]["default"]["state"] == "connecting"
            assert get_json(f"http://127.0.0.1:{port}/healthz")[0] == 200
            listener.state = State(Stage.LEADING, 0.0, 7)
            assert get_json(f"http://127.0.0.1:{port}/readyz/")[0] == 200

    def test_names_its_paths_and_takes_nothing_but_questions(self) -> None:
        port = free_port()
        with serving(str(port), Health({}, patience=PATIENCE)):
            status, text = get(f"http://127.0.0.1:{port}/")
            assert (status, text) == (404, "ask for /healthz, /readyz or /metrics\n")
            assert get(f"http://127.0.0.1:{port}/healthz", method="POST")[0] == 405
            assert get(f"http://127.0.0.1:{port}/healthz", method="HEAD") == (200, "")

    def test_tells_metrics_to_who_has_the_token(self) -> None:
        port = free_port()
        with serving(str(port), Health({}, patience=PATIENCE), token="s3cret"):
            url = f"http://127.0.0.1:{port}/metrics"
            assert get(url)[0] == 403
            assert get(url, "wrong")[0] == 403
            status, text = get(url, "s3cret")
            assert status == 200
            assert Samples(text).get("pgnotify_gql_sockets") is not None

    def test_answers_while_somebody_is_connected_and_says_nothing(self) -> None:
        port = free_port()
        with serving(str(port), Health({}, patience=PATIENCE)), socket.create_connection(("127.0.0.1", port)):
            assert get(f"http://127.0.0.1:{port}/healthz")[0] == 200

    def test_says_nothing_of_a_client_that_goes_away(
        self, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
    ) -> None:
        caplog.set_level("DEBUG", "pgnotify_gql.listener")
        port, at_once = free_port(), struct.pack("ii", 1, 0)
        with serving(str(port), Health({}, patience=PATIENCE)):
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(b"GET /healthz HTTP/1.1\r\n")
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
            asyncio.run(eventually(lambda: "a request of" in caplog.text))
            assert get(f"http://127.0.0.1:{port}/healthz")[0] == 200
        assert [record.levelname for record in caplog.records if "a request of" in record.message] == ["DEBUG"]
        assert "Traceback" not in capfd.readouterr().err

    def test_answers_on_ipv6(self) -> None:
        port = free_port()
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("IPv6 is not available")
        with serving(f"[::1]:{port}", Health({}, patience=PATIENCE)):
            assert get(f"http://[::1]:{port}/healthz")[0] == 200

    def test_leaves_no_thread_and_no_port_behind(self) -> None:
        port = free_port()
        for _ in range(2):
            with serving(str(port), Health({}, patience=PATIENCE)):
                assert get(f"http://127.0.0.1:{port}/healthz")[0] == 200
        assert "pgnotify_gql http" not in {thread.name for thread in threading.enumerate()}

    def test_whose_port_is_taken_says_what_to_do(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = str(taken.getsockname()[1])
            with (
                pytest.raises(ConfigurationError, match="free it, or choose another with --http"),
                serving(address, Health({}, patience=PATIENCE)),
            ):
                pass


class TestAListenerProcess:
    async def test_leads_or_stands_by_and_takes_over(
        self, database_triggers: Database, run_listener: Start, redis_server: RedisServer
    ) -> None:
        ports = free_port(), free_port()
        leader = run_listener(database_triggers, redis_server, "--http", str(ports[0]))
        run_listener(database_triggers, redis_server, "--http", f"127.0.0.1:{ports[1]}", banner="standing by")

        def report(number: int) -> Any:
            status, found = get_json(f"http://127.0.0.1:{ports[number]}/readyz")
            assert status == 200, found
            return found["databases"]["default"]

        first, second = report(0), report(1)
        assert first["state"] == "leading"
        assert second["state"] == "standing by"
        assert second["epoch"] is None
        leader.terminate()
        assert leader.wait() == 0
        await eventually(lambda: get_json(f"http://127.0.0.1:{ports[1]}/readyz")[1]["ok"] and _leads(report(1)))
        assert report(1)["epoch"] > first["epoch"]
        assert report(1)["since"] > second["since"]

    @pytest.mark.postgres("18")
    async def test_is_alive_and_not_ready_while_its_database_is_down(
        self, database_triggers: Database, run_listener: Start
    ) -> None:
        port = free_port()
        run_listener(database_triggers, None, "--http", str(port))
        database_triggers.server.stop()
        await eventually(lambda: get_json(f"http://127.0.0.1:{port}/readyz")[0] == 503)
        assert get_json(f"http://127.0.0.1:{port}/healthz")[0] == 200
        database_triggers.server.start()
        await eventually(lambda: get_json(f"http://127.0.0.1:{port}/readyz")[0] == 200)

    @pytest.mark.postgres("18")
    def test_ends_when_its_port_is_taken(self, database_triggers: Database, run_listener: Start) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ProcessExitedWithError) as raised:
            run_listener(database_triggers, None, "--http", str(taken.getsockname()[1]))
        assert raised.value.exit_code == 1
        (note,) = raised.value.__notes__
        assert "CommandError: health and metrics cannot be served on 127.0.0.1" in note
        assert "Traceback" not in note


def _leads(report: Any) -> bool:
    return bool(report["state"] == "leading")


class TestAListener:
    async def test_tells_its_state_and_when_its_database_answered(self, database_triggers: Database) -> None:
        async with leading(database_triggers, Recorder()) as listener:
            led = listener.state
            assert led.stage is Stage.LEADING
            assert led.epoch is not None
            assert 0 <= listener.silent_for < PATIENCE
        assert listener.state.stage is Stage.CONNECTING
        assert listener.silent_for == 0


class TestTheViewOfAServer:
    async def test_tells_nothing_of_databases_before_somebody_has_connected(self) -> None:
        response = await health_view(AsyncRequestFactory().get("/healthz/"))
        assert response.status_code == 200
        assert json.loads(response.content) == {"status": "alive", "draining": False, "databases": {}}

    async def test_tells_of_which_leader_was_heard_last(self, chat: Chat) -> None:
        with inline_feed():
            async with subscribers(declare(returns([Message])), chat.alice) as [subscriber]:
                await subscriber.subscribe()
                chat.insert("hello")
                await subscriber.change()
                response = await health_view(AsyncRequestFactory().get("/healthz/"))
        found = json.loads(response.content)["databases"]["default"]
        assert found["epoch"] > 0
        assert 0 <= found["silent_for"] < 60

    async def test_is_good_while_the_server_drains(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pgnotify_gql.transport.views.is_draining", lambda: True)
        response = await health_view(AsyncRequestFactory().get("/healthz/"))
        assert response.status_code == 200
        assert json.loads(response.content)["draining"] is True
        assert not draining.is_draining()

    def test_is_served_by_the_event_loop_that_holds_the_sockets(
        self, database_triggers: Database, uvicorn: Callable[..., ProjectServer]
    ) -> None:
        server = uvicorn(database_triggers, environment={"DJANGO_SETTINGS_MODULE": "tests.support.operated_settings"})
        assert get_json(f"{server.http_url}/healthz/") == (
            200,
            {"status": "alive", "draining": False, "databases": {}},
        )


@pytest.fixture
def chat(database_triggers: Database) -> Chat:
    return Chat(database_triggers)
