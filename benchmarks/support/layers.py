"""Channel layers to relay to: nowhere, or Redis with somebody in every group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from channels_redis.core import RedisChannelLayer

from pgnotify_gql import names
from pgnotify_gql.relay.messages import CHANGES
from pgnotify_gql.relay.relay import Layer

CAPACITY = 1_000_000
"""Messages that a channel of Redis holds: nobody takes them, and none is to be dropped."""

WATCHED = "stock.watched"
"""The model whose group somebody is in."""


class CountingLayer:
    """Counts the journal rows of all messages, and passes them on to a layer, if there is one."""

    def __init__(self, layer: Layer | None, note: Callable[[int], Any]) -> None:
        self.rows = 0
        self._layer = layer
        self._note = note

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        if self._layer is not None:
            await self._layer.group_send(group, message)
        if message["type"] == CHANGES:
            self.rows += len(message["rows"])
            self._note(self.rows)


async def redis_layer(url: str) -> RedisChannelLayer:
    """Return a Redis layer with one member in the groups that are sent to, so that messages are really stored."""
    layer = RedisChannelLayer(hosts=[url], capacity=CAPACITY)
    channel = await layer.new_channel()
    for group in (names.model_group(WATCHED), names.heartbeat_group()):
        await layer.group_add(group, channel)
    return layer
