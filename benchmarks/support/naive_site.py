"""
The usual design, to compare with: a consumer for each socket, all in one group of the channel layer.

``post_save`` sends the key of the row to the group; each consumer fetches the row, executes its subscriber's document
on it, which it has parsed and validated once, and sends the result.  So do libraries that build on a signal and on
Channels; no more is done here than they must.  Raw SQL would not be noticed: the first socket says how often the row is
saved.
"""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "example.settings")
django.setup()

# Models can be imported only now.
import graphene  # noqa: E402
from asgiref.sync import async_to_sync  # noqa: E402
from channels.db import database_sync_to_async  # noqa: E402
from channels.generic.websocket import AsyncWebsocketConsumer  # noqa: E402
from channels.layers import get_channel_layer  # noqa: E402
from django.db.models.signals import post_save  # noqa: E402
from django.dispatch import receiver  # noqa: E402
from graphql import DocumentNode, execute, parse, validate  # noqa: E402

from benchmarks.support.messages import text  # noqa: E402
from benchmarks.support.messages_site import MessageType, Query  # noqa: E402
from example.conversations.models import Message  # noqa: E402

GROUP = "messages"


class Subscriptions(graphene.ObjectType):  # type: ignore[misc]
    message = graphene.Field(MessageType, conversation=graphene.ID(required=True))

    @staticmethod
    def resolve_message(root: Message, info: Any, conversation: str) -> Message | None:
        return root if str(root.conversation_id) == conversation else None


schema = graphene.Schema(query=Query, subscription=Subscriptions).graphql_schema


@receiver(post_save, sender=Message)
def tell(instance: Message, **kwargs: Any) -> None:
    async_to_sync(get_channel_layer().group_send)(GROUP, {"type": "changed", "pk": instance.pk})


class Consumer(AsyncWebsocketConsumer):  # type: ignore[misc]
    document: DocumentNode
    variables: dict[str, Any]

    async def connect(self) -> None:
        await self.channel_layer.group_add(GROUP, self.channel_name)
        await self.accept("graphql-transport-ws")

    async def disconnect(self, code: int) -> None:
        await self.channel_layer.group_discard(GROUP, self.channel_name)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        message = json.loads(text_data or "")
        match message["type"]:
            case "connection_init":
                await self._say({"type": "connection_ack"})
            case "ping":
                await self._say({"type": "pong"})
            case "subscribe":
                self.document, self.variables = parse(message["payload"]["query"]), message["payload"]["variables"]
                assert not validate(schema, self.document)
            case "change":
                self._changing = asyncio.create_task(
                    database_sync_to_async(_change)(message["pk"], message["changes"]), name="changes"
                )

    async def changed(self, event: dict[str, Any]) -> None:
        message = await database_sync_to_async(Message.objects.get)(pk=event["pk"])
        result = execute(
            schema, self.document, root_value=message, context_value=self.scope, variable_values=self.variables
        )
        assert not asyncio.iscoroutine(result)
        await self._say({"id": "1", "type": "next", "payload": result.formatted})  # type: ignore[union-attr]

    async def _say(self, message: dict[str, Any]) -> None:
        await self.send(json.dumps(message, separators=(",", ":")))


def _change(pk: int, changes: int) -> None:
    for number in range(changes):
        message = Message.objects.get(pk=pk)
        message.text = text(number)
        message.save()


application: Any = Consumer.as_asgi()
