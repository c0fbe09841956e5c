"""An initial state where a leader begins an era: the first one of a database, or one after a crash or a failover."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from typing import Any

import pytest
from channels.layers import InMemoryChannelLayer
from django.test import override_settings

from example.conversations.models import Message
from pgnotify_gql.hub import Interest, Operation, Topic
from pgnotify_gql.hub.cursor import Cursor
from pgnotify_gql.hub.hub import Hub
from pgnotify_gql.hub.payloads import Payloads
from pgnotify_gql.hub.process import current_hub
from pgnotify_gql.hub.stretch import Stretch
from pgnotify_gql.journal.reader import Connection
from pgnotify_gql.journal.snapshot import Snapshot
from pgnotify_gql.journal.state import Era, begin_era
from pgnotify_gql.relay import Relay
from tests.support.databases import Database
from tests.support.feed import MESSAGE, NEVER, Notebook, Room, eventually, feed_of, hub_of
from tests.support.initial import another_era, declare_initial, every_message
from tests.support.layers import default_layer
from tests.support.subscribers import Chat, declare, returns, subscribers

pytestmark = pytest.mark.postgres("18")


@pytest.fixture
def chat(database_triggers: Database) -> Iterator[Chat]:
    """Nobody leads."""
    with default_layer(), override_settings(PGNOTIFY_GQL={}):
        yield Chat(database_triggers)


async def test_a_state_that_knows_of_an_era_before_the_hub_does_is_sent_once(
    chat: Chat, database_triggers: Database
) -> None:
    chat.insert("one")
    async with subscribers(declare(returns(Message)), chat.alice) as (other,):
        await other.subscribe()
        another_era(database_triggers)
        async with subscribers(declare_initial(), chat.alice) as (subscriber,):
            subscriber.socket.subscribe("subscription { changes { text } }")
            assert (await subscriber.result())["data"] == {"changes": {"text": "one"}}
            assert "live" in (await subscriber.result())["extensions"]


async def test_a_listener_that_begins_an_era_behind_the_first_socket_makes_no_state_come_twice(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgnotify_gql.hub.feed.NEW_ERA", NEVER)
    hubs: list[Hub] = []
    subscribes = asyncio.Event()

    async def slowly(connection: Connection) -> Era:
        await subscribes.wait()
        await asyncio.sleep(0.2)
        return await begin_era(connection)

    def state(cls: Any, info: Any) -> Any:
        """Last until the hub has heard of the era."""
        deadline = time.monotonic() + 20
        while not feed_of(hubs[0]).journal.era and time.monotonic() < deadline:
            time.sleep(0.01)
        return every_message(cls, info)

    monkeypatch.setattr("pgnotify_gql.listener.listener.begin_era", slowly)
    chat.insert("one")
    chat.execute("delete from pgnotify_gql.journal_era")  # as after a crash
    with override_settings(PGNOTIFY_GQL={"INLINE_LISTENER": True}):
        async with subscribers(declare_initial(state), chat.alice) as (subscriber,):
            hubs.append(current_hub())
            subscriber.socket.subscribe("subscription { changes { text } }")
            subscribes.set()
            assert (await subscriber.result())["data"] == {"changes": {"text": "one"}}
            told = await subscriber.result()
            assert "live" in told["extensions"], told


class Outlet(Notebook):
    """Keeps the results."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[Any] = []

    def offer(self, payloads: Payloads) -> int:
        self.results.extend(map(json.loads, payloads))
        self.noted()
        return len(payloads)

    async def room(self) -> None:
        pass

    @property
    def marker(self) -> Any:
        return next((result for result in self.results if "live" in result["extensions"]), None)


async def test_the_live_marker_is_never_of_a_time_before_the_state(
    database_triggers: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A heartbeat of a new era moves the feed back while an operation is catching up."""
    room, outlet, layer = Room(database_triggers), Outlet(), InMemoryChannelLayer()
    relay, replays, may_replay = Relay(layer, send_timeout=NEVER), asyncio.Event(), asyncio.Event()
    began = _now(database_triggers)
    room.say("one")
    shown = _now(database_triggers)
    is_read, goes_on = threading.Event(), threading.Event()

    def state() -> list[str]:
        is_read.set()
        assert goes_on.wait(20)
        return ['{"data": "one", "extensions": {"initial": true}}']

    interest = Interest((Topic.of(Message),))
    operation = Operation(interest, lambda change, cursor, batch: None, outlet, state=state)
    async with hub_of(layer, database_triggers.conninfo) as hub:
        feed = feed_of(hub)
        replay = feed.replay

        async def gated(*args: Any, **kwargs: Any) -> AsyncGenerator[Stretch, None]:
            replays.set()
            await may_replay.wait()
            async for stretch in replay(*args, **kwargs):
                yield stretch

        monkeypatch.setattr(feed, "replay", gated)
        serving = asyncio.create_task(hub.serve(operation))
        assert await asyncio.to_thread(is_read.wait, 20)
        # The feed gets further than the state, so that there is something to catch up with.
        room.say("two")
        relay.begin(1, Era("", Snapshot(0, 0)))
        await relay.heartbeat(_now(database_triggers))
        await eventually(lambda: not feed.position(MESSAGE).within(shown))
        goes_on.set()
        async with asyncio.timeout(20):
            await replays.wait()
        era = _era_begins(database_triggers, began)
        relay.begin(2, era)
        await relay.heartbeat(began)
        await eventually(lambda: feed.journal.era == era.id)
        may_replay.set()
        await outlet.until(lambda: outlet.marker is not None)
        serving.cancel()
        with suppress(asyncio.CancelledError):
            await serving
    cursor = Cursor.read(outlet.marker["extensions"]["cursor"])
    assert cursor.positions["default", MESSAGE].before.covers(shown)


def _era_begins(database: Database, began: Snapshot) -> Era:
    with database.connect() as connection:
        connection.execute("update pgnotify_gql.journal_state set relayed = %s::pg_snapshot", [str(began)])
    return another_era(database)


def _now(database: Database) -> Snapshot:
    with database.connect() as connection:
        (text,) = connection.execute("select pg_current_snapshot()::text").fetchone() or ("",)
    return Snapshot.parse(text)
