"""What a listener in a process of its own has sent through Redis."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from channels_redis.core import RedisChannelLayer

from pgnotify_gql import names
from pgnotify_gql.journal.change import ROWS
from pgnotify_gql.relay.messages import CHANGES
from tests.support.feed import CONVERSATION, MESSAGE, Notebook
from tests.support.processes import RedisServer


class Received(Notebook):
    """What came through the channel layer."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[dict[str, Any]] = []

    @property
    def texts(self) -> str:
        return " ".join(row[ROWS] for message in self.messages if message["type"] == CHANGES for row in message["rows"])

    def labels(self, database: str) -> set[str]:
        """The models of which a database has sent changes."""
        return {
            message["label"]
            for message in self.messages
            if message["type"] == CHANGES and message["database"] == database
        }

    def epochs(self) -> list[int]:
        return [message["epoch"] for message in self.messages]

    def contains(self, text: str) -> Callable[[], bool]:
        return lambda: text in self.texts


@asynccontextmanager
async def receiving(redis: RedisServer) -> AsyncIterator[Received]:
    """Join the groups of the relay, as a hub does."""
    layer = RedisChannelLayer(hosts=[redis.url])
    channel = await layer.new_channel()
    received = Received()

    async def receive() -> None:
        while True:
            received.messages.append(await layer.receive(channel))
            received.noted()

    for group in (names.heartbeat_group(), names.model_group(MESSAGE), names.model_group(CONVERSATION)):
        await layer.group_add(group, channel)
    task = asyncio.create_task(receive())
    try:
        yield received
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await layer.flush()
