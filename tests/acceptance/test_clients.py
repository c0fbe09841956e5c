"""Independent clients, unmodified, receive from the demo what others write, in each subprotocol."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from gql import Client, gql
from gql.transport.aiohttp_websockets import AIOHTTPWebsocketsTransport
from gql.transport.websockets import WebsocketsTransport

from tests.acceptance.clients import (
    CHANGES,
    CLIENTS,
    CONVERSATIONS,
    FIRST_PAUSE,
    MESSAGES,
    PLAIN,
    SUBPROTOCOLS,
    BareSocket,
    ClientFactory,
    Data,
    Results,
    bare,
    watching,
)
from tests.acceptance.demo import Demo, run_in_django
from tests.acceptance.room import Room
from tests.acceptance.site import Visitor

SEND = """
mutation ($conversationId: ID!, $text: String!, $via: WriteVia!) {
  sendMessage(conversationId: $conversationId, text: $text, via: $via) { message { id } }
}
"""
EDIT = """
mutation ($conversationId: ID!, $ids: [ID!]!, $text: String!) {
  editMessages(conversationId: $conversationId, ids: $ids, text: $text) { edited }
}
"""
DELETE = "mutation ($id: ID!) { deleteMessage(id: $id) { id } }"


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest) -> ClientFactory:
    return CLIENTS[request.param]


@pytest.fixture
def alice(demo: Demo) -> Visitor:
    return Visitor.logged_in(demo.site, "alice")


@pytest.fixture
def bob(demo: Demo) -> Visitor:
    return Visitor.logged_in(demo.site, "bob")


async def test_a_client_receives_insert_update_and_delete_of_raw_sql(
    client: ClientFactory, alice: Visitor, demo_room: Room
) -> None:
    async with watching(client, alice, demo_room, CHANGES) as watcher:
        pk = demo_room.insert("first words")
        inserted = await watcher.next()
        demo_room.update(pk, "second thoughts")
        updated = await watcher.next()
        demo_room.delete(pk)
        deleted = await watcher.next()
    assert [data["kind"] for data in (inserted, updated, deleted)] == ["INSERT", "UPDATE", "DELETE"]
    assert {data["pk"] for data in (inserted, updated, deleted)} == {pk}
    assert {data["via"] for data in (inserted, updated, deleted)} == {"SQL"}
    assert inserted["message"] == {"id": pk, "text": "first words", "author": {"username": "bob"}}
    assert updated["message"]["text"] == "second thoughts"
    assert deleted["message"] is None


async def test_a_client_receives_the_rows_themselves(client: ClientFactory, alice: Visitor, demo_room: Room) -> None:
    async with watching(client, alice, demo_room, MESSAGES) as watcher:
        pk = demo_room.insert("hello")
        assert await watcher.next() == {"id": pk, "text": "hello", "author": {"username": "bob"}}


@pytest.mark.parametrize("transport", [WebsocketsTransport, AIOHTTPWebsocketsTransport])
@pytest.mark.parametrize("subprotocol", SUBPROTOCOLS)
async def test_a_client_queries_and_mutates_over_the_socket(
    alice: Visitor, demo_room: Room, transport: Any, subprotocol: str
) -> None:
    made = transport(alice.socket_url, headers=alice.headers, subprotocols=[subprotocol])
    async with Client(transport=made) as session:
        assert (await session.execute(gql("{ me { username } }")))["me"] == {"username": "alice"}
        request = gql(SEND)
        request.variable_values = {"conversationId": str(demo_room.id), "text": "over the socket", "via": "ORM"}
        pk = (await session.execute(request))["sendMessage"]["message"]["id"]
    found = demo_room.connection.execute("select text from conversations_message where id = %s", [pk]).fetchone()
    assert found == ("over the socket",)


async def test_what_another_user_writes_over_http_is_received_with_the_way_it_took(
    alice: Visitor, bob: Visitor, demo_room: Room
) -> None:
    conversation = str(demo_room.id)
    async with watching(PLAIN, alice, demo_room) as watcher:
        for via, way in (("ORM", "save()"), ("BULK_CREATE", "bulk_create()")):
            answer = bob.execute(SEND, conversationId=conversation, text=way, via=via)
            pk = answer["sendMessage"]["message"]["id"]
            assert fields(await watcher.next()) == ("INSERT", pk, way, way)
        assert bob.execute(EDIT, conversationId=conversation, ids=[pk], text="edited")["editMessages"]["edited"] == 1
        assert fields(await watcher.next()) == ("UPDATE", pk, "QuerySet.update()", "edited")
        bob.execute(DELETE, id=pk)
        assert fields(await watcher.next()) == ("DELETE", pk, "delete()", None)


async def test_what_another_django_process_writes_is_received(alice: Visitor, demo: Demo, demo_room: Room) -> None:
    program = f"""
