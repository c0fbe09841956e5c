"""
The least that could do the job, to compare with: LISTEN, one fetch, ASGI send.

One connection for each socket, no journal, no groups, no GraphQL, no permissions, and nothing that notices a loss.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

NOTIFY_CHANNEL = "bare"

SETUP = """
create table bare_message (id bigint primary key, text text not null);
insert into bare_message values (1, '');
create function bare_notify() returns trigger language plpgsql as $$
begin
    perform pg_notify('bare', new.id::text);
    return null;
end $$;
create trigger bare_notify after update on bare_message for each row execute function bare_notify();
"""


async def application(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    if scope["type"] != "websocket":
        raise ValueError("it serves sockets only")
    await receive()
    async with await psycopg.AsyncConnection.connect(os.environ["DATABASE_URL"], autocommit=True) as bells:
        await bells.execute(f"listen {NOTIFY_CHANNEL}")
        async with await psycopg.AsyncConnection.connect(os.environ["DATABASE_URL"], autocommit=True) as fetching:
            await send({"type": "websocket.accept"})
            feeding = asyncio.create_task(_feed(bells, fetching, send), name="bare feed")
            while (await receive())["type"] != "websocket.disconnect":
                pass
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)


async def _feed(bells: psycopg.AsyncConnection, fetching: psycopg.AsyncConnection, send: Send) -> None:
    async for bell in bells.notifies():
        found = await fetching.execute("select text from bare_message where id = %s", [int(bell.payload)])
        row = await found.fetchone()
        assert row is not None
        await send({"type": "websocket.send", "text": row[0]})
