"""
Who may do what: every query, mutation and subscription asks here.

A conversation that one may not see and one that does not exist give the same
answer, so that nobody can find out which keys are in use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphql import GraphQLError

from .models import Conversation, Membership, Message

if TYPE_CHECKING:
    from django.contrib.auth.models import User


def logged_in_user(info: Any) -> User:
    user: User = info.context.user
    if not user.is_authenticated:
        raise GraphQLError("you are not logged in: log in at /login/ first")
    return user


def conversation_for(info: Any, conversation_id: str) -> Conversation:
    """Return the conversation if the user is a member of it; raise GraphQLError otherwise."""
    user = logged_in_user(info)
    conversation = Conversation.objects.for_user(user).filter(pk=number(conversation_id)).first()
    if conversation is None:
        raise GraphQLError(f"conversation {conversation_id} does not exist, or you are not a member of it")
    return conversation


def is_member(info: Any, conversation_id: str) -> bool:
    return Membership.objects.filter(conversation=number(conversation_id), user=info.context.user.pk).exists()


def own_message(info: Any, message_id: str) -> Message:
    """Return a message that the user has written in a conversation he or she still belongs to."""
    user = logged_in_user(info)
    conversations = Conversation.objects.for_user(user)
    message = Message.objects.filter(pk=number(message_id), author=user, conversation__in=conversations).first()
    if message is None:
        raise GraphQLError(f"message {message_id} does not exist, or is not yours")
    return message


def number(key: str) -> int:
    """Return a key that came as a GraphQL ID; one that is no number is the key of nothing."""
    return int(key) if key.isascii() and key.isdecimal() else 0
