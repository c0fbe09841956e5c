"""Audiences: who shares an execution, seen by counting executions."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import graphene
import pytest
from django.contrib.auth.models import AnonymousUser

from example.conversations.models import Message
from pgnotify_gql.hub import Audience
from pgnotify_gql.transport import GraphqlSubscriptionConsumer
from tests.support.databases import Database
from tests.support.sockets import open_socket
from tests.support.subscribers import Chat, Subscriber, declare, inline_feed, seen, subscribers

pytestmark = pytest.mark.postgres("18")

NOBODY, USER, EVERYBODY = Audience.NOBODY, Audience.USER, Audience.EVERYBODY

QUERY = "subscription S($label: String) { changes(label: $label) { text username private } }"

PRIVATE: dict[str, Any] = {
    "headers": [(b"host", b"localhost"), (b"cookie", b"session=secret"), (b"authorization", b"Bearer secret")],
    "session": {"cart": [1]},
}


@pytest.fixture
def chat(database_triggers: Database) -> Iterator[Chat]:
    with inline_feed():
        yield Chat(database_triggers)


class Counted:
    """A schema that counts executions by the user they run as."""

    def __init__(self, audience: Audience) -> None:
        self.executions: Counter[str] = Counter()
        self.schema = declare(
            lambda cls, info, label="": Message,
            lambda cls, change, info, label="": self._next(change, info, label),
            audience,
            label=graphene.String(),
        )

    def _next(self, change: Any, info: Any, label: str) -> Any:
        self.executions[info.context.user.username] += 1
        return seen(change) | {"text": f"{label}{change.new['text']}"}

    @property
    def total(self) -> int:
        return self.executions.total()


async def changes(chat: Chat, *subscribers: Subscriber) -> list[dict[str, Any]]:
    """Write one message, and return what each subscriber is sent."""
    chat.insert("hello")
    return [await subscriber.change() for subscriber in subscribers]


async def test_by_default_every_subscriber_is_executed_as_himself(chat: Chat) -> None:
    counted = Counted(NOBODY)
    async with subscribers(counted.schema, chat.alice, chat.alice, chat.bob, **PRIVATE) as opened:
        for subscriber in opened:
            await subscriber.subscribe(QUERY)
        found = await changes(chat, *opened)
    assert [change["username"] for change in found] == ["alice", "alice", "bob"]
    assert all(change["private"] for change in found)
    assert counted.executions == {"alice": 2, "bob": 1}


async def test_the_sockets_of_one_user_share_and_users_do_not(chat: Chat) -> None:
    counted = Counted(USER)
    users = [chat.alice, chat.bob, chat.alice, chat.alice, chat.bob]
    async with subscribers(counted.schema, *users, **PRIVATE) as opened:
        for subscriber in opened:
            await subscriber.subscribe(QUERY)
        found = await changes(chat, *opened)
    assert [change["username"] for change in found] == [user.username for user in users]
    assert found[0] == found[2] == found[3]
    assert counted.executions == {"alice": 1, "bob": 1}


async def test_what_a_user_shares_is_executed_without_a_session_a_cookie_or_an_authorization(chat: Chat) -> None:
    async with subscribers(Counted(USER).schema, chat.alice, **PRIVATE) as [alice]:
        await alice.subscribe(QUERY)
        [change] = await changes(chat, alice)
    assert (change["username"], change["private"]) == ("alice", False)


async def test_visitors_without_a_login_do_not_share_as_a_user(chat: Chat) -> None:
    counted = Counted(USER)
    async with subscribers(counted.schema, AnonymousUser(), AnonymousUser(), **PRIVATE) as opened:
        for subscriber in opened:
            await subscriber.subscribe(QUERY)
        found = await changes(chat, *opened)
    assert counted.total == 2
    assert all(change["private"] for change in found), "each is executed with its own session"


async def test_everybody_shares_one_execution_as_the_anonymous_user(chat: Chat) -> None:
    counted = Counted(EVERYBODY)
    async with subscribers(counted.schema, chat.alice, chat.bob, AnonymousUser(), **PRIVATE) as opened:
        for subscriber in opened:
            await subscriber.subscribe(QUERY)
        found = await changes(chat, *opened)
    assert found == [{"text": "hello", "username": "", "private": False}] * 3
    assert counted.executions == {"": 1}


async def test_operations_of_one_socket_share_as_well(chat: Chat) -> None:
    counted = Counted(EVERYBODY)
    async with subscribers(counted.schema, chat.alice) as [alice]:
        for name in ("1", "2", "3"):
            await alice.subscribe(QUERY, id=name)
        await changes(chat, alice, alice, alice)
    assert counted.total == 1


async def test_an_exception_is_shared_too(chat: Chat) -> None:
    executions = []

    def fail(cls: Any, change: Any, info: Any) -> Any:
        executions.append(change)
        raise ValueError("it fails")

    schema = declare(lambda cls, info: Message, fail, EVERYBODY)
    async with subscribers(schema, chat.alice, chat.bob) as opened:
        for subscriber in opened:
            await subscriber.subscribe("subscription { changes { text } }")
        chat.insert("hello")
        for subscriber in opened:
            assert (await subscriber.result())["errors"][0]["message"] == "it fails"
    assert len(executions) == 1


@pytest.mark.parametrize("audience", [USER, EVERYBODY])
async def test_different_variables_do_not_share(chat: Chat, audience: Audience) -> None:
    counted = Counted(audience)
    async with subscribers(counted.schema, chat.alice, chat.alice) as [one, other]:
        await one.subscribe(QUERY, variables={"label": "one: "})
        await other.subscribe(QUERY, variables={"label": "other: "})
        found = await changes(chat, one, other)
    assert [change["text"] for change in found] == ["one: hello", "other: hello"]
    assert counted.total == 2


@pytest.mark.parametrize("audience", [USER, EVERYBODY])
async def test_different_documents_do_not_share(chat: Chat, audience: Audience) -> None:
    counted = Counted(audience)
    async with subscribers(counted.schema, chat.alice, chat.alice) as [one, other]:
        await one.subscribe("subscription { changes { text } }")
        await other.subscribe("subscription { changes { username } }")
        found = await changes(chat, one, other)
    assert found == [{"text": "hello"}, {"username": "alice" if audience is USER else ""}]
    assert counted.total == 2


async def test_two_schemas_in_one_process_do_not_share(chat: Chat) -> None:
    one, other = Counted(EVERYBODY), Counted(EVERYBODY)
    async with subscribers(one.schema, chat.alice) as [alice], subscribers(other.schema, chat.bob) as [bob]:
        await alice.subscribe(QUERY)
        await bob.subscribe(QUERY)
        await changes(chat, alice, bob)
    assert (one.total, other.total) == (1, 1)


async def test_an_audience_may_be_given_by_its_name(chat: Chat) -> None:
    counted: Any = Counted("everybody")  # type: ignore[arg-type]
    async with subscribers(counted.schema, chat.alice, chat.bob) as opened:
        for subscriber in opened:
            await subscriber.subscribe(QUERY)
        await changes(chat, *opened)
    assert counted.total == 1


async def test_who_joins_later_is_sent_what_is_committed_from_then_on(chat: Chat) -> None:
    counted = Counted(EVERYBODY)
    async with subscribers(counted.schema, chat.alice, chat.bob) as [alice, bob]:
        await alice.subscribe(QUERY)
        chat.insert("before")
        assert (await alice.change())["text"] == "before"
        await bob.subscribe(QUERY)
        chat.insert("after")
        assert [(await subscriber.change())["text"] for subscriber in (alice, bob)] == ["after", "after"]
    assert counted.total == 2


async def test_who_leaves_does_not_disturb_those_who_stay_even_if_the_execution_was_his(chat: Chat) -> None:
    counted = Counted(EVERYBODY)
    application = GraphqlSubscriptionConsumer.as_asgi(schema=counted.schema)
    async with subscribers(counted.schema, chat.bob) as [bob]:
        async with open_socket(application, user=chat.alice) as socket:
            await socket.init()
            await Subscriber(socket).subscribe(QUERY)
            await bob.subscribe(QUERY)
        [change] = await changes(chat, bob)
    assert change["text"] == "hello"
    assert counted.total == 1
