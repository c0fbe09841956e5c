"""The communicator: a client that speaks either subprotocol, and says what it was sent, or why it was not."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import graphene
import pytest
from channels.layers import get_channel_layer
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.contrib.auth.models import AnonymousUser, User
from django.contrib.sessions.backends.signed_cookies import SessionStore
from django.db import transaction
from django.test import override_settings
from graphql import GraphQLError

from example.asgi import application as site
from example.conversations.models import Message
from pgnotify_gql.errors import ConfigurationError, WatchError
from pgnotify_gql.hub.hub import Hub
from pgnotify_gql.testing import (
    GraphqlCommunicator,
    GraphqlResultError,
    MemoryJournal,
    NothingSentError,
    NotSettledError,
    ResyncError,
    SocketClosedError,
    SubscriptionTestError,
    TestSubscription,
    UnexpectedResultError,
    delete,
    insert,
    pump,
    update,
)
from pgnotify_gql.testing.serving import current_server
from pgnotify_gql.transport import GraphqlSubscriptionConsumer
from pgnotify_gql.transport.close_codes import CloseCode
from tests.support.databases import Database
from tests.support.layers import default_layer
from tests.support.subscribers import declare, returns, seen
from tests.testing.conftest import Room

QUERY = "subscription { changes { text } }"

PROTOCOLS = ("graphql-transport-ws", "graphql-ws")


class Answers(graphene.ObjectType):  # type: ignore[misc]
    who = graphene.String()
    header = graphene.String()
    params = graphene.String()
    broken = graphene.Int()
    session = graphene.String()
    named = graphene.String(word=graphene.String())

    @staticmethod
    def resolve_named(root: Any, info: Any, word: str) -> str:
        return word

    @staticmethod
    def resolve_who(root: Any, info: Any) -> str:
        return str(info.context.user)

    @staticmethod
    def resolve_header(root: Any, info: Any) -> str:
        return f"{info.context.headers['X-Shop']} at {info.context.get_full_path()}"

    @staticmethod
    def resolve_params(root: Any, info: Any) -> str:
        return str(info.context.connection_params)

    @staticmethod
    def resolve_session(root: Any, info: Any) -> str:
        return str(info.context.session["cart"])

    @staticmethod
    def resolve_broken(root: Any, info: Any) -> int:
        raise GraphQLError("broken")


def fails(cls: Any, change: Any, info: Any) -> Any:
    raise ValueError


@pytest.fixture
def journal() -> Any:
    with MemoryJournal() as journal:
        yield journal


class TestConnecting:
    def test_headers_path_params_user_and_session_arrive(self) -> None:
        session = SessionStore()
        session["cart"] = "tea"
        asked: dict[str, Any] = {"headers": {"X-Shop": "tea"}, "path": "/shop/?open=1", "params": {"token": "t"}}
        with GraphqlCommunicator(graphene.Schema(query=Answers), AnonymousUser(), session, **asked) as client:
            assert client.execute("{ who header params session }") == {
                "who": "AnonymousUser",
                "header": "tea at /shop/?open=1",
                "params": "{'token': 't'}",
                "session": "tea",
            }

    @pytest.mark.parametrize("subprotocol", PROTOCOLS)
    def test_the_acknowledgement_is_kept(self, subprotocol: str) -> None:
        class Greeting(GraphqlSubscriptionConsumer):
            async def on_connect(self, payload: Mapping[str, Any]) -> Mapping[str, Any]:
                return {"hello": payload["name"]}

        application = Greeting.as_asgi(schema=graphene.Schema(query=Answers))
        with GraphqlCommunicator(application, params={"name": "alice"}, subprotocol=subprotocol) as client:
            assert client.acknowledgement == {"hello": "alice"}

    @pytest.mark.parametrize("subprotocol", PROTOCOLS)
    def test_a_refused_connection_is_told_with_its_code(self, subprotocol: str) -> None:
        class Closed(GraphqlSubscriptionConsumer):
            def on_connect(self, payload: Mapping[str, Any]) -> bool:
                return False

        application = Closed.as_asgi(schema=graphene.Schema(query=Answers))
        with pytest.raises(SocketClosedError) as caught:
            GraphqlCommunicator(application, subprotocol=subprotocol).open()
        assert caught.value.code == CloseCode.FORBIDDEN
        assert current_server() is None

    def test_a_page_of_another_site_is_refused_by_the_whole_application(self) -> None:
        with pytest.raises(SocketClosedError):
            GraphqlCommunicator(site, headers={"Origin": "https://elsewhere.example"}).open()

    def test_an_unknown_subprotocol_is_told(self) -> None:
        with pytest.raises(SocketClosedError, match="4406: Subprotocol not acceptable"):
            GraphqlCommunicator(graphene.Schema(query=Answers), subprotocol="mqtt").open()

    def test_a_time_out_of_the_application_is_not_taken_for_one_of_the_test(self) -> None:
        async def application(scope: Any, receive: Any, send: Any) -> None:
            raise TimeoutError("of the application")

        with pytest.raises(TimeoutError, match="of the application"):
            GraphqlCommunicator(application).open()

    def test_a_server_that_cannot_start_says_why_and_leaves_nothing_behind(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def start(hub: Hub) -> None:
            raise LookupError("no start")

        with monkeypatch.context() as patched, default_layer() as layer:
            patched.setattr(Hub, "start", start)
            with pytest.raises(LookupError, match="no start") as caught:
                GraphqlCommunicator(graphene.Schema(query=Answers)).open()
            assert not isinstance(caught.value.__context__, NotSettledError), "it was waited for in vain"
            assert get_channel_layer() is layer
        assert current_server() is None
        assert not [thread for thread in threading.enumerate() if thread.name == "pgnotify_gql testing"]
        with GraphqlCommunicator(graphene.Schema(query=Answers)) as client:
            assert client.execute("{ who }") == {"who": "AnonymousUser"}

    def test_the_user_is_that_of_the_session_where_no_other_is_given(self, room: Room) -> None:
        session = SessionStore()
        session[SESSION_KEY] = str(room.alice.pk)
        session[BACKEND_SESSION_KEY] = "django.contrib.auth.backends.ModelBackend"
        session[HASH_SESSION_KEY] = room.alice.get_session_auth_hash()
        session.save()
        with GraphqlCommunicator(graphene.Schema(query=Answers), session=session) as client:
            assert client.execute("{ who }") == {"who": "alice"}

    def test_what_the_application_raises_is_raised(self) -> None:
        async def application(scope: Any, receive: Any, send: Any) -> None:
            raise LookupError("no route")

        with pytest.raises(LookupError, match="no route"):
            GraphqlCommunicator(application).open()

    def test_neither_a_schema_nor_an_application_is_told(self) -> None:
        with pytest.raises(ConfigurationError, match=r"takes a graphene\.Schema"):
            GraphqlCommunicator("schema")
        with pytest.raises(ConfigurationError, match=r"give GraphqlSubscriptionConsumer.as_asgi\(schema=...\)"):
            GraphqlCommunicator(GraphqlSubscriptionConsumer)

    def test_it_has_to_be_open(self) -> None:
        client = GraphqlCommunicator(graphene.Schema(query=Answers))
        with pytest.raises(SubscriptionTestError, match="not open"):
            client.execute("{ who }")
        with client, pytest.raises(SubscriptionTestError, match="open already"):
            client.open()
        with pytest.raises(SubscriptionTestError, match="not open"):
            client.closed()
        client.close()

    def test_the_channel_layer_of_the_project_is_put_back(self) -> None:
        with default_layer() as layer:
            with GraphqlCommunicator(graphene.Schema(query=Answers)):
                assert get_channel_layer() is not layer
            assert get_channel_layer() is layer


class TestExecuting:
    def test_errors_are_raised_with_the_result(self) -> None:
        with GraphqlCommunicator(graphene.Schema(query=Answers)) as client:
            with pytest.raises(GraphqlResultError) as caught:
                client.execute("{ broken }")
            assert caught.value.result is not None
            assert caught.value.result["data"] == {"broken": None}
            with pytest.raises(GraphqlResultError, match="Cannot query field 'cake'"):
                client.execute("{ cake }")

    def test_variables_and_the_operation_are_passed(self) -> None:
        query = "query a($yes: Boolean!) { who @include(if: $yes) } query b { who }"
        with GraphqlCommunicator(graphene.Schema(query=Answers)) as client:
            assert client.execute(query, {"yes": False}, "a") == {}

    @pytest.mark.parametrize("subprotocol", PROTOCOLS)
    def test_both_subprotocols_are_spoken(self, subprotocol: str) -> None:
        with GraphqlCommunicator(graphene.Schema(query=Answers), subprotocol=subprotocol) as client:
            assert client.execute("{ who }") == {"who": "AnonymousUser"}
            with pytest.raises(GraphqlResultError):
                client.execute("{ cake }")

    def test_a_socket_that_is_closed_meanwhile_is_told(self) -> None:
        with (
            GraphqlCommunicator(graphene.Schema(query=Answers)) as client,
            override_settings(PGNOTIFY_GQL={"MAX_MESSAGE_BYTES": 100}),
            GraphqlCommunicator(graphene.Schema(query=Answers)) as limited,
        ):
            long = f"{{ {'who ' * 100} }}"
            assert client.execute(long) == {"who": "AnonymousUser"}
            with pytest.raises(SocketClosedError, match="1009"):
                limited.execute(long)

    def test_pings_are_answered_so_that_more_is_sent_than_may_be_unread(self) -> None:
        words = ["x" * 1_000] * 20
        fields = " ".join(f'w{number}: named(word: "{word}")' for number, word in enumerate(words))
        with (
            override_settings(PGNOTIFY_GQL={"OUTBOX_BYTES": 30_000}),
            GraphqlCommunicator(graphene.Schema(query=Answers)) as client,
        ):
            for _ in range(10):
                assert list(client.execute(f"{{ {fields} }}").values()) == words

    def test_variables_may_be_what_django_writes_as_json(self) -> None:
        query = "query ($word: String) { named(word: $word) }"
        with GraphqlCommunicator(graphene.Schema(query=Answers)) as client:
            assert client.execute(query, {"word": UUID(int=7)}) == {"named": str(UUID(int=7))}


class TestResults:
    @pytest.mark.parametrize("subprotocol", PROTOCOLS)
    def test_results_come_one_after_the_other(self, journal: MemoryJournal, subprotocol: str) -> None:
        with GraphqlCommunicator(declare(returns([Message])), subprotocol=subprotocol) as client:
            changes = client.subscribe(QUERY)
            journal.add(insert(Message, text="tea"), insert(Message, text="cake"))
            pump()
            assert changes.next() == {"changes": {"text": "tea"}}
            assert changes.result()["data"] == {"changes": {"text": "cake"}}
            changes.complete()
            journal.add(insert(Message, text="late"))
            pump()
            assert changes.is_completed
            with pytest.raises(NothingSentError, match="the subscription is over"):
                changes.next()

    def test_that_nothing_was_sent_is_told_with_what_to_do(self, journal: MemoryJournal) -> None:
        with GraphqlCommunicator(declare(returns([Message]))) as client:
            changes = client.subscribe(QUERY)
            with pytest.raises(NothingSentError, match=r"no change that was pumped is one of its topics"):
                changes.next()
            journal.add(insert(Message, text="tea"))
            with pytest.raises(NothingSentError, match=r"1 journal row waits to be delivered, call pump\(\)"):
                changes.next()
            changes.nothing()
            pump()
            with pytest.raises(UnexpectedResultError, match="tea"):
                changes.nothing()

    def test_a_result_with_errors_is_raised_and_the_next_one_is_there(self, journal: MemoryJournal) -> None:
        def next_change(cls: Any, change: Any, info: Any) -> Any:
            return seen(change) if change.kind == "UPDATE" else fails(cls, change, info)

        with GraphqlCommunicator(declare(returns([Message]), next_change)) as client:
            changes = client.subscribe(QUERY)
            journal.add(insert(Message, id=1, text="tea"), update(Message, id=1, text="cake"))
            pump()
            with pytest.raises(GraphqlResultError):
                changes.next()
            assert changes.next() == {"changes": {"text": "cake"}}

    @pytest.mark.parametrize("subprotocol", PROTOCOLS)
    def test_a_refused_subscription_is_raised(self, journal: MemoryJournal, subprotocol: str) -> None:
        with GraphqlCommunicator(declare(returns([User])), subprotocol=subprotocol) as client:
            with pytest.raises(GraphqlResultError) as caught:
                client.subscribe(QUERY)
            assert caught.value.codes

    def test_a_cursor_goes_on_behind_what_was_read(self, journal: MemoryJournal) -> None:
        schema = declare(returns([Message]))
        with GraphqlCommunicator(schema) as client:
            changes = client.subscribe(QUERY)
            journal.add(insert(Message, text="one"), insert(Message, text="two"))
            pump()
            changes.next()
            again = client.subscribe(QUERY, cursor=changes.cursor)
            assert again.next() == {"changes": {"text": "two"}}
            again.nothing()

    def test_a_cursor_of_another_journal_is_answered_with_a_resync(self) -> None:
        schema = declare(returns([Message]))
        with MemoryJournal() as journal, GraphqlCommunicator(schema) as client:
            changes = client.subscribe(QUERY)
            journal.add(insert(Message, text="one"))
            pump()
            changes.next()
        with MemoryJournal() as journal, GraphqlCommunicator(schema) as client:
            again = client.subscribe(QUERY, cursor=changes.cursor)
            with pytest.raises(ResyncError, match="no longer there"):
                again.next()
            journal.add(insert(Message, text="two"))
            pump()
            assert again.next() == {"changes": {"text": "two"}}

    def test_the_server_closes_a_client_that_breaks_the_protocol(self) -> None:
        with GraphqlCommunicator(graphene.Schema(query=Answers)) as client:
            client._send(TestSubscription(client, ""), "{ who }", None, None, None)
            assert client.closed().code == CloseCode.BAD_REQUEST
            with pytest.raises(SocketClosedError):
                client.execute("{ who }")


class TestMemoryJournal:
    def test_instances_are_those_that_were_given(self, journal: MemoryJournal) -> None:
        def next_change(cls: Any, change: Any, info: Any) -> Any:
            return {"text": repr(change.instance)}

        with GraphqlCommunicator(declare(returns([Message]), next_change)) as client:
            changes = client.subscribe(QUERY)
            journal.add(insert(Message(id=1, text="tea")), delete(Message(id=2, text="rum")))
            pump()
            assert [found["changes"]["text"] for found in changes] == ["<Message: tea>", "None"]

    def test_changes_of_a_pump_may_be_added_again(self, room: Room) -> None:
        with GraphqlCommunicator(declare(returns([Message]))) as client:
            client.subscribe(QUERY)
            room.say("tea")
            delivered = pump()
        with MemoryJournal() as journal, GraphqlCommunicator(declare(returns([Message]))) as client:
            changes = client.subscribe(QUERY)
            journal.add(*delivered)
            pump()
            assert changes.next() == {"changes": {"text": "tea"}}

    def test_a_user_who_cannot_be_looked_at_again_stays(self, journal: MemoryJournal) -> None:
        user = User(pk=7, username="alice")
        with GraphqlCommunicator(declare(returns([Message])), user) as client:
            changes = client.subscribe("subscription { changes { username } }")
            journal.add(insert(Message, text="tea"))
            pump()
            assert changes.next() == {"changes": {"username": "alice"}}

    def test_rows_are_fetched_again_when_it_is_closed(self, database_triggers: Database) -> None:
        with MemoryJournal() as journal:
            journal.add(insert(Message(id=1, text="tea")))
        with transaction.atomic():
            assert insert(Message, id=1).source.fetch(1) is None

    def test_it_comes_before_the_first_client(self) -> None:
        with (
            GraphqlCommunicator(graphene.Schema(query=Answers)),
            pytest.raises(SubscriptionTestError, match="before the first GraphqlCommunicator"),
            MemoryJournal(),
        ):
            pass

    def test_a_model_without_a_watch_is_told(self) -> None:
        with pytest.raises(WatchError, match="notify_on_model_changes"):
            insert(User, username="alice")
