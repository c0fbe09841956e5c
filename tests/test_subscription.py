"""`Subscription`: what an application declares, and what its subscribers are sent."""

import inspect
import logging
from collections.abc import Callable, Iterator
from typing import Any

import graphene
import pytest
from django.contrib.auth.models import AnonymousUser, User
from graphql import GraphQLError

from example.conversations.models import Conversation, Message
from example.conversations.subscriptions import ConversationsSubscription
from example.conversations.types import MessageType
from example.schema import schema as example_schema
from pgnotify_gql.capture import Kind
from pgnotify_gql.errors import ConfigurationError
from pgnotify_gql.subscriptions import Subscription, Topic
from tests.support.databases import Database
from tests.support.subscribers import Chat, Query, Seen, declare, inline_feed, next_change, returns, seen, subscribers

EVERY_MESSAGE = returns(Message)

SERIES = 200


@pytest.fixture
def chat(database_triggers: Database) -> Iterator[Chat]:
    with inline_feed():
        yield Chat(database_triggers)


def field_of(subscription: Any, **options: Any) -> Any:
    """Return the field as the schema has it."""

    class Subscriptions(graphene.ObjectType):  # type: ignore[misc]
        declared = subscription.Field(**options)

    schema = graphene.Schema(query=Query, subscription=Subscriptions).graphql_schema
    assert schema.subscription_type is not None
    [(name, field)] = schema.subscription_type.fields.items()
    return name, field


class Declared(Subscription):
    """What the class says."""

    class Meta:
        output = Seen

    class Arguments:
        conversation_id = graphene.ID(required=True, description="Which one.")
        limit = graphene.Int(default_value=10)

    subscribe = classmethod(lambda cls, info, **arguments: [])
    next = classmethod(next_change)


class TestDeclaring:
    def test_an_output_is_needed(self) -> None:
        with pytest.raises(ConfigurationError) as caught:
            type("Incomplete", (Subscription,), {"subscribe": classmethod(EVERY_MESSAGE)})
        assert str(caught.value) == "Incomplete needs a class Meta with `output = SomeType`"

    @pytest.mark.parametrize("missing", ["subscribe", "next"])
    def test_both_methods_are_needed(self, missing: str) -> None:
        class Meta:
            output = Seen

        body = {"Meta": Meta, "subscribe": classmethod(EVERY_MESSAGE), "next": classmethod(next_change)}
        del body[missing]
        with pytest.raises(ConfigurationError) as caught:
            type("Incomplete", (Subscription,), body)
        assert str(caught.value) == f"Incomplete needs a classmethod {missing}()"

    def test_an_unknown_option_is_an_error(self) -> None:
        class Meta:
            output = Seen
            ouptut = Seen

        body = {"Meta": Meta, "subscribe": classmethod(EVERY_MESSAGE), "next": classmethod(next_change)}
        with pytest.raises(ConfigurationError, match="Misspelled: class Meta has the unknown option 'ouptut'"):
            type("Misspelled", (Subscription,), body)

    def test_an_abstract_base_needs_nothing(self) -> None:
        class Base(Subscription):
            class Meta:
                abstract = True

            @classmethod
            def next(cls, change: Any, info: Any) -> Any:
                return seen(change)

        class Concrete(Base):
            class Meta:
                output = Seen

            subscribe = classmethod(EVERY_MESSAGE)

        assert field_of(Concrete)[0] == "declared"

    def test_the_arguments_are_those_of_the_field(self) -> None:
        _, field = field_of(Declared)
        assert {name: str(argument.type) for name, argument in field.args.items()} == {
            "conversationId": "ID!",
            "limit": "Int",
        }
        assert field.args["conversationId"].description == "Which one."
        assert field.args["limit"].default_value == 10

    def test_the_output_is_the_type_of_the_field(self) -> None:
        assert str(field_of(Declared)[1].type) == "Seen"
        assert str(field_of(Declared, required=True)[1].type) == "Seen!"

    def test_the_description_is_the_docstring(self) -> None:
        assert field_of(Declared)[1].description == "What the class says."

    def test_the_description_in_meta_goes_before_the_docstring_and_that_of_the_field_before_both(self) -> None:
        class Described(Declared):
            """What the class says."""

            class Meta:
                output = Seen
                description = "What Meta says."

        assert field_of(Described)[1].description == "What Meta says."
        assert field_of(Described, description="What the field says.")[1].description == "What the field says."

    def test_without_a_docstring_there_is_no_description(self) -> None:
        class Undescribed(Declared):
            class Meta:
                output = Seen

        assert field_of(Undescribed)[1].description is None

    def test_the_field_takes_a_name_and_a_deprecation(self) -> None:
        name, field = field_of(Declared, name="other", deprecation_reason="old")
        assert (name, field.deprecation_reason) == ("other", "old")


