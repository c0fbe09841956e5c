"""Several databases: each with a journal, leaders and a feed of its own, and none in the way of another."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from io import StringIO
from typing import Any

import psycopg
import pytest
from channels.layers import BaseChannelLayer, InMemoryChannelLayer
from django.core.management import call_command
from django.test import override_settings
from mirakuru.exceptions import ProcessExitedWithError

from example.conversations.models import Conversation, Message
from pgnotify_gql import names
from pgnotify_gql.errors import TopicError
from pgnotify_gql.hub import Topic, open_hub
from pgnotify_gql.hub.executor import Executor
from pgnotify_gql.hub.hub import Hub
from pgnotify_gql.hub.reader import HubReader
from pgnotify_gql.journal.reader import Connection
from pgnotify_gql.listener import Timing
from pgnotify_gql.relay import Relay
from pgnotify_gql.relay.messages import CHANGES, HEARTBEAT
from tests.support.databases import Database
from tests.support.feed import (
    CONVERSATION,
    MESSAGE,
    RARELY,
    Room,
    eventually,
    feed_of,
    leading,
    lock_holders,
    opener,
    sessions,
    terminate,
)
from tests.support.layers import default_layer
from tests.support.operations import Faulty, Subscriber
from tests.support.ports import free_port
from tests.support.processes import Process, RedisServer
from tests.support.receivers import receiving
from tests.support.subscribers import declare, returns, subscribers

Start = Callable[..., Process]

SETTINGS = "tests.support.listener_settings"

BEATING = Timing(safety_poll=0.2, session_timeout=600.0)
"""A listener with a heartbeat every 0.2 s also while it sleeps."""


class Titles:
    """Writes conversations; told apart by their keys."""

    def __init__(self, database: Database) -> None:
        self.connection = database.connect()

    def open(self, count: int = 1) -> list[int]:
        """Make conversations, a statement each, and return their keys."""
        return [self._new() for _ in range(count)]

    def _new(self) -> int:
        row = self.connection.execute("insert into conversations_conversation (title) values ('') returning id")
        (key,) = row.fetchone() or (0,)
        return int(key)


class Switch:
    """Opens a hub's connections to a database while it is `there`."""

    def __init__(self, database: Database) -> None:
        self.there = True
        self.refused = 0
        self._open = opener(database.conninfo, 0, "test hub")

    async def __call__(self) -> Connection:
        if not self.there:
            self.refused += 1
            raise psycopg.OperationalError("the database is away")
        return await self._open()


class Heartbeats(InMemoryChannelLayer):  # type: ignore[misc]
    """Counts the heartbeats of a database with which the feed of the other is done."""

    def __init__(self, database: str) -> None:
        super().__init__()
        self.done = 0
        self._database = database
        self._channels: list[str] = []
        self._holds = False

    async def new_channel(self, prefix: str = "specific.") -> str:
        self._channels.append(await super().new_channel(prefix))
        return self._channels[-1]

    async def receive(self, channel: str) -> Any:
        # The feed of "default" is started first.
        if channel != self._channels[0 if self._database == "second" else 1]:
            return await super().receive(channel)
        # Who asks for the next message is done with the one before.
        self.done += self._holds
        self._holds = False
        message = await super().receive(channel)
        self._holds = message["type"] == HEARTBEAT and message["database"] == self._database
        return message


@asynccontextmanager
async def hub_of_both(
    layer: Any, database: Database, second: Database, *, to_second: Any = None, silence: float = 3600.0
) -> AsyncIterator[Hub]:
    """A hub that follows both."""
    readers = [
        HubReader(opener(database.conninfo, 0, "test hub")),
        HubReader(to_second or opener(second.conninfo, 0, "test hub"), "second"),
    ]
    hub = Hub(layer, readers, Executor(2), silence=silence)
    await hub.start()
    try:
        yield hub
    finally:
        await hub.close()


@asynccontextmanager
async def led(
    database: Database, second: Database, layer: Any, to_second: Any = None, timing: Timing = RARELY
) -> AsyncIterator[None]:
    """A leader of each."""
    async with (
        leading(database, Relay(layer), timing=timing),
        leading(second, Relay(to_second or layer, database="second"), timing=timing, alias="second"),
    ):
        yield


async def test_both_databases_reach_one_operation_each_in_order(
    database: Database, second_database: Database, layer: BaseChannelLayer
) -> None:
    room, titles, subscriber = Room(database), Titles(second_database), Subscriber(Message, Conversation)
    texts = [f"message {number}" for number in range(50)]
    async with hub_of_both(layer, database, second_database) as hub, led(database, second_database, layer):
        await hub.join(subscriber.operation)
        keys = []
        for text in texts:
            room.say(text)
            keys += titles.open()
        await subscriber.has(texts[-1], keys[-1])
    assert [found for found in subscriber.received if isinstance(found, str)] == texts
    assert [found for found in subscriber.received if isinstance(found, int)] == keys


