"""`manage.py explain_change`: what it finds out of a change, for each outcome, and what it cannot be asked."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any

import pytest
from channels.layers import InMemoryChannelLayer
from django.core.management import CommandError, call_command
from django.db import connections, models
from django.db.models import Q
from django.test import override_settings
from django.utils import timezone

from example.conversations.models import Conversation, Message
from pgnotify_gql.capture.kinds import Kind
from pgnotify_gql.capture.watch import Watch
from pgnotify_gql.errors import ReadOnlyDatabaseError
from pgnotify_gql.hub import Topic, verdict
from pgnotify_gql.hub.hub import Hub
from pgnotify_gql.hub.operations import FailedResult
from pgnotify_gql.hub.payloads import Payloads
from pgnotify_gql.hub.topics import TopicIndex
from pgnotify_gql.hub.trace import Trace
from pgnotify_gql.journal import JournalRow
from pgnotify_gql.journal.history import read_history
from pgnotify_gql.journal.inspection import Inspection, inspect
from pgnotify_gql.management import explaining, uncaptured
from pgnotify_gql.management.explaining import (
    ChangeReport,
    Explanation,
    HubReport,
    OperationReport,
    Stage,
    explain,
)
from pgnotify_gql.management.explanations import as_text
from pgnotify_gql.management.row_keys import RowKey, find_watch
from pgnotify_gql.management.uncaptured import reasons, trigger_problem
from pgnotify_gql.relay import Relay
from tests.support.databases import Database
from tests.support.feed import (
    CONVERSATION,
    EVENT_TIMEOUT,
    MESSAGE,
    Room,
    eventually,
    hub_of,
    leading,
    opened,
    transaction,
)
from tests.support.operations import Subscriber
from tests.support.processes import CHECKOUT, Process, ProjectServer, RedisServer, project_environment
from tests.support.watched import LINE_SQL, Item, Line, WatchedTable, make_model, watched
from tests.test_sockets_on_servers import init, send
from tests.test_sockets_on_servers import opened as opened_socket

pytestmark = pytest.mark.postgres("18")

SOON = 0.5
"""Seconds in which hubs in the process of the test answer."""

NOBODY = "nobody leads: it waits in the journal until somebody subscribes (INLINE_LISTENER)"


class Silent(Subscriber):
    """It is sent nothing, whatever happens."""

    def execute(self, change: Any, cursor: Any = None, batch: object = None) -> Any:
        self.executed += 1
        return None


class Failing(Subscriber):
    """Its results are errors."""

    def execute(self, change: Any, cursor: Any = None, batch: object = None) -> Any:
        result = FailedResult(super().execute(change))
        result.code = "FORBIDDEN"
        return result


class Blocked(Subscriber):
    """Its executions wait until they are released."""

    def __init__(self, *topics: Any) -> None:
        super().__init__(*topics)
        self.begun = threading.Event()
        self.released = threading.Event()

    def execute(self, change: Any, cursor: Any = None, batch: object = None) -> Any:
        self.begun.set()
        assert self.released.wait(EVENT_TIMEOUT)
        return super().execute(change)


class Slow(Subscriber):
    """It has no room until it is told to have."""

    def __init__(self, *topics: Any) -> None:
        super().__init__(*topics)
        self.has_room = asyncio.Event()

    def offer(self, payloads: Payloads) -> int:
        return super().offer(payloads) if self.has_room.is_set() else 0

    async def room(self) -> None:
        await self.has_room.wait()


@asynccontextmanager
async def fed(database: Database) -> AsyncIterator[tuple[Hub, InMemoryChannelLayer]]:
    """A hub and a leader, in this process."""
    layer = InMemoryChannelLayer()
    async with hub_of(layer, database.conninfo) as hub, leading(database, Relay(layer)):
        yield hub, layer


async def explanation_of(layer: Any, key: Any, *, label: str = MESSAGE, minutes: float = 10) -> Explanation:
    return await explain(label, key, database="default", minutes=minutes, layer=layer, timeout=SOON)


async def last_change(layer: Any, key: Any, *, label: str = MESSAGE) -> ChangeReport:
    return (await explanation_of(layer, key, label=label)).changes[-1]


def stages(change: ChangeReport) -> dict[str, Stage]:
    return {stage.stage: stage for stage in change.stages}


async def only(layer: Any, key: Any) -> OperationReport:
    """What became of the last change of a message for the only operation of the only hub."""
    (hub,) = (await last_change(layer, key)).hubs
    (operation,) = hub.operations
    return operation


@pytest.fixture
def room(database_triggers: Database) -> Room:
    return Room(database_triggers)


async def test_the_way_of_a_change_is_told_stage_by_stage_with_times(database_triggers: Database, room: Room) -> None:
    subscriber = Subscriber(Message)
    async with fed(database_triggers) as (hub, layer):
        await hub.join(subscriber.operation)
        (key,) = room.say("hello")
        await subscriber.has("hello")
        change = await last_change(layer, key)
    row_id, xid, at = (
        room.connection.execute(
            "select id, xid::text::bigint, at from pgnotify_gql.journal order by id desc"
        ).fetchone()
        or ()
    )
    assert (change.id, change.xid, change.at, change.kind) == (row_id, xid, at, "INSERT")
    assert [stage.stage for stage in change.stages] == ["captured", "relayed", "hub"]
    assert all(stage.ok for stage in change.stages)
    assert stages(change)["captured"].at == at
    (told,) = change.hubs
    assert told.text == "received; of 1 operation on the model: 1 sent"
    (operation,) = told.operations
    assert (operation.number, operation.outcome, operation.why) == (1, "sent", "")
    assert told.received_at is not None
    assert operation.at is not None
    assert at <= told.received_at <= operation.at
    assert stages(change)["hub"].at == told.received_at


class TestOperation:
    async def test_that_is_sent_an_error_has_its_code(self, database_triggers: Database, room: Room) -> None:
        subscriber = Failing(Message)
        async with fed(database_triggers) as (hub, layer):
            await hub.join(subscriber.operation)
            (key,) = room.say("hello")
            await subscriber.has("hello")
            told = await only(layer, key)
        assert (told.outcome, told.why) == ("sent", "as an error: FORBIDDEN")

    async def test_whose_execution_returns_nothing_has_nothing_to_send(
        self, database_triggers: Database, room: Room
    ) -> None:
        subscriber = Silent(Message)
        async with fed(database_triggers) as (hub, layer):
            await hub.join(subscriber.operation)
            (key,) = room.say("hello")
            await eventually(lambda: subscriber.executed and not hub.executor.pending)
            told = await only(layer, key)
        assert told.outcome == "nothing to send"
        assert told.at is not None
        assert "hidden from this subscriber" in told.why

    @pytest.mark.parametrize(
        ("topic", "why"),
        [
            ({"conversation": 4711}, "conversation=4711 does not hold, neither before nor after"),
            (
                {"conversation__in": [4711, 4712]},
                "conversation__in=[4711, 4712] does not hold, neither before nor after",
            ),
            (
                {"filter": Q(text__startswith="h") & Q(text__contains="secret")},
                "filter=(AND: ('text__contains', 'secret')) does not hold, neither before nor after",
            ),
            (
                {"filter": Q(text="a") | Q(text="b")},
                "filter=(OR: ('text', 'a'), ('text', 'b')) does not hold, neither before nor after",
            ),
            (
                {"filter": ~Q(text="hello")},
                "filter=(NOT (AND: ('text', 'hello'))) does not hold, neither before nor after",
            ),
        ],
        ids=["equality", "list", "conjunction", "disjunction", "negation"],
    )
    async def test_whose_topic_does_not_match_is_told_by_which_condition_and_not_what_the_row_has(
        self, database_triggers: Database, room: Room, topic: dict[str, Any], why: str
    ) -> None:
        subscriber, other = Subscriber(Topic(Message, **topic)), Subscriber(Message)
        async with fed(database_triggers) as (hub, layer):
            for each in (subscriber, other):
                await hub.join(each.operation)
            (key,) = room.say("hello")
            await other.has("hello")
            (told,) = (await last_change(layer, key)).hubs
        (first, second) = told.operations
        assert (first.outcome, second.outcome) == ("sent", "not matched")
        assert second.why == why

    async def test_of_several_topics_is_told_why_none_matches(self, database_triggers: Database, room: Room) -> None:
        subscriber = Subscriber(Conversation, Topic(Message, conversation=4711), Topic(Message, author=4712))
        async with fed(database_triggers) as (hub, layer):
            await hub.join(subscriber.operation)
            (key,) = room.say("hello")
            await eventually(lambda: hub.trace._dispatched)
            told = await only(layer, key)
        assert told.outcome == "not matched"
        assert "conversation=4711 does not hold" in told.why
        assert "author=4712 does not hold" in told.why

    async def test_that_joined_later_is_told_so(self, database_triggers: Database, room: Room) -> None:
        early, late = Subscriber(Message), Subscriber(Message)
        async with fed(database_triggers) as (hub, layer):
            await hub.join(early.operation)
            (key,) = room.say("hello")
            await early.has("hello")
            await hub.join(late.operation)
            (told,) = (await last_change(layer, key)).hubs
        assert [operation.outcome for operation in told.operations] == ["sent", "joined later"]
        assert told.operations[1].at is not None
        assert told.operations[0].at is not None
        assert told.operations[1].at > told.operations[0].at

    async def test_that_joined_its_cohort_later_is_told_so(self, database_triggers: Database, room: Room) -> None:
        early, late = Subscriber(Message, share="all"), Subscriber(Message, share="all")
        async with fed(database_triggers) as (hub, layer):
            await hub.join(early.operation)
            (key,) = room.say("hello")
            await early.has("hello")
            await hub.join(late.operation)
            assert early.operation.cohort is late.operation.cohort
            (told,) = (await last_change(layer, key)).hubs
        assert [operation.outcome for operation in told.operations] == ["sent", "joined later"]

    async def test_that_joined_a_hub_which_had_not_followed_the_model_is_told_so(
        self, database_triggers: Database, room: Room
    ) -> None:
        (key,) = room.say("hello")
        subscriber = Subscriber(Message)
        async with fed(database_triggers) as (hub, layer):
            await hub.join(subscriber.operation)
            change = await last_change(layer, key)
        assert change.hubs[0].operations[0].outcome == "joined later"
        assert "not among what this process remembers" in change.hubs[0].text

    async def test_that_does_not_read_is_behind_and_sent_it_once_it_reads(
        self, database_triggers: Database, room: Room
    ) -> None:
        subscriber = Slow(Message)
        async with fed(database_triggers) as (hub, layer):
            serving = asyncio.create_task(hub.serve(subscriber.operation))
            await eventually(lambda: hub.operations and subscriber.operation.cohort)
            (key,) = room.say("hello")
            async with asyncio.timeout(EVENT_TIMEOUT):
                await subscriber.operation.behind.passed()
            behind = await only(layer, key)
            subscriber.has_room.set()
            await subscriber.has("hello")
            await eventually(lambda: not subscriber.operation.behind.is_open and not hub.executor.pending)
            sent = await only(layer, key)
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
        assert behind.outcome == "behind"
        assert "reads too slowly" in behind.why
        assert sent.outcome == "sent"

    async def test_that_comes_back_with_a_cursor_is_sent_what_it_has_missed(
        self, database_triggers: Database, room: Room
    ) -> None:
        other, subscriber = Subscriber(Message), Subscriber(Message)
        async with fed(database_triggers) as (hub, layer):
            await hub.join(other.operation)
            cursor = hub.standing(other.operation.interest)
            (key,) = room.say("hello")
            await other.has("hello")
            await hub.join(subscriber.operation, cursor)
            await subscriber.has("hello")
            (told,) = (await last_change(layer, key)).hubs
        assert [operation.outcome for operation in told.operations] == ["sent", "sent"]

    async def test_whose_execution_is_under_way_waits(self, database_triggers: Database, room: Room) -> None:
        subscriber = Blocked(Message)
        async with fed(database_triggers) as (hub, layer):
            await hub.join(subscriber.operation)
            (key,) = room.say("hello")
            try:
                assert await asyncio.to_thread(subscriber.begun.wait, EVENT_TIMEOUT)
                told = await only(layer, key)
            finally:
                subscriber.released.set()
            await subscriber.has("hello")
        assert told.outcome == "waiting"
        assert told.why == "it is executed, or waits for it: 0 changes are queued"

    async def test_that_has_ended_is_counted_and_not_named(self, database_triggers: Database, room: Room) -> None:
        subscriber = Subscriber(Message)
        async with fed(database_triggers) as (hub, layer):
            await hub.join(subscriber.operation)
            (key,) = room.say("hello")
            await subscriber.has("hello")
            await hub.leave(subscriber.operation)
            (told,) = (await last_change(layer, key)).hubs
        assert told.operations == []
        assert told.text == "received; 1 of that time has ended since"

    async def test_is_unknown_where_too_much_has_happened_since(self, database_triggers: Database, room: Room) -> None:
        subscriber = Subscriber(Message)
        async with fed(database_triggers) as (hub, layer):
            hub.trace = hub.executor.trace = Trace(most=2)
            await hub.join(subscriber.operation)
            (key,) = room.say("hello")
            for text in ("1", "2", "3"):
                room.say(text)
                await subscriber.has(text)
            told = await only(layer, key)
        assert told.outcome == "unknown"
        assert "does not remember it" in told.why

    async def test_is_told_that_changes_were_lost(self, database_triggers: Database, room: Room) -> None:
        subscriber = Subscriber(Message)
        async with fed(database_triggers) as (hub, layer):
            hub.trace = hub.executor.trace = Trace(most=1)
            await hub.join(subscriber.operation)
            (key,) = room.say("hello")
            for text in ("1", "2"):
                room.say(text)
                await subscriber.has(text)
            hub.resync("default", MESSAGE, "they have left the journal")
            await subscriber.until(lambda: bool(subscriber.resyncs))
            told = await only(layer, key)
        assert told.outcome == "unknown"
        assert "they have left the journal" in told.why


CONDITIONS: list[dict[str, Any]] = [
    {},
    {"conversation": 1},
    {"conversation__in": [1, 2]},
    {"conversation": 1, "author": 2},
    {"conversation__in": [1, 2], "author__in": [1, 2]},
    {"pk": 5},
    {"filter": Q(text__startswith="a")},
    {"filter": Q(text__startswith="a") & Q(text__endswith="z")},
    {"filter": Q(text__startswith="a") | Q(text__endswith="z")},
    {"filter": ~Q(text="a")},
    {"conversation": 1, "filter": Q(text="a")},
]


def message_image(conversation: int, author: int, text: str) -> dict[str, Any]:
    return {"conversation_id": conversation, "author_id": author, "text": text}


ONE, TWO = message_image(1, 1, "a"), message_image(2, 2, "z")

ROWS: list[tuple[str, Any]] = [
    ("INSERT", [[5], None, ONE]),
    ("INSERT", [[6], None, message_image(1, 2, "a to z")]),
    ("UPDATE", [[5], ONE, TWO]),
    ("UPDATE", [[6], message_image(3, 1, "b"), message_image(1, 3, "b")]),
    ("DELETE", [[5], TWO, None]),
    ("UPDATE", [[5], {"conversation_id": 3}, {"conversation_id": 3}]),  # of triggers that did not capture the rest
    ("INSERT", [[5]]),
    ("TRUNCATE", [None]),
]


@pytest.mark.parametrize("conditions", CONDITIONS, ids=str)
@pytest.mark.parametrize(("kind", "entry"), ROWS, ids=str)
def test_a_topic_tells_a_mismatch_where_the_index_does_not_find_it_and_only_there(
    conditions: dict[str, Any], kind: str, entry: Any
) -> None:
    (change,) = JournalRow(1, 1, MESSAGE, kind, json.dumps([entry]), 0).changes(find_watch(MESSAGE))
    topic, index = Topic(Message, **conditions), TopicIndex[str]()
    index.add(topic, "somebody")
    assert (topic.mismatch(change) is None) is bool(index.find(change))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ((1, 2), (2, 2), "author=1 does not hold, neither before nor after"),
        ((2, 1), (3, 1), "conversation=1 does not hold, neither before nor after"),
        ((1, 2), (2, 1), "author, conversation do not fulfil their conditions together, neither before nor after"),
        ((1, 1), (2, 2), None),
    ],
)
def test_a_mismatch_of_several_columns_names_the_first_that_does_not_hold_or_all_of_them(
    old: tuple[int, int], new: tuple[int, int], told: str | None
) -> None:
    entry = [[5], message_image(*old, ""), message_image(*new, "")]
    (change,) = JournalRow(1, 1, MESSAGE, "UPDATE", json.dumps([entry]), 0).changes(find_watch(MESSAGE))
    assert Topic(Message, conversation=1, author=1).mismatch(change) == told


class TestHub:
    async def test_names_no_more_operations_than_it_may_the_surprising_ones_first(
        self, database_triggers: Database, room: Room, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(verdict, "MOST_VERDICTS", 3)
        matching, silent = Subscriber(Message), Silent(Message)
        others = [Subscriber(Topic(Message, conversation=4711)) for _ in range(50)]
        async with fed(database_triggers) as (hub, layer):
            for subscriber in (*others, matching, silent):
                await hub.join(subscriber.operation)
            (key,) = room.say("hello")
            await matching.has("hello")
            await eventually(lambda: not hub.executor.pending)
            (told,) = (await last_change(layer, key)).hubs
        assert [operation.outcome for operation in told.operations] == ["nothing to send", "sent", "not matched"]
        assert told.text == (
            "received; of 52 operations on the model: 1 nothing to send, 1 sent, 50 not matched; 3 are listed"
        )

    async def test_on_which_nobody_waits_for_the_model_says_so(self, database_triggers: Database, room: Room) -> None:
        async with fed(database_triggers) as (hub, layer):
            await hub.join(Subscriber(Conversation).operation)
            (key,) = room.say("hello")
            change = await last_change(layer, key)
        (told,) = change.hubs
        assert told.text == "nobody waits for the model in this process"
        assert stages(change)["hub"].ok is False

    async def test_that_does_not_follow_the_database_says_so(self, database_triggers: Database) -> None:
        async with hub_of(InMemoryChannelLayer(), database_triggers.conninfo) as hub:
            question = {"database": "other", "label": MESSAGE, "changes": [{}, {}]}
            told = await verdict.explained(hub, question)
        assert [answer["text"] for answer in told] == [
            "this process does not follow conversations.message in database 'other'"
        ] * 2

    async def test_that_is_cut_off_has_not_received_it(self, database_triggers: Database, room: Room) -> None:
        layer = InMemoryChannelLayer()
        subscriber = Subscriber(Message)
        async with (
            hub_of(layer, database_triggers.conninfo) as hub,
            leading(database_triggers, Relay(InMemoryChannelLayer())),
        ):
            await hub.join(subscriber.operation)
            (key,) = room.say("hello")
            change = await last_change(layer, key)
        (told,) = change.hubs
        assert told.text == "not received yet; of 1 operation on the model: 1 waiting"
        assert told.operations[0].why == "the change has not come to this process yet"

    async def test_tells_every_change_of_the_row(self, database_triggers: Database, room: Room) -> None:
        subscriber = Subscriber(Message)
        async with fed(database_triggers) as (hub, layer):
            await hub.join(subscriber.operation)
            (key,) = room.say("hello")
            room.edit(key, "good bye")
            room.connection.execute("delete from conversations_message")
            room.connection.execute("truncate conversations_message")
            await eventually(lambda: len(subscriber.received) == 4)
            changes = (await explanation_of(layer, key)).changes
        assert [change.kind for change in changes] == ["INSERT", "UPDATE", "DELETE", "TRUNCATE"]
        assert [change.hubs[0].operations[0].outcome for change in changes] == ["sent"] * 4

    async def test_finds_the_row_in_a_statement_of_many(self, database_triggers: Database, room: Room) -> None:
        subscriber = Subscriber(Topic(Message, conversation=4711))
        everything = Subscriber(Message)
        async with fed(database_triggers) as (hub, layer):
            for each in (subscriber, everything):
                await hub.join(each.operation)
            room.say_at_once(500, "bulk ")
            await everything.has("bulk 500")
            (key,) = (
                room.connection.execute("select id from conversations_message where text = 'bulk 333'").fetchone() or ()
            )
            (change,) = (await explanation_of(layer, key)).changes
        assert [operation.outcome for operation in change.hubs[0].operations] == ["sent", "not matched"]

    async def test_is_asked_about_the_last_changes_only(self, database_triggers: Database, room: Room) -> None:
        subscriber = Subscriber(Message)
        async with fed(database_triggers) as (hub, layer):
            await hub.join(subscriber.operation)
            (key,) = room.say("hello")
            for number in range(explaining.MOST_CHANGES):
                room.edit(key, str(number))
            await subscriber.has(str(explaining.MOST_CHANGES - 1))
            explanation = await explanation_of(layer, key)
        assert [change.kind for change in explanation.changes] == ["UPDATE"] * explaining.MOST_CHANGES
        assert (
            f"there may be more changes than the last {explaining.MOST_CHANGES}, which are shown" in explanation.notes
        )

    async def test_is_not_asked_about_what_no_message_bears(
        self, database_triggers: Database, room: Room, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(explaining, "MESSAGE_BYTES", 500)
        (key,) = room.say("x" * 1000)
        room.edit(key, "short")
        room.edit(key, "shorter")
        async with fed(database_triggers) as (_, layer):
            changes = (await explanation_of(layer, key)).changes
        assert [len(change.hubs) for change in changes] == [0, 0, 1]
        assert stages(changes[0])["hub"] == Stage("hub", None, None, "no hub was asked")

    async def test_is_not_asked_at_all_where_no_message_bears_the_last_change(
        self, database_triggers: Database, room: Room, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(explaining, "MESSAGE_BYTES", 500)
        (key,) = room.say("x" * 1000)
        explanation = await explanation_of(None, key)
        assert stages(explanation.changes[0])["hub"] == Stage("hub", None, None, "no hub was asked")
        assert explanation.notes == [], "the layer was not used"

    async def test_that_answers_somebody_else_is_counted_and_not_shown(
        self, database_triggers: Database, room: Room, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told: dict[str, Any] = {"received_at": None, "text": "not received yet", "operations": []}
        answers: list[dict[str, Any]] = [
            {"process": {}, "busy": True},
            {"process": {"pid": 7}, "changes": [told]},
            {"busy": True},
        ]

        async def ask_hubs(*arguments: Any, **options: Any) -> list[dict[str, Any]]:
            return answers

        monkeypatch.setattr(explaining, "ask_hubs", ask_hubs)
        (key,) = room.say("hello")
        explanation = await explanation_of(InMemoryChannelLayer(), key)
        assert "2 processes answer somebody else at the moment: ask again" in explanation.notes
        assert [hub.process for hub in explanation.changes[0].hubs] == [{"pid": 7}]


class TestWithout:
    async def test_a_listener_it_waits_in_the_journal(self, database_triggers: Database, room: Room) -> None:
        (key,) = room.say("hello")
        explanation = await explanation_of(InMemoryChannelLayer(), key)
        (change,) = explanation.changes
        assert stages(change)["relayed"] == Stage("relayed", False, None, NOBODY)
        assert stages(change)["hub"].ok is None
        assert stages(change)["hub"].text.startswith("servers cannot be asked from here")
        assert "the channel layer is in memory: no other process than this one can be asked" in explanation.notes

    @pytest.mark.parametrize(
        ("state", "ok", "text"),
        [
            ({"replica": True}, None, "this is a replica; who leads is known to its primary"),
            ({"silence": 1}, False, "not yet: a listener leads through a pooler, or has just gone"),
            ({"silence": 3600}, False, NOBODY),
        ],
        ids=["a replica", "stored a moment ago", "stored long ago"],
    )
    async def test_a_session_that_leads_it_says_who_else_may(
        self,
        database_triggers: Database,
        room: Room,
        monkeypatch: pytest.MonkeyPatch,
        state: dict[str, Any],
        ok: bool | None,
        text: str,
    ) -> None:
        async def changed(connection: Any) -> Inspection:
            found = await inspect(connection)
            silence = timedelta(seconds=state.get("silence", 0))
            return replace(found, replica="replica" in state, relayed_at=found.at - silence)

        monkeypatch.setattr(explaining, "inspect", changed)
        (key,) = room.say("hello")
        change = await last_change(InMemoryChannelLayer(), key)
        assert stages(change)["relayed"] == Stage("relayed", ok, None, text)

    async def test_a_channel_layer_that_works_the_rest_is_told(self, database_triggers: Database, room: Room) -> None:
        class Broken(InMemoryChannelLayer):  # type: ignore[misc]
            async def group_send(self, group: str, message: dict[str, Any]) -> None:
                raise ConnectionError("away")

        (key,) = room.say("hello")
        explanation = await explanation_of(Broken(), key)
        assert stages(explanation.changes[0])["hub"].text == "no hub was asked"
        assert (
            "the channel layer does not work here, so no hub can be asked: ConnectionError('away')" in explanation.notes
        )

    async def test_triggers_it_says_so_first(self, database: Database) -> None:
        (key,) = Room(database).say("hello")
        explanation = await explanation_of(InMemoryChannelLayer(), key)
        assert explanation.changes == []
        assert explanation.notes[0] == (
            "conversations.message has no triggers in database 'default', so nothing of it is captured: "
            "run `manage.py install_triggers --database default`"
        )

    async def test_one_of_its_triggers_it_says_which(self, database_triggers: Database, room: Room) -> None:
        room.connection.execute("drop trigger pgnotify_gql_update on conversations_message")
        (key,) = room.say("hello")
        explanation = await explanation_of(InMemoryChannelLayer(), key)
        assert len(explanation.changes) == 1
        assert explanation.notes[0] == (
            "the triggers of conversations.message are not those of its watch (lacks pgnotify_gql_update on "
            '"conversations_message"): run `manage.py install_triggers --database default`'
        )

    async def test_a_table_it_says_so(self, database: Database) -> None:
        problem = await asyncio.to_thread(trigger_problem, Watch(Item), "default", rings=True)
        assert problem.startswith('the table "item" of stock.item does not exist')

    def test_a_database_that_has_triggers_of_its_own_it_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def plan_install(connection: Any, watches: Any, **options: Any) -> Any:
            raise ReadOnlyDatabaseError(connection.alias)

        monkeypatch.setattr(uncaptured, "plan_install", plan_install)
        assert trigger_problem(Watch(Item), "default", rings=True) == str(ReadOnlyDatabaseError("default"))


class TestNothingCaptured:
    async def notes(self, key: Any, minutes: float = 10) -> list[str]:
        explanation = await explanation_of(InMemoryChannelLayer(), key, minutes=minutes)
        assert explanation.changes == []
        return list(explanation.notes)

    async def test_because_it_is_not_committed(self, database_triggers: Database, room: Room) -> None:
        with transaction(database_triggers) as connection:
            (key,) = room.say("hello", connection=connection)
            notes = await self.notes(key)
        assert notes[0] == "the journal of database 'default' has no change of it; the reason can be one of these"
        assert re.fullmatch(
            r"it is not committed yet: one transaction that has written is open on this server, the oldest for .*",
            notes[1],
        )

    async def test_because_it_is_too_long_ago(self, database_triggers: Database, room: Room) -> None:
        (key,) = room.say("hello")
        room.connection.execute("update pgnotify_gql.journal set at = at - interval '30 minutes'")
        notes = await self.notes(key)
        assert notes[1] == (
            "it is not committed: no transaction is open that has written anything, so it was rolled back"
        )
        assert notes[2] == "it is older than 10 min (see --minutes); the journal goes back 30 min"
        assert len((await explanation_of(InMemoryChannelLayer(), key, minutes=31)).changes) == 1

    async def test_because_it_has_left_the_journal(self, database_triggers: Database, room: Room) -> None:
        (key,) = room.say("hello")
        room.connection.execute("truncate pgnotify_gql.journal")
        notes = await self.notes(key)
        assert "it is older than 10 min (see --minutes), and has left the journal, which is empty" in notes

    async def test_because_an_update_changed_nothing(self, database_triggers: Database, room: Room) -> None:
        (key,) = room.say("hello")
        room.connection.execute("truncate pgnotify_gql.journal")
        room.edit(key, "hello")
        assert any("an UPDATE that changed nothing is no change" in note for note in await self.notes(key))

    async def test_because_the_watch_leaves_it_out(self, database_triggers: Database) -> None:
        watch = Watch(
            Item, kinds=frozenset({Kind.UPDATE, Kind.DELETE}), update_of=("name",), condition=Q(version__gt=1)
        )
        async with opened(database_triggers.conninfo) as connection:
            told = list(reasons(watch, await inspect(connection), minutes=10))
        assert (
            "its watch leaves out whatever is not of kinds=DELETE, UPDATE, and of update_of=name, and of "
            "condition=(AND: ('version__gt', 1))"
        ) in told

    async def test_of_another_row_whose_key_looks_alike(self, database_triggers: Database, room: Room) -> None:
        (key,) = room.say("[1] and [12]")
        assert key == 1
        assert await self.notes(12)


class TestHistory:
    @pytest.fixture
    def table(self, database: Database) -> WatchedTable:
        return watched(database, Line, LINE_SQL, columns=["amount"])

    async def test_has_rows_with_composite_keys(self, database: Database, table: WatchedTable) -> None:
        table.run("""insert into line values (1, 'a', 5), (2, 'a', 6), (1, 'b "quoted"', 7)""")
        table.run("update line set amount = 8 where position = 'a'")
        for text, amounts in (
            ('[1, "a"]', [5, 8]),
            ('["2", "a"]', [6, 8]),
            ('[1, "b \\"quoted\\""]', [7]),
            ("[3, 4]", []),
        ):
            key = RowKey.read(table.watch, text)
            async with opened(database.conninfo) as connection:
                inspection = await inspect(connection)
                history = await read_history(
                    connection, table.watch, key.is_of,
                    since=inspection.at.replace(year=2000), parts=key.journaled_parts,
                )  # fmt: skip
            changes = [event.change for event in history.events]
            assert [change.new and change.new["amount"] for change in changes] == amounts
            assert history.complete
            for event in history.events:
                ((_, _, new),) = json.loads(event.rows)
                assert new == event.change.images[1]

    async def test_is_incomplete_where_the_journal_has_more_rows_than_are_looked_through(
        self, database_triggers: Database, room: Room
    ) -> None:
        first, _, last = room.say("1", "2", "3")
        async with opened(database_triggers.conninfo) as connection:
            since = (await inspect(connection)).at.replace(year=2000)
            watch = find_watch(MESSAGE)

            async def found(key: int, examined: int) -> tuple[int, bool]:
                history = await read_history(
                    connection, watch, RowKey.read(watch, key).is_of, since=since, examined=examined
                )
                return len(history.events), history.complete

            assert await found(last, 3) == (1, False)
            assert await found(first, 2) == (0, False)
            # With the conversation that they are in.
            assert await found(first, 4) == (1, True)

    async def test_passes_over_what_cannot_be_decoded_and_counts_it(
        self, database_triggers: Database, room: Room
    ) -> None:
        (key,) = room.say("hello")
        room.connection.execute(
            "insert into pgnotify_gql.journal (label, kind, rows) values (%s, 'MERGE', %s)", [MESSAGE, f"[[[{key}]]]"]
        )
        explanation = await explanation_of(InMemoryChannelLayer(), key)
        assert len(explanation.changes) == 1
        room.connection.execute("delete from pgnotify_gql.journal where kind = 'INSERT'")
        explanation = await explanation_of(InMemoryChannelLayer(), key)
        assert explanation.notes[-1] == (
            "1 changes in which it may be cannot be decoded here: see `manage.py tail_changes`"
        )


def run(*arguments: str) -> str:
    output = StringIO()
    call_command("explain_change", *arguments, stdout=output)
    return output.getvalue()


def failure(*arguments: str) -> str:
    """Run the command, which must fail with exit status 1, and return the sentence it ends with."""
    with pytest.raises(CommandError) as caught:
        run(*arguments)
    assert caught.value.returncode == 1
    return str(caught.value)


class TestText:
    def test_says_of_each_process_what_became_of_a_change_and_for_whom(self) -> None:
        operations = [
            OperationReport(3, "ann\x1b[2J", "messages", "sent", at(5, 250_000), ""),
            OperationReport(4, "", "", "not matched", None, "conversation=4711 does not hold"),
        ]
        hub = HubReport({"host": "web-1", "pid": 815}, at(5, 123_456), "received", operations)
        away = HubReport({"host": "web-2", "pid": 816}, None, "not received yet", [])
        change = ChangeReport(9, 77, "UPDATE", at(4), [Stage("captured", True, at(4), "journal row 9")], [hub, away])
        with timezone.override(UTC):
            lines = as_text(Explanation(MESSAGE, "17", 10, ["a note"], [change])).splitlines()
        assert lines == [
            "conversations.message 17, the last 10 min",
            "  - a note",
            "",
            "UPDATE at 2026-07-01 12:00:04.000",
            "  captured  yes 12:00:04.000  journal row 9",
            "    12:00:05.123  web-1, process 815: received",
            "      12:00:05.250  sent            messages of ann\\x1b[2J, operation 3",
            "                    not matched     ? of (nobody), operation 4: conversation=4711 does not hold",
            "                  web-2, process 816: not received yet",
        ]


def at(second: int, microsecond: int = 0) -> datetime:
    return datetime(2026, 7, 1, 12, 0, second, microsecond, UTC)


class TestCommand:
    def test_prints_what_is_known_when_nobody_listens(self, room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(explaining, "ANSWER_TIME", 0.1)
        (key,) = room.say("hello")
        first, note, empty, *lines = run(MESSAGE, str(key)).splitlines()
        assert first == f"conversations.message {key}, the last 10 min"
        assert note == "  - the channel layer is in memory: no other process than this one can be asked"
        assert empty == ""
        assert re.fullmatch(r"INSERT at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}", lines[0])
        assert re.fullmatch(r"  captured  yes \d\d:\d\d:\d\d\.\d{3}  journal row \d+ of transaction \d+", lines[1])
        assert lines[2] == f"  relayed   NO  {' ' * 12}  {NOBODY}"
        assert lines[3].startswith(f"  hub       ?   {' ' * 12}  servers cannot be asked")

    def test_prints_one_object_of_json(self, room: Room) -> None:
        (key,) = room.say("hello")
        found = json.loads(run("Conversations.Message", str(key), "--json", "--minutes", "2.5"))
        assert list(found) == ["label", "pk", "minutes", "notes", "changes"]
        assert (found["label"], found["pk"], found["minutes"]) == (MESSAGE, str(key), 2.5)
        (change,) = found["changes"]
        assert list(change) == ["id", "xid", "kind", "at", "stages", "hubs"]
        assert datetime.fromisoformat(change["at"]).tzinfo is not None
        assert [list(stage) for stage in change["stages"]] == [["stage", "ok", "at", "text"]] * 3

    def test_ends_well_where_nothing_was_captured(self, room: Room) -> None:
        assert "the journal of database 'default' has no change of it" in run(CONVERSATION, "4711")

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            (
                ["conversations.mesage", "1"],
                "there is no model 'conversations.mesage': did you mean conversations.message or "
                "conversations.conversation?",
            ),
            (["Message", "1"], "there is no model 'Message': did you mean conversations.message?"),
            (
                ["nonsense", "1"],
                "there is no model 'nonsense': watched are conversations.conversation, conversations.message",
            ),
            (
                ["conversations.Membership", "1"],
                "conversations.membership is not watched, so none of its changes is captured: call "
                "notify_on_model_changes(Membership) and run `manage.py install_triggers`",
            ),
            ([MESSAGE, "seventeen"], "'seventeen' is no key of conversations.message: 'id' is of type BigAutoField"),
            ([MESSAGE, ""], "'' is no key of conversations.message: 'id' is of type BigAutoField"),
        ],
    )
    def test_says_what_it_cannot_be_asked(self, arguments: list[str], complaint: str) -> None:
        assert failure(*arguments) == complaint

    @pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "soon", "1e9"])
    def test_takes_minutes_only_that_are_some(self, text: str) -> None:
        assert f"a number of minutes above 0, 100,000 at most, not '{text}'" in failure(
            MESSAGE, "1", f"--minutes={text}"
        )

    def test_says_that_the_database_cannot_be_used(self) -> None:
        assert failure(MESSAGE, "1").startswith("the database cannot be used: ")

    def test_says_that_the_database_is_not_postgresql(self) -> None:
        connections.databases["lite"] = connections.databases["default"] | {
            "ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:", "OPTIONS": {},
        }  # fmt: skip
        try:
            assert failure(MESSAGE, "1", "--database", "lite") == (
                "database 'lite' is sqlite: the journal needs PostgreSQL"
            )
        finally:
            del connections["lite"]
            del connections.databases["lite"]

    def test_says_that_there_is_no_journal(self, database: Database) -> None:
        database.connect().execute("drop schema pgnotify_gql cascade")
        assert failure(MESSAGE, "1").startswith("database 'default' has no journal: run `manage.py migrate")

    def test_says_that_the_database_is_not_followed(self, room: Room) -> None:
        with override_settings(PGNOTIFY_GQL={"DATABASES": ["another"]}):
            assert "PGNOTIFY_GQL['DATABASES'] does not name 'default'" in run(MESSAGE, "4711")

    def test_takes_the_database_that_the_model_is_written_to(self, second_database: Database, room: Room) -> None:
        conversation = second_database.connect().execute(
            "insert into conversations_conversation (title) values ('') returning id"
        )
        (key,) = conversation.fetchone() or (0,)
        assert "captured" in run(CONVERSATION, str(key))
        output = run(CONVERSATION, str(key), "--database", "default")
        assert "conversations.conversation is written to database 'second'" in output


@pytest.mark.parametrize("minutes", [0, -1, float("nan"), float("inf"), explaining.MOST_MINUTES + 1])
async def test_minutes_that_are_none_are_refused(minutes: float) -> None:
    with pytest.raises(explaining.QuestionError, match="minutes must be a number above 0, 100,000 at most, not "):
        await explanation_of(InMemoryChannelLayer(), 1, minutes=minutes)


def test_a_key_that_is_that_of_another_model_is_read_as_that_is() -> None:
    profile = make_model("Profile", "profile", item=models.OneToOneField(Item, models.CASCADE, primary_key=True))
    key = RowKey.read(Watch(profile), "7")
    assert (key.value, key.journaled_parts) == (7, ["[7]"])
    with pytest.raises(explaining.QuestionError, match="'item' is of type "):
        RowKey.read(Watch(profile), "seven")


@pytest.mark.parametrize("given", ["7", "[7]", '[7, "a", 3]', '{"order": 7}', "", 7, None])
def test_a_composite_key_is_a_list_of_all_its_columns(given: Any) -> None:
    with pytest.raises(explaining.QuestionError, match="give a JSON list of order, position"):
        RowKey.read(Watch(Line), given)


def test_a_composite_key_is_shown_as_it_is_given() -> None:
    for given in ('[7, "a"]', [7, "a"], (7, "a"), ["7", "a"]):
        key = RowKey.read(Watch(Line), given)
        assert (key.value, key.text, key.journaled_parts) == ((7, "a"), '[7, "a"]', ["7", '"a"'])


# Processes of their own.


def told_by_command(key: int, environment: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "manage.py", "explain_change", MESSAGE, str(key), "--json"],
        cwd=CHECKOUT, env=os.environ | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("kind", ["core", "pubsub"])
def test_hubs_of_other_processes_are_asked_through_redis(
    database_triggers: Database,
    redis_server: RedisServer,
    room: Room,
    run_listener: Callable[..., Process],
    running: Any,
    kind: str,
) -> None:
    environment = {"REDIS_LAYER": kind}
    run_listener(database_triggers, redis_server, environment=environment)
    variables = project_environment(database_triggers.url, redis_server, inline=False, environment=environment)
    command = [sys.executable, "-m", "tests.faults.hub_process"]
    hubs = [running.enter_context(Process(command, banner="joined", environment=variables)) for _ in range(2)]
    (key,) = room.say("hello")
    for hub in hubs:
        hub.wait_for_log('"hello"')
    (change,) = told_by_command(key, variables)["changes"]
    assert [stage["ok"] for stage in change["stages"]] == [True, True, True]
    assert {told["process"]["pid"] for told in change["hubs"]} == {hub.process.pid for hub in hubs if hub.process}
    for told in change["hubs"]:
        (operation,) = told["operations"]
        assert operation["outcome"] == "sent"
        assert change["at"] <= told["received_at"] <= operation["at"]


SUBSCRIPTION = "subscription Mine { conversations { id } }"


def test_sockets_of_a_server_are_told_by_user_and_field(
    database_triggers: Database,
    redis_server: RedisServer,
    room: Room,
    run_listener: Callable[..., Process],
    daphne: Callable[..., ProjectServer],
) -> None:
    run_listener(database_triggers, redis_server)
    variables = project_environment(database_triggers.url, redis_server, inline=False, environment=None)
    server = daphne(database_triggers, redis_server, inline=False)
    with opened_socket(server) as socket:
        init(socket)
        send(socket, "subscribe", id="1", payload={"query": SUBSCRIPTION})
        deadline = time.monotonic() + EVENT_TIMEOUT
        # It is not told when it is live: what it waits for is a message of which it is sent nothing, being nobody.
        while True:
            (key,) = room.say("hello")
            (change,) = told_by_command(key, variables)["changes"]
            operations = [operation for told in change["hubs"] for operation in told["operations"]]
            if [operation["outcome"] for operation in operations] == ["nothing to send"]:
                break
            assert time.monotonic() < deadline, change
    (operation,) = operations
    assert (operation["user"], operation["field"]) == ("", "conversations")
