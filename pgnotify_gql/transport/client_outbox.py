"""
The outbox of one client: bounded as the settings say, and with an end to the server's patience.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from ..conf import Settings
from ..errors import ClientStuckError
from ..hub.outbox import Outbox


class ClientOutbox(Outbox):
    """`send`, `overflowed` and `ping` are those of ``Outbox``."""

    def __init__(
        self,
        send: Callable[[str], Awaitable[None]],
        settings: Settings,
        overflowed: Callable[[], None],
        ping: str | None = None,
    ) -> None:
        super().__init__(
            send, messages=settings.OUTBOX_MESSAGES, size=settings.OUTBOX_BYTES, overflowed=overflowed, ping=ping
        )
        self._patience = settings.SLOW_CLIENT_TIMEOUT

    async def room(self) -> None:
        """Wait until there is plenty of room.  Raises ClientStuckError when there has been none for too long."""
        try:
            async with asyncio.timeout(self._patience):
                await super().room()
        except TimeoutError as error:
            raise ClientStuckError(f"a client has read nothing for {self._patience:g} s") from error

    def discard(self) -> None:
        """Close, and write nothing of what is queued."""
        self.close()
        self._frames.clear()
        self._waiting = 0
