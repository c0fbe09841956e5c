"""What ``pump()`` delivers: the changes of the test's own transaction, to real subscribers, without a commit."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import graphene
import pytest
from channels.db import database_sync_to_async
from django.db import connection, connections, transaction
from django.db.utils import DatabaseError
from django.test import SimpleTestCase
from django.test.utils import CaptureQueriesContext, override_settings
from graphql import GraphQLError

from example.conversations.models import Conversation, Message
from example.conversations.types import MessageType
from example.schema import schema as example_schema
from pgnotify_gql.capture import Kind, change_context
from pgnotify_gql.capture.registry import make_watch, registry
from pgnotify_gql.errors import JournalMissingError, PgnotifyGqlError
from pgnotify_gql.hub import Audience
from pgnotify_gql.subscriptions import Change, ModelSubscription, Subscription, Topic
from pgnotify_gql.testing import (
    GraphqlCommunicator,
    GraphqlResultError,
    NotCapturedError,
    NotOpenError,
    NotSettledError,
    SubscriptionTestError,
    UnexpectedResultError,
    install_triggers,
    pump,
    server,
)
from pgnotify_gql.transport import disconnect_user
from tests.support.databases import Database
from tests.support.subscribers import Query, Seen, declare, returns, seen
from tests.support.watched import make_model
from tests.testing.conftest import Room, furnished

QUERY = "subscription { changes { pk kind text } }"

LATER = 0.05
"""Seconds that a resolver takes which asks somebody else."""


def texts(found: Any) -> list[str]:
    """The texts of all results that are there."""
    return [result["changes"]["text"] for result in found]


def texts_of(changes: Iterable[Change]) -> list[str]:
    """What was written."""
    return [change.new["text"] for change in changes if change.new is not None]


class TestInATransaction:
    def test_changes_are_delivered_before_they_are_committed(self, room: Room, database: Database) -> None:
        with GraphqlCommunicator(declare(returns([Message]))) as client:
            changes = client.subscribe(QUERY)
            message = room.say("tea")
            delivered = pump()
            assert changes.next() == {"changes": {"pk": str(message.pk), "kind": "INSERT", "text": "tea"}}
        assert [(change.kind, change.pk) for change in delivered] == [(Kind.INSERT, message.pk)]
        assert database.connect().execute("select count(*) from conversations_message").fetchone() == (0,)

    def test_each_change_is_delivered_once_and_in_order(self, room: Room) -> None:
        with GraphqlCommunicator(declare(returns([Message]))) as client:
            changes = client.subscribe(QUERY)
            for number in range(3):
                room.say(str(number))
            pump()
            room.say("3")
            pump()
            pump()
            assert texts(changes) == ["0", "1", "2", "3"]

    def test_a_statement_with_many_rows_arrives_whole(self, room: Room) -> None:
        with GraphqlCommunicator(declare(returns([Message]))) as client:
            changes = client.subscribe(QUERY)
            many = [Message(conversation=room.kitchen, author=room.bob, text=str(number)) for number in range(700)]
            Message.objects.bulk_create(many)
            pump()
            assert texts(changes) == [str(number) for number in range(700)]

    def test_who_joins_is_not_told_of_what_was_changed_before(self, room: Room) -> None:
        with GraphqlCommunicator(declare(returns([Message]))) as client:
            first = client.subscribe(QUERY)
            room.say("one")
            second = client.subscribe(QUERY)
            room.say("two")
            assert texts_of(pump()) == ["one", "two"]
            assert (texts(first), texts(second)) == (["one", "two"], ["two"])

    def test_what_is_rolled_back_is_not_delivered_though_somebody_has_joined_meanwhile(self, room: Room) -> None:
        with GraphqlCommunicator(declare(returns([Message]))) as client:
            with transaction.atomic():
                room.say("unsaid")
                changes = client.subscribe(QUERY)
                room.say("unsaid, too")
                transaction.set_rollback(True)
            room.say("said")
            assert texts_of(pump()) == ["said"]
            assert texts(changes) == ["said"]

    def test_the_changes_of_whom_nobody_waits_for_are_returned(self, room: Room) -> None:
        with GraphqlCommunicator(declare(returns([Conversation]))) as client:
            changes = client.subscribe(QUERY)
            with change_context(via="a test"):
                room.say("tea")
            (change,) = pump()
            changes.nothing()
        assert (change.model_label, change.context) == ("conversations.message", {"via": "a test"})

    def test_reading_the_journal_is_no_query_of_the_test(self, room: Room) -> None:
        with GraphqlCommunicator(declare(returns([Message]))) as client:
            client.subscribe(QUERY)
            room.say("tea")
            with CaptureQueriesContext(connection) as queries:
                pump()
        assert list(queries) == []

    def test_the_queries_of_resolvers_are_those_of_the_test(self, room: Room) -> None:
        with GraphqlCommunicator(example_schema, room.alice) as client:
            client.subscribe("subscription { conversations { title } }")
            room.say("tea")
            with CaptureQueriesContext(connection) as queries:
                pump()
        assert len(queries) == 1

    def test_what_closes_old_connections_does_not_end_the_transaction(self, room: Room) -> None:
        async def subscribe(cls: Any, info: Any) -> Any:
            assert await database_sync_to_async(Message.objects.count)() == 0
            return [Message]

        with GraphqlCommunicator(declare(subscribe)) as client:
            changes = client.subscribe(QUERY)
            room.say("tea")
            pump()
            assert texts(changes) == ["tea"]

    def test_asynchronous_queries_see_it_as_well(self, room: Room) -> None:
        async def next_change(cls: Any, change: Any, info: Any) -> Any:
            message = await Message.objects.aget(pk=change.pk)
            return {**seen(change), "text": f"{message.text} in {threading.current_thread().name}"}

        with GraphqlCommunicator(declare(returns([Message]), next_change)) as client:
            changes = client.subscribe(QUERY)
            room.say("tea")
            pump()
            # The event loop is in a thread of its own, in which the method was called.
            assert texts(changes) == ["tea in pgnotify_gql testing"]

    def test_operations_of_one_audience_are_executed_once(self, room: Room) -> None:
        executed: list[int] = []

        def next_change(cls: Any, change: Any, info: Any) -> Any:
            executed.append(change.pk)
            return seen(change)

        with GraphqlCommunicator(declare(returns([Message]), next_change, Audience.EVERYBODY)) as client:
            subscribed = [client.subscribe(QUERY) for _ in range(3)]
            message = room.say("tea")
            pump()
            assert [texts(changes) for changes in subscribed] == [["tea"]] * 3
        assert executed == [message.pk]


class TestUntilItHasSettled:
    def test_a_slow_resolver_is_waited_for(self, room: Room) -> None:
        async def next_change(cls: Any, change: Any, info: Any) -> Any:
            await asyncio.sleep(LATER)
            return seen(change)

        with GraphqlCommunicator(declare(returns([Message]), next_change)) as client:
            changes = client.subscribe(QUERY)
            room.say("tea")
            pump()
            assert texts(changes) == ["tea"]

    def test_a_slow_subscribe_is_waited_for(self, room: Room) -> None:
        async def subscribe(cls: Any, info: Any) -> Any:
            await asyncio.sleep(LATER)
            return [Message]

        with GraphqlCommunicator(declare(subscribe)) as client:
            changes = client.subscribe(QUERY)
            room.say("tea")
            pump()
            assert texts(changes) == ["tea"]

    def test_what_never_ends_is_named(self, room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
        async def next_change(cls: Any, change: Any, info: Any) -> Any:
            await asyncio.Event().wait()

        with GraphqlCommunicator(declare(returns([Message]), next_change)) as client:
            client.subscribe(QUERY)
            room.say("tea")
            monkeypatch.setattr(server, "PATIENCE", LATER)
            with pytest.raises(NotSettledError, match="1 changes in execution"):
                pump()
            monkeypatch.undo()

    async def test_an_event_loop_is_not_blocked(self) -> None:
        with pytest.raises(RuntimeError, match="apump"):
            GraphqlCommunicator(declare(returns([Message]))).open()


class TestPermissions:
    def test_who_loses_a_right_is_told_nothing_more(self, room: Room) -> None:
        class Guarded(Subscription):
            class Meta:
                output = Seen

            @classmethod
            def subscribe(cls, info: Any) -> Any:
                if not Conversation.objects.for_user(info.context.user).filter(title="kitchen").exists():
                    raise GraphQLError("not yours")
                return [Message]

            @classmethod
            def depends_on(cls, info: Any) -> Any:
                return [Topic(Conversation)]

            @classmethod
            def next(cls, change: Any, info: Any) -> Any:
                return seen(change)

        class Subscriptions(graphene.ObjectType):  # type: ignore[misc]
            changes = Guarded.Field()

        with GraphqlCommunicator(graphene.Schema(query=Query, subscription=Subscriptions), room.alice) as client:
            changes = client.subscribe(QUERY)
            room.say("tea")
            pump()
            Conversation.objects.update(title="closed")
            room.say("a secret")
            pump()
            assert texts([changes.next()]) == ["tea"]
            with pytest.raises(GraphqlResultError, match="not yours"):
                changes.next()
            with pytest.raises(GraphqlResultError, match="not yours"):
                changes.nothing()

    def test_a_user_can_be_disconnected(self, room: Room) -> None:
        with (
            GraphqlCommunicator(example_schema, room.alice) as alice,
            GraphqlCommunicator(example_schema, room.bob) as bob,
        ):
            disconnect_user(room.alice)
            assert alice.closed().code == 4403
            with pytest.raises(SubscriptionTestError, match="the socket is open"):
                bob.closed()


class Messages(ModelSubscription):
    """The state first, and then every change."""

    class Meta:
        output = MessageType
        initial = True


class InitialSubscriptions(graphene.ObjectType):  # type: ignore[misc]
    messages = Messages.Field()


class TestInitialState:
    QUERY = "subscription { messages { kind message { text } } }"

    def test_it_is_sent_first_and_what_is_in_it_is_not_sent_again(self, room: Room) -> None:
        room.say("one")
        with GraphqlCommunicator(graphene.Schema(query=Query, subscription=InitialSubscriptions)) as client:
            first = client.subscribe(self.QUERY)
            room.say("two")
            second = client.subscribe(self.QUERY)
            room.say("three")
            pump()
            told = [
                [(found["messages"]["kind"], found["messages"]["message"]["text"]) for found in changes]
                for changes in (first, second)
            ]
        assert told[0] == [(None, "one"), ("INSERT", "two"), ("INSERT", "three")]
        assert sorted(told[1][:2]) == [(None, "one"), (None, "two")]
        assert told[1][2:] == [("INSERT", "three")]

    def test_that_it_is_complete_is_passed_over_between_results(self, room: Room) -> None:
        room.say("one")
        with GraphqlCommunicator(graphene.Schema(query=Query, subscription=InitialSubscriptions)) as client:
            changes = client.subscribe(self.QUERY)
            room.say("two")
            pump()
            assert [changes.next()["messages"]["kind"] for _ in range(2)] == [None, "INSERT"]

    def test_asynchronous_resolvers_of_it_may_ask_in_the_thread_of_the_test(self, room: Room) -> None:
        class Spoken(graphene.ObjectType):  # type: ignore[misc]
            author = graphene.String()

            @staticmethod
            async def resolve_author(message: Message, info: Any) -> str:
                return str(await database_sync_to_async(lambda: message.author.username)())

        class Everything(Subscription):
            class Meta:
                output = Spoken
                initial = True

            @classmethod
            def subscribe(cls, info: Any) -> list[Any]:
                return [Message]

            @classmethod
            def state(cls, info: Any) -> Iterable[Message]:
                return Message.objects.all()

            @classmethod
            def next(cls, change: Any, info: Any) -> Any:
                return change.instance

        class Subscriptions(graphene.ObjectType):  # type: ignore[misc]
            everything = Everything.Field()

        room.say("one")
        with GraphqlCommunicator(graphene.Schema(query=Query, subscription=Subscriptions)) as client:
            assert client.subscribe("subscription { everything { author } }").next() == {
                "everything": {"author": "bob"}
            }

    def test_that_it_is_complete_is_nothing_to_read(self, room: Room) -> None:
        room.say("one")
        with GraphqlCommunicator(graphene.Schema(query=Query, subscription=InitialSubscriptions)) as client:
            changes = client.subscribe(self.QUERY)
            assert len(list(changes)) == 1
            assert changes.cursor is not None
            changes.nothing()
            assert list(changes) == []
            room.say("two")
            pump()
            with pytest.raises(UnexpectedResultError):
                changes.nothing()


class TestCommitted:
    def test_what_others_commit_is_delivered(self, database_triggers: Database) -> None:
        room = furnished()
        with GraphqlCommunicator(declare(returns([Message]))) as client:
            changes = client.subscribe(QUERY)
            database_triggers.connect().execute(
                "insert into conversations_message (conversation_id, author_id, text) values (%s, %s, 'tea')",
                [room.kitchen.pk, room.bob.pk],
            )
            pump()
            assert texts(changes) == ["tea"]

    def test_who_commits_late_is_not_missed(self, database_triggers: Database) -> None:
        room = furnished()
        with GraphqlCommunicator(declare(returns([Message]))) as client:
            changes = client.subscribe(QUERY)
            other = database_triggers.connect()
            with other.transaction():
                other.execute(
                    "insert into conversations_message (conversation_id, author_id, text) values (%s, %s, 'late')",
                    [room.kitchen.pk, room.bob.pk],
                )
                room.say("early")
                pump()
            pump()
            assert texts(changes) == ["early", "late"]


class TestSeveralDatabases:
    def test_a_transaction_in_each_is_read(self, second_database: Database) -> None:
        with GraphqlCommunicator(declare(returns([Conversation]))) as client, transaction.atomic("second"):
            changes = client.subscribe("subscription { changes { label kind } }")
            Conversation.objects.create(title="far away")
            pump()
            assert list(changes) == [{"changes": {"label": "conversations.conversation", "kind": "INSERT"}}]
            transaction.set_rollback(True, "second")
        assert connections["second"].in_atomic_block is False

    def test_a_database_that_the_test_may_not_use_has_no_changes(self, second_database: Database) -> None:
        class OfDefaultAlone(SimpleTestCase):
            databases = {"default"}

        connections["second"].close()
        declared: Any = OfDefaultAlone
        declared._validate_databases()
        declared._add_databases_failures()
        try:
            with GraphqlCommunicator(example_schema):
                assert pump() == []
        finally:
            declared._remove_databases_failures()
            # Of every connection, in every thread: it would stay for the tests that follow.
            declared.doClassCleanups()


class TestWhatIsMissing:
    def test_triggers(self, database: Database) -> None:
        with (
            GraphqlCommunicator(declare(returns([Message]))) as client,
            pytest.raises(NotCapturedError, match=r"conversations.message has no triggers .*install_triggers\(\)"),
        ):
            client.subscribe(QUERY)

    @pytest.mark.postgres("18")
    def test_the_table_of_a_watch(self, database: Database) -> None:
        watch = make_watch(make_model("Ghost", "ghost"))
        registry.add(watch)
        try:
            with pytest.raises(PgnotifyGqlError, match="ghost"):
                install_triggers()
        finally:
            registry.remove(watch.label)

    def test_the_journal(self, empty_database: Database, database: Database) -> None:
        database.connect().execute("drop schema pgnotify_gql cascade")
        with (
            GraphqlCommunicator(declare(returns([Message]))) as client,
            pytest.raises(JournalMissingError, match="migrate pgnotify_gql"),
        ):
            client.subscribe(QUERY)

    def test_somebody_to_deliver_to(self) -> None:
        # Journals are remembered for as long as somebody might come back with a cursor: who was held by an exception.
        gc.collect()
        with pytest.raises(NotOpenError, match="open a GraphqlCommunicator before"):
            pump()

    def test_a_transaction_that_works(self, room: Room) -> None:
        with GraphqlCommunicator(declare(returns([Message]))) as client:
            client.subscribe(QUERY)
            with transaction.atomic():
                try:
                    with connection.cursor() as cursor:
                        cursor.execute("select nothing")
                except DatabaseError:
                    pass
                with pytest.raises(SubscriptionTestError, match="broken by an earlier error"):
                    pump()
                transaction.set_rollback(True)


@pytest.fixture(autouse=True)
def error_messages() -> Iterator[None]:
    """Clients are told what has gone wrong in a resolver of a test."""
    with override_settings(PGNOTIFY_GQL={"SHOW_ERRORS": True}):
        yield
