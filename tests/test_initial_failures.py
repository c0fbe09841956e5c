"""What may go wrong with an initial state: its code, its database, and its client; and what it leaves behind."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import graphene
import psutil
import pytest
from django.db import connection
from django.db.models import F
from django.test import override_settings
from graphql import GraphQLError
from psycopg import sql

from example.conversations.models import Message
from pgnotify_gql.hub import current_hub
from tests.support.databases import Database
from tests.support.feed import eventually
from tests.support.initial import (
    declare_initial,
    empty_journal,
    every_message,
    live,
    open_transactions,
    up_to,
    up_to_change,
)
from tests.support.layers import default_layer
from tests.support.sockets import AsgiSocket
from tests.support.subscribers import QUERY, Chat, Subscriber, inline_feed, subscribers

pytestmark = pytest.mark.postgres("18")

BY_STATES = "not starts_with(application_name, 'pgnotify_gql ')"
"""Sessions of Django, and not those of listener and hub, which read now and then."""


@pytest.fixture
def chat(database_triggers: Database) -> Iterator[Chat]:
    with inline_feed():
        yield Chat(database_triggers)


@asynccontextmanager
async def settings(**changed: Any) -> AsyncIterator[None]:
    with default_layer(), override_settings(PGNOTIFY_GQL={"INLINE_LISTENER": True, **changed}):
        yield


def failing(error: Exception, after: int = 0) -> Callable[..., Any]:
    """A state that raises behind so many values."""

    def state(cls: Any, info: Any) -> Any:
        yield from [{"text": "one"}] * after
        raise error

    return state


class TestItsCode:
    @pytest.mark.parametrize("after", [0, 3])
    async def test_what_it_refuses_on_purpose_is_told_to_the_client_and_not_logged(
        self, chat: Chat, caplog: pytest.LogCaptureFixture, after: int
    ) -> None:
        error = GraphQLError("you may not see this", extensions={"code": "FORBIDDEN"})
        async with subscribers(declare_initial(failing(error, after)), chat.alice) as (subscriber,):
            errors = await subscriber.refusal()
        assert errors == [{"message": "you may not see this", "extensions": {"code": "FORBIDDEN"}}]
        assert [record for record in caplog.records if record.levelno > logging.INFO] == []

    @override_settings(DEBUG=False)
    @pytest.mark.parametrize("after", [0, 3])
    async def test_whatever_else_it_raises_ends_the_operation_and_is_logged_with_its_traceback(
        self, chat: Chat, caplog: pytest.LogCaptureFixture, after: int
    ) -> None:
        schema = declare_initial(failing(ValueError("no such thing"), after))
        async with subscribers(schema, chat.alice) as (subscriber,):
            (error,) = await subscriber.refusal()
            # The operation is over, the socket is not.
            assert await subscriber.socket.run("{ nothing }") == {"data": {"nothing": None}}
        assert error["message"] == "internal error"
        (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert record.name == "pgnotify_gql.transport"
        assert record.exc_info is not None
        assert isinstance(record.exc_info[1], ValueError)
        assert error["extensions"]["id"] in record.message

    async def test_what_cannot_be_iterated_is_an_error(self, chat: Chat) -> None:
        async with subscribers(declare_initial(lambda cls, info: None), chat.alice) as (subscriber,):
            (error,) = await subscriber.refusal()
        assert error["message"] == "'NoneType' object is not iterable"

    async def test_after_an_error_the_id_may_be_used_again_and_another_state_is_sent(self, chat: Chat) -> None:
        fails = [True]

        def state(cls: Any, info: Any) -> Any:
            if fails.pop():
                raise GraphQLError("not yet")
            return every_message(cls, info)

        fails.insert(0, False)
        chat.insert("one")
        async with subscribers(declare_initial(state), chat.alice) as (subscriber,):
            await subscriber.refusal()
            assert (await live(subscriber)).events == [("state", "one"), ("live", True)]

    async def test_one_that_writes_fails_with_the_word_of_postgresql_and_nothing_is_written(self, chat: Chat) -> None:
        def state(cls: Any, info: Any) -> Any:
            Message.objects.update(text=F("text"))
            return []

        chat.insert("one")
        async with subscribers(declare_initial(state), chat.alice) as (subscriber,):
            (error,) = await subscriber.refusal()
        assert error["message"] == "cannot execute UPDATE in a read-only transaction"

    async def test_one_that_fails_leaves_neither_a_transaction_nor_a_connection_that_is_read_only(
        self, chat: Chat, database_triggers: Database
    ) -> None:
        def next_(cls: Any, change: Any, info: Any) -> Any:
            with connection.cursor() as cursor:
                cursor.execute(
                    "select current_setting('transaction_read_only'), current_setting('transaction_isolation')"
                )
                return {"text": " ".join(cursor.fetchone() or ())}

        asked = []

        def state(cls: Any, info: Any) -> Any:
            asked.append(list(every_message(cls, info)))
            if len(asked) <= 8:
                raise ValueError("no such thing")
            return []

        async with subscribers(declare_initial(state, next=next_), *[chat.alice] * 8) as opened:
            for subscriber in opened:
                await subscriber.refusal()
            assert open_transactions(database_triggers, BY_STATES) == []
            told = [await live(subscriber) for subscriber in opened]
            chat.insert("one")
            for subscriber, each in zip(opened, told, strict=True):
                await up_to(subscriber, "change", each)
        assert {change for each in told for change in each.changes} == {"off read committed"}


class TestItsDatabase:
    async def test_one_whose_database_is_away_is_waited_for(
        self, chat: Chat, database_triggers: Database, caplog: pytest.LogCaptureFixture
    ) -> None:
        chat.insert("one")
        async with subscribers(declare_initial(), chat.alice, chat.alice) as (subscriber, other):
            # The hub is there, with its connections and the model; what is away is the state's.
            await live(other)
            with away(database_triggers):
                subscriber.socket.subscribe(QUERY)
                await eventually(lambda: "an initial state cannot be read" in caplog.text)
            told = await up_to(subscriber, "live")
        assert told.events == [("state", "one"), ("live", True)]

    async def test_one_that_loses_its_database_in_the_middle_is_read_again_and_sent_once(
        self, chat: Chat, database_triggers: Database
    ) -> None:
        asked = []

        def state(cls: Any, info: Any) -> Any:
            asked.append(info)
            for message in every_message(cls, info):
                yield message
                if message.text == "two" and len(asked) == 1:
                    chat.insert("four")
                    with connection.cursor() as cursor:
                        cursor.execute("select pg_terminate_backend(pg_backend_pid())")

        chat.insert("one", "two", "three")
        async with subscribers(declare_initial(state), chat.alice) as (subscriber,):
            told = await live(subscriber)
        assert told.events == [*[("state", text) for text in ("one", "two", "three", "four")], ("live", True)]
        assert len(asked) == 2

    async def test_a_resolver_that_loses_the_database_does_not_spoil_the_state(self, chat: Chat) -> None:
        """Its error would be part of a result, and the others of the same transaction have no database any more."""
        killed: list[Any] = []

        class Asking(graphene.ObjectType):  # type: ignore[misc]
            text = graphene.String()

            @staticmethod
            def resolve_text(message: Any, info: Any) -> str:
                if message.text == "two" and not killed:
                    killed.append(message)
                    with connection.cursor() as cursor:
                        cursor.execute("select pg_terminate_backend(pg_backend_pid())")
                return str(message.text)

        chat.insert("one", "two", "three")
        async with subscribers(declare_initial(output=Asking), chat.alice) as (subscriber,):
            told = await live(subscriber, "subscription { changes { text } }")
        assert told.state == ["one", "two", "three"]


class TestAClientThatLeaves:
    """It has subscribed, and the state is being read."""

    @asynccontextmanager
    async def reading(self, chat: Chat, output: Any = None) -> AsyncIterator[tuple[Subscriber, threading.Event]]:
        """A socket whose state is in the middle; it goes on when the event is set."""
        middle, goes_on = threading.Event(), threading.Event()

        def state(cls: Any, info: Any) -> Any:
            for message in every_message(cls, info).iterator(chunk_size=1):
                yield message
                middle.set()
                assert goes_on.wait(20)

        chat.insert(*map(str, range(100)))
        async with subscribers(declare_initial(state), chat.alice, chat.alice) as (subscriber, _):
            subscriber.socket.subscribe(QUERY)
            await asyncio.to_thread(middle.wait, 20)
            try:
                yield subscriber, goes_on
            finally:
                goes_on.set()

    async def test_by_disconnecting_leaves_no_transaction_and_no_busy_thread(
        self, chat: Chat, database_triggers: Database, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with self.reading(chat) as (subscriber, goes_on):
            assert len(open_transactions(database_triggers, BY_STATES)) == 1
            leaving = asyncio.create_task(subscriber.socket.disconnect())
            goes_on.set()
            await leaving
            await nothing_is_left(database_triggers)
        assert caplog.text == ""

    async def test_by_completing_leaves_no_transaction_and_no_busy_thread_and_is_sent_nothing(
        self, chat: Chat, database_triggers: Database, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with self.reading(chat) as (subscriber, goes_on):
            subscriber.socket.send("complete", id="1")
            goes_on.set()
            await nothing_is_left(database_triggers)
            assert await subscriber.socket.run("{ nothing }", id="2") == {"data": {"nothing": None}}
        assert caplog.text == ""

    async def test_by_completing_and_then_disconnecting_leaves_nothing_either(
        self, chat: Chat, database_triggers: Database, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with self.reading(chat) as (subscriber, goes_on):
            subscriber.socket.send("complete", id="1")
            leaving = asyncio.create_task(subscriber.socket.disconnect())
            for _ in range(20):
                await asyncio.sleep(0)
            goes_on.set()
            await leaving
            await nothing_is_left(database_triggers)
        assert caplog.text == ""

    async def test_while_an_asynchronous_resolver_is_awaited_does_not_wait_for_it(
        self, chat: Chat, database_triggers: Database, caplog: pytest.LogCaptureFixture
    ) -> None:
        waits = asyncio.Event()

        class Waiting(graphene.ObjectType):  # type: ignore[misc]
            text = graphene.String()

            @staticmethod
            async def resolve_text(message: Any, info: Any) -> str:
                waits.set()
                await asyncio.Event().wait()
                return "never"

        chat.insert("one")
        async with subscribers(declare_initial(output=Waiting), chat.alice, chat.alice) as (subscriber, _):
            subscriber.socket.subscribe("subscription { changes { text } }")
            await waits.wait()
            await subscriber.socket.disconnect()
            await nothing_is_left(database_triggers)
        assert caplog.text == ""


class TestASlowClient:
    async def test_a_state_that_is_larger_than_the_outbox_arrives_complete_and_no_transaction_waits_for_the_client(
        self, chat: Chat, database_triggers: Database
    ) -> None:
        texts = [f"{number} {'x' * 1_000}" for number in range(3_000)]
        chat.insert(*texts)
        async with settings(OUTBOX_MESSAGES=50), subscribers(declare_initial(), chat.alice) as (subscriber,):
            subscriber.socket.reads.clear()
            subscriber.socket.subscribe(QUERY)
            await stuck(subscriber.socket)
            await eventually(lambda: open_transactions(database_triggers) == [])
            chat.insert("meanwhile")
            subscriber.socket.reads.set()
            told = await up_to(subscriber, "live")
            await up_to_change(subscriber, "meanwhile", told)
        assert (told.state, told.changes, len(told.events)) == (texts, ["meanwhile"], len(texts) + 2)

    async def test_a_large_state_waits_in_a_file_for_a_client_that_does_not_read(self, chat: Chat) -> None:
        """A hundred times as much as may wait in memory."""
        count, size = 20_000, 5_000

        def state(cls: Any, info: Any) -> Any:
            return ({"text": f"{number} {'x' * size}"} for number in range(count))

        process = psutil.Process()
        async with settings(OUTBOX_MESSAGES=50), subscribers(declare_initial(state), chat.alice) as (subscriber,):
            subscriber.socket.reads.clear()
            before = process.memory_info().rss
            subscriber.socket.subscribe("subscription { changes { text } }")
            await stuck(subscriber.socket)
            grown = process.memory_info().rss - before
            subscriber.socket.reads.set()
            for number in range(count):
                assert (await subscriber.change())["text"].split() == [str(number), "x" * size]
            assert "live" in (await subscriber.result())["extensions"]
        assert grown < 0.3 * count * size

    async def test_a_client_that_never_reads_is_closed_with_a_code_upon_which_it_comes_back(self, chat: Chat) -> None:
        chat.insert(*map(str, range(500)))
        limits = {"OUTBOX_MESSAGES": 50, "SLOW_CLIENT_TIMEOUT": 0.3}
        async with settings(**limits), subscribers(declare_initial(), chat.alice) as (subscriber,):
            subscriber.socket.reads.clear()
            subscriber.socket.subscribe(QUERY)
            closed = await subscriber.socket.closed()
        assert (closed.code, closed.reason) == (1013, "Too many messages are waiting for this client")

    async def test_when_the_journal_is_emptied_while_it_is_behind_it_is_told_and_sent_the_state_again(
        self, chat: Chat, database_triggers: Database
    ) -> None:
        async with settings(OUTBOX_MESSAGES=20), subscribers(declare_initial(), *[chat.alice] * 2) as (slow, quick):
            chat.insert("0")
            told = await live(slow)
            other = await live(quick)
            slow.socket.reads.clear()
            texts = [str(number) for number in range(1, 101)]
            chat.insert(*texts)
            while len(other.changes) < 100:
                other.take(await quick.result())
            empty_journal(database_triggers)
            slow.socket.reads.set()
            await up_to(slow, "live", told)
            chat.insert("later")
            await up_to(slow, "change", told)
        kinds = [kind for kind, _ in told.events]
        taken = kinds.index("resync")
        assert told.events[2:taken] == [("change", text) for text in texts[: taken - 2]]
        assert "have left the journal" in told.events[taken][1]
        assert told.events[taken + 1 :] == [
            *[("state", text) for text in ("0", *texts)],
            ("live", True),
            ("change", "later"),
        ]


async def stuck(socket: AsgiSocket) -> None:
    """Wait until a client that does not read is waited for: the state has been read by then."""
    async with asyncio.timeout(60):
        await socket.waiting.wait()


async def nothing_is_left(database: Database) -> None:
    """Neither a transaction, nor a thread that is not free to serve others."""
    await eventually(lambda: open_transactions(database, BY_STATES) == [])
    workers = current_hub().executor._workers
    together = threading.Barrier(workers)
    async with asyncio.timeout(10):
        await asyncio.gather(*[current_hub().executor.run(together.wait, 10) for _ in range(workers)])


@contextmanager
def away(database: Database) -> Iterator[None]:
    """The database takes no new connections meanwhile, and those of the states are ended."""
    allow = sql.SQL("alter database {} allow_connections {}").format
    with database.server.connect() as admin:
        admin.execute(allow(sql.Identifier(database.name), sql.SQL("false")))
        admin.execute(
            f"select pg_terminate_backend(pid, 10000) from pg_stat_activity where datname = %s and {BY_STATES}",
            [database.name],
        )
    try:
        yield
    finally:
        with database.server.connect() as admin:
            admin.execute(allow(sql.Identifier(database.name), sql.SQL("true")))
