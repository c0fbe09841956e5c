"""The subscriptions to the messages of one conversation, the mutations that write them, and coming back."""

from __future__ import annotations

from example.asgi import application
from example.conversations.models import Message
from pgnotify_gql.testing import GraphqlCommunicator, GraphqlResultError, pump

from .room import RoomTestCase

MESSAGES = "subscription ($id: ID!) { messages(conversationId: $id) { text author { username } } }"
CHANGES = "subscription ($id: ID!) { messageChanges(conversationId: $id) { kind pk via message { text } } }"
SEND = "mutation ($id: ID!, $text: String!) { sendMessage(conversationId: $id, text: $text) { message { text } } }"


class MessagesTests(RoomTestCase):
    def test_a_member_is_told_what_is_written(self) -> None:
        messages = self.connect(self.alice).subscribe(MESSAGES, {"id": self.kitchen.pk})
        self.say("tea is ready")
        pump()
        assert messages.next() == {"messages": {"text": "tea is ready", "author": {"username": "bob"}}}

    def test_other_conversations_are_not_told(self) -> None:
        messages = self.connect(self.bob).subscribe(MESSAGES, {"id": self.kitchen.pk})
        self.say("rats!", self.cellar)
        pump()
        messages.nothing()

    def test_somebody_else_is_refused(self) -> None:
        client = self.connect(self.alice)
        with self.assertRaisesMessage(GraphqlResultError, "you are not a member of it"):
            client.subscribe(MESSAGES, {"id": self.cellar.pk})

    def test_a_visitor_is_refused(self) -> None:
        with self.assertRaisesMessage(GraphqlResultError, "you are not logged in"):
            self.connect().subscribe(MESSAGES, {"id": self.kitchen.pk})

    def test_a_deletion_is_a_change_without_a_message(self) -> None:
        message = self.say("a slip")
        changes = self.connect(self.alice).subscribe(CHANGES, {"id": self.kitchen.pk})
        key = str(message.pk)
        message.delete()
        pump()
        told = {"kind": "DELETE", "pk": key, "via": "SQL", "message": None}
        assert changes.next() == {"messageChanges": told}

    def test_a_mutation_over_the_socket_says_how_it_has_written(self) -> None:
        changes = self.connect(self.alice).subscribe(CHANGES, {"id": self.kitchen.pk})
        self.connect(self.bob).execute(SEND, {"id": self.kitchen.pk, "text": "hello"})
        (change,) = pump()
        told = {"kind": "INSERT", "pk": str(change.pk), "via": "save()", "message": {"text": "hello"}}
        assert changes.next() == {"messageChanges": told}

    def test_who_comes_back_is_told_what_he_has_missed(self) -> None:
        client = self.connect(self.alice)
        messages = client.subscribe(MESSAGES, {"id": self.kitchen.pk})
        self.say("one")
        pump()
        messages.next()
        client.close()
        self.say("two")
        pump()
        again = self.connect(self.alice).subscribe(MESSAGES, {"id": self.kitchen.pk}, cursor=messages.cursor)
        self.say("three")
        pump()
        assert [found["messages"]["text"] for found in again] == ["two", "three"]

    def test_the_site_knows_who_is_logged_in(self) -> None:
        self.client.force_login(self.alice)
        cookies = "; ".join(f"{cookie.key}={cookie.value}" for cookie in self.client.cookies.values())
        with GraphqlCommunicator(application, headers={"Cookie": cookies}) as client:
            assert client.execute("{ me { username } }") == {"me": {"username": "alice"}}
            messages = client.subscribe(MESSAGES, {"id": self.kitchen.pk})
            Message.objects.create(conversation=self.kitchen, author=self.alice, text="it is me")
            pump()
            assert messages.next()["messages"]["text"] == "it is me"
