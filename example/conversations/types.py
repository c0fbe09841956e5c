"""GraphQL types of the models, and of a change as the page wants to see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import graphene
from django.contrib.auth.models import User
from graphene_django import DjangoObjectType

from pgnotify_gql.capture import Kind

from .models import Conversation, Message

if TYPE_CHECKING:
    from django.db.models import QuerySet


class UserType(DjangoObjectType):  # type: ignore[misc]
    class Meta:
        model = User
        fields = ("id", "username")


class ConversationType(DjangoObjectType):  # type: ignore[misc]
    # Read from the annotation of that name: resolve this type from `annotate_unread()`.
    unread = graphene.Int(required=True, description="Messages of others that you have not read.")
    members = graphene.List(graphene.NonNull(UserType), required=True)

    class Meta:
        model = Conversation
        fields = ("id", "title")
        description = "A conversation that you are a member of."

    @staticmethod
    def resolve_members(conversation: Conversation, info: Any) -> QuerySet[User]:
        return conversation.members.order_by("username")


class MessageType(DjangoObjectType):  # type: ignore[misc]
    class Meta:
        model = Message
        fields = ("id", "text", "author", "created_at")


MessageChangeKind = graphene.Enum.from_enum(
    Kind, name="MessageChangeKind", description=lambda value: None if value else "What happened to the row."
)


class MessageChangeType(graphene.ObjectType):  # type: ignore[misc]
    """One committed change of a message."""

    kind = graphene.Field(MessageChangeKind, required=True)
    pk = graphene.ID(description="The message's key; null when the whole table was truncated.")
    at = graphene.DateTime(required=True, description="When it was written, by the database's clock.")
    via = graphene.String(required=True, description="How it was written; SQL: by another program.")
    message = graphene.Field(MessageType, description="The message now; null when it is gone.")
