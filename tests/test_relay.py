"""The relay: from batches to numbered messages, whatever the layer does."""

import asyncio
import logging
from datetime import UTC, datetime
from typing import Any

import pytest
from channels.layers import BaseChannelLayer

from pgnotify_gql import names
from pgnotify_gql.capture.kinds import Kind
from pgnotify_gql.journal.change import ROWS, JournalRow
from pgnotify_gql.journal.reader import Batch
from pgnotify_gql.journal.snapshot import Snapshot
from pgnotify_gql.journal.state import Era
from pgnotify_gql.relay import Relay
from pgnotify_gql.relay.messages import (
    CHANGES,
    HEARTBEAT,
    MESSAGE_BYTES,
    changes_message,
    journal_rows,
    split,
)
from tests.support.databases import Database
from tests.support.feed import EVENT_TIMEOUT, MESSAGE, Room, leading
from tests.support.watched import micros

AT = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)

BEFORE, AFTER = Snapshot(10, 10), Snapshot(20, 20)
ERA = Era("7", BEFORE)


def row(number: int, label: str = "one.model", rows: str = "[[[1]]]", context: str | None = None) -> JournalRow:
    return JournalRow(number, 10 + number, label, Kind.UPDATE, rows, micros(AT), context)


def batch(*rows: JournalRow) -> Batch:
    return Batch(BEFORE, AFTER, rows)


class FakeLayer:
    """Keeps what is sent; `fails` and `hangs` name groups."""

    def __init__(self, fails: str = "", hangs: str = "") -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.fails = fails
        self.hangs = hangs

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        if group == self.fails:
            raise ConnectionError("the layer is away")
        if group == self.hangs:
            await asyncio.sleep(3600)
        self.sent.append((group, message))

    def numbers(self, label: str) -> list[tuple[int, int]]:
        group = names.model_group(label)
        return [(message["epoch"], message["seq"]) for to, message in self.sent if to == group]


async def test_a_batch_becomes_one_message_for_each_model_in_the_order_of_the_journal() -> None:
    layer = FakeLayer()
    relay = Relay(layer)
    relay.begin(1, ERA)
    await relay.relay(batch(row(1), row(2, "other.model"), row(3)))
    assert [(group, [found[0] for found in message["rows"]]) for group, message in layer.sent] == [
        (names.model_group("one.model"), [1, 3]),
        (names.model_group("other.model"), [2]),
    ]
    for _, message in layer.sent:
        assert (message["before"], message["after"]) == (str(BEFORE), str(AFTER))


async def test_messages_are_numbered_for_each_model_and_epoch() -> None:
    layer = FakeLayer()
    relay = Relay(layer)
    relay.begin(7, ERA)
    await relay.relay(batch(row(1), row(2, "other.model")))
    await relay.relay(batch(row(3)))
    relay.begin(8, ERA)
    await relay.relay(batch(row(4)))
    assert layer.numbers("one.model") == [(7, 1), (7, 2), (8, 1)]
    assert layer.numbers("other.model") == [(7, 1)]


async def test_a_message_names_its_database() -> None:
    layer = FakeLayer()
    relay = Relay(layer, database="shop")
    relay.begin(1, ERA)
    await relay.relay(batch(row(1)))
    await relay.heartbeat(AFTER)
    assert [message["database"] for _, message in layer.sent] == ["shop", "shop"]


async def test_an_empty_batch_is_no_message() -> None:
    layer = FakeLayer()
    await Relay(layer).relay(batch())
    assert layer.sent == []


async def test_a_heartbeat_tells_the_last_number_of_each_model_of_the_epoch() -> None:
    layer = FakeLayer()
    relay = Relay(layer, database="shop")
    relay.begin(7, ERA)
    await relay.relay(batch(row(1), row(2, "other.model")))
    await relay.relay(batch(row(3)))
    await relay.heartbeat(AFTER)
    relay.begin(8, ERA)
    await relay.heartbeat(AFTER)
    heartbeats = [message for group, message in layer.sent if group == names.heartbeat_group()]
    assert heartbeats == [
        {
            "type": HEARTBEAT,
            "database": "shop",
            "epoch": 7,
            "era": "7",
            "began": str(BEFORE),
            "cursor": str(AFTER),
            "seqs": {"one.model": 2, "other.model": 1},
        },
        {
            "type": HEARTBEAT,
            "database": "shop",
            "epoch": 8,
            "era": "7",
            "began": str(BEFORE),
            "cursor": str(AFTER),
            "seqs": {},
        },
    ]


