"""Fixtures of these tests: a transaction that is never committed, as one of Django's test cases has it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from django.contrib.auth.models import User
from django.db import transaction

from example.conversations.models import Conversation, Membership, Message
from tests.support.databases import Database


@dataclass
class Room:
    """Alice is in the kitchen, with Bob; he alone is in the cellar."""

    alice: User
    bob: User
    kitchen: Conversation
    cellar: Conversation

    def say(self, text: str, conversation: Conversation | None = None) -> Message:
        return Message.objects.create(conversation=conversation or self.kitchen, author=self.bob, text=text)


def furnished() -> Room:
    """Return a room with its rows."""
    alice, bob = (User.objects.create(username=name) for name in ("alice", "bob"))
    kitchen, cellar = (Conversation.objects.create(title=title) for title in ("kitchen", "cellar"))
    for user, conversation in ((alice, kitchen), (bob, kitchen), (bob, cellar)):
        Membership.objects.create(user=user, conversation=conversation)
    return Room(alice, bob, kitchen, cellar)


@pytest.fixture
def uncommitted(database_triggers: Database) -> Iterator[None]:
    """An open transaction."""
    with transaction.atomic():
        yield
        transaction.set_rollback(True)


@pytest.fixture
def room(uncommitted: None) -> Room:
    return furnished()