async def test_the_inline_listener_follows_both_and_one_socket_is_told_of_both(
    database: Database, second_database: Database
) -> None:
    room, titles = Room(database), Titles(second_database)
    schema = declare(returns([Message, Conversation]))
    with default_layer():
        async with subscribers(schema, None) as (subscriber,):
            await subscriber.subscribe()
            room.say("one")
            assert (await subscriber.change())["text"] == "one"
            (conversation,) = titles.open()
            found = await subscriber.change()
            assert (found["label"], found["pk"]) == (CONVERSATION, str(conversation))
            assert len(sessions(database, "pgnotify_gql listener")) == 1
            assert len(sessions(second_database, "pgnotify_gql listener")) == 1
        for found_in in (database, second_database):
            await eventually(lambda found_in=found_in: not sessions(found_in, "pgnotify_gql listener"))  # type: ignore[misc]


@pytest.mark.postgres("18")
async def test_an_inline_listener_that_cannot_run_keeps_no_other_from_running(
    database: Database, second_database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    second_database.connect().execute("drop schema pgnotify_gql cascade")
    room, subscriber = Room(database), Subscriber(Message)
    with default_layer():
        async with open_hub() as hub:
            await hub.join(subscriber.operation)
            await eventually(lambda: "the inline listener of database second cannot run" in caplog.text)
            room.say("one")
            await subscriber.has("one")


@pytest.mark.postgres("18")
async def test_each_database_has_epochs_of_its_own(database: Database, second_database: Database) -> None:
    """A leader is not taken for one that was replaced, because the other database is further with its epochs."""
    layer = Heartbeats("default")
    ahead = 10**15
    database.connect().execute("update pgnotify_gql.journal_state set epoch = %s", [ahead])
    room, titles, subscriber = Room(database), Titles(second_database), Subscriber(Message, Conversation)
    async with (
        hub_of_both(layer, database, second_database) as hub,
        led(database, second_database, layer, timing=BEATING),
    ):
        await hub.join(subscriber.operation)
        await eventually(lambda: layer.done >= 2)
        (key,) = titles.open()
        room.say("one")
        await subscriber.has("one", key)
        await eventually(lambda: feed_of(hub)._intakes[MESSAGE]._epoch == ahead + 1)
        await eventually(lambda: 0 < feed_of(hub, "second")._intakes[CONVERSATION]._epoch < ahead)


@pytest.mark.postgres("18")
async def test_a_gap_in_one_database_is_healed_from_its_own_journal(
    database: Database, second_database: Database, layer: BaseChannelLayer
) -> None:
    room, titles, subscriber = Room(database), Titles(second_database), Subscriber(Message, Conversation)
    to_second = Faulty(layer, lambda message: [])
    async with hub_of_both(layer, database, second_database) as hub, led(database, second_database, layer, to_second):
        await hub.join(subscriber.operation)
        room.say("one")
        keys = titles.open(5)
        await subscriber.has("one", *keys)
        assert to_second.spoilt
    assert [found for found in subscriber.received if isinstance(found, int)] == keys
    assert subscriber.received.count("one") == 1


@pytest.mark.postgres("18")
async def test_a_heartbeat_of_one_database_neither_heals_nor_advances_the_other(
    database: Database, second_database: Database
) -> None:
    layer = Heartbeats("second")
    room, subscriber = Room(database), Subscriber(Message, Conversation)
    async with hub_of_both(layer, database, second_database) as hub:
        await hub.join(subscriber.operation)
        intake = feed_of(hub)._intakes[MESSAGE]
        joined = intake.position
        room.say("one")
        # Transaction ids are those of the whole server: this leader's cursor sees that of the message.
        async with leading(second_database, Relay(layer, database="second"), timing=BEATING, alias="second"):
            await eventually(lambda: layer.done >= 2)
        assert intake.position == joined
        assert subscriber.received == []
        async with leading(database, Relay(layer)):
            await subscriber.has("one")


@pytest.fixture
def copy_of_the_table(database: Database, second_database: Database) -> None:
    """Conversations are captured in the first database too, where the router does not write them."""
    with override_settings(DATABASE_ROUTERS=["tests.support.routers.TablesInBoth"]):
        call_command("install_triggers", stdout=StringIO())


@pytest.mark.postgres("18")
@pytest.mark.usefixtures("copy_of_the_table")
async def test_changes_where_the_router_does_not_write_reach_nobody_and_are_logged_once(
    database: Database, second_database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    layer = InMemoryChannelLayer()
    copies, titles, subscriber = Titles(database), Titles(second_database), Subscriber(Conversation)
    from_default = Faulty(layer)
    async with (
        hub_of_both(layer, database, second_database) as hub,
        leading(database, Relay(from_default)),
        leading(second_database, Relay(layer, database="second"), alias="second"),
    ):
        await hub.join(subscriber.operation)
        for sent in (1, 2):
            copies.open()
            await eventually(lambda sent=sent: from_default.sent == sent)  # type: ignore[misc]
        (key,) = titles.open()
        await subscriber.has(key)
    assert subscriber.received == [key]
    assert caplog.text.count("conversations.conversation is captured in database default too") == 1
    assert "`manage.py uninstall_triggers conversations.conversation --database default` ends it" in caplog.text


@pytest.mark.postgres("18")
async def test_a_copy_that_is_written_while_a_model_is_joined_does_not_start_its_count(
    database: Database, second_database: Database
) -> None:
    layer, subscriber = InMemoryChannelLayer(), Subscriber(Conversation)
    titles = Titles(second_database)

    class Slow(HubReader):
        async def current(self) -> Any:
            stray = {"type": CHANGES, "database": "default", "label": CONVERSATION, "epoch": 99, "seq": 7, "rows": []}
            await layer.group_send(names.model_group(CONVERSATION), stray)
            await layer.group_send(names.heartbeat_group(), {"type": HEARTBEAT, "database": "nowhere"})
            await eventually(lambda: feed_of(hub, "second")._strays)
            return await super().current()

    hub = Hub(layer, [Slow(opener(second_database.conninfo), "second")], Executor(1))
    await hub.start()
    async with leading(second_database, Relay(layer, database="second"), alias="second"):
        await hub.join(subscriber.operation)
        (key,) = titles.open()
        await subscriber.has(key)
        await hub.close()


# Databases and listeners that are away.


@pytest.mark.postgres("18")
async def test_a_database_that_is_away_while_it_heals_or_is_joined_keeps_no_other_waiting(
    database: Database, second_database: Database, layer: BaseChannelLayer
) -> None:
    room, titles, messages = Room(database), Titles(second_database), Subscriber(Message)
    conversations, later, elsewhere = Subscriber(Conversation), Subscriber(Conversation), Subscriber(Message)
    switch, to_second = Switch(second_database), Faulty(layer)
    async with (
        hub_of_both(layer, database, second_database, to_second=switch) as hub,
        led(database, second_database, layer, to_second),
    ):
        await hub.join(messages.operation)
        await hub.join(conversations.operation)
        (first,) = titles.open()
        await conversations.has(first)
        await hub.leave(conversations.operation)
        switch.there = False
        terminate(second_database, "test hub")
        joining = asyncio.create_task(hub.join(later.operation))
        await eventually(lambda: switch.refused)
        await hub.join(elsewhere.operation)
        room.say("while it is joined")
        await messages.has("while it is joined")
        await elsewhere.has("while it is joined")
        switch.there = True
        await joining
        (second,) = titles.open()
        await later.has(second)
        switch.there, switch.refused, to_second.fate = False, 0, lambda message: []
        terminate(second_database, "test hub")
        (lost,) = titles.open()
        await eventually(lambda: switch.refused)
        room.say("while it heals")
        await messages.has("while it heals")
        assert later.received == [second]
        switch.there = True
        await later.has(lost)


@pytest.mark.postgres("18")
async def test_a_listener_that_is_missing_is_noticed_although_messages_of_the_other_flow(
    database: Database, second_database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    layer = InMemoryChannelLayer()
    titles, subscriber = Titles(second_database), Subscriber(Conversation)
    async with (
        hub_of_both(layer, database, second_database, silence=4.0) as hub,
        leading(database, Relay(layer), timing=BEATING),
    ):
        await hub.join(subscriber.operation)
        (key,) = titles.open()
        await subscriber.has(key)
    assert "nothing of database second has come through the channel layer" in caplog.text
    assert "nothing of database default" not in caplog.text


# Models of databases that are not followed.


@pytest.mark.postgres("18")
async def test_subscribing_to_a_model_of_a_database_that_is_not_followed_is_refused(
    database: Database, second_database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    sentence = (
        "conversations.conversation is in database 'second', which is not followed: add it to PGNOTIFY_GQL['DATABASES']"
    )
    with default_layer(), override_settings(PGNOTIFY_GQL={"INLINE_LISTENER": True}):
        with pytest.raises(TopicError) as raised:
            Topic(Conversation)
        assert str(raised.value) == sentence
        async with subscribers(declare(returns(Conversation)), None) as (subscriber,):
            (error,) = await subscriber.refusal()
    assert error["message"] == sentence
    assert sentence in caplog.text


# `manage.py run_listener`.


def environment(second: Database | str) -> dict[str, str]:
    url = second if isinstance(second, str) else second.url
    return {"DJANGO_SETTINGS_MODULE": SETTINGS, "SECOND_DATABASE_URL": url}


def leads(process: Process, alias: str) -> bool:
    return f"leading database {alias} " in process.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_one_run_listener_leads_all_and_stops_all(
    database: Database, second_database: Database, run_listener: Start, redis_server: RedisServer, number: int
) -> None:
    process = run_listener(database, redis_server, environment=environment(second_database))
    await eventually(lambda: leads(process, "default") and leads(process, "second"))
    room, titles = Room(database), Titles(second_database)
    async with receiving(redis_server) as received:
        room.say("one")
        titles.open()
        await received.until(received.contains("one"))
        await received.until(lambda: CONVERSATION in received.labels("second"))
        assert received.labels("default") == {MESSAGE}
        assert received.labels("second") == {CONVERSATION}
    process.send_signal(number)
    assert process.wait() == 0
    assert "Traceback" not in process.log
    for found_in in (database, second_database):
        assert not lock_holders(found_in, names.LEADER_LOCK)


@pytest.mark.postgres("18")
async def test_the_leader_of_one_database_is_killed_and_the_other_goes_on(
    database: Database, second_database: Database, run_listener: Start, redis_server: RedisServer
) -> None:
    one = run_listener(database, redis_server, "--database", "default", environment=environment(second_database))
    two = run_listener(database, redis_server, "--database", "second", environment=environment(second_database))
    assert leads(one, "default")
    assert leads(two, "second")
    room, titles = Room(database), Titles(second_database)
    async with receiving(redis_server) as received:
        two.send_signal(signal.SIGKILL)
        assert two.wait() == -signal.SIGKILL
        titles.open()
        room.say("without the other")
        await received.until(received.contains("without the other"))
        assert received.labels("second") == set()
        again = run_listener(database, redis_server, "--database", "second", environment=environment(second_database))
        await received.until(lambda: CONVERSATION in received.labels("second"))
    assert not leads(one, "second")
    assert not leads(again, "default")


@pytest.mark.postgres("18")
async def test_a_database_that_is_down_at_the_start_keeps_no_other_waiting(
    database: Database, second_database: Database, run_listener: Start, redis_server: RedisServer
) -> None:
    nobody = f"postgresql://postgres@127.0.0.1:{free_port()}/nobody"
    process = run_listener(
        database, redis_server, banner="database second cannot be used", environment=environment(nobody)
    )
    room = Room(database)
    async with receiving(redis_server) as received:
        await eventually(lambda: leads(process, "default"))
        room.say("without the other")
        await received.until(received.contains("without the other"))
    process.terminate()
    assert process.wait() == 0


@pytest.mark.postgres("18")
def test_each_of_several_listeners_may_be_named(
    database: Database, second_database: Database, run_listener: Start
) -> None:
    chosen = ("--database", "second", "--database", "default", "--database", "second")
    process = run_listener(database, None, *chosen, environment=environment(second_database))
    process.wait_for_log("leading database default")
    process.wait_for_log("leading database second")
    assert "standing by" not in process.log


@pytest.mark.postgres("18")
def test_a_database_that_is_not_followed_cannot_be_listened_to(
    database: Database, second_database: Database, run_listener: Start
) -> None:
    with pytest.raises(ProcessExitedWithError) as raised:
        run_listener(database, None, "--database", "third", environment=environment(second_database))
    assert raised.value.exit_code == 1
    (note,) = raised.value.__notes__
    assert "CommandError: --database third: PGNOTIFY_GQL['DATABASES'] does not name it" in note
    assert "it names default, second" in note
    assert "Traceback" not in note


@pytest.mark.postgres("18")
def test_a_database_without_a_journal_ends_the_command_and_the_others_end_in_good_order(
    database: Database, second_database: Database, empty_database: Database, run_listener: Start
) -> None:
    with pytest.raises(ProcessExitedWithError) as raised:
        run_listener(database, banner="never shown", environment=environment(empty_database))
    assert raised.value.exit_code == 1
    (note,) = raised.value.__notes__
    assert "CommandError: database 'second' has no journal: run `manage.py migrate pgnotify_gql --database" in note
    assert "Traceback" not in note
    assert not lock_holders(database, names.LEADER_LOCK)
