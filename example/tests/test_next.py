"""``next`` by itself, with changes that are made by hand, and a whole subscription without a database."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import graphene
from django.contrib.auth.models import AnonymousUser
from django.test import SimpleTestCase

from example.conversations.message_subscriptions import MessageChangesSubscription, message_of
from example.conversations.models import Conversation, Message
from example.conversations.subscriptions import ConversationsSubscription
from pgnotify_gql.subscriptions import Subscription, Topic
from pgnotify_gql.testing import GraphqlCommunicator, MemoryJournal, delete, insert, pump, update

from .room import RoomTestCase

# Which is the one of the documentation, without annotations.
conversation_of: Any = ConversationsSubscription.next


class NextTests(RoomTestCase):
    def info(self, user: Any) -> Any:
        return SimpleNamespace(context=SimpleNamespace(user=user))

    def test_a_conversation_is_found_by_its_own_change_and_by_that_of_a_message(self) -> None:
        message = self.say("tea")
        for change in (update(self.kitchen, old={}), insert(message)):
            found = conversation_of(change, self.info(self.alice))
            assert found == self.kitchen

    def test_others_are_told_nothing(self) -> None:
        for user in (self.alice, AnonymousUser()):
            assert conversation_of(update(self.cellar, old={}), self.info(user)) is None

    def test_a_deletion_says_who_has_done_it(self) -> None:
        change = delete(self.say("a slip"), context={"via": "delete()"})
        told = MessageChangesSubscription.next(change, self.info(self.alice), str(self.kitchen.pk))
        assert told is not None
        assert (told.pk, told.via, told.message) == (change.pk, "delete()", None)


class Texts(Subscription):
    """What is written in one conversation."""

    class Meta:
        output = graphene.String

    class Arguments:
        conversation = graphene.Int(required=True)

    @classmethod
    def subscribe(cls, info: Any, conversation: int) -> Any:
        return [Topic(Message, conversation=conversation)]

    @classmethod
    def next(cls, change: Any, info: Any, conversation: int) -> str | None:
        message = message_of(change, str(conversation))
        return None if message is None else message.text


class Query(graphene.ObjectType):  # type: ignore[misc]
    nothing = graphene.Int()


class Subscriptions(graphene.ObjectType):  # type: ignore[misc]
    texts = Texts.Field()


class WithoutADatabaseTests(SimpleTestCase):
    def test_a_subscription_is_told_what_a_test_has_journaled(self) -> None:
        schema = graphene.Schema(query=Query, subscription=Subscriptions)
        with MemoryJournal() as journal, GraphqlCommunicator(schema) as client:
            texts = client.subscribe("subscription { texts(conversation: 1) }")
            journal.add(insert(Message, conversation=1, text="tea"), insert(Message, conversation=2, text="rats!"))
            journal.add(update(Message, old={"conversation": 1}, id=7, conversation=2, text="moved"))
            pump()
            assert list(texts) == [{"texts": "tea"}]

    def test_a_change_holds_what_the_watch_captures(self) -> None:
        change = update(Message, old={"text": "tee"}, id=7, conversation=Conversation(pk=1), text="tea")
        assert change.old is not None
        assert change.new is not None
        assert (change.pk, change.old["text"], change.new["text"]) == (7, "tee", "tea")
        assert change.changed == {"text"}
        with self.assertRaisesMessage(TypeError, "did you mean text=?"):
            insert(Message, txt="tea")
