"""
What can be done: the same table, written in the ways that Django offers.

Each mutation says in its change context which way it took, and the page shows
it beside the change. Nothing here sends anything to a subscriber: the database
does, and would do so for any other program.
"""

from __future__ import annotations

from typing import Any

import graphene
from django.db.models import Max
from graphql import GraphQLError

from pgnotify_gql.capture import change_context

from .access import conversation_for, logged_in_user, number, own_message
from .models import Conversation, Membership, Message
from .types import ConversationType, MessageType

LONGEST_TEXT = 2000
"""Characters of a message: a long letter, and far from the size of a frame."""


class WriteVia(graphene.Enum):  # type: ignore[misc]
    ORM = "save()"
    BULK_CREATE = "bulk_create()"

    @property
    def description(self) -> str:
        return f"Written with {self.value}." if self else "How Django writes the message."


class SendMessage(graphene.Mutation):  # type: ignore[misc]
    class Arguments:
        conversation_id = graphene.ID(required=True)
        text = graphene.String(required=True)
        via = WriteVia(default_value=WriteVia.ORM, required=True)

    message = graphene.Field(MessageType, required=True)

    @classmethod
    def mutate(cls, root: None, info: Any, conversation_id: str, text: str, via: Any) -> SendMessage:
        conversation = conversation_for(info, conversation_id)
        message = Message(conversation=conversation, author=logged_in_user(info), text=checked(text))
        with change_context(via=via.value):
            if via == WriteVia.BULK_CREATE:
                Message.objects.bulk_create([message])
            else:
                message.save()
        return cls(message=message)


class EditMessages(graphene.Mutation):  # type: ignore[misc]
    """Give messages of yours another text, all in one UPDATE statement. Others' messages stay as they are."""

    class Arguments:
        conversation_id = graphene.ID(required=True)
        ids = graphene.List(graphene.NonNull(graphene.ID), required=True)
        text = graphene.String(required=True)

    edited = graphene.Int(required=True, description="How many messages of yours were among the ids.")

    @classmethod
    def mutate(cls, root: None, info: Any, conversation_id: str, ids: list[str], text: str) -> EditMessages:
        conversation = conversation_for(info, conversation_id)
        own = Message.objects.filter(conversation=conversation, author=logged_in_user(info))
        with change_context(via="QuerySet.update()"):
            edited = own.filter(pk__in=map(number, ids)).update(text=checked(text))
        return cls(edited=edited)


class DeleteMessage(graphene.Mutation):  # type: ignore[misc]
    class Arguments:
        id = graphene.ID(required=True)

    id = graphene.ID(required=True, description="The key of the message that is gone.")

    @classmethod
    def mutate(cls, root: None, info: Any, id: str) -> DeleteMessage:  # noqa: A002 - the argument's name
        message = own_message(info, id)
        with change_context(via="delete()"):
            message.delete()
        return cls(id=id)


class MarkRead(graphene.Mutation):  # type: ignore[misc]
    """Everything in the conversation is read. Memberships are not watched, so this is nobody's change."""

    class Arguments:
        conversation_id = graphene.ID(required=True)

    conversation = graphene.Field(ConversationType, required=True)

    @classmethod
    def mutate(cls, root: None, info: Any, conversation_id: str) -> MarkRead:
        user, conversation = logged_in_user(info), conversation_for(info, conversation_id)
        newest = Message.objects.filter(conversation=conversation).aggregate(Max("pk"))["pk__max"]
        Membership.objects.filter(conversation=conversation, user=user).update(last_read_message_id=newest or 0)
        return cls(conversation=Conversation.objects.annotate_unread(user).get(pk=conversation.pk))


class Mutation(graphene.ObjectType):  # type: ignore[misc]
    send_message = SendMessage.Field()
    edit_messages = EditMessages.Field()
    delete_message = DeleteMessage.Field()
    mark_read = MarkRead.Field()


def checked(text: str) -> str:
    """
    Return the text without surrounding space, and without the null characters that PostgreSQL refuses.

    Raise GraphQLError when nothing or too much is left.
    """
    text = text.replace("\0", "").strip()
    if not text:
        raise GraphQLError("the message is empty: write something first")
    if len(text) > LONGEST_TEXT:
        raise GraphQLError(f"the message has {len(text)} characters, at most {LONGEST_TEXT} are allowed")
    return text
