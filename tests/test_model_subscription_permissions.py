"""
`ModelSubscription` and who may see what: every way in which a row could reach somebody that it is not for.

That nothing is sent is seen by what comes next: a change that the subscriber may see, committed after the others.
It has to be of the same operation: what two of them are sent has no order.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import graphene
import pytest
from django.contrib.auth.models import AnonymousUser
from django.db import models
from django.db.models import Prefetch, Value, prefetch_related_objects
from graphene_django import DjangoObjectType
from graphql import GraphQLError

from example.conversations.models import Membership, Message
from pgnotify_gql.hub import Audience
from tests.support.databases import Database
from tests.support.model_changes import (
    Letter,
    Postcard,
    everybody_can_see,
    letters,
    own_stock,
    query,
    schema_of,
)
from tests.support.stock import Stock
from tests.support.subscribers import Chat, Subscriber, inline_feed, subscribers

newest = pytest.mark.postgres("18")

SECRET = "the secret of bob"

END = "all may see the end"


@pytest.fixture
def chat(database_triggers: Database) -> Iterator[Chat]:
    with inline_feed():
        yield Chat(database_triggers)


async def until_end(chat: Chat, *receivers: Subscriber) -> list[list[dict[str, Any]]]:
    """Write what all may see, and return what each of them was sent before it."""
    chat.insert(END)
    return [await _until_end(subscriber) for subscriber in receivers]


async def _until_end(subscriber: Subscriber) -> list[dict[str, Any]]:
    found = []
    while END not in json.dumps(result := await subscriber.result()):
        found.append(result)
    return found


def moved(chat: Chat, pk: int, conversation: Any) -> None:
    chat.execute("update conversations_message set conversation_id = %s where id = %s", conversation.pk, pk)


class TestGetQueryset:
    async def test_decides_for_every_change_whoever_else_is_sent_it(self, chat: Chat) -> None:
        async with subscribers(schema_of(), chat.alice, chat.bob, AnonymousUser()) as [alice, bob, nobody]:
            for subscriber in (alice, bob, nobody):
                await subscriber.subscribe(query())
            [pk] = chat.insert(SECRET, conversation=chat.bobs)
            chat.execute("update conversations_message set text = text || '!' where id = %s", pk)
            chat.execute("delete from conversations_message where id = %s", pk)
            [for_alice] = await until_end(chat, alice)
            assert for_alice == []
            # Of the insertion and the update there may be no row left to ask for.
            told = [result["data"]["changes"]["kind"] for result in await _until_end(bob)]
            assert told[-1] == "DELETE"
            nobody.socket.send("ping")
            assert (await nobody.socket.receive())["type"] == "pong"

    @newest
    async def test_is_asked_anew_when_a_permission_is_given_and_taken(self, chat: Chat) -> None:
        async with subscribers(schema_of(), chat.alice) as [alice]:
            await alice.subscribe(query())
            [pk] = chat.insert(SECRET, conversation=chat.bobs)
            assert await until_end(chat, alice) == [[]]
            chat.execute(
                "insert into conversations_membership (conversation_id, user_id) values (%s, %s)",
                chat.bobs.pk, chat.alice.pk,
            )  # fmt: skip
            chat.execute("update conversations_message set text = 'while member' where id = %s", pk)
            assert await letters(alice, 1) == ["while member"]
            chat.execute("delete from conversations_membership where conversation_id = %s", chat.bobs.pk)
            chat.execute("update conversations_message set text = %s where id = %s", SECRET, pk)
            assert await until_end(chat, alice) == [[]]

    @newest
    async def test_decides_of_the_initial_rows(self, chat: Chat) -> None:
        chat.insert(SECRET, conversation=chat.bobs)
        chat.insert("for both")
        async with subscribers(schema_of(initial=True), chat.alice, AnonymousUser()) as [alice, nobody]:
            alice.socket.subscribe(query())
            assert await letters(alice, 1) == ["for both"]
            nobody.socket.subscribe(query())
            for subscriber in (alice, nobody):
                assert (await subscriber.result())["extensions"]["live"] is True

    @newest
    async def test_may_be_a_static_method(self, chat: Chat) -> None:
        class Static(DjangoObjectType):  # type: ignore[misc]
            class Meta:
                model = Message
                fields = ("id", "text")
                skip_registry = True

            get_queryset = staticmethod(lambda queryset, info: queryset.exclude(text=SECRET))

        async with subscribers(schema_of(output=Static), chat.alice) as [alice]:
            await alice.subscribe(query())
            chat.insert(SECRET)
            assert await until_end(chat, alice) == [[]]

    @newest
    async def test_an_argument_brings_nothing_that_it_hides(self, chat: Chat) -> None:
        schema = schema_of(optional=["conversation__in", "pk__in"])
        async with subscribers(schema, chat.alice, chat.alice) as [one, other]:
            [pk] = chat.insert("before", conversation=chat.bobs)
            await one.subscribe(query(f"conversationIn: [{chat.bobs.pk}, {chat.both.pk}]"))
            # The next key is that of the end.
            await other.subscribe(query(f"pkIn: [{pk}, {pk + 1}]"))
            chat.execute("update conversations_message set text = %s where id = %s", SECRET, pk)
            chat.execute("delete from conversations_message where id = %s", pk)
            assert await until_end(chat, one, other) == [[], []]


class TestTheManager:
    """A model's default manager has its say as well: an output type starts with what it finds."""

    @pytest.fixture
    def page(self, database: Database) -> Iterator[tuple[Stock, Any]]:
        class Present(models.Manager[Any]):
            def get_queryset(self) -> models.QuerySet[Any]:
                return super().get_queryset().filter(deleted=False).annotate(greeting=Value("hello"))

        with inline_feed(), own_stock(database) as stock:
            page: Any = stock.model(
                "Page", text=models.TextField(), deleted=models.BooleanField(default=False), objects=Present()
            )
            stock.create(page)
            stock.watch(page, columns="__all__")
            yield stock, page

    @newest
    async def test_hides_rows_of_a_type_that_has_no_get_queryset(self, page: tuple[Stock, Any]) -> None:
        stock, model = page

        class Page(DjangoObjectType):  # type: ignore[misc]
            class Meta:
                fields = ("text",)
                skip_registry = True

            Meta.model = model  # type: ignore[attr-defined]
            greeting = graphene.String()

        async with subscribers(schema_of(None, output=Page, object_field="page"), None) as [subscriber]:
            await subscriber.subscribe(query("", "transition page { text greeting }"))
            stock.run("insert into stock_page (text, deleted) values ('hidden', true), ('shown', false)")
            assert await subscriber.change() == {"transition": "ENTER", "page": {"text": "shown", "greeting": "hello"}}


