"""
A hub in a process of its own, and operations without sockets: what a change costs from the layer to its one result.

In between is all that a server process runs.  The journal is read and relayed here, change by change, so that nothing
else happens meanwhile.

Run as `python -m benchmarks.support.hub_process CONNINFO FIRST OPERATIONS CHANGES`, with DATABASE_URL set; prints the
microseconds of each change as a JSON list.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Any

from channels.layers import get_channel_layer

from benchmarks.support.messages_site import schema
from pgnotify_gql.hub import open_hub
from pgnotify_gql.hub.hub import Hub
from pgnotify_gql.hub.payloads import Payloads
from pgnotify_gql.journal.reader import Connection, current_snapshot, read_new
from pgnotify_gql.journal.snapshot import Snapshot
from pgnotify_gql.journal.state import Era, begin_epoch, begin_era
from pgnotify_gql.listener import connect
from pgnotify_gql.relay import Relay
from pgnotify_gql.relay.messages import CHANGES
from pgnotify_gql.transport.context import OperationRequest
from pgnotify_gql.transport.documents import Documents
from pgnotify_gql.transport.engine import GraphqlEngine
from pgnotify_gql.transport.frames import Request

LIVE_TIMEOUT = 60.0
"""Seconds until all operations must be live."""

LOOK_AGAIN = 0.5
"""Seconds that a change may take to reach all before it is tried with another."""

ANSWER_TIMEOUT = 10.0
"""Seconds until the result of a change must be there."""

WARM_UP = 50
"""Changes that are not counted."""

QUERY = "subscription ($conversation: ID!) { message: private(conversation: $conversation) { id text } }"

SCOPE: Mapping[str, Any] = {"type": "websocket", "path": "/", "query_string": b"", "headers": []}

# A text as it was before would be no change.
CHANGE = "update conversations_message set text = clock_timestamp()::text where conversation_id = %s"
CHANGE_ALL = "update conversations_message set text = clock_timestamp()::text"


def main(dsn: str, first: str, operations: str, changes: str) -> None:
    logging.basicConfig(level=logging.ERROR)
    conversations = range(int(first), int(first) + int(operations))
    json.dump(asyncio.run(microseconds(dsn, conversations, int(changes))), sys.stdout)


async def microseconds(dsn: str, conversations: Sequence[int], changes: int) -> list[float]:
    """Return what each of so many changes took, of one of the conversations each; all are subscribed to."""
    chance = random.Random(changes)  # noqa: S311  (no secret)
    arrivals = _Arrivals()
    async with AsyncExitStack() as opened:
        connection = await connect(dsn, session_timeout=0)
        opened.push_async_callback(connection.close)
        leader = await _Leading.begun(connection)
        hub = await opened.enter_async_context(open_hub())
        subscribed = _Subscribed(hub, conversations)
        opened.push_async_callback(subscribed.end)
        await subscribed.until_live(leader)
        taken = []
        for _ in range(WARM_UP + changes):
            conversation = chance.choice(conversations)
            result = subscribed.sinks[conversation]
            result.told.clear()
            await leader.change(CHANGE, conversation)
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await result.told.wait()
            taken.append((result.told_at - arrivals.at) * 1_000_000)
    return taken[WARM_UP:]


class _Arrivals:
    """When the hub was last given changes by its layer."""

    def __init__(self) -> None:
        layer: Any = get_channel_layer()
        self.at = 0.0
        self._receive = layer.receive
        layer.receive = self._received

    async def _received(self, channel: str) -> dict[str, Any]:
        message: dict[str, Any] = await self._receive(channel)
        if message["type"] == CHANGES:
            self.at = time.perf_counter()
        return message


class _Leading:
    """Writes, and relays what it has written, as a leader would."""

    def __init__(self, connection: Connection, epoch: int, era: Era, cursor: Snapshot) -> None:
        self._connection = connection
        self._cursor = cursor
        self._relay = Relay(get_channel_layer())
        self._relay.begin(epoch, era)

    @classmethod
    async def begun(cls, connection: Connection) -> _Leading:
        epoch, _ = await begin_epoch(connection)
        # Nobody has subscribed yet, so what was written before is for nobody.
        return cls(connection, epoch, await begin_era(connection), await current_snapshot(connection))

    async def change(self, statement: str, *parameters: int) -> None:
        await self._connection.execute(statement.encode(), parameters)
        async with aclosing(read_new(self._connection, self._cursor)) as batches:
            async for batch in batches:
                await self._relay.relay(batch)
                self._cursor = batch.after


class _Sink:
    """Takes the results of one operation; implements ``protocol.Results``."""

    def __init__(self) -> None:
        self.told = asyncio.Event()
        self.told_at = 0.0

    def send(self, payload: str) -> None:
        raise AssertionError(f"this is no result of a change: {payload}")

    def offer(self, payloads: Payloads) -> int:
        self.told_at = time.perf_counter()
        self.told.set()
        return len(payloads)

    async def room(self) -> None:
        return


class _Subscribed:
    """An operation for each conversation, as that many sockets would ask for them."""

    def __init__(self, hub: Hub, conversations: Sequence[int]) -> None:
        documents = Documents(schema.graphql_schema)
        self.sinks = {conversation: _Sink() for conversation in conversations}
        self._tasks = []
        for conversation, sink in self.sinks.items():
            engine = GraphqlEngine(schema.graphql_schema, documents, hub, lambda: OperationRequest(SCOPE))
            request = Request(QUERY, variables={"conversation": str(conversation)})
            self._tasks.append(asyncio.create_task(engine.run(request, sink)))

    async def until_live(self, leader: _Leading) -> None:
        async with asyncio.timeout(LIVE_TIMEOUT):
            while not all(sink.told.is_set() for sink in self.sinks.values()):
                # Nobody tells when a subscription has taken effect.
                await asyncio.sleep(LOOK_AGAIN)
                await leader.change(CHANGE_ALL)

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
