"""
Fan-out with nothing in it, to compare with: a loop that sends a ready frame to every socket.

The first socket says how many changes there are, and how long a frame is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

_sockets: dict[Send, None] = {}
_sending: set[asyncio.Task[None]] = set()


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Accept a socket, and do what it says."""
    if scope["type"] != "websocket":
        raise ValueError("it serves sockets only")
    await receive()
    await send({"type": "websocket.accept", "subprotocol": next(iter(scope["subprotocols"]), None)})
    _sockets[send] = None
    try:
        while (event := await receive())["type"] != "websocket.disconnect":
            changes, size = map(int, event["text"].split())
            task = asyncio.create_task(_send_all(changes, size), name="fan-out")
            _sending.add(task)
            task.add_done_callback(_sending.discard)
    finally:
        del _sockets[send]


async def _send_all(changes: int, size: int) -> None:
    frame = '{"id":"1","type":"next"}'.ljust(size)
    for _ in range(changes):
        # The turn that a change costs whoever waits for one.
        await asyncio.sleep(0)
        for send in list(_sockets):
            await send({"type": "websocket.send", "text": frame})