class TestRowsThatAreSeenNoMore:
    async def test_a_row_that_becomes_invisible_leaves_without_data(self, chat: Chat) -> None:
        async with subscribers(schema_of(), chat.alice) as [alice]:
            [pk] = chat.insert("hello")
            await alice.subscribe(query())
            chat.execute(
                "update conversations_message set conversation_id = %s, text = %s where id = %s",
                chat.bobs.pk, SECRET, pk,
            )  # fmt: skip
            assert await alice.change() == {
                "kind": "UPDATE", "pk": str(pk), "transition": "LEAVE", "changedFields": [], "letter": None,
            }  # fmt: skip
            chat.execute("update conversations_message set text = 'more' where id = %s", pk)
            chat.execute("delete from conversations_message where id = %s", pk)
            assert await until_end(chat, alice) == [[]]

    async def test_a_deletion_reaches_only_those_who_could_see_the_row(self, chat: Chat) -> None:
        [bobs] = chat.insert(SECRET, conversation=chat.bobs)
        [both] = chat.insert("hello")
        async with subscribers(schema_of(), chat.alice, chat.bob) as [alice, bob]:
            for subscriber in (alice, bob):
                await subscriber.subscribe(query())
            chat.execute("delete from conversations_message")
            expected: dict[str, Any] = {"kind": "DELETE", "transition": "LEAVE", "changedFields": [], "letter": None}
            assert await alice.change() == {**expected, "pk": str(both)}
            assert {(await bob.change())["pk"] for _ in range(2)} == {str(bobs), str(both)}
            assert await until_end(chat, alice) == [[]]

    @newest
    async def test_a_row_that_leaves_what_was_asked_for_is_told_to_those_who_could_see_it(self, chat: Chat) -> None:
        [bobs, both] = [*chat.insert("x", conversation=chat.bobs), *chat.insert("x")]
        async with subscribers(schema_of(optional=["text__in"]), chat.alice) as [alice]:
            await alice.subscribe(query(f'textIn: ["x", "{END}"]'))
            chat.execute("update conversations_message set text = %s where id = %s", SECRET, bobs)
            chat.execute("update conversations_message set text = %s where id = %s", SECRET, both)
            assert (await alice.change())["pk"] == str(both)
            assert await until_end(chat, alice) == [[]]

    @newest
    async def test_without_can_see_they_are_withheld(self, chat: Chat) -> None:
        async with subscribers(schema_of(None, optional=["text__in"]), chat.alice) as [alice]:
            keys = chat.insert("x", "x", "x")
            await alice.subscribe(query(f'textIn: ["x", "{END}"]'))
            chat.execute("delete from conversations_message where id = %s", keys[0])
            chat.execute("update conversations_message set text = 'y' where id = %s", keys[1])
            moved(chat, keys[2], chat.bobs)
            assert await until_end(chat, alice) == [[]]

    @newest
    async def test_a_row_is_asked_after_as_it_was_and_not_as_it_is(self, chat: Chat) -> None:
        asked: list[Any] = []

        def can_see(cls: Any, change: Any, info: Any) -> bool:
            asked.append((info.context.user.username, change.old["conversation"], change.old["text"]))
            return False

        [pk] = chat.insert("hello")
        async with subscribers(schema_of(can_see), chat.alice) as [alice]:
            await alice.subscribe(query())
            chat.execute(
                "update conversations_message set conversation_id = %s, text = 'new' where id = %s", chat.bobs.pk, pk
            )
            assert await until_end(chat, alice) == [[]]
        assert asked == [("alice", chat.both.pk, "hello")]

    @newest
    async def test_a_row_that_is_inserted_and_hidden_at_once_is_told_to_nobody(self, chat: Chat) -> None:
        async with subscribers(schema_of(everybody_can_see), chat.alice) as [alice]:
            await alice.subscribe(query())
            chat.insert(SECRET, conversation=chat.bobs)
            assert await until_end(chat, alice) == [[]]


