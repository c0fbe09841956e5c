"""What the tests have in common: two conversations, and whoever takes part in them."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import User
from django.test import TestCase

from example.conversations.models import Conversation, Membership, Message
from example.schema import schema
from pgnotify_gql.testing import GraphqlCommunicator, install_triggers


class RoomTestCase(TestCase):
    """Alice and Bob are in the kitchen, Bob alone is in the cellar; nothing is ever committed."""

    alice: User
    bob: User
    kitchen: Conversation
    cellar: Conversation

    @classmethod
    def setUpTestData(cls) -> None:
        install_triggers()
        cls.alice, cls.bob = (User.objects.create(username=name) for name in ("alice", "bob"))
        cls.kitchen, cls.cellar = (Conversation.objects.create(title=title) for title in ("kitchen", "cellar"))
        for user, conversation in ((cls.alice, cls.kitchen), (cls.bob, cls.kitchen), (cls.bob, cls.cellar)):
            Membership.objects.create(user=user, conversation=conversation)

    def connect(self, user: User | None = None, **options: Any) -> GraphqlCommunicator:
        """Return a client that leaves when the test ends."""
        client: GraphqlCommunicator = self.enterContext(GraphqlCommunicator(schema, user, **options))
        return client

    def say(self, text: str, conversation: Conversation | None = None, author: User | None = None) -> Message:
        return Message.objects.create(conversation=conversation or self.kitchen, author=author or self.bob, text=text)
