"""`manage.py sample_data`: two people with something to talk about."""

from typing import Any

from django.contrib.auth.models import User
from django.core.management.base import BaseCommand
from django.db import transaction

from example.conversations.models import Conversation, Membership, Message

USERS = ("alice", "bob")

STAFF = frozenset({"alice"})
"""May look at the monitor, and install triggers there."""

CONVERSATIONS: dict[str, list[tuple[str, str]]] = {
    "Weekend in the hills": [
        ("alice", "The forecast says sun from Friday noon."),
        ("bob", "Then I will book the hut for two nights."),
        ("alice", "Good. I bring the stove, you bring the coffee."),
    ],
    "Release notes": [
        ("bob", "The importer writes its rows with bulk_create. Will the page see them?"),
        ("alice", "Every committed row, whoever writes it. Try it with psql."),
    ],
    "Allotment": [
        ("bob", "The tomatoes need tying up again."),
    ],
}


class Command(BaseCommand):
    """Safe to run again: what is there is left as it is, deleted messages stay deleted."""

    help = "Create the users alice and bob (their passwords are their names) and some conversations."

    @transaction.atomic
    def handle(self, *args: Any, **options: Any) -> None:
        users = {name: self.user(name) for name in USERS}
        for title, messages in CONVERSATIONS.items():
            self.conversation(title, messages, users)
        self.stdout.write(f"{' and '.join(USERS)}, {len(CONVERSATIONS)} conversations")

    def user(self, name: str) -> User:
        user, created = User.objects.get_or_create(
            username=name, defaults={"is_staff": name in STAFF, "is_superuser": name in STAFF}
        )
        if created:
            user.set_password(name)
            user.save()
        return user

    def conversation(self, title: str, messages: list[tuple[str, str]], users: dict[str, User]) -> None:
        if Conversation.objects.filter(title=title).exists():
            return
        conversation = Conversation.objects.create(title=title)
        Membership.objects.bulk_create(Membership(conversation=conversation, user=user) for user in users.values())
        Message.objects.bulk_create(
            Message(conversation=conversation, author=users[author], text=text) for author, text in messages
        )