class TestChangedFields:
    @newest
    @pytest.mark.parametrize("output", [Letter, Postcard])
    async def test_never_name_columns_that_the_type_does_not_show(self, chat: Chat, output: Any) -> None:
        [pk] = chat.insert("hello")
        async with subscribers(schema_of(output=output), chat.bob) as [bob]:
            await bob.subscribe(query())
            chat.execute(
                "update conversations_message set author_id = %s, conversation_id = %s, text = 'hi' where id = %s",
                chat.alice.pk, chat.bobs.pk, pk,
            )  # fmt: skip
            expected = ["conversation", "text"] if output is Letter else ["text"]
            assert (await bob.change())["changedFields"] == expected
            chat.execute("update conversations_message set author_id = %s where id = %s", chat.bob.pk, pk)
            assert (await bob.change())["changedFields"] == []


class TestSharing:
    @pytest.mark.parametrize("audience", [Audience.NOBODY, Audience.USER])
    @newest
    async def test_users_who_ask_the_same_are_each_sent_what_is_theirs(self, chat: Chat, audience: Audience) -> None:
        schema = schema_of(audience=audience, initial=True)
        [bobs] = chat.insert(SECRET, conversation=chat.bobs)
        users = [chat.bob, chat.alice, chat.bob, chat.alice, AnonymousUser()]
        async with subscribers(schema, *users) as opened:
            for subscriber in opened:
                subscriber.socket.subscribe(query())
            for subscriber in opened[::2][:2]:
                assert await letters(subscriber, 1) == [SECRET]
            for subscriber in opened:
                assert (await subscriber.result())["extensions"]["live"] is True
            chat.execute("update conversations_message set text = text || '!' where id = %s", bobs)
            for_bob, for_alice, for_bob_again, for_alice_again = await until_end(chat, *opened[:4])
        assert for_bob == for_bob_again
        assert [result["data"]["changes"]["letter"]["text"] for result in for_bob] == [f"{SECRET}!"]
        assert for_alice == for_alice_again == []

    @newest
    async def test_what_everybody_shares_is_what_nobody_in_particular_may_see(self, chat: Chat) -> None:
        private = {"session": {"cart": [1]}}
        shared = schema_of(audience=Audience.EVERYBODY, initial=True)
        chat.insert(SECRET)
        async with subscribers(shared, chat.bob, chat.alice, AnonymousUser(), **private) as opened:
            for subscriber in opened:
                subscriber.socket.subscribe(query())
                assert (await subscriber.result())["extensions"]["live"] is True
            chat.insert(SECRET)
            chat.execute("delete from conversations_message")
            chat.execute("truncate conversations_message")
            for subscriber in opened:
                assert (await subscriber.change())["kind"] == "TRUNCATE"

    @newest
    @pytest.mark.parametrize("audience", list(Audience))
    async def test_a_filter_by_arguments_is_not_shared_with_others(self, chat: Chat, audience: Audience) -> None:
        schema = schema_of(output=Postcard, audience=audience, required=["conversation"])
        asked = "subscription S($c: ID!) { changes(conversation: $c) { letter { text } } }"
        async with subscribers(schema, chat.alice, chat.bob, chat.bob) as [alice, one, other]:
            await alice.subscribe(asked, variables={"c": str(chat.both.pk)})
            await one.subscribe(asked, variables={"c": str(chat.both.pk)})
            await other.subscribe(asked, variables={"c": str(chat.bobs.pk)})
            chat.insert(SECRET, conversation=chat.bobs)
            assert await letters(other, 1) == [SECRET]
            assert await until_end(chat, alice, one) == [[], []]


