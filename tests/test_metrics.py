"""Metrics: what listeners and servers tell Prometheus, and that nothing depends on its client being installed."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, cast

import pytest
from channels.layers import InMemoryChannelLayer
from django.conf import settings
from django.contrib.auth.models import User
from django.test import Client, RequestFactory, override_settings
from psycopg import errors, sql
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin, Subprotocol

from example.conversations.models import Message
from pgnotify_gql import metrics
from pgnotify_gql.hub.cursor import Cursor
from pgnotify_gql.hub.operations import Cohort, Interest, Operation, Taken
from pgnotify_gql.hub.payloads import Payloads
from pgnotify_gql.journal.pressure import measure_pressure
from pgnotify_gql.journal.reader import Connection
from pgnotify_gql.journal.snapshot import Snapshot
from pgnotify_gql.journal.state import Era
from pgnotify_gql.listener import Timing
from pgnotify_gql.listener import measures as measures_module
from pgnotify_gql.listener.measures import Measures
from pgnotify_gql.relay import Relay
from pgnotify_gql.transport import metrics as metrics_view
from tests.support.databases import Database
from tests.support.feed import CONVERSATION, MESSAGE, Recorder, Room, eventually, hub_of, leading, opened, transaction
from tests.support.operations import Faulty, Subscriber
from tests.support.ports import free_port
from tests.support.processes import Process, ProjectServer, RedisServer, project_environment
from tests.support.scraping import Moves, Samples, get, here, scrape
from tests.support.subscribers import Chat, declare, inline_feed, returns, subscribers

DEFAULT = {"database": "default"}

UNITS = {"counter": "_total", "histogram": "_seconds"}

OPERATED = {"DJANGO_SETTINGS_MODULE": "tests.support.operated_settings"}


@pytest.fixture
def chat(database_triggers: Database) -> Chat:
    return Chat(database_triggers)


@contextmanager
def subscribed(server: ProjectServer, user: User) -> Iterator[ClientConnection]:
    """A socket of a user that has subscribed to conversations."""
    client = Client()
    client.force_login(user)
    cookie = f"{settings.SESSION_COOKIE_NAME}={client.cookies[settings.SESSION_COOKIE_NAME].value}"
    with connect(
        f"{server.ws_url}/graphql/",
        origin=Origin(server.http_url),
        subprotocols=[Subprotocol("graphql-transport-ws")],
        additional_headers={"Cookie": cookie},
    ) as socket:
        socket.send(json.dumps({"type": "connection_init"}))
        assert json.loads(socket.recv(timeout=20)) == {"type": "connection_ack"}
        query = "subscription { conversations { id title } }"
        socket.send(json.dumps({"type": "subscribe", "id": "1", "payload": {"query": query}}))
        yield cast(ClientConnection, socket)


class TestNames:
    @pytest.mark.parametrize("name", metrics.DEFINED)
    def test_are_ours_and_end_in_what_is_usual_for_their_type(self, name: str) -> None:
        definition = metrics.DEFINED[name]
        assert name.startswith("pgnotify_gql_")
        assert name.endswith(UNITS.get(definition.kind, ""))
        assert set(definition.labels) <= {"database", "model"}

    def test_of_every_metric_are_told(self) -> None:
        text = (metrics.exposition() or ("", b""))[1].decode()
        for name, definition in metrics.DEFINED.items():
            assert f"# TYPE {name} {definition.kind}" in text, name


class TestWithoutTheClient:
    def test_every_metric_does_nothing(self) -> None:
        nothing = metrics.Nothing()
        for metric in (nothing, nothing.labels("default")):
            metric.inc()
            metric.inc(5)
            metric.dec()
            metric.set(5)
            metric.observe(5)
            metric.set_function(lambda: 1 / 0)

    def test_the_view_says_what_to_install(self, rf: RequestFactory, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(metrics, "ENABLED", False)
        response = metrics_view(rf.get("/metrics/"))
        assert response.status_code == 404
        assert "pip install 'pgnotify_gql[metrics]'" in response.content.decode()

    @pytest.mark.postgres("18")
    def test_a_listener_leads_and_says_what_to_install(self, database_triggers: Database, running: ExitStack) -> None:
        port = free_port()
        command = [sys.executable, "-m", "tests.support.without_extras", "manage.py", "run_listener"]
        environment = project_environment(database_triggers.url, None, inline=False, environment=None)
        listener = Process([*command, "--http", str(port)], banner="leading database", environment=environment)
        running.enter_context(listener)
        assert get(f"http://127.0.0.1:{port}/readyz")[0] == 200
        status, text = get(f"http://127.0.0.1:{port}/metrics")
        assert (status, text) == (404, f"{metrics.ADVICE}\n")
        assert "Traceback" not in listener.log

    @pytest.mark.postgres("18")
    def test_a_server_serves_subscriptions(self, database_triggers: Database, chat: Chat, running: ExitStack) -> None:
        port = free_port()
        command = [sys.executable, "-m", "tests.support.without_extras", "uvicorn", "--port", str(port)]
        environment = project_environment(database_triggers.url, None, inline=True, environment=OPERATED)
        server = ProjectServer([*command, "example.asgi:application"], port=port, environment=environment)
        running.enter_context(server)
        with subscribed(server, chat.alice) as socket:
            # A client cannot know from when on it is served: it writes until it is told.
            for _ in range(100):
                chat.insert("hello")
                with suppress(TimeoutError):
                    message = json.loads(socket.recv(timeout=0.2))
                    break
            assert message["payload"]["data"]["conversations"]["title"] == "both"
        assert get(f"{server.http_url}/metrics/") == (404, f"{metrics.ADVICE}\n")
        assert get(f"{server.http_url}/healthz/")[0] == 200
        assert "Traceback" not in server.log


class TestTheListener:
    async def test_counts_what_it_reads_and_relays(
        self, database_triggers: Database, run_listener: Callable[..., Process], redis_server: RedisServer
    ) -> None:
        port = free_port()
        run_listener(database_triggers, redis_server, "--http", str(port))
        room = Room(database_triggers)

        def value(name: str, **labels: str) -> float:
            return scrape(f"http://127.0.0.1:{port}/metrics").value(f"pgnotify_gql_{name}", **DEFAULT, **labels)

        assert value("leading") == 1
        assert value("terms_total") == 1
        room.say("one", "two", "three")
        await eventually(lambda: value("relayed_rows_total", model=MESSAGE) == 3)
        await eventually(lambda: value("relayed_rows_total", model=CONVERSATION) == 1)
        assert 1 <= value("relayed_messages_total", model=MESSAGE) <= 3
        assert value("captured_rows_total") == 4
        assert value("lost_messages_total") == 0
        await eventually(lambda: value("relay_delay_seconds_count") >= 1)
        assert 0 < value("relay_delay_seconds_sum") < 20
        assert value("lag_seconds") == 0

    async def test_that_stands_by_tells_that_it_does_not_lead(
        self, database_triggers: Database, run_listener: Callable[..., Process], redis_server: RedisServer
    ) -> None:
        port = free_port()
        run_listener(database_triggers, redis_server)
        run_listener(database_triggers, redis_server, "--http", str(port), banner="standing by")
        Room(database_triggers).say("somebody else relays it")
        samples = scrape(f"http://127.0.0.1:{port}/metrics")
        assert samples.get("pgnotify_gql_leading", **DEFAULT) == 0
        assert samples.get("pgnotify_gql_terms_total", **DEFAULT) == 0
        assert samples.value("pgnotify_gql_captured_rows_total", **DEFAULT) == 0

    async def test_tells_how_old_is_what_the_layer_keeps_it_from_relaying(self, database_triggers: Database) -> None:
        room, sink = Room(database_triggers), Held()
        async with leading(database_triggers, sink):
            await eventually(lambda: here().get("pgnotify_gql_lag_seconds", **DEFAULT) == 0)
            room.say("held")
            await eventually(lambda: 0.05 < here().value("pgnotify_gql_lag_seconds", **DEFAULT) < 20)
            sink.free.set()
            await eventually(lambda: here().get("pgnotify_gql_lag_seconds", **DEFAULT) == 0)

    async def test_does_not_lead_any_more_when_it_has_ended(self, database_triggers: Database) -> None:
        async with leading(database_triggers, Recorder()):
            assert here().get("pgnotify_gql_leading", **DEFAULT) == 1
        assert here().get("pgnotify_gql_leading", **DEFAULT) == 0


class Held(Recorder):
    """A sink whose layer does not take anything until it is free."""

    def __init__(self) -> None:
        super().__init__()
        self.free = asyncio.Event()

    async def relay(self, batch: Any) -> None:
        await self.free.wait()
        await super().relay(batch)


class TestTheInstance:
    """What the leader asks about PostgreSQL as a whole."""

    async def test_is_asked_now_and_then_and_forgotten_with_the_term(
        self, database_triggers: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(measures_module, "PRESSURE_INTERVAL", 0.01)
        room, recorder = Room(database_triggers), Recorder()

        def value(name: str) -> float | None:
            return here().get(f"pgnotify_gql_{name}", **DEFAULT)

        async with leading(database_triggers, recorder, timing=Timing(safety_poll=0.05, session_timeout=600)):
            with transaction(database_triggers) as writer:
                room.say("open", connection=writer)
                await eventually(lambda: (value("oldest_writer_seconds") or 0) > 0)
            assert 0 <= (value("notification_queue_usage_ratio") or 0) < 0.5
        assert math.isnan(value("oldest_writer_seconds") or 0)
        assert math.isnan(value("notification_queue_usage_ratio") or 0)

    async def test_tells_for_how_long_the_oldest_of_several_writers_is_open(self, database_triggers: Database) -> None:
        room = Room(database_triggers)
        async with opened(database_triggers.conninfo) as connection:
            with transaction(database_triggers) as old, transaction(database_triggers) as new:
                room.say("old", connection=old)
                await asyncio.sleep(0.2)
                room.say("new", connection=new)
                pressure = await measure_pressure(connection)
        assert 0.2 <= pressure.oldest_writer < 60
        assert 0 <= pressure.queue_usage < 0.1

    async def test_tells_nothing_of_writers_to_a_role_that_may_not_see_them(self, database_triggers: Database) -> None:
        room, role = Room(database_triggers), sql.Identifier(f"watcher_{database_triggers.name}")
        async with opened(database_triggers.conninfo) as connection:
            # Roles belong to the server and outlive the database.
            await connection.execute(sql.SQL("create role {}").format(role))
            await connection.execute(sql.SQL("set role {}").format(role))
            with transaction(database_triggers) as writer:
                room.say("open", connection=writer)
                pressure = await measure_pressure(connection)
        assert math.isnan(pressure.oldest_writer)
        assert pressure.queue_usage >= 0

    async def test_that_may_not_be_looked_at_is_not_asked_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(measures_module, "PRESSURE_INTERVAL", 0.0)
        asked = 0

        async def refuse(connection: Connection) -> None:
            nonlocal asked
            asked += 1
            raise errors.InsufficientPrivilege("permission denied for function pg_notification_queue_usage")

        monkeypatch.setattr(measures_module, "measure_pressure", refuse)
        measures, connection = Measures("default"), Nobody
        clock = asyncio.get_running_loop().time
        assert measures.are_due(clock())
        await measures.ask(connection)
        assert asked == 1
        assert not measures.are_due(clock() + 3600)


Nobody: Any = object()


ERA = Era("7", Snapshot(10, 10))


class BrokenLayer:
    """Takes nothing; in the manner that is set."""

    def __init__(self) -> None:
        self.hangs = False

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        if self.hangs:
            await asyncio.sleep(3600)
        raise ConnectionError("the layer is away")


async def test_messages_that_the_layer_does_not_take_are_counted_however_it_fails() -> None:
    moved, layer = Moves(), BrokenLayer()
    relay = Relay(layer, database="broken", send_timeout=0.01, rest_after_hang=3600)
    relay.begin(1, ERA)
    await relay.heartbeat(ERA.began)
    assert moved("pgnotify_gql_lost_messages_total", database="broken") == 1
    layer.hangs = True
    await relay.heartbeat(ERA.began)
    assert moved("pgnotify_gql_lost_messages_total", database="broken") == 2
    await relay.heartbeat(ERA.began)
    assert moved("pgnotify_gql_lost_messages_total", database="broken") == 3, "while it rests"


class TestTheHub:
    async def test_counts_what_it_receives_executes_and_delivers(self, database_triggers: Database) -> None:
        moved, room, layer = Moves(), Room(database_triggers), InMemoryChannelLayer()
        members = [Subscriber(Message), Subscriber(Message)]
        async with hub_of(layer, database_triggers.conninfo) as hub, leading(database_triggers, Relay(layer)):
            for member in members:
                await hub.join(member.operation)
            assert here().value("pgnotify_gql_operations") == 2
            room.say("one", "two", "three")
            for member in members:
                await member.has("one", "two", "three")
            # Maybe later: a heartbeat before them may have had the hub read the journal.
            await eventually(lambda: moved("pgnotify_gql_received_rows_total", **DEFAULT, model=MESSAGE) == 3)
            assert moved("pgnotify_gql_received_messages_total", **DEFAULT) >= 1
            await eventually(lambda: moved("pgnotify_gql_results_total") == 6)
            assert moved("pgnotify_gql_executions_total") == 6
            hops = moved("pgnotify_gql_hop_seconds_count")
            assert 1 <= hops <= 6
            assert 1 <= moved("pgnotify_gql_delivery_delay_seconds_count") <= hops
            assert moved("pgnotify_gql_delivery_delay_seconds_sum") < 60
            await eventually(lambda: here().get("pgnotify_gql_waiting_messages", **DEFAULT) == 0)
            assert here().value("pgnotify_gql_silence_seconds", **DEFAULT) < 60
            await eventually(lambda: here().get("pgnotify_gql_pending_changes") == 0)
            for member in members:
                await hub.leave(member.operation)
            assert here().value("pgnotify_gql_operations") == 0

    async def test_counts_an_execution_that_is_shared_once_and_its_results_for_each(
        self, database_triggers: Database
    ) -> None:
        moved, room, layer = Moves(), Room(database_triggers), InMemoryChannelLayer()
        members = [Subscriber(Message, share="all") for _ in range(5)]
        async with hub_of(layer, database_triggers.conninfo) as hub, leading(database_triggers, Relay(layer)):
            for member in members:
                await hub.join(member.operation)
            room.say("shared")
            for member in members:
                await member.has("shared")
            await eventually(lambda: moved("pgnotify_gql_results_total") == 5)
            assert moved("pgnotify_gql_executions_total") == 1
            assert moved("pgnotify_gql_delivery_delay_seconds_count") == 1

    async def test_counts_a_gap_that_it_has_healed_and_not_what_comes_first(self, database_triggers: Database) -> None:
        moved, room, layer = Moves(), Room(database_triggers), InMemoryChannelLayer()
        relay_side, subscriber = Faulty(layer), Subscriber(Message)
        relay_side.heartbeats = False

        def healed() -> float:
            return moved("pgnotify_gql_healed_gaps_total", **DEFAULT, model=MESSAGE)

        async with hub_of(layer, database_triggers.conninfo) as hub, leading(database_triggers, Relay(relay_side)):
            await hub.join(subscriber.operation)
            room.say("arrives")
            await subscriber.has("arrives")
            assert healed() == 0
            sent = relay_side.sent
            relay_side.fate = lambda message: []
            room.say("lost")
            await eventually(lambda: relay_side.sent > sent)
            relay_side.fate = lambda message: [message]
            room.say("shows it")
            await subscriber.has("lost", "shows it")
            await eventually(lambda: healed() == 1)

    async def test_counts_every_operation_that_is_told_of_a_loss(self, database_triggers: Database) -> None:
        moved, layer = Moves(), InMemoryChannelLayer()
        members = [Subscriber(Message, share="all"), Subscriber(Message, share="all"), Subscriber(Message)]
        async with hub_of(layer, database_triggers.conninfo) as hub:
            for member in members:
                await hub.join(member.operation)
            hub.resync("default", MESSAGE, "a test")
            for member in members:
                await member.until(partial(_is_told, member))
        assert moved("pgnotify_gql_resyncs_total", **DEFAULT, model=MESSAGE) == 3


def _is_told(member: Subscriber) -> bool:
    return member.resyncs == ["a test"]


class Full:
    """The outlet of a client that does not read."""

    def offer(self, payloads: Payloads) -> int:
        return 0

    async def room(self) -> None: ...


async def test_operations_that_fall_behind_are_counted() -> None:
    moved, cursor = Moves(), Cursor({}, {})
    due: Any = Due(cursor)
    cohort = Cohort(Interest(()), Nobody, cursor)
    for _ in range(3):
        cohort.add(Operation(Interest(()), Nobody, Full()))
    cohort.queue(due)
    taken: Taken = cohort.take(1)
    assert cohort.deliver(taken, ["a result"]) == 0
    assert moved("pgnotify_gql_overflows_total") == 3
    assert not cohort.members


class Due:
    """All that a cohort knows of what is due."""

    def __init__(self, cursor: Cursor) -> None:
        self.cursor = cursor


class TestTheTransport:
    async def test_counts_sockets_for_as_long_as_they_are_open(self, chat: Chat) -> None:
        before = here().value("pgnotify_gql_sockets")
        with inline_feed():
            async with subscribers(declare(returns([Message])), chat.alice, chat.bob) as [first, second]:
                assert here().value("pgnotify_gql_sockets") == before + 2
                await first.subscribe()
                await second.subscribe()
                assert here().value("pgnotify_gql_operations") == 2
        assert here().value("pgnotify_gql_sockets") == before

    def test_of_a_server_is_told_over_http(
        self, database_triggers: Database, chat: Chat, daphne: Callable[..., ProjectServer]
    ) -> None:
        server = daphne(database_triggers, environment=OPERATED)

        def value(name: str, **labels: str) -> float:
            return scrape(f"{server.http_url}/metrics/").value(f"pgnotify_gql_{name}", **labels)

        assert value("sockets") == 0
        with subscribed(server, chat.alice):
            _until(lambda: value("operations") == 1)
            assert value("sockets") == 1
            # The listener is inside of this process.
            _until(lambda: value("leading", **DEFAULT) == 1)

            def executed() -> bool:
                # An operation is counted while it joins, and nobody tells when it has: what came before is not for it.
                chat.insert("hello")
                return value("executions_total") >= 1

            _until(executed)
            assert value("received_rows_total", **DEFAULT, model=MESSAGE) >= 1
        _until(lambda: value("sockets") == 0)
        assert "Traceback" not in server.log


def _until(condition: Callable[[], bool]) -> None:
    asyncio.run(eventually(condition))


@pytest.fixture
def rf() -> RequestFactory:
    return RequestFactory()


@pytest.fixture
def token() -> Iterator[str]:
    with override_settings(PGNOTIFY_GQL={"METRICS_TOKEN": "s3cret"}):
        yield "s3cret"


class TestTheView:
    def test_returns_what_prometheus_can_read(self, rf: RequestFactory) -> None:
        response = metrics_view(rf.get("/metrics/"))
        assert response.status_code == 200
        assert response["Content-Type"].startswith("text/plain")
        assert "no-cache" in response["Cache-Control"]
        assert Samples(response.content.decode()).get("pgnotify_gql_sockets") is not None

    def test_returns_nothing_without_the_token(self, rf: RequestFactory, token: str) -> None:
        for header in ({}, {"Authorization": token}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer "}):
            response = metrics_view(rf.get("/metrics/", headers=header))
            assert response.status_code == 403
            assert b"pgnotify_gql_sockets" not in response.content

    def test_returns_everything_with_the_token(self, rf: RequestFactory, token: str) -> None:
        response = metrics_view(rf.get("/metrics/", headers={"Authorization": f"Bearer {token}"}))
        assert response.status_code == 200

    def test_takes_a_header_of_any_characters(self) -> None:
        assert not metrics.may_read("Bearer \udcff é", "s3cret")
        assert metrics.may_read("Bearer é", "é")
