"""The load itself: it notices what is lost, doubled, out of order, or was never committed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from channels.layers import InMemoryChannelLayer

from example.conversations.models import Message
from pgnotify_gql.relay import Relay
from tests.faults.load import Load
from tests.support.databases import Database
from tests.support.feed import RARELY, Room, eventually, hub_of, leading
from tests.support.operations import Subscriber


@pytest.mark.postgres("18")
async def test_a_load_without_a_fault_arrives_and_any_spoilt_copy_of_it_is_noticed(database_triggers: Database) -> None:
    room, layer, subscriber = Room(database_triggers), InMemoryChannelLayer(), Subscriber(Message)
    load = Load(room, database_triggers.connect)
    async with (
        hub_of(layer, database_triggers.conninfo) as hub,
        leading(database_triggers, Relay(layer), timing=RARELY),
    ):
        await hub.join(subscriber.operation)
        with load.running():
            await eventually(load.grown_by(50))
        await subscriber.until(lambda: load.arrived(subscriber.received, room.connection))
    received = subscriber.received
    assert load.all_answered(room.connection)
    load.check(received, room.connection)
    own = [place for place, text in enumerate(received) if text.startswith("a.")]
    spoilt: list[Callable[[list[str]], object]] = [
        lambda texts: texts.pop(own[3]),
        lambda texts: texts.insert(0, texts[own[3]]),
        lambda texts: texts.append("lost a.1"),
        lambda texts: texts.remove(next(text for text in texts if text.startswith("new a."))),
        lambda texts: texts.__setitem__(slice(own[3], own[4] + 1), [texts[own[4]], texts[own[3]]]),
    ]
    for spoil in spoilt:
        texts = list(received)
        spoil(texts)
        with pytest.raises(AssertionError):
            load.check(texts, room.connection)