def resolved(resolve: Callable[[Any, Any], Any]) -> Any:
    """Return a type of messages without a get_queryset, whose field `mine` is resolved by a function."""

    class Shared(DjangoObjectType):  # type: ignore[misc]
        class Meta:
            model = Message
            fields = ("id", "text", "conversation")
            skip_registry = True

        mine = graphene.String()
        resolve_mine = staticmethod(resolve)

    return Shared


class TestCaching:
    """Where the type has no get_queryset, all are sent the row of one fetch; what resolvers keep on it is their own."""

    @newest
    async def test_what_a_resolver_keeps_on_the_row_is_not_there_for_another_user(self, chat: Chat) -> None:
        def mine(message: Any, info: Any) -> str:
            if not hasattr(message, "kept"):
                message.kept = info.context.user.username
            kept: str = message.kept
            return kept

        async with subscribers(schema_of(output=resolved(mine)), chat.alice, chat.bob) as [alice, bob]:
            for subscriber in (alice, bob):
                await subscriber.subscribe(query("", "letter { mine }"))
            chat.insert("hello")
            assert (await alice.change())["letter"] == {"mine": "alice"}
            assert (await bob.change())["letter"] == {"mine": "bob"}

    @newest
    async def test_what_a_resolver_prefetches_for_a_user_is_not_there_for_another(self, chat: Chat) -> None:
        def mine(message: Any, info: Any) -> str:
            own = Membership.objects.filter(user=info.context.user).select_related("user")
            prefetch_related_objects([message], Prefetch("conversation__memberships", own))
            return ", ".join(membership.user.username for membership in message.conversation.memberships.all())

        async with subscribers(schema_of(output=resolved(mine)), chat.alice, chat.bob) as [alice, bob]:
            for subscriber in (alice, bob):
                await subscriber.subscribe(query("", "letter { mine }"))
            chat.insert("hello")
            assert (await alice.change())["letter"] == {"mine": "alice"}
            assert (await bob.change())["letter"] == {"mine": "bob"}

    @newest
    async def test_a_related_row_that_is_kept_for_a_user_is_not_there_for_another_in_another_thread(
        self, chat: Chat
    ) -> None:
        meeting = threading.Barrier(2)

        def mine(message: Any, info: Any) -> str:
            # As graphene-django does for a foreign key to a type with a get_queryset.
            conversation = message.conversation
            conversation.unread_by = info.context.user.username
            message.conversation = conversation
            meeting.wait(10)
            kept: str = message.conversation.unread_by
            meeting.wait(10)
            return kept

        async with subscribers(schema_of(output=resolved(mine)), chat.alice, chat.bob) as [alice, bob]:
            for subscriber in (alice, bob):
                await subscriber.subscribe(query("", "letter { mine }"))
            chat.insert("hello")
            assert (await alice.change())["letter"] == {"mine": "alice"}
            assert (await bob.change())["letter"] == {"mine": "bob"}

    @newest
    async def test_a_batch_keeps_nothing_for_the_batch_of_another_user_or_for_the_next(self, chat: Chat) -> None:
        def mine(message: Any, info: Any) -> str:
            batch = info.context.batch
            kept: list[Any] = batch.once("who", lambda: [info.context.user.username, batch.changes[-1].pk])
            return f"{kept[0]}: {message.pk in [change.pk for change in batch.changes]}"

        async with subscribers(schema_of(output=resolved(mine)), chat.alice, chat.bob, chat.alice) as opened:
            for subscriber in opened:
                await subscriber.subscribe(query("", "letter { mine }"))
            for _ in range(3):
                chat.insert("one", "two")
                for subscriber, name in zip(opened, ["alice", "bob", "alice"], strict=True):
                    for _ in range(2):
                        assert (await subscriber.change())["letter"] == {"mine": f"{name}: True"}


