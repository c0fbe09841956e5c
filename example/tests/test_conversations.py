"""The subscription ``conversations``: who is told of which conversation, and how many messages are unread."""

from __future__ import annotations

from django.db import connection, transaction

from example.conversations.models import Conversation, Membership, Message
from pgnotify_gql.testing import pump

from .room import RoomTestCase

QUERY = "subscription { conversations { title unread } }"


class ConversationsTests(RoomTestCase):
    def test_a_new_message_tells_how_many_are_unread(self) -> None:
        conversations = self.connect(self.alice).subscribe(QUERY)
        self.say("tea is ready")
        self.say("and cake")
        pump()
        assert conversations.next() == {"conversations": {"title": "kitchen", "unread": 2}}
        assert conversations.next() == {"conversations": {"title": "kitchen", "unread": 2}}
        conversations.nothing()

    def test_a_new_title_is_told(self) -> None:
        conversations = self.connect(self.alice).subscribe(QUERY)
        Conversation.objects.filter(pk=self.kitchen.pk).update(title="tea kitchen")
        pump()
        assert conversations.next() == {"conversations": {"title": "tea kitchen", "unread": 0}}

    def test_raw_sql_and_bulk_writes_are_told_as_well(self) -> None:
        conversations = self.connect(self.alice).subscribe(QUERY)
        Message.objects.bulk_create(
            Message(conversation=self.kitchen, author=self.bob, text=text) for text in ("one", "two")
        )
        with connection.cursor() as cursor:
            cursor.execute("update conversations_conversation set title = 'sql' where id = %s", [self.kitchen.pk])
        pump()
        assert [found["conversations"]["title"] for found in conversations] == ["sql", "sql", "sql"]

    def test_nobody_is_told_of_a_conversation_that_is_not_his(self) -> None:
        alice, bob = (self.connect(user).subscribe(QUERY) for user in (self.alice, self.bob))
        self.say("rats!", self.cellar)
        pump()
        assert bob.next()["conversations"]["title"] == "cellar"
        alice.nothing()

    def test_visitors_are_told_nothing(self) -> None:
        visitor = self.connect().subscribe(QUERY)
        self.say("tea is ready")
        pump()
        visitor.nothing()

    def test_a_member_who_has_left_is_told_nothing_more(self) -> None:
        conversations = self.connect(self.alice).subscribe(QUERY)
        Membership.objects.filter(user=self.alice).delete()
        self.say("she is gone")
        pump()
        conversations.nothing()

    def test_what_is_rolled_back_never_happened(self) -> None:
        conversations = self.connect(self.alice).subscribe(QUERY)
        with self.assertRaisesMessage(RuntimeError, "no"), transaction.atomic():
            self.say("unsaid")
            raise RuntimeError("no")
        assert pump() == []
        conversations.nothing()
