"""Clients that come back with a cursor, and clients that do not read: what they missed, once, then the live stream."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest
from channels.layers import BaseChannelLayer, InMemoryChannelLayer

from example.conversations.models import Conversation, Message
from pgnotify_gql.errors import CursorError
from pgnotify_gql.hub import Interest, Operation, Topic
from pgnotify_gql.hub.cursor import Cursor
from pgnotify_gql.hub.hub import Hub
from pgnotify_gql.hub.payloads import Payloads
from pgnotify_gql.journal import Change
from pgnotify_gql.journal.reader import BATCH_ROWS
from pgnotify_gql.relay import Relay
from tests.faults.load import Load
from tests.support.databases import Database
from tests.support.feed import Notebook, Room, eventually, hub_of, leading, told
from tests.support.operations import Faulty


class Client(Notebook):
    """
    Somebody who subscribes, goes away, and comes back with the cursor of the last result.

    `most` results are taken at a time; there is room for more when the test says `reads()`.
    """

    def __init__(self, *topics: Any, most: int | None = None, share: str | None = None) -> None:
        super().__init__()
        self.interest = Interest(tuple(map(Topic.of, topics)))
        self.share = share
        self.received: list[Any] = []
        self.resyncs: list[str] = []
        self.cursor: str | None = None
        self._most = most
        self._unread = 0
        self._read = asyncio.Event()
        self.refused = 0

    def __str__(self) -> str:
        return f"{len(self.received)} received, the last {self.received[-3:]}, {self.resyncs}"

    def execute(self, change: Change, cursor: Cursor, batch: object) -> str:
        pk, _, text = told(change)
        return json.dumps({"data": pk if text is None else text, "extensions": {"cursor": cursor.token}})

    def offer(self, payloads: Payloads) -> int:
        for taken, payload in enumerate(payloads):
            if self._most is not None and self._unread >= self._most:
                self.refused += 1
                self.noted()
                return taken
            self._take(payload)
        return len(payloads)

    def _take(self, payload: str) -> None:
        self._unread += 1
        result = json.loads(payload)
        self.cursor = result["extensions"]["cursor"]
        if "resync" in result["extensions"]:
            self.resyncs.append(result["extensions"]["resync"]["reason"])
        else:
            self.received.append(result["data"])
        self.noted()

    async def room(self) -> None:
        while self._most is not None and self._unread >= self._most:
            self._read.clear()
            await self._read.wait()

    def reads(self) -> None:
        self._unread = 0
        self._read.set()

    @asynccontextmanager
    async def subscribed(self, hub: Hub) -> AsyncIterator[Operation]:
        """Be served by a hub, from the last cursor on if there is one."""
        operation = Operation(self.interest, self.execute, self, self.share)
        since = None if self.cursor is None else Cursor.read(self.cursor)
        serving = asyncio.create_task(hub.serve(operation, since))
        try:
            await eventually(lambda: operation.cohort is not None or serving.done())
            yield operation
        finally:
            serving.cancel()
            with suppress(asyncio.CancelledError):
                await serving

    async def has(self, *results: Any) -> None:
        await self.until(lambda: set(results) <= set(self.received))


def texts(count: int, prefix: str = "message") -> list[str]:
    return [f"{prefix} {number}" for number in range(count)]


@asynccontextmanager
async def fed(database: Database, layer: Any) -> AsyncIterator[tuple[Hub, Faulty]]:
    relay_side = Faulty(layer)
    async with hub_of(layer, database.conninfo) as hub, leading(database, Relay(relay_side)):
        yield hub, relay_side


async def test_who_comes_back_with_a_cursor_is_given_what_it_missed_and_then_the_live_stream(
    database_triggers: Database, layer: BaseChannelLayer
) -> None:
    room, client = Room(database_triggers), Client(Message)
    async with fed(database_triggers, layer) as (hub, _):
        async with client.subscribed(hub):
            room.say("before")
            await client.has("before")
        room.say(*texts(20, "missed"))
        async with client.subscribed(hub):
            await client.has(*texts(20, "missed"))
            room.say("live")
            await client.has("live")
    assert client.received == ["before", *texts(20, "missed"), "live"]


@pytest.mark.postgres("18")
async def test_a_cursor_is_good_in_another_process_and_after_a_change_of_leaders(database_triggers: Database) -> None:
    room, client = Room(database_triggers), Client(Message)
    async with fed(database_triggers, InMemoryChannelLayer()) as (hub, _), client.subscribed(hub):
        room.say("one")
        await client.has("one")
    room.say("two")
    async with fed(database_triggers, InMemoryChannelLayer()) as (hub, _), client.subscribed(hub):
        room.say("three")
        await client.has("two", "three")
    assert client.received == ["one", "two", "three"]


@pytest.mark.postgres("18")
async def test_a_cursor_in_the_middle_of_a_bulk_write_brings_exactly_the_rest(database_triggers: Database) -> None:
    room, client = Room(database_triggers), Client(Message, most=700)
    async with fed(database_triggers, InMemoryChannelLayer()) as (hub, _):
        async with client.subscribed(hub):
            room.say_at_once(2500)
            await client.until(lambda: client.refused > 0)
        middle = len(client.received)
        assert middle == 700
        client._most = None
        async with client.subscribed(hub):
            await client.has("2500")
    assert client.received == [str(number) for number in range(1, 2501)]


@pytest.mark.postgres("18")
@pytest.mark.parametrize("share", [None, "all"])
async def test_who_does_not_read_for_a_while_catches_up_from_the_journal(
    database_triggers: Database, share: str | None
) -> None:
    room = Room(database_triggers)
    slow, quick = Client(Message, most=50, share=share), Client(Message, share=share)
    async with (
        fed(database_triggers, InMemoryChannelLayer()) as (hub, _),
        slow.subscribed(hub) as one,
        quick.subscribed(hub) as other,
    ):
        room.say(*texts(3 * BATCH_ROWS))
        await quick.has(*texts(3 * BATCH_ROWS))
        assert len(slow.received) == 50
        while len(slow.received) < 3 * BATCH_ROWS:
            before = len(slow.received)
            slow.reads()
            await slow.until(lambda: len(slow.received) > before)  # noqa: B023
        slow._most = None
        slow.reads()
        room.say("live")
        await slow.has("live")
        await quick.has("live")
        # It shares executions again.
        await eventually(lambda: (one.cohort is other.cohort) == (share is not None))
        room.say("together")
        await slow.has("together")
        await quick.has("together")
    assert slow.received == quick.received == [*texts(3 * BATCH_ROWS), "live", "together"]


@pytest.mark.postgres("18")
async def test_a_cursor_of_several_models_goes_on_in_each(database_triggers: Database) -> None:
    room, client = Room(database_triggers), Client(Message, Conversation)

    def rename() -> None:
        room.connection.execute("update conversations_conversation set title = title || 'x'")

    async with fed(database_triggers, InMemoryChannelLayer()) as (hub, _):
        async with client.subscribed(hub):
            room.say("one")
            rename()
            await client.has("one", room.conversation)
        rename()
        room.say("two")
        rename()
        async with client.subscribed(hub):
            await client.until(lambda: len(client.received) == 5)
            room.say("three")
            await client.has("three")
    assert sorted(map(str, client.received)) == sorted(["one", "two", "three", *[str(room.conversation)] * 3])


@pytest.mark.postgres("18")
async def test_a_cursor_that_is_too_old_is_answered_with_a_resync_and_the_live_stream(
    database_triggers: Database,
) -> None:
    room, client = Room(database_triggers), Client(Message)
    async with fed(database_triggers, InMemoryChannelLayer()) as (hub, _):
        async with client.subscribed(hub):
            room.say("one")
            await client.has("one")
        room.say("gone")
        with database_triggers.connect() as admin:
            admin.execute("truncate pgnotify_gql.journal")
            admin.execute(
                "update pgnotify_gql.journal_state"
                " set emptied = pg_current_snapshot(), emptied_xid = pg_current_xact_id()"
            )
        async with client.subscribed(hub):
            await client.until(lambda: bool(client.resyncs))
            room.say("two")
            await client.has("two")
        room.say("three")
        async with client.subscribed(hub):
            await client.has("three")
    assert client.received == ["one", "two", "three"]
    (reason,) = client.resyncs
    assert "have left the journal" in reason


@pytest.mark.postgres("18")
async def test_a_cursor_of_another_subscription_is_answered_with_a_resync(database_triggers: Database) -> None:
    room, client, other = Room(database_triggers), Client(Message), Client(Conversation)
    async with fed(database_triggers, InMemoryChannelLayer()) as (hub, _):
        async with client.subscribed(hub):
            room.say("one")
            await client.has("one")
        other.cursor = client.cursor
        async with other.subscribed(hub):
            await other.until(lambda: bool(other.resyncs))
    assert other.resyncs == [
        "the cursor is of another subscription, or of a journal, or a part of it, that is no longer there"
    ]


@pytest.mark.postgres("18")
async def test_a_cursor_of_the_same_model_with_other_arguments_is_answered_with_a_resync(
    database_triggers: Database,
) -> None:
    room, client = Room(database_triggers), Client(Message)
    async with fed(database_triggers, InMemoryChannelLayer()) as (hub, _):
        async with client.subscribed(hub):
            room.say("one")
            await client.has("one")
        client.interest = replace(client.interest, subject="another room")
        async with client.subscribed(hub):
            await client.until(lambda: bool(client.resyncs))
            room.say("two")
            await client.has("two")
        room.say("three")
        async with client.subscribed(hub):
            await client.has("three")
    assert client.received == ["one", "two", "three"]
    assert len(client.resyncs) == 1


@pytest.mark.parametrize("token", ["", "forged", "W10:1x:abc", 5, None, [], {"a": 1}])
def test_a_forged_cursor_is_refused(token: Any) -> None:
    with pytest.raises(CursorError, match="not one of this site"):
        Cursor.read(token)


@pytest.mark.postgres("18")
async def test_clients_that_come_and_go_at_any_time_under_load_receive_everything_once_and_in_order(
    database_triggers: Database,
) -> None:
    """They stay for some results, are away for a moment, do not read, and come back to one hub or the other."""
    room, chance = Room(database_triggers), random.Random(5)
    load = Load(room, database_triggers.connect)
    clients = [Client(Message, most=most, share=share) for most in (None, 20) for share in (None, "all")]
    layer = InMemoryChannelLayer()
    relay_side = Faulty(layer, lambda message: [message] if chance.random() > 0.1 else [])
    async with (
        hub_of(layer, database_triggers.conninfo) as one,
        hub_of(layer, database_triggers.conninfo) as another,
        leading(database_triggers, Relay(relay_side)),
    ):
        for client in clients:
            async with client.subscribed(one):
                room.say("begin")
                await client.has("begin")

        async def come_and_go(client: Client) -> None:
            while not done.is_set():
                async with client.subscribed(chance.choice([one, another])):
                    goal = len(client.received) + chance.randrange(60)
                    while len(client.received) < goal and not done.is_set():
                        await asyncio.sleep(0.01)
                        client.reads()
                await asyncio.sleep(chance.random() * 0.05)
            async with client.subscribed(one):
                while not load.arrived(client.received, room.connection):
                    client.reads()
                    await asyncio.sleep(0.01)

        done = asyncio.Event()
        coming = [asyncio.create_task(come_and_go(client)) for client in clients]
        with load.running():
            await eventually(load.grown_by(200), 60)
        done.set()
        async with asyncio.timeout(60):
            await asyncio.gather(*coming)
    for client in clients:
        load.check(client.received, room.connection)
        assert client.resyncs == []
