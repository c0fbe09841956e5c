"""The subscribers of `verify_delivery`: what they note, and how they go on, whatever a server answers."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.typing import Subprotocol

from pgnotify_gql.verification.subscriber import PROTOCOLS, Kind, Protocol, Subscriber
from tests.support.feed import NEVER, eventually

Message = dict[str, Any]

pytestmark = pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=list(PROTOCOLS))


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that gives up would have used up a script."""
    monkeypatch.setattr("pgnotify_gql.verification.subscriber.CONNECT_TIMEOUT", NEVER)


@asynccontextmanager
async def subscribed(
    protocol: Protocol, *scripts: Sequence[Message] | None
) -> AsyncIterator[tuple[Subscriber, list[Message]]]:
    """
    Give a subscriber that has heard something, and what it has sent to subscribe.

    Its server has a script for each socket: the messages to send there, or None where it closes without a word.
    """
    left, asked = list(scripts), list[Message]()

    async def handle(connection: ServerConnection) -> None:
        assert json.loads(await connection.recv())["type"] == "connection_init"
        script = left.pop(0)
        if script is None:
            return
        for kind in ("ka", "connection_ack"):
            await connection.send(json.dumps({"type": kind}))
        asked.append(json.loads(await connection.recv()))
        for message in script:
            await connection.send(json.dumps(message))
        await connection.wait_closed()

    protocols = [Subprotocol(protocol.name)]
    async with serve(handle, "127.0.0.1", 0, subprotocols=protocols, compression=None) as server:
        (listening,) = server.sockets
        url = f"ws://127.0.0.1:{listening.getsockname()[1]}/"
        subscriber = Subscriber("private 1", Kind("private", "private"), protocol, [url], {}, random.Random(1))
        running = asyncio.create_task(subscriber.run())
        try:
            await eventually(lambda: not left and subscriber.heard.is_set())
            yield subscriber, asked
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


def result(protocol: Protocol, cursor: str, **payload: Any) -> Message:
    extensions = {"cursor": cursor} | payload.pop("extensions", {})
    return {"type": protocol.result, "id": "1", "payload": {"data": None, **payload, "extensions": extensions}}


def cursors(asked: Sequence[Message]) -> list[str | None]:
    return [each["payload"].get("extensions", {}).get("cursor") for each in asked]


async def test_one_whose_operation_is_refused_notes_it_and_begins_anew(protocol: Protocol) -> None:
    refusal = [{"message": "the cursor is not one of ours"}]
    first = [result(protocol, "one"), {"type": "error", "id": "1", "payload": refusal}]
    async with subscribed(protocol, first, [result(protocol, "two")]) as (subscriber, asked):
        await eventually(lambda: len(asked) == 2)
    assert cursors(asked) == [None, None]
    assert subscriber.streams[-1].errors == [json.dumps(refusal)]
    assert subscriber.closes == {"error": 1}
    assert subscriber.reconnections == 1


async def test_one_whose_operation_the_server_completes_goes_on_from_its_cursor(protocol: Protocol) -> None:
    first = [result(protocol, "one"), {"type": "complete", "id": "1"}]
    async with subscribed(protocol, first, [result(protocol, "two")]) as (subscriber, asked):
        await eventually(lambda: len(asked) == 2)
    assert cursors(asked) == [None, "one"]
    assert subscriber.closes == {"complete": 1}
    assert subscriber.streams[-1].errors == []


async def test_one_whose_server_does_not_acknowledge_tries_again(protocol: Protocol) -> None:
    async with subscribed(protocol, None, None, [result(protocol, "one")]) as (subscriber, asked):
        assert subscriber.connected
    assert len(asked) == 1
    assert subscriber.reconnections == 0, "it was never connected before"


async def test_a_resync_and_the_errors_of_a_result_are_noted(protocol: Protocol) -> None:
    script = [
        result(protocol, "one", extensions={"resync": {"reason": "changes have left the journal"}}),
        result(protocol, "two", errors=[{"message": "forbidden"}]),
    ]
    async with subscribed(protocol, script) as (subscriber, _):
        (stream,) = subscriber.streams
        await eventually(lambda: stream.errors)
    assert stream.resyncs == ["changes have left the journal"]
    assert stream.errors == ['[{"message": "forbidden"}]']
    assert subscriber.received == 0
