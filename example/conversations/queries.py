"""What can be asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import graphene

from .access import conversation_for
from .models import Conversation, Message
from .types import ConversationType, MessageType, UserType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from django.contrib.auth.models import User
    from django.db.models import QuerySet

MOST_MESSAGES = 500
"""Messages in one answer: more than anybody reads, and little enough to send at once."""


class Query(graphene.ObjectType):  # type: ignore[misc]
    me = graphene.Field(UserType, description="You; null when you are not logged in.")
    conversations = graphene.List(
        graphene.NonNull(ConversationType),
        required=True,
        description="The conversations you are a member of.",
    )
    messages = graphene.List(
        graphene.NonNull(MessageType),
        conversation_id=graphene.ID(required=True),
        last=graphene.Int(
            default_value=100, required=True, description=f"At most this many; never over {MOST_MESSAGES}."
        ),
        required=True,
        description="The newest messages of a conversation, oldest first.",
    )

    @staticmethod
    def resolve_me(root: None, info: Any) -> User | None:
        user: User = info.context.user
        return user if user.is_authenticated else None

    @staticmethod
    def resolve_conversations(root: None, info: Any) -> QuerySet[Conversation]:
        user = info.context.user
        return Conversation.objects.for_user(user).annotate_unread(user).order_by("title", "pk")

    @staticmethod
    def resolve_messages(root: None, info: Any, conversation_id: str, last: int) -> Sequence[Message]:
        conversation = conversation_for(info, conversation_id)
        newest = Message.objects.filter(conversation=conversation).select_related("author").order_by("-pk")
        return list(newest[: max(0, min(last, MOST_MESSAGES))])[::-1]
