"""`ModelSubscription`: from a model to a field that filters, and tells each subscriber of what he may see."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import graphene
import pytest
from django.contrib.auth.models import User
from django.db import models
from django.db.models import Q
from django.db.models.fields.composite import CompositePrimaryKey
from graphene_django import DjangoObjectType
from graphql import GraphQLObjectType
from graphql_relay import to_global_id

from example.conversations.models import Conversation, Message
from pgnotify_gql.capture.registry import make_watch, registry
from pgnotify_gql.errors import ConfigurationError
from pgnotify_gql.subscriptions import ModelSubscription
from tests.support.databases import Database
from tests.support.model_changes import (
    Letter,
    Postcard,
    declare_changes,
    everybody_can_see,
    letters,
    own_stock,
    query,
    schema_of,
    schema_with,
)
from tests.support.stock import Stock
from tests.support.subscribers import Chat, inline_feed, subscribers
from tests.support.watched import make_model

newest = pytest.mark.postgres("18")


@pytest.fixture
def chat(database_triggers: Database) -> Iterator[Chat]:
    with inline_feed():
        yield Chat(database_triggers)


@pytest.fixture
def stock(database: Database) -> Iterator[Stock]:
    with inline_feed(), own_stock(database) as stock:
        yield stock


@pytest.fixture
def ticket(stock: Stock) -> Any:
    """A model with columns of many types, some of them with names that mean something else elsewhere."""
    model: Any = stock.model(
        "Ticket",
        name=models.TextField(),
        state=models.CharField(max_length=9, choices=[("open", "Open"), ("shut", "Shut")], default="open"),
        size=models.IntegerField(default=0, db_default=0),
        big=models.BigIntegerField(default=0, db_default=0),
        urgent=models.BooleanField(default=False, db_default=False),
        code=models.UUIDField(null=True),
        day=models.DateField(null=True),
        at=models.DateTimeField(null=True),
        price=models.DecimalField(max_digits=9, decimal_places=2, null=True),
        data=models.JSONField(null=True),
        event=models.TextField(default="", db_default=""),
        info=models.TextField(default="", db_default=""),
        model=models.TextField(default="", db_default=""),
        filter=models.TextField(default="", db_default=""),
        function=models.TextField(default="", db_default=""),
        change=models.TextField(default="", db_default=""),
    )
    stock.create(model)
    stock.watch(model, columns="__all__")
    return model


@pytest.fixture
def place(stock: Stock) -> Any:
    """A model with a key of several columns."""
    model: Any = stock.model(
        "Place",
        pk=CompositePrimaryKey("shelf", "tag"),
        shelf=models.TextField(),
        tag=models.UUIDField(),
        size=models.IntegerField(),
    )
    stock.create(model)
    stock.watch(model, columns=["size"])
    return model


@pytest.fixture
def item(stock: Stock) -> Any:
    """A model whose triggers capture less than its watch says."""
    model: Any = stock.model("Item", name=models.TextField(), size=models.IntegerField())
    stock.create(model)
    stock.watch(model, columns=["name"])
    registry.remove("stock.item")
    registry.add(make_watch(model, columns=["name", "size"]))
    return model


def type_of(model: Any, name: str = "", **meta: Any) -> Any:
    """Return a DjangoObjectType, one that is not known as that of its model unless told otherwise."""
    options = {"model": model, "fields": "__all__", "skip_registry": True, **meta}
    return type(name or f"{model.__name__}Type", (DjangoObjectType,), {"Meta": type("Meta", (), options)})


class TestTransitions:
    async def test_a_row_enters_changes_and_leaves(self, chat: Chat) -> None:
        async with subscribers(schema_of(optional=["conversation"]), chat.alice) as [alice]:
            await alice.subscribe(query(f"conversation: {chat.both.pk}"))
            [pk] = chat.insert("hello")
            assert await alice.change() == {
                "kind": "INSERT",
                "pk": str(pk),
                "transition": "ENTER",
                "changedFields": ["conversation", "text"],
                "letter": {"id": str(pk), "text": "hello"},
            }
            chat.execute("update conversations_message set text = 'hi' where id = %s", pk)
            changed = await alice.change()
            assert (changed["kind"], changed["transition"], changed["changedFields"]) == ("UPDATE", "CHANGE", ["text"])
            chat.execute("update conversations_message set conversation_id = %s where id = %s", chat.bobs.pk, pk)
            left = await alice.change()
            assert left == {"kind": "UPDATE", "pk": str(pk), "transition": "LEAVE", "changedFields": [], "letter": None}

    async def test_a_filter_decides_with_the_arguments(self, chat: Chat) -> None:
        async with subscribers(schema_of(filter=Q(text__startswith="x")), chat.alice) as [alice]:
            await alice.subscribe(query())
            [_, pk] = chat.insert("no", "x yes")
            assert (await alice.change())["letter"]["text"] == "x yes"
            chat.execute("update conversations_message set text = 'no more' where id = %s", pk)
            assert (await alice.change())["transition"] == "LEAVE"
            chat.execute("update conversations_message set text = 'xx' where id = %s", pk)
            assert (await alice.change())["transition"] == "ENTER"
            chat.execute("delete from conversations_message where id = %s", pk)
            assert (await alice.change())["kind"] == "DELETE"

    async def test_a_row_that_moves_leaves_one_operation_and_enters_another(self, chat: Chat) -> None:
        async with subscribers(schema_of(required=["conversation"]), chat.bob, chat.bob) as [one, other]:
            await one.subscribe(query(f"conversation: {chat.both.pk}"))
            await other.subscribe(query(f"conversation: {chat.bobs.pk}"))
            [pk] = chat.insert("hello")
            assert (await one.change())["transition"] == "ENTER"
            chat.execute("update conversations_message set conversation_id = %s where id = %s", chat.bobs.pk, pk)
            assert (await one.change())["transition"] == "LEAVE"
            entered = await other.change()
            assert (entered["kind"], entered["transition"], entered["letter"]["text"]) == ("UPDATE", "ENTER", "hello")

    @newest
    async def test_operations_of_one_socket_have_each_their_own_arguments(self, chat: Chat) -> None:
        async with subscribers(schema_of(required=["conversation"]), chat.bob) as [bob]:
            await bob.subscribe(query(f"conversation: {chat.both.pk}"), id="both")
            await bob.subscribe(query(f"conversation: {chat.bobs.pk}"), id="bobs")
            for name, conversation in (("bobs", chat.bobs), ("both", chat.both), ("bobs", chat.bobs)):
                chat.insert(name, conversation=conversation)
                message = await bob.socket.receive()
                assert message["id"] == name
                assert message["payload"]["data"]["changes"]["letter"]["text"] == name

    @newest
    async def test_a_filter_may_be_a_function_of_the_arguments(self, chat: Chat) -> None:
        def condition(conversation: str, text: str | None = None) -> Q:
            return Q(text__startswith=f"{conversation}: ") if text is None else Q()

        schema = schema_of(required=["conversation"], optional=["text"], filter=condition)
        async with subscribers(schema, chat.alice) as [alice]:
            await alice.subscribe(query(f"conversation: {chat.both.pk}"))
            chat.insert("no", f"{chat.both.pk}: yes")
            assert await letters(alice, 1) == [f"{chat.both.pk}: yes"]
            await alice.subscribe(query(f'conversation: {chat.both.pk}, text: "no"'), id="2")
            chat.insert("no")
            assert await letters(alice, 1) == ["no"]

    @newest
    async def test_a_truncate_reaches_everybody_on_the_model(self, chat: Chat) -> None:
        schema = schema_of(None, optional=["conversation"], filter=Q(text="x"))
        async with subscribers(schema, chat.alice, chat.bob) as opened:
            for subscriber in opened:
                await subscriber.subscribe(query(f"conversation: {chat.bobs.pk}"))
            chat.execute("truncate conversations_message")
            for subscriber in opened:
                assert await subscriber.change() == {
                    "kind": "TRUNCATE", "pk": None, "transition": "LEAVE", "changedFields": [], "letter": None,
                }  # fmt: skip

    @newest
    async def test_the_client_chooses_kinds(self, chat: Chat) -> None:
        async with subscribers(schema_of(), chat.alice) as [alice]:
            await alice.subscribe(query("kinds: [DELETE, TRUNCATE]"))
            [pk] = chat.insert("hello")
            chat.execute("update conversations_message set text = 'hi'")
            chat.execute("delete from conversations_message where id = %s", pk)
            chat.execute("truncate conversations_message")
            assert [(await alice.change())["kind"] for _ in range(2)] == ["DELETE", "TRUNCATE"]

    @newest
    async def test_kinds_that_are_null_are_all(self, chat: Chat) -> None:
        async with subscribers(schema_of(), chat.alice) as [alice]:
            await alice.subscribe(
                "subscription S($kinds: [ChangeKind!]) { changes(kinds: $kinds) { kind } }", variables={"kinds": None}
            )
            chat.insert("hello")
            assert await alice.change() == {"kind": "INSERT"}

    @newest
    @pytest.mark.parametrize("kinds", [["UPDATE"], "UPDATE"])
    async def test_the_declaration_limits_kinds_whatever_the_client_says(self, chat: Chat, kinds: Any) -> None:
        async with subscribers(schema_of(kinds=kinds), chat.alice) as [alice]:
            await alice.subscribe(query("kinds: [INSERT, UPDATE, TRUNCATE]"))
            chat.insert("hello")
            chat.execute("update conversations_message set text = 'hi'")
            assert (await alice.change())["kind"] == "UPDATE"

    @newest
    async def test_a_change_without_a_column_that_decides_is_sent_to_nobody(self, stock: Stock, item: Any) -> None:
        schema = schema_of(everybody_can_see, output=type_of(item), object_field="item", optional=["size"])
        async with subscribers(schema, None) as [subscriber]:
            await subscriber.subscribe(query("size: 1", "item { name }"))
            stock.run("insert into stock_item (name, size) values ('by the older trigger', 1)")
            await asyncio.to_thread(stock.install)
            stock.run("insert into stock_item (name, size) values ('by the newer one', 1)")
            assert await subscriber.change() == {"item": {"name": "by the newer one"}}


class Board(models.Model):
    """What tickets are on; of no application that is installed."""

    class Meta:
        app_label = "stock"
        managed = False

    def __str__(self) -> str:
        return str(self.pk)


CHOSEN = [
    ("state: SHUT", "state", "'shut'"),
    ("stateIn: [SHUT]", "state", "'shut'"),
    ("sizeIn: [7, 8]", "size", "7"),
    ("big: 9007199254740993", "big", "9007199254740993"),
    ("urgent: true", "urgent", "true"),
    ('code: "d9428888-122b-11e1-b85c-61cd3cbb3210"', "code", "'d9428888-122b-11e1-b85c-61cd3cbb3210'"),
    ('day: "2024-02-29"', "day", "'2024-02-29'"),
    ('at: "2024-02-29T12:00:00+02:00"', "at", "'2024-02-29T10:00:00Z'"),
    ('price: "1.5"', "price", "1.50"),
    *((f'{name}: "x"', name, "'x'") for name in ("event", "info", "model", "filter", "function", "change")),
]
"""Arguments, and the column that decides of it in SQL; the last are named as parameters on the way are."""


class TestArguments:
    def test_are_typed_as_the_columns_are(self) -> None:
        model = make_model(
            "Typed",
            "typed",
            big=models.BigIntegerField(),
            state=models.CharField(max_length=9, choices=[("open", "Open"), ("shut", "Shut")]),
            code=models.UUIDField(),
        )
        columns = {"big": "BigInt", "state": "StockTypedStateChoices", "code": "UUID", "id": "ID"}
        declared = declare_changes(output=type_of(model), optional=[*columns, "big__in", "state__exact"])
        assert arguments_of(schema_with(declared)) == {
            **columns, "bigIn": "[BigInt!]", "stateExact": "StockTypedStateChoices", "kinds": "[ChangeKind!]",
        }  # fmt: skip

    def test_are_ids_for_keys_and_required_where_they_are_said_to_be(self) -> None:
        schema = schema_of(required=["conversation", "author__in"], optional=["pk", "text"])
        assert arguments_of(schema) == {
            "conversation": "ID!", "authorIn": "[ID!]!", "pk": "ID", "text": "String", "kinds": "[ChangeKind!]",
        }  # fmt: skip

    @newest
    async def test_choose_rows_by_values_of_any_type_and_whatever_the_column_is_named(
        self, stock: Stock, ticket: Any
    ) -> None:
        columns = {column for _, column, _ in CHOSEN}
        schema = schema_of(
            everybody_can_see,
            output=type_of(ticket),
            object_field="ticket",
            optional=sorted({*columns, "state__in", "size__in"}),
            initial=True,
        )
        async with subscribers(schema, None) as [subscriber]:
            for number, (argument, column, value) in enumerate(CHOSEN):
                stock.run("truncate stock_ticket")
                stock.run("insert into stock_ticket (name, state) values ('other', 'open'), ('was there', 'open')")
                stock.run(f"update stock_ticket set {column} = {value} where name = 'was there'")
                subscriber.socket.subscribe(query(argument, "transition ticket { name }"), id=str(number))
                assert await subscriber.change() == {"transition": "ENTER", "ticket": {"name": "was there"}}, argument
                assert (await subscriber.result())["extensions"]["live"] is True
                stock.run("insert into stock_ticket (name, state) values ('another', 'open')")
                stock.run(f"update stock_ticket set {column} = {value} where name = 'other'")
                assert await subscriber.change() == {"transition": "ENTER", "ticket": {"name": "other"}}, argument
                stock.run("delete from stock_ticket where name = 'other'")
                assert await subscriber.change() == {"transition": "LEAVE", "ticket": None}, argument
                subscriber.socket.send("complete", id=str(number))

    @newest
    async def test_that_are_null_are_as_if_left_out(self, chat: Chat) -> None:
        async with subscribers(schema_of(optional=["conversation"]), chat.alice) as [alice]:
            await alice.subscribe(query("conversation: null"))
            chat.insert("hello")
            assert await letters(alice, 1) == ["hello"]

    @newest
    @pytest.mark.parametrize(
        ("argument", "message"),
        [
            ('conversation: "x"', "conversation__exact='x' is no value of conversations.message.conversation"),
            ("conversationIn: []", "conversation__in is empty, and would wait for nothing: name a value at least"),
        ],
    )
    async def test_with_values_that_are_none_are_refused_in_words(
        self, chat: Chat, argument: str, message: str
    ) -> None:
        schema = schema_of(optional=["conversation", "conversation__in"])
        async with subscribers(schema, chat.alice) as [alice]:
            [error] = await alice.refusal(query(argument))
            assert error["message"] == message

    @newest
    async def test_on_a_column_that_is_not_captured_are_refused_with_advice_to_the_operator(
        self, chat: Chat, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with subscribers(schema_of(optional=["created_at"]), chat.alice) as [alice]:
            await alice.refusal(query('createdAt: "2024-02-29T12:00:00Z"'))
        assert "the watch of conversations.message does not capture 'created_at'; add it to" in caplog.text


def arguments_of(schema: graphene.Schema) -> dict[str, str]:
    subscription = schema.graphql_schema.subscription_type
    assert subscription is not None
    return {name: str(argument.type) for name, argument in subscription.fields["changes"].args.items()}


class TestThePayload:
    def test_is_described_by_the_schema(self) -> None:
        payload = schema_of().graphql_schema.type_map["LettersPayload"]
        assert isinstance(payload, GraphQLObjectType)
        assert payload.description == "One committed change of a Letter."
        assert {name: str(field.type) for name, field in payload.fields.items()} == {
            "kind": "ChangeKind",
            "pk": "ID",
            "letter": "Letter",
            "changedFields": "[String!]!",
            "transition": "ChangeTransition!",
            "cursor": "String",
        }

    def test_names_the_row_as_its_model_unless_told_otherwise(self) -> None:
        payload: Any = schema_of(object_field=None).graphql_schema.type_map["LettersPayload"]
        assert "message" in payload.fields

    @newest
    async def test_is_made_from_a_model_by_the_type_that_is_known_for_it(self, chat: Chat) -> None:
        declared = declare_changes(everybody_can_see, output=None, model=Conversation, object_field=None)
        async with subscribers(schema_with(declared), chat.alice) as [alice]:
            await alice.subscribe(query("", "changedFields conversation { title }"))
            chat.execute("update conversations_conversation set title = 'new' where id = %s", chat.both.pk)
            # Only the key is captured.
            assert await alice.change() == {"changedFields": [], "conversation": {"title": "new"}}

    @newest
    async def test_has_names_in_snake_case_where_the_schema_has(self, chat: Chat) -> None:
        declared = declare_changes(optional=["author__in"])
        async with subscribers(schema_with(declared, auto_camelcase=False), chat.alice) as [alice]:
            await alice.subscribe(query(f"author_in: [{chat.bob.pk}]", "changed_fields letter { text }"))
            chat.insert("hello")
            assert await alice.change() == {"changed_fields": ["conversation", "text"], "letter": {"text": "hello"}}

    @newest
    async def test_names_changed_fields_as_the_type_does_and_no_others(self, stock: Stock, ticket: Any) -> None:
        class Renamed(DjangoObjectType):  # type: ignore[misc]
            class Meta:
                model = ticket
                fields = ("state",)
                skip_registry = True

            urgent = graphene.Boolean(name="isUrgent")
            computed = graphene.String()
            at = graphene.String(name="happened_at")

        schema = schema_of(everybody_can_see, output=Renamed, object_field="ticket")
        async with subscribers(schema, None) as [subscriber]:
            stock.run("insert into stock_ticket (name, state) values ('one', 'open')")
            await subscriber.subscribe(query("", "changedFields ticket { state isUrgent }"))
            stock.run(
                "update stock_ticket set urgent = true, state = 'shut', price = 3, name = 'secret',"
                " at = '2024-02-29T10:00:00Z'"
            )
            assert await subscriber.change() == {
                "changedFields": ["happened_at", "isUrgent", "state"],
                "ticket": {"state": "SHUT", "isUrgent": True},
            }

    @newest
    async def test_shows_the_row_through_interfaces_and_scalars_of_the_application(self, chat: Chat) -> None:
        class Loud(graphene.Scalar):  # type: ignore[misc]
            serialize = staticmethod(str.upper)

        class Text(graphene.Interface):  # type: ignore[misc]
            text = graphene.Field(Loud)

        class Shout(DjangoObjectType):  # type: ignore[misc]
            class Meta:
                model = Message
                fields = ("id",)
                interfaces = (Text,)
                skip_registry = True

        async with subscribers(schema_of(everybody_can_see, output=Shout), chat.alice) as [alice]:
            await alice.subscribe(query("", "changedFields letter { __typename ... on Text { text } }"))
            chat.insert("hello")
            assert await alice.change() == {
                "changedFields": ["text"],
                "letter": {"__typename": "Shout", "text": "HELLO"},
            }

    @newest
    async def test_may_be_selected_through_aliases_fragments_and_variables(self, chat: Chat) -> None:
        async with subscribers(schema_of(required=["conversation"]), chat.alice) as [alice]:
            await alice.subscribe(
                "subscription S($c: ID!, $k: [ChangeKind!]) { changes(conversation: $c, kinds: $k) { ...P } }"
                " fragment P on LettersPayload { what: kind row: letter { words: text } }",
                variables={"c": str(chat.both.pk), "k": ["UPDATE"]},
            )
            chat.insert("hello")
            chat.execute("update conversations_message set text = 'hi'")
            assert await alice.change() == {"what": "UPDATE", "row": {"words": "hi"}}

    @newest
    async def test_of_a_key_of_several_columns_has_a_list(self, stock: Stock, place: Any) -> None:
        output = type_of(place, fields=("shelf", "tag", "size"))
        options = {"output": output, "object_field": "place", "optional": ["shelf"]}
        async with subscribers(schema_of(everybody_can_see, **options), None) as [subscriber]:
            await subscriber.subscribe(query('shelf: "a"', "pk changedFields place { size tag }"))
            tag = str(UUID(int=5))
            stock.run("insert into stock_place (shelf, tag, size) values ('b', %s, 1), ('a', %s, 2)", tag, tag)
            change = await subscriber.change()
            assert json.loads(change.pop("pk")) == ["a", tag]
            assert change == {"changedFields": ["size"], "place": {"size": 2, "tag": tag}}
            stock.run("delete from stock_place where shelf = 'a'")
            assert (await subscriber.change())["place"] is None

    @newest
    async def test_of_a_key_of_several_columns_is_asked_for_as_the_subscriber(self, stock: Stock, place: Any) -> None:
        class Small(DjangoObjectType):  # type: ignore[misc]
            class Meta:
                model = place
                fields = ("size",)
                skip_registry = True

            @classmethod
            def get_queryset(cls, queryset: Any, info: Any) -> Any:
                return queryset.filter(size__lt=5)

        async with subscribers(schema_of(output=Small, object_field="place"), None) as [subscriber]:
            await subscriber.subscribe(query("", "pk place { size }"))
            large, small = str(UUID(int=1)), str(UUID(int=2))
            stock.run("insert into stock_place (shelf, tag, size) values ('a', %s, 7), ('a', %s, 3)", large, small)
            change = await subscriber.change()
            assert (json.loads(change["pk"]), change["place"]) == (["a", small], {"size": 3})


class TestRelayNodes:
    @pytest.fixture
    def schema(self) -> graphene.Schema:
        class ConversationNode(DjangoObjectType):  # type: ignore[misc]
            class Meta:
                model = Conversation
                fields = ("id", "title")
                interfaces = (graphene.relay.Node,)
                skip_registry = True

        declared = declare_changes(
            everybody_can_see, output=ConversationNode, object_field="conversation", optional=["id", "pk__in"]
        )
        return schema_with(declared)

    @newest
    async def test_are_chosen_by_their_global_ids(self, chat: Chat, schema: graphene.Schema) -> None:
        one = to_global_id("ConversationNode", chat.both.pk)
        async with subscribers(schema, chat.alice) as [alice]:
            await alice.subscribe(query(f'id: "{one}"', "pk conversation { id }"), id="1")
            chat.execute("update conversations_conversation set title = 'x' where id = %s", chat.bobs.pk)
            chat.execute("update conversations_conversation set title = 'x' where id = %s", chat.both.pk)
            assert await alice.change() == {"pk": str(chat.both.pk), "conversation": {"id": one}}
            await alice.subscribe(query(f'pkIn: ["{one}"]', "kind"), id="2")
            chat.execute("update conversations_conversation set title = 'y' where id = %s", chat.both.pk)
            assert {(await alice.socket.receive())["id"] for _ in range(2)} == {"1", "2"}

    @newest
    async def test_refuse_ids_of_another_type_and_what_is_none(self, chat: Chat, schema: graphene.Schema) -> None:
        wrong = to_global_id("MessageNode", chat.both.pk)
        async with subscribers(schema, chat.alice) as [alice]:
            for given, said in (
                (wrong, f"id: '{wrong}' is no global id of ConversationNode"),
                (str(chat.both.pk), f"id: '{chat.both.pk}' is no global id"),
                ("", "id: '' is no global id"),
            ):
                [error] = await alice.refusal(query(f'id: "{given}"', "pk"))
                assert error["message"] == said


class TestCursors:
    async def test_of_payload_and_extensions_are_the_same_and_resume(self, chat: Chat) -> None:
        async with subscribers(schema_of(), chat.alice, chat.alice) as [before, after]:
            await before.subscribe(query("", "cursor letter { text }"))
            chat.insert("one", "two", "three")
            first = await before.result()
            cursor = first["data"]["changes"]["cursor"]
            assert cursor == first["extensions"]["cursor"]
            # The selection is not what is asked for: the cursor is good with another one.
            after.socket.subscribe(query(), extensions={"cursor": cursor})
            assert await letters(after, 2) == ["two", "three"]
            chat.insert("four")
            assert await letters(after, 1) == ["four"]

    @newest
    async def test_of_changes_that_were_not_for_the_subscriber_bring_no_others(self, chat: Chat) -> None:
        async with subscribers(schema_of(), chat.alice, chat.alice) as [before, after]:
            await before.subscribe(query("", "cursor"))
            chat.insert("one")
            cursor = (await before.change())["cursor"]
            chat.insert("not for alice", conversation=chat.bobs)
            chat.insert("two")
            after.socket.subscribe(query(), extensions={"cursor": cursor})
            assert await letters(after, 1) == ["two"]


class TestInitial:
    async def test_the_visible_rows_come_first(self, chat: Chat) -> None:
        schema = schema_of(initial=True, optional=["conversation"], filter=Q(text__startswith="x"))
        [pk] = chat.insert("x there")
        chat.insert("other")
        chat.insert("x not for alice", conversation=chat.bobs)
        async with subscribers(schema, chat.alice) as [alice]:
            alice.socket.subscribe(query("", "kind pk transition changedFields cursor letter { text }"))
            assert await alice.result() == {
                "data": {
                    "changes": {
                        "kind": None,
                        "pk": str(pk),
                        "transition": "ENTER",
                        "changedFields": [],
                        "cursor": None,
                        "letter": {"text": "x there"},
                    }
                },
                "extensions": {"initial": True},
            }
            told = await alice.result()
            assert "live" in told["extensions"], told
            chat.execute("update conversations_message set text = 'x still' where id = %s", pk)
            changed = await alice.change()
            assert (changed["transition"], changed["letter"]) == ("CHANGE", {"text": "x still"})

    @newest
    async def test_is_limited_by_the_arguments(self, chat: Chat) -> None:
        chat.insert("both")
        chat.insert("bob's", conversation=chat.bobs)
        async with subscribers(schema_of(initial=True, optional=["conversation"]), chat.bob) as [bob]:
            bob.socket.subscribe(query(f"conversation: {chat.bobs.pk}"))
            assert await letters(bob, 1) == ["bob's"]
            assert (await bob.result())["extensions"]["live"] is True

    @newest
    async def test_rows_are_as_much_as_their_resolvers_need(self, chat: Chat) -> None:
        chat.insert("hello")

        class Signed(DjangoObjectType):  # type: ignore[misc]
            class Meta:
                model = Message
                fields = ("id", "text")
                skip_registry = True

            names = graphene.List(graphene.String)

            @staticmethod
            def resolve_names(message: Any, info: Any) -> list[str]:
                assert "conversation" in message._state.fields_cache
                return sorted(user.username for user in message.conversation.members.all())

        schema = schema_of(
            output=Signed, initial=True, select_related=["conversation"], prefetch_related=["conversation__members"]
        )
        async with subscribers(schema, chat.alice) as [alice]:
            alice.socket.subscribe(query("", "letter { names }"))
            assert await alice.change() == {"letter": {"names": ["alice", "bob"]}}


class Signature(DjangoObjectType):  # type: ignore[misc]
    class Meta:
        model = User
        fields = ("id",)
        skip_registry = True


class TestMistakes:
    @pytest.mark.parametrize(
        ("meta", "message"),
        [
            ({"output": None}, "needs a class Meta with `output = SomeDjangoObjectType` or `model`"),
            ({"output": graphene.String}, "output is to be a DjangoObjectType, not"),
            ({"output": Message}, "output is to be a DjangoObjectType, not"),
            ({"model": User}, "Letter is not of the model User"),
            ({"output": None, "model": Board}, "there is no DjangoObjectType of Board: define one before it, or name"),
            ({"required": ["nothing"]}, "Message has no column 'nothing' to make an argument of (columns: id, conver"),
            ({"optional": ["text__startswith"]}, "there are text and text__in; for other conditions write a filter"),
            ({"optional": ["conversation__title"]}, "'conversation__title' is no argument"),
            ({"output": Signature, "optional": ["memberships"]}, "User has no column 'memberships'"),
            ({"output": Signature, "optional": ["groups"]}, "User has no column 'groups'"),
            ({"required": "conversation"}, "required='conversation': give a list of columns"),
            ({"optional": "text"}, "optional='text': give a list of columns"),
            ({"required": ["text"], "optional": ["text"]}, "there is an argument 'text' already: leave 'text' out"),
            ({"kinds": ["insert"]}, "'insert' is not a valid Kind; use some of INSERT, UPDATE, DELETE, TRUNCATE"),
            ({"object_field": "cursor"}, "its type has a field 'cursor' already: give `object_field`"),
            ({"audience": "everybody"}, "class Meta has the unknown option 'audience'"),
        ],
    )
    def test_are_told_with_advice(self, meta: dict[str, Any], message: str) -> None:
        options = {"output": Letter, **meta}
        with pytest.raises(ConfigurationError) as caught:
            type("Mistaken", (ModelSubscription,), {"Meta": type("Meta", (), options)})
        assert str(caught.value).startswith("Mistaken")
        assert message in str(caught.value)

    @pytest.mark.parametrize("field", [models.JSONField(), models.BinaryField(), models.Field()])
    def test_a_column_that_is_no_scalar_cannot_be_an_argument(self, field: Any) -> None:
        model = make_model("Odd", "odd", odd=field)
        output = type_of(model, fields=("id",))
        with pytest.raises(ConfigurationError, match=r"Letters: Odd.odd cannot be an argument"):
            declare_changes(output=output, optional=["odd"])

    def test_arguments_are_not_declared_by_a_class(self) -> None:
        body = {"Meta": type("Meta", (), {"output": Letter}), "Arguments": type("Arguments", (), {})}
        with pytest.raises(ConfigurationError, match="arguments are named in class Meta, as `required` or `optional`"):
            type("Mistaken", (ModelSubscription,), body)

    def test_can_see_is_not_asynchronous(self) -> None:
        async def can_see(cls: Any, change: Any, info: Any) -> bool:
            return True

        with pytest.raises(ConfigurationError, match=r"Letters.can_see\(\) must be a plain method"):
            declare_changes(can_see)  # type: ignore[arg-type]

    def test_a_key_of_several_columns_is_no_argument(self) -> None:
        model = make_model(
            "Pair", "pair", pk=CompositePrimaryKey("a", "b"), a=models.IntegerField(), b=models.IntegerField()
        )
        with pytest.raises(ConfigurationError, match=r"Pair has no column 'pk' to make an argument of \(columns: a, b"):
            declare_changes(output=type_of(model, fields=("a",)), optional=["pk"])

    def test_an_abstract_base_needs_nothing_and_hands_down_who_can_see(self) -> None:
        class Base(ModelSubscription):
            class Meta:
                abstract = True

            can_see = classmethod(everybody_can_see)

        class Derived(Base):
            class Meta:
                output = Postcard

        assert Derived.can_see(None, None) is True
        assert arguments_of(schema_with(Derived)) == {"kinds": "[ChangeKind!]"}
