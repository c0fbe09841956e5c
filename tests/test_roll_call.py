"""The roll call: every hub answers what it has, once, and nothing that is asked disturbs its feeds."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from channels.layers import BaseChannelLayer, InMemoryChannelLayer, get_channel_layer
from django.contrib.auth.models import AnonymousUser

from example.conversations.models import Message
from pgnotify_gql import names
from pgnotify_gql.hub import Topic, roll_call
from pgnotify_gql.hub.executor import Executor
from pgnotify_gql.hub.hub import Hub
from pgnotify_gql.hub.reader import HubReader
from pgnotify_gql.hub.roll_call import ANSWER, ASK, LONGEST, MOST_OPERATIONS, MOST_REFUSED, MOST_TOPICS, ask_hubs
from pgnotify_gql.journal.snapshot import Snapshot
from pgnotify_gql.relay import Relay
from tests.support.databases import Database
from tests.support.feed import EVENT_TIMEOUT, MESSAGE, Notebook, Room, eventually, hub_of, leading, opener
from tests.support.operations import Subscriber
from tests.support.subscribers import Chat, declare, inline_feed, returns, subscribers

pytestmark = pytest.mark.postgres("18")

STATE = {"ask": "state"}

SOON = 0.5
"""Seconds in which answers come, of hubs in the process of the test."""


async def state_of(layer: Any) -> dict[str, Any]:
    """Return the answer of the only hub."""
    (answer,) = await ask_hubs(layer, STATE, timeout=SOON)
    return answer


class Held(Notebook):
    """Answers that the hub makes, which take until they are released."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.begun = self.cancelled = 0
        self.released = asyncio.Event()
        monkeypatch.setattr(roll_call, "_state", self)

    async def __call__(self, hub: Hub) -> dict[str, Any]:
        self.begun += 1
        self.noted()
        try:
            await self.released.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return {"sockets": 0}


@asynccontextmanager
async def following(database: Database, layer: Any, *aliases: str) -> AsyncIterator[Hub]:
    """A hub with a feed for each alias, all of the same database."""
    hub = Hub(layer, [HubReader(opener(database.conninfo), alias) for alias in aliases], Executor(1))
    await hub.start()
    try:
        yield hub
    finally:
        await hub.close()


