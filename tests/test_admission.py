"""
An operation whose permission is taken away ends at once; one that may go on misses nothing.

Rights are given and taken by raw SQL, of which nobody tells Django.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from io import StringIO
from typing import Any

import graphene
import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import models
from django.utils.functional import SimpleLazyObject
from graphql import GraphQLError

from example.conversations.models import Membership, Message
from pgnotify_gql.capture.registry import registry
from pgnotify_gql.capture.watch import Watch
from pgnotify_gql.hub import Audience
from pgnotify_gql.subscriptions import Subscription, Topic
from pgnotify_gql.transport import GraphqlSseConsumer
from tests.support.databases import Database
from tests.support.feed import eventually
from tests.support.sockets import WAIT
from tests.support.streams import COMPLETE, get, open_stream
from tests.support.subscribers import Chat, Query, Seen, Subscriber, inline_feed, joined, seen, subscribers

newest = pytest.mark.postgres("18")

QUERY = "subscription ($conversation: ID!) { letters(conversation: $conversation) { text username } }"

ALL = "subscription { all { text } }"

DELETE = "delete from conversations_membership where user_id = %s and conversation_id = %s"
INSERT = "insert into conversations_membership (user_id, conversation_id) values (%s, %s)"

REFUSED = ["you are no member"]

asked: list[str] = []
"""Names of those for whom ``subscribe`` was called, in order."""


def conversations_of(user: Any) -> list[Any]:
    return list(Membership.objects.filter(user=user.pk).values_list("conversation", flat=True))


class Letters(Subscription):
    """Messages of one conversation, for its members."""

    class Meta:
        output = Seen

    class Arguments:
        conversation = graphene.ID(required=True)

    @classmethod
    def depends_on(cls, info: Any, conversation: str) -> list[Topic]:
        user = info.context.user
        return [Topic(Membership, user=user, conversation=conversation), Topic(User, id=user.pk)]

    @classmethod
    def subscribe(cls, info: Any, conversation: str) -> list[Topic]:
        asked.append(info.context.user.username)
        if int(conversation) not in conversations_of(info.context.user):
            raise GraphQLError("you are no member")
        return [Topic(Message, conversation=conversation)]

    @classmethod
    def next(cls, change: Any, info: Any, conversation: str) -> Any:
        return seen(change)


class SharedLetters(Letters):
    """The same, executed once for all sockets of a user."""

    audience = Audience.USER

    class Meta:
        output = Seen


class All(Subscription):
    """Messages of whatever conversations the subscriber is a member of."""

    class Meta:
        output = Seen

    @classmethod
    def depends_on(cls, info: Any) -> list[Topic]:
        return [Topic(Membership, user=info.context.user)]

    @classmethod
    def subscribe(cls, info: Any) -> list[Topic]:
        return [Topic(Message, conversation__in=conversations_of(info.context.user))]

    @classmethod
    def next(cls, change: Any, info: Any) -> Any:
        return seen(change)


class Restless(All):
    """Depends on something else each time."""

    class Meta:
        output = Seen

    numbers = iter(range(10**9))

    @classmethod
    def depends_on(cls, info: Any) -> list[Topic]:
        return [Topic(Membership, user=next(cls.numbers))]


class People(Subscription):
    """Rows of users, for whoever is a member of something."""

    class Meta:
        output = Seen

    @classmethod
    def depends_on(cls, info: Any) -> list[Topic]:
        return [Topic(Membership, user=info.context.user), Topic(User, id=info.context.user.pk)]

    @classmethod
    def subscribe(cls, info: Any) -> list[Any]:
        if not conversations_of(info.context.user):
            raise GraphQLError("you are no member")
        return [User]

    @classmethod
    def next(cls, change: Any, info: Any) -> Any:
        return seen(change)


class Members(All):
    """Memberships of the conversations that the subscriber is in: what decides is what is sent."""

    class Meta:
        output = Seen

    @classmethod
    def subscribe(cls, info: Any) -> list[Topic]:
        return [Topic(Membership, conversation__in=conversations_of(info.context.user))]

    @classmethod
    def next(cls, change: Any, info: Any) -> Any:
        return {**seen(change), "text": f"{change.new['user']} in {change.new['conversation']}"}


class Subscriptions(graphene.ObjectType):  # type: ignore[misc]
    people = People.Field()
    members = Members.Field()
    letters = Letters.Field()
    shared_letters = SharedLetters.Field()
    all = All.Field()
    restless = Restless.Field()


SCHEMA = graphene.Schema(query=Query, subscription=Subscriptions)


@contextmanager
def watched(model: type[models.Model], *columns: str) -> Iterator[None]:
    registry.add(Watch(model, columns))
    try:
        yield
    finally:
        registry.remove(model._meta.label_lower)


@pytest.fixture
def chat(database: Database) -> Iterator[Chat]:
    asked.clear()
    with watched(Membership, "user", "conversation"), watched(User, "is_active", "username"):
        call_command("install_triggers", stdout=StringIO())
        with inline_feed():
            yield Chat(database)


def variables(conversation: Any) -> dict[str, Any]:
    return {"variables": {"conversation": str(conversation.pk)}}


@asynccontextmanager
async def listening(chat: Chat, *users: Any, query: str = QUERY) -> AsyncIterator[list[Subscriber]]:
    """Sockets that are subscribed to the conversation of both."""
    async with subscribers(SCHEMA, *users) as opened:
        for subscriber in opened:
            await subscriber.subscribe(query, **(variables(chat.both) if "$" in query else {}))
        yield opened


async def text(subscriber: Subscriber) -> str:
    [field] = (await subscriber.result())["data"].values()
    found: str = field["text"]
    return found


async def until_error(subscriber: Subscriber) -> list[str]:
    """Return the texts that come before an error, and the messages of that."""
    found: list[str] = []
    while (message := await subscriber.socket.receive())["type"] != "error":
        found.append(message["payload"]["data"]["letters"]["text"])
    return found + [error["message"] for error in message["payload"]]


class TestRevocation:
    async def test_what_is_written_after_a_right_was_taken_away_is_not_sent(self, chat: Chat) -> None:
        # As Channels puts him into the scope.
        lazy = SimpleLazyObject(lambda: chat.alice)
        async with listening(chat, lazy, chat.bob) as [alice, bob]:
            chat.insert("before")
            chat.execute(DELETE, chat.alice.pk, chat.both.pk)
            chat.insert("after")
            # What was on its way when the right was taken is not sent either.
            assert (await until_error(alice)) in (REFUSED, ["before", *REFUSED])
            assert [await text(bob), await text(bob)] == ["before", "after"]
            # Nothing comes behind the error.
            alice.socket.send("ping")
            assert (await alice.socket.receive())["type"] == "pong"

    @newest
    async def test_also_for_a_subscription_to_what_others_depend_on(self, chat: Chat) -> None:
        query = "subscription { people { username } }"
        async with subscribers(SCHEMA, chat.alice, chat.bob) as [alice, bob]:
            for subscriber in (alice, bob):
                await subscriber.subscribe(query)
            with chat.connection.transaction():
                chat.execute("update auth_user set username = 'robert' where id = %s", chat.bob.pk)
                chat.execute("delete from conversations_membership where user_id = %s", chat.alice.pk)
            assert (await bob.result())["data"]["people"]["username"] == "robert"
            alice.socket.send("ping")
            assert (await alice.socket.receive())["type"] == "error"

    @newest
    async def test_also_when_both_are_written_in_one_statement(self, chat: Chat) -> None:
        async with listening(chat, chat.alice) as [alice]:
            chat.execute(
                "with gone as (delete from conversations_membership where user_id = %s returning 1)"
                " insert into conversations_message (conversation_id, author_id, text)"
                " select %s, %s, 'secret' from gone",
                chat.alice.pk, chat.both.pk, chat.bob.pk,
            )  # fmt: skip
            assert await until_error(alice) == REFUSED

    @newest
    async def test_truncating_the_table_takes_everybody_s_away(self, chat: Chat) -> None:
        async with listening(chat, chat.alice, chat.bob) as both:
            chat.execute("truncate conversations_membership")
            chat.insert("after")
            for subscriber in both:
                assert await until_error(subscriber) == REFUSED

    @newest
    async def test_a_deactivated_user_is_nobody_to_subscribe(self, chat: Chat) -> None:
        # The socket is closed as well, a moment before or after.
        async with listening(chat, chat.alice) as [alice]:
            chat.execute("update auth_user set is_active = false where id = %s", chat.alice.pk)
            chat.insert("after")
            closed = await alice.socket.closed()
            assert (closed.code, closed.reason) == (4403, "Forbidden")
        assert asked[-1] in {"alice", ""}

    @newest
    async def test_changes_of_others_are_no_reason_to_ask(self, chat: Chat) -> None:
        async with listening(chat, chat.alice) as [alice]:
            before = len(asked)
            chat.execute(DELETE, chat.bob.pk, chat.both.pk)
            chat.execute("update auth_user set username = 'robert' where id = %s", chat.bob.pk)
            chat.insert("after")
            assert await text(alice) == "after"
            assert len(asked) == before

    @newest
    async def test_a_right_that_is_taken_while_subscribe_is_asked_is_seen(
        self, chat: Chat, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original = Letters.subscribe.__func__  # type: ignore[attr-defined]

        def subscribe(cls: Any, info: Any, conversation: str) -> Any:
            topics = original(cls, info, conversation)
            if len(asked) == 1:
                # Behind the answer, and before anything is followed.
                chat.execute(DELETE, chat.alice.pk, chat.both.pk)
            return topics

        monkeypatch.setattr(Letters, "subscribe", classmethod(subscribe))
        async with subscribers(SCHEMA, chat.alice) as [alice]:
            assert [told["message"] for told in await alice.refusal(QUERY, **variables(chat.both))] == REFUSED

    @newest
    async def test_who_cannot_be_asked_about_is_refused(self, chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
        async with listening(chat, chat.alice) as [alice]:

            def subscribe(cls: Any, info: Any, conversation: str) -> Any:
                raise RuntimeError("the secrets of the house")

            monkeypatch.setattr(Letters, "subscribe", classmethod(subscribe))
            chat.execute("update auth_user set username = 'alicia' where id = %s", chat.alice.pk)
            chat.insert("after")
            assert await until_error(alice) == ["the secrets of the house"]  # with DEBUG, as here

    @newest
    async def test_a_stream_of_events_ends(self, chat: Chat) -> None:
        application = GraphqlSseConsumer.as_asgi(schema=SCHEMA)
        asking = get(application, QUERY, scope={"user": chat.alice}, **variables(chat.both))
        async with open_stream(asking) as stream:
            async with asyncio.timeout(WAIT):
                while not joined():  # noqa: ASYNC110  (a client cannot know when it is live)
                    await asyncio.sleep(0.001)
            chat.insert("before")
            chat.execute(DELETE, chat.alice.pk, chat.both.pk)
            chat.insert("after")
            events = await stream.rest()
            assert "after" not in str(events)
            assert [told["message"] for told in events[-2].result["errors"]] == REFUSED
            assert events[-1] == COMPLETE


class TestGoingOn:
    async def test_whoever_may_go_on_misses_nothing_and_is_sent_nothing_twice(self, chat: Chat) -> None:
        async with listening(chat, chat.alice, chat.alice, query=QUERY) as [first, second]:
            texts = [str(number) for number in range(300)]

            def write() -> None:
                for number, each in enumerate(texts):
                    chat.insert(each)
                    if number % 7 == 0:
                        # Away and back in one transaction: when it is looked at, she is a member.
                        with chat.connection.transaction():
                            chat.execute(DELETE, chat.alice.pk, chat.both.pk)
                            chat.execute(INSERT, chat.alice.pk, chat.both.pk)

            writing = asyncio.create_task(asyncio.to_thread(write))
            for subscriber in (first, second):
                assert [await text(subscriber) for _ in texts] == texts
            await writing
            chat.insert("the end")
            assert [await text(first), await text(second)] == ["the end", "the end"]
        assert len(asked) > 4

    @newest
    async def test_it_waits_for_what_subscribe_returns_now(self, chat: Chat) -> None:
        async with listening(chat, chat.alice, query=ALL) as [alice]:
            chat.insert("in bob's", conversation=chat.bobs)
            chat.insert("in both")
            assert await text(alice) == "in both"
            chat.execute(INSERT, chat.alice.pk, chat.bobs.pk)
            chat.insert("again in bob's", conversation=chat.bobs)
            chat.insert("again in both")
            assert [await text(alice), await text(alice)] == ["again in bob's", "again in both"]
            chat.execute(DELETE, chat.alice.pk, chat.both.pk)
            chat.insert("no longer")
            chat.insert("only here", conversation=chat.bobs)
            assert await text(alice) == "only here"

    @newest
    @pytest.mark.parametrize("first", ["alice", "bob"])
    async def test_what_decides_may_be_what_is_sent(self, chat: Chat, first: str) -> None:
        carol = await User.objects.acreate(username="carol")
        mine, hers = (chat.alice.pk, chat.bobs.pk), (carol.pk, chat.both.pk)
        async with subscribers(SCHEMA, chat.alice) as [alice]:
            await alice.subscribe("subscription { members { text } }")
            rows = (mine, hers) if first == "alice" else (hers, mine)
            chat.execute(f"{INSERT}, (%s, %s)", *rows[0], *rows[1])
            assert {await text(alice), await text(alice)} == {f"{user} in {where}" for user, where in (mine, hers)}
            chat.execute(INSERT, carol.pk, chat.bobs.pk)
            assert await text(alice) == f"{carol.pk} in {chat.bobs.pk}"

    @newest
    async def test_what_was_executed_as_the_user_was_is_not_sent(
        self, chat: Chat, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asking, executing, go_on = (threading.Event() for _ in range(3))
        subscribe, next_ = Letters.subscribe.__func__, Letters.next.__func__  # type: ignore[attr-defined]

        def slow_subscribe(cls: Any, info: Any, conversation: str) -> Any:
            assert asking.wait(10)
            return subscribe(cls, info, conversation)

        def slow_next(cls: Any, change: Any, info: Any, conversation: str) -> Any:
            if not executing.is_set():
                executing.set()
                assert go_on.wait(10)
            return next_(cls, change, info, conversation)

        async with listening(chat, chat.alice) as [alice]:
            before = len(asked)
            monkeypatch.setattr(Letters, "subscribe", classmethod(slow_subscribe))
            monkeypatch.setattr(Letters, "next", classmethod(slow_next))
            chat.execute("update auth_user set username = 'alicia' where id = %s", chat.alice.pk)
            chat.insert("after")
            assert await asyncio.to_thread(executing.wait, 10)
            asking.set()
            await eventually(lambda: len(asked) > before)
            go_on.set()
            assert (await alice.result())["data"]["letters"] == {"text": "after", "username": "alicia"}

    @newest
    @pytest.mark.parametrize("field", ["letters", "sharedLetters"])
    async def test_executions_have_the_user_as_he_is_now(self, chat: Chat, field: str) -> None:
        query = QUERY.replace("letters(", f"{field}(")
        async with listening(chat, chat.alice, chat.alice, query=query) as both:
            chat.insert("before")
            for subscriber in both:
                assert (await subscriber.result())["data"][field]["username"] == "alice"
            chat.execute("update auth_user set username = 'alicia' where id = %s", chat.alice.pk)
            chat.insert("after")
            for subscriber in both:
                assert (await subscriber.result())["data"][field]["username"] == "alicia"

    @newest
    async def test_nothing_is_sent_until_subscribe_has_answered(
        self, chat: Chat, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answer = threading.Event()
        original = Letters.subscribe.__func__  # type: ignore[attr-defined]

        def slow(cls: Any, info: Any, conversation: str) -> Any:
            assert answer.wait(10)
            return original(cls, info, conversation)

        async with listening(chat, chat.alice, chat.bob) as [alice, bob]:
            monkeypatch.setattr(Letters, "subscribe", classmethod(slow))
            with chat.connection.transaction():
                chat.execute(DELETE, chat.alice.pk, chat.both.pk)
                chat.execute(INSERT, chat.alice.pk, chat.both.pk)
            chat.insert("meanwhile")
            assert await text(bob) == "meanwhile"
            alice.socket.send("ping")
            assert (await alice.socket.receive())["type"] == "pong"
            answer.set()
            assert await text(alice) == "meanwhile"

    @newest
    async def test_dependencies_that_are_never_the_same_are_an_error(self, chat: Chat) -> None:
        async with subscribers(SCHEMA, chat.alice) as [alice]:
            errors = await alice.refusal("subscription { restless { text } }")
            assert [told["message"] for told in errors] == ["Internal server error"]