from example.conversations.models import Message
from django.contrib.auth.models import User
author = User.objects.get(username="bob")
def new(text):
    return Message(conversation_id={demo_room.id}, author=author, text=text)
saved = new("saved"); saved.save(); saved.text = "saved again"; saved.save()
bulk = Message.objects.bulk_create(new(text) for text in ("one", "two", "three"))
Message.objects.filter(pk__in=[message.pk for message in bulk]).update(text="updated")
for message in bulk: message.text = "bulk-updated"
Message.objects.bulk_update(bulk, ["text"])
Message.objects.filter(pk__in=[message.pk for message in bulk]).delete()
print(saved.pk, *(message.pk for message in bulk))
"""
    async with watching(PLAIN, alice, demo_room) as watcher:
        saved, *bulk = run_in_django(demo.conninfo, program).split()
        received = await watcher.take(2 + 4 * 3)
    kinds = [(data["kind"], data["pk"]) for data in received]
    assert kinds[:2] == [("INSERT", saved), ("UPDATE", saved)]
    for pk in bulk:
        of_row = [kind for kind, key in kinds if key == pk]
        assert of_row == ["INSERT", "UPDATE", "UPDATE", "DELETE"]


@pytest.mark.parametrize("subprotocol", SUBPROTOCOLS)
async def test_a_stranger_receives_nothing_of_a_conversation_of_others(
    alice: Visitor, demo: Demo, demo_room: Room, subprotocol: str
) -> None:
    program = """
from django.contrib.auth.models import User
from example.conversations.models import Conversation
user = User.objects.filter(username="carol").first() or User.objects.create_user("carol", password="carol")
conversation, _ = Conversation.objects.get_or_create(title="Diary of carol")
conversation.members.add(user)
"""
    run_in_django(demo.conninfo, program)
    diary = Room(demo_room.connection, "Diary of carol")
    carol = Visitor.logged_in(demo.site, "carol")
    assert "not a member" in await complaint_about(carol, demo_room, subprotocol)
    async with (
        bare(carol, CONVERSATIONS, {}, subprotocol=subprotocol) as results,
        watching(PLAIN, alice, demo_room) as watcher,
    ):
        received = [await first(results, lambda: diary.insert("dear diary"))]
        for number in range(10):
            demo_room.insert(str(number))
        await watcher.take(10)
        # Results of one subscription come in order: what she was not to see would have come before this.
        rename = "update conversations_conversation set title = %s where id = %s"
        diary.connection.execute(rename, ["Diary of carol, closed", diary.id])
        while received[-1]["conversations"]["title"] != "Diary of carol, closed":
            received.append(await anext(results))
        diary.connection.execute(rename, ["Diary of carol", diary.id])
    assert {data["conversations"]["id"] for data in received} == {str(diary.id)}


@pytest.mark.parametrize("subprotocol", SUBPROTOCOLS)
async def test_an_anonymous_socket_receives_nothing(
    alice: Visitor, demo: Demo, demo_room: Room, subprotocol: str
) -> None:
    anonymous = Visitor(demo.site)
    assert "not logged in" in await complaint_about(anonymous, demo_room, subprotocol)
    async with BareSocket.opened(anonymous, subprotocol) as socket:
        await socket.subscribe(CONVERSATIONS, {})
        async with watching(PLAIN, alice, demo_room) as watcher:
            for number in range(10):
                demo_room.insert(str(number))
                await watcher.next()
        await socket.subscribe("{ me { id } }", {}, operation_id="question")
        # The answer to the question that was asked last is the first that comes.
        assert await anext(socket.results()) == {"me": None}


async def first(results: Results, write: Callable[[], Any]) -> Data:
    """Write until the first result comes, since no message tells when a subscription has taken effect."""
    coming = asyncio.ensure_future(anext(results))
    while not coming.done():
        write()
        await asyncio.wait({coming}, timeout=FIRST_PAUSE)
    return coming.result()


async def complaint_about(visitor: Visitor, room: Room, subprotocol: str) -> str:
    """Return the error that a subscription to a room is answered with."""
    async with BareSocket.opened(visitor, subprotocol) as socket:
        await socket.subscribe(CHANGES, {"conversationId": str(room.id)})
        message = await socket.receive()
        assert message["type"] == "error", message
        return json.dumps(message["payload"])


def fields(data: Data) -> tuple[Any, ...]:
    return data["kind"], data["pk"], data["via"], data["message"] and data["message"]["text"]