async def test_what_a_heartbeat_told_does_not_change_afterwards() -> None:
    layer = FakeLayer()
    relay = Relay(layer)
    relay.begin(1, ERA)
    await relay.relay(batch(row(1)))
    await relay.heartbeat(AFTER)
    await relay.relay(batch(row(2)))
    assert layer.sent[1][1]["seqs"] == {"one.model": 1}


async def test_a_large_batch_is_split_into_numbered_messages() -> None:
    layer = FakeLayer()
    relay = Relay(layer)
    relay.begin(1, ERA)
    large = "x" * (MESSAGE_BYTES // 2)
    await relay.relay(batch(row(1, rows=large), row(2, rows=large), row(3, rows=large)))
    assert layer.numbers("one.model") == [(1, 1), (1, 2)]
    assert [[found[0] for found in message["rows"]] for _, message in layer.sent] == [[1, 2], [3]]


@pytest.mark.parametrize(
    ("sizes", "parts"),
    [
        ([], []),
        ([10], [[10]]),
        ([4, 6], [[4, 6]]),
        ([4, 7], [[4], [7]]),
        ([11], [[11]]),
        ([1, 11, 1], [[1], [11], [1]]),
        ([5, 5, 5, 5], [[5, 5], [5, 5]]),
    ],
)
def test_parts_stay_within_the_limit_unless_a_single_row_is_larger(sizes: list[int], parts: list[list[int]]) -> None:
    rows = [row(number, rows="x" * size) for number, size in enumerate(sizes)]
    found = list(split(rows, limit=10))
    assert [[len(part_row[ROWS]) for part_row in part] for part in found] == parts
    assert [part_row for part in found for part_row in part] == rows


async def test_a_layer_that_fails_costs_its_message_and_its_number_and_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    layer = FakeLayer(fails=names.model_group("one.model"))
    relay = Relay(layer)
    relay.begin(1, ERA)
    await relay.relay(batch(row(1), row(2, "other.model")))
    layer.fails = ""
    await relay.relay(batch(row(3)))
    assert layer.numbers("other.model") == [(1, 1)]
    assert layer.numbers("one.model") == [(1, 2)]
    assert "the layer is away" in caplog.text
    assert "hubs will heal" in caplog.text


async def test_a_layer_that_fails_is_logged_once_until_it_works_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pgnotify_gql.relay")
    layer = FakeLayer(fails=names.model_group("one.model"))
    relay = Relay(layer)
    relay.begin(1, ERA)
    for number in range(5):
        await relay.relay(batch(row(number), row(10 + number, "other.model")))
    layer.fails = ""
    for number in range(2):
        await relay.relay(batch(row(20 + number)))
    refused, back = caplog.messages
    assert refused.startswith("the channel layer did not take a message of database default for")
    assert back == "the channel layer takes messages of database default again; it did not take 5"


async def test_a_layer_that_hangs_costs_the_rest_of_its_batch_and_no_number(caplog: pytest.LogCaptureFixture) -> None:
    layer = FakeLayer(hangs=names.model_group("one.model"))
    relay = Relay(layer, send_timeout=0.01, rest_after_hang=0)
    relay.begin(1, ERA)
    async with asyncio.timeout(EVENT_TIMEOUT):
        await relay.relay(batch(row(1, "first.model"), row(2), row(3, "other.model")))
        await relay.heartbeat(AFTER)
        await relay.relay(batch(row(4, "other.model")))
    assert layer.numbers("first.model") == [(1, 1)]
    assert layer.numbers("other.model") == [(1, 2)]
    assert layer.sent[1][1]["seqs"] == {"first.model": 1, "one.model": 1, "other.model": 1}
    assert "took longer than 0.01 s for 3 messages of database default" in caplog.text


async def test_a_layer_that_goes_on_hanging_is_told_of_once_and_again_when_it_has_worked_in_between(
    caplog: pytest.LogCaptureFixture,
) -> None:
    layer = FakeLayer(hangs=names.model_group("one.model"))
    relay = Relay(layer, send_timeout=0.01, rest_after_hang=0)
    relay.begin(1, ERA)
    for number in range(3):
        await relay.relay(batch(row(number)))
    assert len(caplog.messages) == 1
    await relay.relay(batch(row(4, "other.model")))
    await relay.relay(batch(row(5)))
    assert len(caplog.messages) == 2


async def test_a_layer_that_is_slow_for_each_of_many_messages_is_waited_for_as_long_as_for_one() -> None:
    class Slow(FakeLayer):
        async def group_send(self, group: str, message: dict[str, Any]) -> None:
            if self.sent:
                await asyncio.sleep(0.02)
            await super().group_send(group, message)

    layer = Slow()
    relay = Relay(layer, send_timeout=0.1, rest_after_hang=0)
    relay.begin(1, ERA)
    begun = asyncio.get_running_loop().time()
    await relay.relay(batch(*(row(number, f"model.{number}") for number in range(2000))))
    assert asyncio.get_running_loop().time() - begun < 20
    assert 0 < len(layer.sent) < 6


async def test_a_layer_that_hangs_is_waited_for_once_and_not_for_every_model() -> None:
    layer = FakeLayer(hangs=names.model_group("one.model"))
    relay = Relay(layer, send_timeout=0.01, rest_after_hang=60)
    relay.begin(1, ERA)
    await relay.relay(batch(row(1), row(2, "other.model")))
    await relay.heartbeat(AFTER)
    assert layer.sent == []


async def test_a_relay_that_is_cancelled_ends() -> None:
    relay = Relay(FakeLayer(hangs=names.model_group("one.model")))
    task = asyncio.create_task(relay.relay(batch(row(1))))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_journal_row_is_the_same_on_the_other_side() -> None:
    rows = [row(1), row(2, rows='[[["ä"], null, {"text": "\\u0001 \U0001f600"}]]', context='{"by": "ann"}')]
    message = changes_message("default", "one.model", 3, ERA, 4, BEFORE, AFTER, rows)
    assert journal_rows(message) == rows


async def test_a_message_survives_every_layer(layer: BaseChannelLayer) -> None:
    channel = await layer.new_channel()
    for group in (names.model_group("one.model"), names.heartbeat_group()):
        await layer.group_add(group, channel)
    rows = [
        JournalRow(
            2**62, 2**63 + 5, "one.model", Kind.INSERT, '[[[1], null, {"text": "\U0001f600\\u0000"}]]', micros(AT)
        ),
        row(2, context="{}"),
    ]
    relay = Relay(layer)
    relay.begin(2**40, ERA)
    await relay.relay(batch(*rows))
    await relay.heartbeat(Snapshot(1, 2**63, (5, 7)))
    async with asyncio.timeout(EVENT_TIMEOUT):
        changes, heartbeat = await layer.receive(channel), await layer.receive(channel)
    assert changes["type"] == CHANGES
    assert journal_rows(changes) == rows
    assert (changes["epoch"], changes["seq"]) == (2**40, 1)
    assert heartbeat["seqs"] == {"one.model": 1}
    assert Snapshot.parse(heartbeat["cursor"]) == Snapshot(1, 2**63, (5, 7))


@pytest.mark.postgres("18")
async def test_a_listener_goes_on_while_the_layer_fails(
    database_triggers: Database, caplog: pytest.LogCaptureFixture
) -> None:
    room = Room(database_triggers)
    layer = FakeLayer(fails=names.model_group(MESSAGE))
    async with leading(database_triggers, Relay(layer)):
        room.say("lost")
        async with asyncio.timeout(EVENT_TIMEOUT):
            while "did not take" not in caplog.text:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            layer.fails = ""
            room.say("sent")
            while not layer.numbers(MESSAGE):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
    assert [seq for _, seq in layer.numbers(MESSAGE)] == [2]