class TestState:
    async def test_is_told_by_every_hub_through_every_layer(self, database: Database, layer: BaseChannelLayer) -> None:
        async with hub_of(layer, database.conninfo), hub_of(layer, database.conninfo):
            answers = await ask_hubs(layer, STATE)
        assert [answer["process"]["pid"] for answer in answers] == [os.getpid(), os.getpid()]

    async def test_is_told_by_nobody_where_there_is_no_hub(self, layer: BaseChannelLayer) -> None:
        assert await ask_hubs(layer, STATE, timeout=0.1) == []

    async def test_is_what_a_hub_answers_and_nothing_else_that_comes_to_whoever_asks(self) -> None:
        class Shared(InMemoryChannelLayer):  # type: ignore[misc]
            """A layer on which somebody else uses the channel by mistake."""

            async def group_send(self, group: str, message: dict[str, Any]) -> None:
                await self.send(message["reply"], {"type": "of.somebody.else", "answer": {"of": "somebody else"}})
                await self.send(message["reply"], {"type": ANSWER, "answer": {"of": "a hub"}})

        assert await ask_hubs(Shared(), STATE, timeout=0.05) == [{"of": "a hub"}]

    async def test_is_told_once_by_a_hub_that_follows_several_databases(self, database: Database) -> None:
        layer = InMemoryChannelLayer()
        async with following(database, layer, "default", "second", "third"):
            answer = await state_of(layer)
        assert [feed["database"] for feed in answer["feeds"]] == ["default", "second", "third"]

    async def test_is_told_while_a_feed_cannot_go_on(self, database: Database) -> None:
        layer = InMemoryChannelLayer()
        async with hub_of(layer, database.conninfo) as hub, hub.feed("default").taking:
            # What is handled next waits for whoever takes, as it does for a database that is away.
            await Relay(layer).heartbeat(Snapshot(1, 1))
            assert await state_of(layer)

    async def test_of_a_hub_without_operations_has_these_keys(self, database: Database) -> None:
        layer = InMemoryChannelLayer()
        async with hub_of(layer, database.conninfo):
            answer = await state_of(layer)
        process = answer.pop("process")
        assert process == {"host": socket.gethostname(), "pid": os.getpid(), "since": roll_call.STARTED}
        (feed,) = answer.pop("feeds")
        assert 0 <= feed.pop("silent_for") < EVENT_TIMEOUT
        assert feed == {"database": "default", "epoch": 0, "models": []}
        assert isinstance(answer.pop("errors"), list)
        assert answer == {"sockets": 0, "operations_total": 0, "operations": [], "pending": 0}

    async def test_names_operations_with_their_topics_until_they_leave(self, database_triggers: Database) -> None:
        layer, before = InMemoryChannelLayer(), time.time()
        everything, some = Subscriber(Message), Subscriber(Topic(Message, conversation=5))
        async with hub_of(layer, database_triggers.conninfo) as hub:
            for subscriber in (everything, some):
                await hub.join(subscriber.operation)
            first, second = (await state_of(layer))["operations"]
            assert before <= first.pop("since") <= second.pop("since") <= time.time()
            assert first == {
                "number": 1, "user": "", "name": None, "field": "", "topics": [f"Topic({MESSAGE})"],
                "audience": "nobody", "behind": False,
            }  # fmt: skip
            assert (second["number"], second["topics"]) == (2, [f"Topic({MESSAGE}, conversation=5)"])
            await hub.leave(everything.operation)
            answer = await state_of(layer)
            assert [operation["number"] for operation in answer["operations"]] == [2]
            assert answer["feeds"][0]["models"] == [MESSAGE]
            await hub.leave(some.operation)
            assert (await state_of(layer))["operations_total"] == 0

    async def test_of_an_operation_that_could_not_join_has_nothing(self, database_triggers: Database) -> None:
        layer, subscriber = InMemoryChannelLayer(), Subscriber(Message)
        async with hub_of(layer, database_triggers.conninfo) as hub:
            joining = asyncio.create_task(hub.join(subscriber.operation))
            await eventually(lambda: subscriber.operation in hub.operations)
            joining.cancel()
            await asyncio.gather(joining, return_exceptions=True)
            assert not hub.operations

    async def test_is_bounded_whatever_there_is(self, database_triggers: Database) -> None:
        layer = InMemoryChannelLayer()
        values = list(range(900))
        topics = [Topic(Message, conversation__in=[*values, 1000 + number]) for number in range(MOST_TOPICS + 1)]
        many = [Subscriber(*topics), *(Subscriber(Message) for _ in range(MOST_OPERATIONS))]
        async with hub_of(layer, database_triggers.conninfo) as hub:
            for subscriber in many:
                await hub.join(subscriber.operation)
            answer = await state_of(layer)
        assert answer["operations_total"] == MOST_OPERATIONS + 1
        assert len(answer["operations"]) == MOST_OPERATIONS
        told = answer["operations"][0]["topics"]
        assert len(told) == MOST_TOPICS
        assert max(map(len, told)) == LONGEST
        assert len(json.dumps(answer)) < 100_000

    async def test_tells_who_is_behind(self, database_triggers: Database) -> None:
        layer, room, subscriber = InMemoryChannelLayer(), Room(database_triggers), Subscriber(Message)
        subscriber.offer = lambda payloads: 0  # type: ignore[method-assign]
        async with hub_of(layer, database_triggers.conninfo) as hub, leading(database_triggers, Relay(layer)):
            await hub.join(subscriber.operation)
            room.say("hello")
            async with asyncio.timeout(EVENT_TIMEOUT):
                await subscriber.operation.behind.passed()
            assert (await state_of(layer))["operations"][0]["behind"]

    async def test_tells_warnings_of_the_process(self, database: Database) -> None:
        layer = InMemoryChannelLayer()
        logging.getLogger("pgnotify_gql.hub").warning("the moon is %s", "away")
        async with hub_of(layer, database.conninfo):
            answer = await state_of(layer)
        assert answer["errors"][-1]["message"] == "the moon is away"


@pytest.fixture
def chat(database_triggers: Database) -> Chat:
    return Chat(database_triggers)


async def test_operations_of_sockets_are_told_with_user_field_and_name_and_no_variables(chat: Chat) -> None:
    schema = declare(returns(Message))
    with inline_feed():
        async with subscribers(schema, chat.alice, AnonymousUser()) as (alice, nobody):
            await alice.subscribe("subscription Watch { changes { pk } }")
            await nobody.subscribe("subscription { other: changes { ...F } } fragment F on Seen { pk }")
            answer = await state_of(get_channel_layer())
    assert answer["sockets"] == 2
    told = [(operation["user"], operation["field"], operation["name"]) for operation in answer["operations"]]
    assert told == [("alice", "changes", "Watch"), ("", "changes", None)]


