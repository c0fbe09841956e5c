"""A channel layer in memory, which may be sent to from any thread."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from channels.layers import InMemoryChannelLayer


class AnyLoopLayer(InMemoryChannelLayer):  # type: ignore[misc]  # Channels is untyped
    """Receives on one event loop, and takes messages from any: ``async_to_sync`` begins one for each."""

    def __init__(self, loop: asyncio.AbstractEventLoop, **options: Any) -> None:
        super().__init__(**options)
        self._loop = loop

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        await self._on_loop(super().group_send(group, message))

    async def send(self, channel: str, message: dict[str, Any]) -> None:
        await self._on_loop(super().send(channel, message))

    async def _on_loop(self, sending: Coroutine[Any, Any, None]) -> None:
        if asyncio.get_running_loop() is self._loop:
            await sending
        else:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(sending, self._loop))
