"""What became of a change for each operation of a hub, where nothing but the hub has a part in it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from example.conversations.models import Message
from pgnotify_gql.hub import Operation, verdict
from pgnotify_gql.hub.hub import Hub
from pgnotify_gql.hub.verdict import explained
from pgnotify_gql.journal import JournalRow
from pgnotify_gql.journal.state import Joined
from tests.support.feed import EVENT_TIMEOUT, MESSAGE, feed_of
from tests.support.operations import Subscriber
from tests.test_hub import FakeReader
from tests.test_hub_steps import AT, at, hub_with, inserted, stretch


async def dispatch(hub: Hub, row: JournalRow) -> None:
    """Let a hub take a row, as its feed does."""
    feed_of(hub)._intakes[MESSAGE].position = stretch(row).end
    await hub.dispatch("default", stretch(row))


async def told(hub: Hub, row: JournalRow) -> dict[str, Any]:
    """What is told about the only change of a row."""
    asked = {"id": row.id, "xid": row.xid, "kind": row.kind, "micros": row.micros, "index": 0, "rows": row.rows}
    (found,) = await explained(hub, {"database": "default", "label": MESSAGE, "changes": [asked]})
    return found


async def test_who_leaves_while_others_are_looked_at_is_not_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdict, "PART", 1)
    staying, leaving = Subscriber(Message), Subscriber(Message)
    async with hub_with(FakeReader()) as hub:
        await hub.join(staying.operation)
        await hub.join(leaving.operation)
        gone = asyncio.create_task(hub.leave(leaving.operation))
        found = await told(hub, inserted(1))
        await gone
        assert [each["number"] for each in found["operations"]] == [staying.operation.number]


async def test_who_shares_with_others_now_was_given_what_they_have_though_no_result_is_remembered() -> None:
    subscriber, row = Subscriber(Message, share="all"), inserted(1)
    async with hub_with(FakeReader()) as hub:
        await hub.join(subscriber.operation)
        await dispatch(hub, row)
        await subscriber.has("hello")
        # As when it has caught up.
        hub.go_live_with_others(subscriber.operation)
        (only,) = (await told(hub, row))["operations"]
        assert only["outcome"] == "unknown"
        assert only["why"].startswith("it was given everything up to here")


async def test_who_is_being_sent_the_state_waits_for_what_comes_behind_it() -> None:
    class Shown(FakeReader):
        async def current(self) -> Any:
            return Joined(at(0), 0, AT, "an era")

        @contextmanager
        def snapshot(self) -> Iterator[Joined]:
            yield Joined(at(0), 0, AT)

    begun, let_go = threading.Event(), threading.Event()

    def state() -> Iterator[str]:
        begun.set()
        assert let_go.wait(EVENT_TIMEOUT)
        return iter(())

    other, subscriber = Subscriber(Message), Subscriber(Message)
    operation = Operation(subscriber.operation.interest, subscriber.execute, subscriber, state=state)
    async with hub_with(Shown()) as hub:
        await hub.join(other.operation)
        joining = asyncio.create_task(hub.join(operation))
        try:
            assert await asyncio.to_thread(begun.wait, EVENT_TIMEOUT)
            found = await told(hub, inserted(1))
        finally:
            let_go.set()
            joining.cancel()
            await asyncio.gather(joining, return_exceptions=True)
        why = {each["number"]: each["why"] for each in found["operations"]}
        assert why == {
            other.operation.number: "the change has not come to this process yet",
            operation.number: "it is sent the current state, or what it has missed, before this",
        }
