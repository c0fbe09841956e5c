"""
The least that could do the job, to compare with: ASGI applications without any of ours.

No journal, no groups, no GraphQL, no permissions, and nothing that notices a loss.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import psycopg

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

NOTIFY_CHANNEL = "bare"

SETUP = f"""
create table bare_message (id bigint primary key, text text not null);
create function bare_notify() returns trigger language plpgsql as $$
begin
    perform pg_notify('{NOTIFY_CHANNEL}', new.id::text);
    return null;
end $$;
create trigger bare_notify after update on bare_message for each row execute function bare_notify();
"""

FETCH = "select text from bare_message where id = %s"

FRAME_SIZE = 405
"""Characters of a frame: so many have ours, which end with a cursor."""


async def accepting(scope: Scope, receive: Receive, send: Send) -> None:
    """Accept a socket, and read what comes until it is gone."""
    await _accept(scope, receive, send)
    await _until_gone(receive)


class _Telling:
    """Sends every changed row to all sockets: two connections and one task for the process, whatever the sockets."""

    def __init__(self) -> None:
        self._sockets: dict[Send, None] = {}
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Begun with the first socket, since Daphne tells of no beginning.
        if self._task is None:
            self._task = asyncio.create_task(self._tell(), name="bare")
        await _accept(scope, receive, send)
        self._sockets[send] = None
        try:
            await _until_gone(receive)
        finally:
            del self._sockets[send]

    async def _tell(self) -> None:
        dsn = os.environ["DATABASE_URL"]
        async with (
            await psycopg.AsyncConnection.connect(dsn, autocommit=True) as bells,
            await psycopg.AsyncConnection.connect(dsn, autocommit=True) as rows,
        ):
            await bells.execute(f"listen {NOTIFY_CHANNEL}")
            async for bell in bells.notifies():
                found = await (await rows.execute(FETCH, [int(bell.payload)], prepare=True)).fetchone()
                if found is not None:
                    event = {"type": "websocket.send", "text": _frame(bell.payload, found[0])}
                    for send in list(self._sockets):
                        await send(event)


telling = _Telling()


async def _accept(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "websocket":
        raise ValueError("it serves sockets only")
    await receive()
    await send({"type": "websocket.accept", "subprotocol": next(iter(scope["subprotocols"]), None)})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "websocket.disconnect":
        pass


def _frame(pk: str, text: str) -> str:
    frame = json.dumps({"id": "1", "type": "next", "payload": {"data": {"message": {"id": pk, "text": text}}}})
    return frame.ljust(FRAME_SIZE)