class TestQuestions:
    async def test_that_come_while_another_is_answered_are_refused(
        self, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        layer, held = InMemoryChannelLayer(), Held(monkeypatch)
        async with hub_of(layer, database.conninfo) as hub, asyncio.timeout(EVENT_TIMEOUT):

            async def ask() -> str:
                reply: str = await layer.new_channel()
                hub.asked("default", {"type": ASK, "database": "", "reply": reply, "question": STATE})
                return reply

            first = await ask()
            await held.until(lambda: held.begun == 1)
            refused = (await layer.receive(await ask()))["answer"]
            held.released.set()
            answered = (await layer.receive(first))["answer"]
        assert refused["busy"] is True
        assert refused["process"]["pid"] == os.getpid()
        assert answered["sockets"] == 0
        assert held.begun == 1

    async def test_are_not_even_refused_when_there_are_too_many(
        self, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Stuck(InMemoryChannelLayer):  # type: ignore[misc]
            sending = 0

            async def send(self, channel: str, message: dict[str, Any]) -> None:
                if message["type"] == ANSWER:
                    self.sending += 1
                    await asyncio.Event().wait()
                await super().send(channel, message)

        layer, held = Stuck(), Held(monkeypatch)
        async with hub_of(layer, database.conninfo) as hub:
            message = {"type": ASK, "database": "", "reply": "somebody", "question": STATE}
            for _ in range(3 * MOST_REFUSED):
                hub.asked("default", message)
            await held.until(lambda: held.begun == 1)
            await eventually(lambda: layer.sending == MOST_REFUSED)
        assert held.cancelled == 1

    async def test_are_not_answered_when_the_hub_closes(
        self, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        layer, held = InMemoryChannelLayer(), Held(monkeypatch)
        async with hub_of(layer, database.conninfo) as hub:
            asking = asyncio.create_task(ask_hubs(layer, STATE, timeout=SOON))
            await held.until(lambda: held.begun == 1)
        assert held.cancelled == 1
        assert await asking == []
        hub.asked("default", {"type": ASK, "reply": "somebody", "question": STATE})
        assert held.begun == 1

    @pytest.mark.parametrize(
        "question",
        [
            {"ask": "password"},
            {},
            {"ask": "explain"},
            {"ask": "explain", "database": "default", "label": MESSAGE, "changes": [{}]},
            5,
        ],
    )
    async def test_that_nobody_understands_cost_the_answer_and_not_the_feed(
        self, database_triggers: Database, question: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        layer, room, subscriber = InMemoryChannelLayer(), Room(database_triggers), Subscriber(Message)
        async with hub_of(layer, database_triggers.conninfo) as hub, leading(database_triggers, Relay(layer)):
            await hub.join(subscriber.operation)
            assert await ask_hubs(layer, question, timeout=SOON / 2) == []
            room.say("hello")
            await subscriber.has("hello")
            assert (await state_of(layer))["operations_total"] == 1
        assert "a question of the channel layer could not be answered" in caplog.text

    async def test_whose_answer_no_layer_bears_cost_the_answer_and_not_the_feed(
        self,
        database_triggers: Database,
        layer: BaseChannelLayer,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        async def unbearable(hub: Hub) -> dict[str, Any]:
            raise TypeError("can not serialize it")

        monkeypatch.setattr(roll_call, "_state", unbearable)
        room, subscriber = Room(database_triggers), Subscriber(Message)
        async with hub_of(layer, database_triggers.conninfo) as hub, leading(database_triggers, Relay(layer)):
            await hub.join(subscriber.operation)
            assert await ask_hubs(layer, STATE, timeout=SOON) == []
            room.say("hello")
            await subscriber.has("hello")
        assert "could not be answered (TypeError('can not serialize it'))" in caplog.text

    async def test_without_a_channel_to_answer_to_are_passed_over(self, database: Database) -> None:
        layer = InMemoryChannelLayer()
        async with hub_of(layer, database.conninfo):
            await layer.group_send(names.heartbeat_group(), {"type": ASK, "database": "", "question": STATE})
            assert (await state_of(layer))["sockets"] == 0

    async def test_raise_what_the_layer_raises(self) -> None:
        class Broken(InMemoryChannelLayer):  # type: ignore[misc]
            async def group_send(self, group: str, message: dict[str, Any]) -> None:
                raise ConnectionError("away")

        with pytest.raises(ConnectionError, match="away"):
            await ask_hubs(Broken(), STATE)

    async def test_end_in_time_when_the_layer_hangs(self) -> None:
        class Hanging(InMemoryChannelLayer):  # type: ignore[misc]
            async def group_send(self, group: str, message: dict[str, Any]) -> None:
                await asyncio.Event().wait()

        async with asyncio.timeout(EVENT_TIMEOUT):
            assert await ask_hubs(Hanging(), STATE, timeout=0.05) == []