class TestErrors:
    @newest
    @pytest.mark.parametrize("audience", [Audience.NOBODY, Audience.USER])
    async def test_of_one_user_are_not_sent_to_another_and_tell_nothing_of_the_row(
        self, chat: Chat, audience: Audience
    ) -> None:
        class Strict(DjangoObjectType):  # type: ignore[misc]
            class Meta:
                model = Message
                fields = ("id", "text")
                skip_registry = True

            @classmethod
            def get_queryset(cls, queryset: Any, info: Any) -> Any:
                if info.context.user.username == "alice":
                    raise GraphQLError("not for you")
                return queryset

        schema = schema_of(output=Strict, audience=audience)
        async with subscribers(schema, chat.alice, chat.bob) as [alice, bob]:
            for subscriber in (alice, bob):
                await subscriber.subscribe(query())
            chat.insert(SECRET)
            refused = await alice.result()
            assert refused["data"] == {"changes": None}
            assert [error["message"] for error in refused["errors"]] == ["not for you"]
            assert SECRET not in json.dumps(refused)
            assert await letters(bob, 1) == [SECRET]

    @newest
    async def test_in_can_see_send_no_row(self, chat: Chat) -> None:
        def can_see(cls: Any, change: Any, info: Any) -> bool:
            raise ValueError(f"cannot tell of {change.old['text']}")

        [pk] = chat.insert(SECRET, conversation=chat.bobs)
        async with subscribers(schema_of(can_see), chat.alice) as [alice]:
            await alice.subscribe(query())
            chat.execute("delete from conversations_message where id = %s", pk)
            failed = await alice.result()
            assert failed["data"] == {"changes": None}

    @newest
    async def test_of_a_row_that_cannot_be_read_keep_no_other_row_of_the_batch_back(self, chat: Chat) -> None:
        class Dated(DjangoObjectType):  # type: ignore[misc]
            class Meta:
                model = Message
                fields = ("id", "text")
                skip_registry = True

            @classmethod
            def get_queryset(cls, queryset: Any, info: Any) -> Any:
                return queryset.all()

        async with subscribers(schema_of(output=Dated), chat.alice) as [alice]:
            await alice.subscribe(query())
            chat.execute("begin")
            keys = chat.insert("one", "unreadable", "three")
            chat.execute("update conversations_message set created_at = 'infinity' where id = %s", keys[1])
            chat.execute("commit")
            results = [await alice.result() for _ in range(4)]
        rows = [result["data"]["changes"] and result["data"]["changes"]["letter"]["text"] for result in results]
        assert rows == ["one", None, "three", None]


class TestCursors:
    async def test_of_one_user_bring_another_what_is_hers_and_nothing_else(self, chat: Chat) -> None:
        schema = schema_of()
        async with subscribers(schema, chat.bob, chat.alice) as [bob, alice]:
            await bob.subscribe(query("", "cursor"))
            chat.insert("first")
            cursor = (await bob.change())["cursor"]
            chat.insert("for both")
            [pk] = chat.insert(SECRET, conversation=chat.bobs)
            chat.execute("update conversations_message set text = text || '!' where id = %s", pk)
            chat.execute("delete from conversations_message where id = %s", pk)
            alice.socket.subscribe(query(), extensions={"cursor": cursor})
            assert await letters(alice, 1) == ["for both"]
            assert await until_end(chat, alice) == [[]]

    @newest
    async def test_of_a_shared_execution_bring_a_user_what_is_his_alone(self, chat: Chat) -> None:
        async with subscribers(schema_of(audience=Audience.USER), chat.bob, chat.alice) as [bob, alice]:
            await bob.subscribe(query("", "cursor"))
            chat.insert("first")
            cursor = (await bob.change())["cursor"]
            chat.insert(SECRET, conversation=chat.bobs)
            alice.socket.subscribe(query(), extensions={"cursor": cursor})
            assert await until_end(chat, alice) == [[]]

    @newest
    async def test_skip_the_initial_rows_and_so_show_none_of_them(self, chat: Chat) -> None:
        schema = schema_of(initial=True)
        chat.insert("there")
        async with subscribers(schema, chat.bob, chat.alice) as [bob, alice]:
            bob.socket.subscribe(query())
            assert await letters(bob, 1) == ["there"]
            cursor = (await bob.result())["extensions"]["cursor"]
            chat.insert(SECRET, conversation=chat.bobs)
            alice.socket.subscribe(query(), extensions={"cursor": cursor})
            assert (await alice.result())["extensions"]["live"] is True
            assert await until_end(chat, alice) == [[]]
