"""
Conversations, who takes part in them, and their messages.

Conversations and messages are watched: every committed change of them reaches
the subscribers, also one made by raw SQL. That is why a message needs nothing
but its three obvious columns: the database gives it its key and its time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.conf import settings
from django.db import models
from django.db.models.functions import Coalesce, Now

from pgnotify_gql.capture import notify_on_model_changes

if TYPE_CHECKING:
    from datetime import datetime

    from django.contrib.auth.models import AnonymousUser, User


class ConversationQuerySet(models.QuerySet["Conversation"]):
    def for_user(self, user: User | AnonymousUser) -> ConversationQuerySet:
        """Only the conversations that the user is a member of; none for somebody who is not logged in."""
        if not user.is_authenticated:
            return self.none()
        return self.filter(memberships__user=user)

    def annotate_unread(self, user: User | AnonymousUser) -> ConversationQuerySet:
        """
        Add `unread`: how many messages of others are newer than the user's read marker.

        Counted in a subquery, so that earlier filters on messages do not change the number.
        """
        if not user.is_authenticated:
            return self.annotate(unread=models.Value(0))
        marker = Membership.objects.filter(conversation=models.OuterRef("conversation"), user=user)
        unread = (
            Message.objects.filter(conversation=models.OuterRef("pk"))
            .filter(pk__gt=models.Subquery(marker.values("last_read_message_id")))
            .exclude(author=user)
            .order_by()
            .values("conversation")
            .annotate(count=models.Count("pk"))
            .values("count")
        )
        return self.annotate(unread=Coalesce(models.Subquery(unread), 0))


class ConversationManager(models.Manager["Conversation"]):
    def get_queryset(self) -> ConversationQuerySet:
        return ConversationQuerySet(self.model, using=self._db)

    def for_user(self, user: User | AnonymousUser) -> ConversationQuerySet:
        return self.get_queryset().for_user(user)

    def annotate_unread(self, user: User | AnonymousUser) -> ConversationQuerySet:
        return self.get_queryset().annotate_unread(user)


class Conversation(models.Model):
    title: models.Field[str, str] = models.CharField(max_length=100)
    members: models.ManyToManyField[User, Membership] = models.ManyToManyField(
        settings.AUTH_USER_MODEL, through="Membership", related_name="conversations"
    )

    objects = ConversationManager()

    def __str__(self) -> str:
        return self.title


class Membership(models.Model):
    """
    One user's part in a conversation.

    The read marker is a number and not a foreign key: it outlives the message it points at, and raw
    SQL may delete or truncate messages without asking anybody.
    """

    conversation_id: int
    user_id: int

    conversation: models.ForeignKey[Conversation, Conversation] = models.ForeignKey(
        Conversation, models.CASCADE, related_name="memberships"
    )
    user: models.ForeignKey[User, User] = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.CASCADE, related_name="memberships"
    )
    last_read_message_id: models.Field[int, int] = models.PositiveBigIntegerField(default=0, db_default=0)

    class Meta:
        constraints = (models.UniqueConstraint(fields=["conversation", "user"], name="one_membership_per_user"),)

    def __str__(self) -> str:
        return f"{self.user} in {self.conversation}"


class Message(models.Model):
    conversation_id: int
    author_id: int

    conversation: models.ForeignKey[Conversation, Conversation] = models.ForeignKey(
        Conversation, models.CASCADE, related_name="messages"
    )
    author: models.ForeignKey[User, User] = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.CASCADE, related_name="messages"
    )
    text: models.Field[str, str] = models.TextField()
    created_at: models.Field[datetime, datetime] = models.DateTimeField(db_default=Now(), editable=False)

    def __str__(self) -> str:
        return self.text[:50]


notify_on_model_changes(Conversation)
notify_on_model_changes(Message, columns=["conversation", "author", "text"])
