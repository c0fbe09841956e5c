"""`initial = True`: the current state first, then the live marker, then the stream; nothing between them is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import graphene
import pytest
from django.test import override_settings

from example.conversations.models import Conversation, Message
from pgnotify_gql.errors import ConfigurationError
from pgnotify_gql.hub import Audience
from pgnotify_gql.subscriptions import Subscription
from tests.support.databases import Database, used_by_django
from tests.support.feed import Room
from tests.support.initial import declare_initial, empty_journal, every_message, live, up_to, up_to_change
from tests.support.layers import default_layer
from tests.support.subscribers import Chat, Seen, declare, inline_feed, next_change, returns, subscribers

PRIVATE: dict[str, Any] = {
    "headers": [(b"host", b"localhost"), (b"cookie", b"session=secret"), (b"authorization", b"Bearer secret")],
    "session": {"cart": [1]},
}

WHO = "subscription { changes { text username private } }"


@pytest.fixture
def chat(database_triggers: Database) -> Iterator[Chat]:
    with inline_feed():
        yield Chat(database_triggers)


class TestWhatIsSent:
    async def test_the_state_comes_first_then_the_live_marker_and_then_the_stream(self, chat: Chat) -> None:
        chat.insert("one", "two")
        async with subscribers(declare_initial(), chat.alice) as (subscriber,):
            told = await live(subscriber)
            chat.insert("three")
            await up_to(subscriber, "change", told)
        assert told.events == [("state", "one"), ("state", "two"), ("live", True), ("change", "three")]

    @pytest.mark.postgres("18")
    async def test_the_legacy_subprotocol_has_it_as_well(self, chat: Chat) -> None:
        chat.insert("one")
        async with subscribers(declare_initial(), chat.alice, subprotocol="graphql-ws") as (subscriber,):
            told = await live(subscriber)
            chat.insert("two")
            await up_to(subscriber, "change", told)
        assert told.events == [("state", "one"), ("live", True), ("change", "two")]

    async def test_what_commits_while_the_state_is_read_comes_behind_it(self, chat: Chat) -> None:
        def state(cls: Any, info: Any) -> Any:
            for message in every_message(cls, info).iterator(chunk_size=1):
                yield message
                # Over another connection: the state's own transaction does not see it.
                chat.insert(f"while {message.text} was sent")

        chat.insert("one", "two")
        async with subscribers(declare_initial(state), chat.alice) as (subscriber,):
            told = await live(subscriber)
            # The hub may hear of them later than the marker is sent.
            await up_to_change(subscriber, "while two was sent", told)
        assert told.events[:2] == [("state", "one"), ("state", "two")]
        assert told.changes == ["while one was sent", "while two was sent"]
        assert len(told.events) == 5

    async def test_a_transaction_that_was_open_while_the_state_was_read_comes_when_it_commits(
        self, chat: Chat, database_triggers: Database
    ) -> None:
        writer = database_triggers.connect()
        chat.insert("one")
        async with subscribers(declare_initial(), chat.alice) as (subscriber,):
            with writer.transaction():
                writer.execute("update conversations_message set text = 'one, edited'")
                chat.insert("two")
                told = await live(subscriber)
            await up_to(subscriber, "change", told)
        assert told.events == [("state", "one"), ("state", "two"), ("live", True), ("change", "one, edited")]

    @pytest.mark.postgres("18")
    async def test_an_empty_state_is_the_live_marker_alone(self, chat: Chat) -> None:
        async with subscribers(declare_initial(), chat.alice) as (subscriber,):
            told = await live(subscriber)
            chat.insert("one")
            await up_to(subscriber, "change", told)
        assert told.events == [("live", True), ("change", "one")]

    @pytest.mark.postgres("18")
    async def test_each_value_is_executed_with_the_selection_and_the_variables_of_the_query(self, chat: Chat) -> None:
        def state(cls: Any, info: Any, prefix: str) -> Any:
            return Message.objects.filter(text__startswith=prefix).order_by("pk")

        keys = chat.insert("a 1", "b 1", "a 2")
        schema = declare_initial(state, prefix=graphene.String(required=True))
        mine = "subscription Mine($p: String!) { found: changes(prefix: $p) { words: text pk } }"
        async with subscribers(schema, chat.alice) as (subscriber,):
            subscriber.socket.subscribe(f"query Other {{ nothing }} {mine}", operationName="Mine", variables={"p": "a"})
            results = [await subscriber.result() for _ in range(3)]
        assert results[:2] == [
            {"data": {"found": {"words": text, "pk": str(key)}}, "extensions": {"initial": True}}
            for text, key in (("a 1", keys[0]), ("a 2", keys[2]))
        ]

    @pytest.mark.postgres("18")
    async def test_a_value_that_is_none_is_left_out(self, chat: Chat) -> None:
        schema = declare_initial(lambda cls, info: [{"text": "one"}, None, {"text": "two"}])
        async with subscribers(schema, chat.alice) as (subscriber,):
            told = await live(subscriber)
        assert told.state == ["one", "two"]

    @pytest.mark.postgres("18")
    async def test_an_error_of_a_resolver_is_part_of_its_result_and_the_others_are_sent(self, chat: Chat) -> None:
        class Fragile(graphene.ObjectType):  # type: ignore[misc]
            text = graphene.String()

            @staticmethod
            def resolve_text(message: Any, info: Any) -> str:
                if message.text == "two":
                    raise ValueError("cannot be shown")
                return str(message.text)

        chat.insert("one", "two", "three")
        async with subscribers(declare_initial(output=Fragile), chat.alice) as (subscriber,):
            subscriber.socket.subscribe("subscription { changes { text } }")
            results = [await subscriber.result() for _ in range(4)]
        assert [result["data"] and result["data"]["changes"]["text"] for result in results] == [
            "one", None, "three", None,
        ]  # fmt: skip
        assert results[1]["errors"][0]["message"] == "cannot be shown"
        assert results[1]["extensions"] == {"initial": True}
        assert results[3]["extensions"]["live"] is True

    @pytest.mark.postgres("18")
    async def test_asynchronous_resolvers_inside_the_state_are_awaited_in_order(self, chat: Chat) -> None:
        class Slow(graphene.ObjectType):  # type: ignore[misc]
            text = graphene.String()

            @staticmethod
            async def resolve_text(message: Any, info: Any) -> str:
                await asyncio.sleep(0.02 if message.text == "one" else 0)
                return f"{message.text}, awaited"

        chat.insert("one", "two", "three")
        schema = declare_initial(output=Slow, next=lambda cls, change, info: change.instance)
        async with subscribers(schema, chat.alice) as (subscriber,):
            told = await live(subscriber, "subscription { changes { text } }")
            chat.insert("four")
            await up_to(subscriber, "change", told)
        assert told.state == ["one, awaited", "two, awaited", "three, awaited"]
        assert told.changes == ["four, awaited"]

    @pytest.mark.postgres("18")
    async def test_two_operations_of_one_socket_have_a_state_each(self, chat: Chat) -> None:
        chat.insert("one")
        async with subscribers(declare_initial(audience=Audience.EVERYBODY), chat.alice) as (subscriber,):
            first = await live(subscriber)
            chat.insert("two")
            await up_to(subscriber, "change", first)
            second = await live(subscriber, id="2")
            chat.insert("three")
            both = [await subscriber.result() for _ in range(2)]
        assert first.events == [("state", "one"), ("live", True), ("change", "two")]
        assert second.events == [("state", "one"), ("state", "two"), ("live", True)]
        assert [result["data"]["changes"]["text"] for result in both] == ["three", "three"]

    @pytest.mark.postgres("18")
    async def test_a_subscription_without_it_is_sent_neither_state_nor_marker(self, chat: Chat) -> None:
        chat.insert("one")
        async with subscribers(declare(returns(Message)), chat.alice) as (subscriber,):
            await subscriber.subscribe()
            chat.insert("two")
            assert (await subscriber.change())["text"] == "two"


class TestComingBack:
    async def test_with_a_cursor_there_is_no_state_but_what_was_missed_and_the_marker(self, chat: Chat) -> None:
        chat.insert("one")
        async with subscribers(declare_initial(), chat.alice) as (subscriber,):
            told = await live(subscriber)
        chat.insert("two")
        chat.insert("three")
        async with subscribers(declare_initial(), chat.alice) as (subscriber,):
            told = await live(subscriber, cursor=told.cursor)
            chat.insert("four")
            await up_to(subscriber, "change", told)
        assert told.events == [("change", "two"), ("change", "three"), ("live", True), ("change", "four")]

    @pytest.mark.postgres("18")
    async def test_with_the_cursor_of_the_last_thing_that_happened_there_is_the_marker_alone(self, chat: Chat) -> None:
        async with subscribers(declare_initial(), chat.alice) as (subscriber,):
            told = await live(subscriber)
            chat.insert("one")
            await up_to(subscriber, "change", told)
        async with subscribers(declare_initial(), chat.alice) as (subscriber,):
            assert (await live(subscriber, cursor=told.cursor)).events == [("live", True)]

    async def test_a_cursor_that_is_too_old_is_answered_with_a_resync_then_the_state_then_the_marker(
        self, chat: Chat, database_triggers: Database
    ) -> None:
        chat.insert("one")
        async with subscribers(declare_initial(), chat.alice) as (subscriber,):
            told = await live(subscriber)
        chat.insert("two")
        empty_journal(database_triggers)
        async with subscribers(declare_initial(), chat.alice) as (subscriber,):
            again = await live(subscriber, cursor=told.cursor)
            chat.insert("three")
            await up_to(subscriber, "change", again)
        (reason,) = again.all("resync")
        assert "have left the journal: raise PGNOTIFY_GQL['RETENTION']" in reason
        assert again.events == [
            ("resync", reason),
            ("state", "one"),
            ("state", "two"),
            ("live", True),
            ("change", "three"),
        ]

    @pytest.mark.postgres("18")
    async def test_who_leaves_between_the_resync_and_the_state_is_sent_both_again(
        self, chat: Chat, database_triggers: Database
    ) -> None:
        chat.insert("one")
        async with subscribers(declare_initial(), chat.alice) as (subscriber,):
            told = await live(subscriber)
        chat.insert("two")
        empty_journal(database_triggers)
        async with subscribers(declare_initial(), chat.alice) as (subscriber,):
            subscriber.socket.subscribe("subscription { changes { text } }", extensions={"cursor": told.cursor})
            assert (await up_to(subscriber, "resync")).cursor is None
        chat.insert("three")
        async with subscribers(declare_initial(), chat.alice) as (subscriber,):
            again = await live(subscriber, cursor=told.cursor)
        (reason,) = again.all("resync")
        assert again.events == [
            ("resync", reason),
            *[("state", text) for text in ("one", "two", "three")],
            ("live", True),
        ]

    @pytest.mark.postgres("18")
    async def test_the_cursor_of_another_subscription_brings_a_resync_and_the_state(self, chat: Chat) -> None:
        conversations = declare_initial(
            lambda cls, info: [], returns(Conversation), lambda cls, change, info: {"text": "conversation"}
        )
        async with subscribers(conversations, chat.alice) as (subscriber,):
            told = await live(subscriber)
        chat.insert("one")
        async with subscribers(declare_initial(), chat.alice) as (subscriber,):
            again = await live(subscriber, cursor=told.cursor)
        (reason,) = again.all("resync")
        assert reason.startswith("the cursor is of another subscription")
        assert again.events == [("resync", reason), ("state", "one"), ("live", True)]

    @pytest.mark.postgres("18")
    async def test_a_forged_cursor_is_refused_and_no_state_is_read(self, chat: Chat) -> None:
        asked: list[Any] = []

        def state(cls: Any, info: Any) -> Any:
            asked.append(info)
            return []

        schema = declare_initial(state)
        async with subscribers(schema, chat.alice) as (subscriber,):
            for forged in ("", "forged", 5, ["x"], {"a": 1}):
                (error,) = await subscriber.refusal(extensions={"cursor": forged})
                assert error["extensions"] == {"code": "INVALID_CURSOR"}
                assert error["message"] == "the cursor is not one of this site: subscribe without it"
        assert asked == []


class TestDeclaring:
    def declare(self, state: Any, *, initial: bool) -> Any:
        meta = type("Meta", (), {"output": Seen, "initial": initial})
        body = {"Meta": meta, "subscribe": classmethod(returns(Message)), "next": classmethod(next_change)}
        if state is not None:
            body["state"] = classmethod(state)
        return type("Wrong", (Subscription,), body)

    def test_a_state_that_is_missing_is_an_error(self) -> None:
        with pytest.raises(ConfigurationError, match=r"Wrong has `initial = True` and needs a classmethod state\(\)"):
            self.declare(None, initial=True)

    def test_a_state_that_nobody_asks_for_is_an_error(self) -> None:
        with pytest.raises(ConfigurationError, match=r"Wrong.state\(\) is not asked without `initial = True`"):
            self.declare(every_message, initial=False)

    def test_a_state_that_is_asynchronous_is_an_error(self) -> None:
        async def coroutine(cls: Any, info: Any) -> list[Any]:
            return []

        async def generator(cls: Any, info: Any) -> Any:
            yield None

        for state in (coroutine, generator):
            with pytest.raises(ConfigurationError, match=r"Wrong.state\(\) must be a plain method"):
                self.declare(state, initial=True)


@pytest.mark.postgres("18")
class TestAsWhom:
    """The state is read in the context that executions for changes have."""

    def schema(self, audience: Audience) -> Any:
        def state(cls: Any, info: Any) -> Any:
            request = info.context
            brought = request.session or request.COOKIES or "Authorization" in request.headers
            request.kept = "something of the state's"
            return [{"text": f"read by '{request.user.username}', {'' if brought else 'not '}private"}]

        def next_(cls: Any, change: Any, info: Any) -> Any:
            return {"text": getattr(info.context, "kept", "nothing was kept on the context")}

        return declare_initial(state, next=next_, audience=audience)

    async def results(self, chat: Chat, audience: Audience) -> list[tuple[Any, ...]]:
        async with subscribers(self.schema(audience), chat.alice, chat.bob, chat.bob, **PRIVATE) as opened:
            found = []
            for subscriber in opened:
                subscriber.socket.subscribe(WHO)
                found.append((await subscriber.result())["data"]["changes"])
                await up_to(subscriber, "live")
            chat.insert("one")
            changes = [await subscriber.change() for subscriber in opened]
        assert {change["text"] for change in changes} == {"nothing was kept on the context"}
        assert [(change["username"], change["private"]) for change in changes] == [
            (each["username"], each["private"]) for each in found
        ]
        return [tuple(each.values()) for each in found]

    async def test_by_default_every_subscriber_reads_it_as_himself(self, chat: Chat) -> None:
        assert await self.results(chat, Audience.NOBODY) == [
            (f"read by '{name}', private", name, True) for name in ("alice", "bob", "bob")
        ]

    async def test_an_audience_of_one_user_reads_it_as_the_user_without_what_a_socket_brought(self, chat: Chat) -> None:
        assert await self.results(chat, Audience.USER) == [
            (f"read by '{name}', not private", name, False) for name in ("alice", "bob", "bob")
        ]

    async def test_an_audience_of_everybody_reads_it_as_nobody(self, chat: Chat) -> None:
        assert await self.results(chat, Audience.EVERYBODY) == [("read by '', not private", "", False)] * 3


@pytest.fixture
def replica(database_triggers: Database) -> Iterator[None]:
    """The alias "replica", which a router sends reads to; it leads to the same database: only its name matters."""
    router = override_settings(DATABASE_ROUTERS=[f"{__name__}.ReadsFromReplica"])
    with used_by_django(database_triggers, "replica"), router:
        yield


class ReadsFromReplica:
    """A router of reads."""

    def db_for_read(self, model: Any, **hints: Any) -> str:
        return "replica"

    def db_for_write(self, model: Any, **hints: Any) -> str:
        return "default"


@pytest.mark.postgres("18")
class TestDatabases:
    async def test_a_state_of_two_databases_is_followed_by_the_stream_of_both(
        self, database: Database, second_database: Database
    ) -> None:
        def state(cls: Any, info: Any) -> Any:
            yield from ({"text": found.title} for found in Conversation.objects.order_by("pk"))
            yield from Message.objects.order_by("pk")
            titles.execute("insert into conversations_conversation (title) values ('meanwhile')")

        room, titles = Room(database), second_database.connect()
        titles.execute("insert into conversations_conversation (title) values ('title')")
        room.say("message")
        schema = declare_initial(
            state,
            returns([Message, Conversation]),
            lambda cls, change, info: {"text": (change.new or {}).get("text", "a conversation")},
        )
        with default_layer():
            async with subscribers(schema, None) as (subscriber,):
                told = await live(subscriber)
                room.say("later")
                await up_to_change(subscriber, "later", told)
                await up_to_change(subscriber, "a conversation", told)
            cursor = told.cursor
            room.say("missed")
            titles.execute("insert into conversations_conversation (title) values ('missed')")
            async with subscribers(schema, None) as (subscriber,):
                again = await live(subscriber, cursor=cursor)
        assert told.events[:2] == [("state", "title"), ("state", "message")]
        assert sorted(told.events[2:]) == sorted([("change", "a conversation"), ("live", True), ("change", "later")])
        assert sorted(again.events) == sorted([("change", "missed"), ("change", "a conversation"), ("live", True)])
        assert again.events[-1] == ("live", True)

    @pytest.mark.usefixtures("replica")
    async def test_a_state_that_a_router_sends_to_a_replica_is_refused_and_using_is_the_way_out(
        self, chat: Chat, caplog: pytest.LogCaptureFixture
    ) -> None:
        def pinned(cls: Any, info: Any) -> Any:
            return Message.objects.using("default").order_by("pk")

        chat.insert("one")
        async with subscribers(declare_initial(), chat.alice) as (subscriber,):
            (error,) = await subscriber.refusal()
        async with subscribers(declare_initial(pinned), chat.alice) as (subscriber,):
            told = await live(subscriber)
        message = (
            "the initial state was read from database 'replica', but changes of conversations.message are captured in "
            "'default', and what the one lags behind the other would be missed: read it with .using('default')"
        )
        assert error["message"] == message
        assert message in caplog.text
        assert told.events == [("state", "one"), ("live", True)]

    @pytest.mark.usefixtures("replica")
    async def test_after_a_refused_state_the_replica_is_read_by_others_again(self, chat: Chat) -> None:
        def next_(cls: Any, change: Any, info: Any) -> Any:
            return {"text": f"{Message.objects.count()} in {Message.objects.all().db}"}

        initial, plain = declare_initial(), declare(returns(Message), next_)
        async with subscribers(plain, chat.alice) as (other,):
            # One hub, and more states than it has worker threads.
            async with subscribers(initial, *[chat.alice] * 8) as opened:
                await asyncio.gather(*[subscriber.refusal() for subscriber in opened])
            await other.subscribe()
            for text in ("one", "two", "three", "four", "five", "six", "seven", "eight"):
                chat.insert(text)
            for _ in range(8):
                assert (await other.change())["text"].endswith("in replica")