def asynchronous(method: Callable[..., Any]) -> Callable[..., Any]:
    async def wrapped(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    return wrapped


def disguised(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a plain function that returns an awaitable, as decorators make them."""
    return lambda *args, **kwargs: asynchronous(method)(*args, **kwargs)


def as_it_is(method: Callable[..., Any]) -> Callable[..., Any]:
    return method


STYLES = [as_it_is, asynchronous, disguised]


@pytest.mark.postgres("18")
class TestSubscribing:
    @pytest.mark.parametrize("next_style", STYLES)
    @pytest.mark.parametrize("subscribe_style", STYLES)
    async def test_both_methods_may_be_asynchronous_or_not(
        self, chat: Chat, subscribe_style: Any, next_style: Any
    ) -> None:
        def next_or_nothing(cls: Any, change: Any, info: Any) -> Any:
            return None if change.new["text"] == "nothing" else seen(change)

        schema = declare(subscribe_style(EVERY_MESSAGE), next_style(next_or_nothing))
        async with subscribers(schema, chat.alice) as [alice]:
            await alice.subscribe()
            [_, key] = [*chat.insert("nothing"), *chat.insert("hello")]
            assert await alice.change() == {
                "pk": str(key),
                "label": "conversations.message",
                "kind": "INSERT",
                "text": "hello",
                "username": "alice",
                "private": False,
            }

    @pytest.mark.parametrize(
        "topics",
        [
            Message,
            [Message],
            (Message,),
            [Topic(Message)],
            Topic(Message),
            [Message, Message, Topic(Message)],
            [Conversation, Message],
        ],
        ids=["model", "list", "tuple", "topics", "topic", "repeated", "several"],
    )
    async def test_models_and_topics_are_what_it_may_return(self, chat: Chat, topics: Any) -> None:
        async with subscribers(declare(returns(topics)), chat.alice) as [alice]:
            await alice.subscribe()
            chat.insert("one")
            chat.insert("two")
            assert [(await alice.change())["text"] for _ in range(2)] == ["one", "two"]

    @pytest.mark.parametrize("wrong", [None, 1, "Message", User, [None], [Message, "x"], {Message}, Chat])
    async def test_anything_else_is_an_error_that_says_what_to_do(
        self, chat: Chat, wrong: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with subscribers(declare(returns(wrong)), chat.alice) as [alice]:
            [error] = await alice.refusal()
        expected = "auth.user is not watched" if wrong is User else "subscribe() returns models and Topic"
        assert expected in error["message"]
        assert expected in caplog.text
        assert "Traceback" not in caplog.text

    async def test_arguments_reach_both_methods(self, chat: Chat) -> None:
        def subscribe(cls: Any, info: Any, conversation_id: str, prefix: str) -> Any:
            return Topic(Message, conversation=conversation_id)

        def next_prefixed(cls: Any, change: Any, info: Any, conversation_id: str, prefix: str) -> Any:
            return seen(change) | {"text": f"{prefix}{change.new['text']} in {conversation_id}"}

        arguments = {"conversation_id": graphene.ID(), "prefix": graphene.String(default_value="> ")}
        async with subscribers(declare(subscribe, next_prefixed, **arguments), chat.alice) as [alice]:
            query = "subscription S($id: ID) { changes(conversationId: $id) { text } }"
            await alice.subscribe(query, variables={"id": str(chat.both.pk)})
            chat.insert("hello")
            assert await alice.change() == {"text": f"> hello in {chat.both.pk}"}

    async def test_a_refusal_is_an_error_of_the_operation_and_no_line_of_the_log(
        self, chat: Chat, caplog: pytest.LogCaptureFixture
    ) -> None:
        def refuse(cls: Any, info: Any) -> Any:
            raise GraphQLError("log in first", extensions={"code": "UNAUTHENTICATED"})

        async with subscribers(declare(refuse), AnonymousUser()) as [nobody]:
            [error] = await nobody.refusal()
        assert (error["message"], error["path"]) == ("log in first", ["changes"])
        assert error["extensions"] == {"code": "UNAUTHENTICATED"}
        assert [record for record in caplog.records if record.levelno > logging.INFO] == []

    @pytest.mark.parametrize("style", STYLES)
    async def test_an_unexpected_exception_is_an_error_of_the_operation_and_logged(
        self, chat: Chat, style: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(cls: Any, info: Any) -> Any:
            raise ValueError("it fails")

        async with subscribers(declare(style(fail)), chat.alice) as [alice]:
            [error] = await alice.refusal()
            assert error["message"] == "it fails"
            assert "Traceback" not in str(error)
            assert alice.socket.task.done() is False
        assert "ValueError: it fails" in caplog.text

    async def test_it_may_ask_the_database(self, chat: Chat) -> None:
        def subscribe(cls: Any, info: Any) -> Any:
            return [Topic(Message, conversation=c) for c in Conversation.objects.for_user(info.context.user)]

        async with subscribers(declare(subscribe), chat.alice) as [alice]:
            await alice.subscribe()
            chat.insert("not hers", conversation=chat.bobs)
            chat.insert("hers")
            assert (await alice.change())["text"] == "hers"


@pytest.mark.postgres("18")
class TestNext:
    @pytest.mark.parametrize("style", STYLES)
    async def test_an_exception_travels_as_a_result_and_the_following_change_works(
        self, chat: Chat, style: Any
    ) -> None:
        def sometimes(cls: Any, change: Any, info: Any) -> Any:
            if change.new["text"] == "bad":
                raise ValueError("it fails")
            return seen(change)

        async with subscribers(declare(EVERY_MESSAGE, style(sometimes)), chat.alice) as [alice]:
            await alice.subscribe()
            chat.insert("bad")
            chat.insert("good")
            result = await alice.result()
            assert result["data"] == {"changes": None}
            [error] = result["errors"]
            assert (error["message"], error["path"]) == ("it fails", ["changes"])
            assert (await alice.change())["text"] == "good"

    async def test_none_sends_nothing_even_for_a_field_that_cannot_be_null(self, chat: Chat) -> None:
        class Sometimes(Subscription):
            class Meta:
                output = graphene.NonNull(Seen)

            subscribe = classmethod(EVERY_MESSAGE)

            @classmethod
            def next(cls, change: Any, info: Any) -> Any:
                return seen(change) if change.new["text"] == "yes" else None

        class Subscriptions(graphene.ObjectType):  # type: ignore[misc]
            changes = Sometimes.Field()

        schema = graphene.Schema(query=Query, subscription=Subscriptions)
        async with subscribers(schema, chat.alice) as [alice]:
            await alice.subscribe()
            chat.insert("no")
            chat.insert("yes")
            assert (await alice.change())["text"] == "yes"

    @pytest.mark.parametrize("value", [0, False, "", []])
    async def test_what_is_false_and_not_none_is_sent(self, chat: Chat, value: Any) -> None:
        class Falsy(Subscription):
            class Meta:
                output = graphene.List(graphene.Int) if value == [] else graphene.String

            subscribe = classmethod(EVERY_MESSAGE)

            @classmethod
            def next(cls, change: Any, info: Any) -> Any:
                return value

        class Subscriptions(graphene.ObjectType):  # type: ignore[misc]
            changes = Falsy.Field()

        schema = graphene.Schema(query=Query, subscription=Subscriptions)
        async with subscribers(schema, chat.alice) as [alice]:
            await alice.subscribe("subscription { changes }")
            chat.insert("hello")
            result = await alice.result()
            assert "errors" not in result
            assert result["data"]["changes"] is not None

    async def test_it_may_return_a_model_and_the_selection_follows_its_relations(self, chat: Chat) -> None:
        class Messages(Subscription):
            class Meta:
                output = MessageType

            subscribe = classmethod(EVERY_MESSAGE)

            @classmethod
            def next(cls, change: Any, info: Any) -> Any:
                return change.instance

        class Subscriptions(graphene.ObjectType):  # type: ignore[misc]
            changes = Messages.Field()

        schema = graphene.Schema(query=Query, subscription=Subscriptions)
        async with subscribers(schema, chat.alice) as [alice]:
            await alice.subscribe("subscription { changes { text author { username } } }")
            chat.insert("hello")
            assert await alice.change() == {"text": "hello", "author": {"username": "bob"}}

    async def test_an_alias_and_a_fragment_are_answered_as_asked(self, chat: Chat) -> None:
        query = "subscription { mine: changes { ...Text } } fragment Text on Seen { what: text }"
        async with subscribers(declare(EVERY_MESSAGE), chat.alice) as [alice]:
            await alice.subscribe(query)
            chat.insert("hello")
            assert (await alice.result())["data"] == {"mine": {"what": "hello"}}

    async def test_it_is_not_asked_for_an_operation_that_was_completed(self, chat: Chat) -> None:
        asked = []

        def next_counted(cls: Any, change: Any, info: Any) -> Any:
            asked.append(info.context.user.username)
            return seen(change)

        async with subscribers(declare(EVERY_MESSAGE, next_counted), chat.alice, chat.bob) as [alice, bob]:
            await alice.subscribe()
            await bob.subscribe()
            alice.socket.send("complete", id="1")
            alice.socket.send("ping")
            assert (await alice.socket.receive())["type"] == "pong"
            chat.insert("hello")
            assert (await bob.change())["text"] == "hello"
            assert asked == ["bob"]


class TestDelivery:
    async def test_every_kind_of_change_arrives_with_its_images(self, chat: Chat) -> None:
        async with subscribers(declare(EVERY_MESSAGE), chat.alice) as [alice]:
            await alice.subscribe()
            [key] = chat.insert("one")
            chat.execute("update conversations_message set text = 'two'")
            chat.execute("delete from conversations_message")
            chat.execute("truncate conversations_message")
            found = [await alice.change() for _ in range(4)]
        assert [(change["kind"], change["pk"], change["text"]) for change in found] == [
            ("INSERT", str(key), "one"),
            ("UPDATE", str(key), "two"),
            ("DELETE", str(key), "two"),
            ("TRUNCATE", None, None),
        ]

    async def test_quick_changes_of_one_row_arrive_in_their_order(self, chat: Chat) -> None:
        [_] = chat.insert("first")
        async with subscribers(declare(EVERY_MESSAGE), chat.alice) as [alice]:
            await alice.subscribe()
            for number in range(SERIES):
                chat.execute("update conversations_message set text = %s", str(number))
            assert [(await alice.change())["text"] for _ in range(SERIES)] == [str(n) for n in range(SERIES)]

    async def test_a_bulk_statement_arrives_row_by_row(self, chat: Chat) -> None:
        async with subscribers(declare(EVERY_MESSAGE), chat.alice) as [alice]:
            await alice.subscribe()
            texts = [str(number) for number in range(SERIES)]
            chat.insert(*texts)
            assert [(await alice.change())["text"] for _ in range(SERIES)] == texts

    @pytest.mark.postgres("18")
    async def test_a_rolled_back_change_does_not_arrive(self, chat: Chat) -> None:
        async with subscribers(declare(EVERY_MESSAGE), chat.alice) as [alice]:
            await alice.subscribe()
            chat.execute("begin")
            chat.insert("never")
            chat.execute("rollback")
            chat.insert("committed")
            assert (await alice.change())["text"] == "committed"

    @pytest.mark.postgres("18")
    async def test_a_topic_with_a_condition_lets_through_what_is_or_was_there(self, chat: Chat) -> None:
        schema = declare(lambda cls, info: Topic(Message, conversation=chat.both))
        async with subscribers(schema, chat.alice) as [alice]:
            await alice.subscribe()
            chat.insert("elsewhere", conversation=chat.bobs)
            [key] = chat.insert("here")
            chat.execute(
                "update conversations_message set conversation_id = %s, text = 'left' where id = %s", chat.bobs.pk, key
            )
            chat.execute("update conversations_message set text = 'gone' where id = %s", key)
            chat.execute("update conversations_message set conversation_id = %s where id = %s", chat.both.pk, key)
            chat.execute("delete from conversations_message where id = %s", key)
            chat.execute("truncate conversations_message")
            found = [await alice.change() for _ in range(5)]
        assert [(change["kind"], change["text"]) for change in found] == [
            ("INSERT", "here"),
            ("UPDATE", "left"),
            ("UPDATE", "gone"),
            ("DELETE", "gone"),
            ("TRUNCATE", None),
        ]

    @pytest.mark.postgres("18")
    async def test_a_change_that_matches_several_topics_arrives_once(self, chat: Chat) -> None:
        topics = [Message, Topic(Message, conversation=chat.both), Topic(Message, text="hello")]
        async with subscribers(declare(returns(topics)), chat.alice) as [alice]:
            await alice.subscribe()
            chat.insert("hello")
            chat.insert("end")
            assert [(await alice.change())["text"] for _ in range(2)] == ["hello", "end"]

    @pytest.mark.postgres("18")
    async def test_both_subprotocols_deliver(self, chat: Chat) -> None:
        async with subscribers(declare(EVERY_MESSAGE), chat.alice, subprotocols=["graphql-ws"]) as [alice]:
            alice.socket.subprotocol = "graphql-ws"
            await alice.subscribe()
            chat.insert("hello")
            assert (await alice.change())["text"] == "hello"
            alice.socket.send("stop", id="1")
            assert await alice.socket.receive() == {"type": "complete", "id": "1"}

    @pytest.mark.postgres("18")
    async def test_many_operations_of_a_socket_that_reads_survive_a_bulk_statement(self, chat: Chat) -> None:
        async with subscribers(declare(EVERY_MESSAGE), chat.alice) as [alice]:
            for number in range(40):
                await alice.subscribe(id=str(number))
            chat.insert(*map(str, range(100)))
            texts = [(await alice.change())["text"] for _ in range(40 * 100)]
            assert sorted(texts) == sorted(str(number) for number in range(100) for _ in range(40))


DOCUMENTED = """\
class ConversationsSubscription(Subscription):
    class Meta:
        output = ConversationType

    @classmethod
    def subscribe(cls, info):
        return [Message, Conversation]

    @classmethod
    def next(cls, change, info):
        pk, model_label = change  # a Change unpacks to these two; it also has .kind .old .new .instance ...
        conversations = Conversation.objects.for_user(info.context.user)
        if model_label == "conversations.conversation":
            conversations = conversations.filter(id=pk)
        else:
            conversations = conversations.filter(messages__id=pk)
        return conversations.annotate_unread(info.context.user).first()  # None: nothing for this subscriber
"""

CONVERSATIONS = "subscription { conversations { id title unread } }"


class TestTheDocumentedSubscription:
    def test_is_the_examples_word_for_word(self) -> None:
        assert inspect.getsource(ConversationsSubscription) == DOCUMENTED

    async def test_shows_each_subscriber_the_conversation_as_he_or_she_may_see_it(self, chat: Chat) -> None:
        async with subscribers(example_schema, chat.alice, chat.bob) as [alice, bob]:
            await alice.subscribe(CONVERSATIONS)
            await bob.subscribe(CONVERSATIONS)
            both, bobs = str(chat.both.pk), str(chat.bobs.pk)
            chat.insert("hello")
            for subscriber, unread in ((alice, 1), (bob, 0)):
                expected = {"id": both, "title": "both", "unread": unread}
                assert (await subscriber.result())["data"] == {"conversations": expected}
            chat.insert("not for alice", conversation=chat.bobs)
            expected = {"id": bobs, "title": "bob's", "unread": 0}
            assert (await bob.result())["data"] == {"conversations": expected}
            chat.execute("update conversations_conversation set title = 'renamed' where id = %s", chat.both.pk)
            expected = {"id": both, "title": "renamed", "unread": 1}
            assert (await alice.result())["data"] == {"conversations": expected}

    @pytest.mark.postgres("18")
    async def test_shows_nothing_to_a_visitor_without_a_login(self, chat: Chat) -> None:
        async with subscribers(example_schema, AnonymousUser(), chat.alice) as [nobody, alice]:
            await nobody.subscribe(CONVERSATIONS)
            await alice.subscribe(CONVERSATIONS)
            chat.insert("hello")
            assert (await alice.result())["data"]["conversations"]["unread"] == 1
            nobody.socket.send("ping")
            assert (await nobody.socket.receive())["type"] == "pong"

    @pytest.mark.postgres("18")
    async def test_shows_nothing_of_a_change_after_which_there_is_nothing(self, chat: Chat) -> None:
        async with subscribers(example_schema, chat.alice) as [alice]:
            [key] = chat.insert("hello")
            await alice.subscribe(CONVERSATIONS)
            chat.execute("delete from conversations_message where id = %s", key)
            chat.execute("truncate conversations_message")
            chat.execute("update conversations_conversation set title = 'end' where id = %s", chat.both.pk)
            assert (await alice.result())["data"]["conversations"]["title"] == "end"


def test_kinds_are_their_names() -> None:
    assert [str(kind) for kind in Kind] == ["INSERT", "UPDATE", "DELETE", "TRUNCATE"]
