"""
What can be subscribed to.

`ConversationsSubscription` is the one of the documentation, word for word, and
therefore without annotations. The others are in `message_subscriptions`.
"""
# mypy: allow-untyped-defs, allow-untyped-calls

import graphene

from pgnotify_gql.subscriptions import Subscription

from .message_subscriptions import MessageChangesSubscription, MessagesSubscription
from .models import Conversation, Message
from .types import ConversationType


class ConversationsSubscription(Subscription):
    class Meta:
        output = ConversationType

    @classmethod
    def subscribe(cls, info):
        return [Message, Conversation]

    @classmethod
    def next(cls, change, info):
        pk, model_label = change  # a Change unpacks to these two; it also has .kind .old .new .instance ...
        conversations = Conversation.objects.for_user(info.context.user)
        if model_label == "conversations.conversation":
            conversations = conversations.filter(id=pk)
        else:
            conversations = conversations.filter(messages__id=pk)
        return conversations.annotate_unread(info.context.user).first()  # None: nothing for this subscriber


class Subscriptions(graphene.ObjectType):  # type: ignore[misc]
    conversations = ConversationsSubscription.Field()
    messages = MessagesSubscription.Field()
    message_changes = MessageChangesSubscription.Field()
