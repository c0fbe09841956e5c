"""
Subscriptions to the messages of one conversation.

Both check the membership twice: when somebody subscribes, and again for every
change, because a member may have been removed in the meantime.
"""

from __future__ import annotations

from typing import Any

import graphene

from pgnotify_gql.subscriptions import Change, Subscription, Topic

from .access import conversation_for, is_member, number
from .models import Message
from .types import MessageChangeType, MessageType


class OfConversation:
    """What both wait for: the messages of a conversation that the subscriber is a member of."""

    class Arguments:
        conversation_id = graphene.ID(required=True)

    @classmethod
    def subscribe(cls, info: Any, conversation_id: str) -> list[Topic]:
        return [Topic(Message, conversation=conversation_for(info, conversation_id).pk)]


class MessagesSubscription(OfConversation, Subscription):
    """The messages of a conversation as they are written and edited."""

    class Meta:
        output = MessageType

    @classmethod
    def next(cls, change: Change, info: Any, conversation_id: str) -> Message | None:
        if not is_member(info, conversation_id):
            return None
        return message_of(change, conversation_id)


class MessageChangesSubscription(OfConversation, Subscription):
    """Every change of a conversation's messages: also deletions, and how each was written."""

    class Meta:
        output = MessageChangeType

    @classmethod
    def next(cls, change: Change, info: Any, conversation_id: str) -> MessageChangeType | None:
        if not is_member(info, conversation_id):
            return None
        return MessageChangeType(
            kind=change.kind,
            pk=change.pk,
            at=change.at,
            via=change.context.get("via") or "SQL",
            message=message_of(change, conversation_id),
        )


def message_of(change: Change, conversation_id: str) -> Message | None:
    """Return the changed message; None when it is gone, or was moved to another conversation."""
    message: Message | None = change.instance
    if message is None or message.conversation_id != number(conversation_id):
        return None
    return message
