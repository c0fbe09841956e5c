"""The hub, one step at a time: a journal in which nothing happens by itself, and changes that the test makes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
from channels.layers import InMemoryChannelLayer
from channels_redis.core import RedisChannelLayer

from example.conversations.models import Conversation, Message
from pgnotify_gql import names
from pgnotify_gql.capture.kinds import Kind
from pgnotify_gql.errors import CursorTooOldError
from pgnotify_gql.hub import Topic
from pgnotify_gql.hub import receiver as receiver_module
from pgnotify_gql.hub.cursor import Journal
from pgnotify_gql.hub.executor import Executor
from pgnotify_gql.hub.hub import Hub
from pgnotify_gql.hub.receiver import Receiver
from pgnotify_gql.hub.stretch import Stretch
from pgnotify_gql.journal import JournalRow, Position, Snapshot
from pgnotify_gql.journal.reader import Batch
from pgnotify_gql.journal.state import Era, Joined
from pgnotify_gql.relay.messages import CHANGES, changes_message, heartbeat_message
from tests.support.feed import EVENT_TIMEOUT, MESSAGE, NEVER, eventually, feed_of
from tests.support.operations import Subscriber
from tests.support.watched import micros
from tests.test_hub import FakeReader, left_in

AT = datetime(2026, 1, 2, tzinfo=UTC)


def at(xid: int) -> Snapshot:
    """Everything below has ended."""
    return Snapshot(xid, xid)


def inserted(number: int, text: str = "hello", conversation: int = 1) -> JournalRow:
    """The journal row of a new message, by a transaction of the same number."""
    image = f'{{"conversation_id": {conversation}, "author_id": 1, "text": "{text}"}}'
    return JournalRow(number, number, MESSAGE, Kind.INSERT, f"[[[{number}], null, {image}]]", micros(AT))


def stretch(*rows: JournalRow) -> Stretch:
    """Rows that follow each other, behind all that was there before."""
    return Stretch.of_batch(MESSAGE, rows, Position(at(rows[0].xid)), at(rows[-1].xid + 1))


class Reader(FakeReader):
    """A journal that says where it is, and of which it is noted from where on it is read."""

    def __init__(self, *joined: Joined) -> None:
        super().__init__()
        self.joined = list(joined)
        self.read: list[Position] = []

    async def current(self) -> Any:
        return self.joined.pop(0) if self.joined else await super().current()

    async def missed(self, position: Position, label: str, batch_rows: int = 1) -> AsyncGenerator[Batch, None]:
        self.read.append(position)
        yield Batch(position.before, position.before, [])

    def another(self) -> Any:
        return self


@asynccontextmanager
async def hub_with(reader: FakeReader, layer: Any = None, **options: Any) -> AsyncIterator[Hub]:
    hub = Hub(InMemoryChannelLayer() if layer is None else layer, [reader], Executor(1), **options)
    await hub.start()
    try:
        yield hub
    finally:
        await hub.close()


class Told:
    """Somebody who depends on changes: how often he was told of one."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        self.times += 1


class TestWhoDependsOnChanges:
    async def test_is_told_when_changes_are_lost_of_which_nobody_knows_what_they_were(self) -> None:
        told = Told()
        async with hub_with(FakeReader()) as hub, hub.depending([Topic(Message, conversation=1)], told):
            hub.resync("default", MESSAGE, "they have left the journal")
            assert told.times == 1

    async def test_is_told_of_a_change_in_advance_only_if_it_is_one_of_his(self) -> None:
        his, others = Told(), Told()
        async with (
            hub_with(FakeReader()) as hub,
            hub.depending([Topic(Message, conversation=1)], his),
            hub.depending([Topic(Message, conversation=2)], others),
        ):
            hub.foresee(MESSAGE, [inserted(1, conversation=1)])
        assert (his.times, others.times) == (1, 0)

    async def test_is_told_of_whatever_is_not_known_in_advance(self) -> None:
        his, others = Told(), Told()
        async with (
            hub_with(FakeReader()) as hub,
            hub.depending([Topic(Message, conversation=1)], his),
            hub.depending([Topic(Message, conversation=2)], others),
        ):
            hub.foresee(MESSAGE, None)
        assert (his.times, others.times) == (1, 1)

    async def test_is_told_of_a_row_in_advance_that_cannot_be_decoded(self, caplog: pytest.LogCaptureFixture) -> None:
        told, broken = Told(), inserted(1)._replace(rows="[[[1], null, {")
        async with hub_with(FakeReader()) as hub, hub.depending([Topic(Message, conversation=2)], told):
            hub.foresee(MESSAGE, [broken])
        assert told.times == 1
        assert f"a journal row of {MESSAGE} cannot be decoded" in caplog.text

    async def test_is_told_before_changes_of_another_model_where_his_have_left_the_journal(self) -> None:
        class Emptied(Reader):
            async def missed(self, position: Position, label: str, batch_rows: int = 1) -> AsyncGenerator[Batch, None]:
                assert label == MESSAGE
                raise CursorTooOldError("emptied")
                yield

        told, subscriber = Told(), Subscriber(Conversation)
        reader = Emptied(Joined(at(1), 0, AT), Joined(at(9), 0, AT))
        async with hub_with(reader) as hub, hub.depending([Topic(Message, conversation=1)], told):
            await hub.join(subscriber.operation)
            assert told.times == 1


class Held(Subscriber):
    """Its executions wait until they are let go."""

    def __init__(self, *topics: Any, share: str) -> None:
        super().__init__(*topics, share=share)
        self.begun, self.let_go = threading.Event(), threading.Event()

    def execute(self, *asked: Any) -> str:
        self.begun.set()
        assert self.let_go.wait(EVENT_TIMEOUT)
        return super().execute(*asked)


def stands_at(hub: Hub, subscriber: Subscriber) -> Position:
    """Up to where somebody has been sent the changes of his only model."""
    cursor = hub.sent(subscriber.operation)
    assert cursor is not None
    (position,) = cursor.positions.values()
    return position


class TestSharing:
    async def test_who_joins_others_while_they_are_executed_stands_behind_what_is_pending(self) -> None:
        early, late = Held(Message, share="all"), Subscriber(Message, share="all")
        async with hub_with(FakeReader()) as hub:
            await hub.join(early.operation)
            feed_of(hub)._intakes[MESSAGE].position = stretch(inserted(1)).end
            await hub.dispatch("default", stretch(inserted(1, "before")))
            assert await asyncio.to_thread(early.begun.wait, EVENT_TIMEOUT)
            try:
                await hub.join(late.operation)
                pending = stretch(inserted(1))
                assert stands_at(hub, early) == pending.position(pending.rows[0], 0)
                assert stands_at(hub, late) == pending.end
            finally:
                early.let_go.set()
            await early.has("before")
            await hub.dispatch("default", stretch(inserted(2, "after")))
            await late.has("after")
        assert (early.received, late.received) == (["before", "after"], ["after"])

    async def test_the_log_of_an_execution_that_fails_names_the_change_and_nothing_of_the_row(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Failing(Subscriber):
            def execute(self, *asked: Any) -> str:
                raise LookupError("of the application")

        failing, other = Failing(Message), Subscriber(Message)
        async with hub_with(FakeReader()) as hub:
            await hub.join(failing.operation)
            await hub.join(other.operation)
            await hub.dispatch("default", stretch(inserted(1, "a secret")))
            await other.has("a secret")
            await eventually(lambda: caplog.records)
        assert f"an execution failed for INSERT of {MESSAGE}" in caplog.text
        assert "secret" not in caplog.text


class TestStarting:
    async def test_a_start_that_is_cancelled_closes_what_was_opened(self) -> None:
        class Hanging(InMemoryChannelLayer):  # type: ignore[misc]
            async def new_channel(self, prefix: str = "specific.") -> Any:
                asked.set()
                await asyncio.Event().wait()

        class Noting(FakeReader):
            async def close(self) -> None:
                closed.set()

            def another(self) -> Any:
                return FakeReader()

        asked, closed = asyncio.Event(), asyncio.Event()
        hub = Hub(Hanging(), [Noting()], Executor(1))
        starting = asyncio.create_task(hub.start())
        await asked.wait()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert closed.is_set()


class SlowToLeave(InMemoryChannelLayer):  # type: ignore[misc]
    """A layer that is slow to let somebody leave a group."""

    def __init__(self) -> None:
        super().__init__()
        self.leaving, self.go_on = asyncio.Event(), asyncio.Event()

    async def group_discard(self, group: str, channel: str) -> None:
        self.leaving.set()
        await self.go_on.wait()
        await super().group_discard(group, channel)


async def turn() -> None:
    """Let everybody else have a turn of the event loop, or two."""
    for _ in range(3):
        await asyncio.sleep(0)


class TestJoiningAndLeaving:
    async def test_who_joins_while_somebody_who_was_cancelled_leaves_is_fed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("pgnotify_gql.hub.receiver.LAYER_TIMEOUT", NEVER)
        layer = SlowToLeave()
        first, cancelled, last = Subscriber(Message), Subscriber(Message), Subscriber(Message)
        async with hub_with(FakeReader(), layer) as hub:
            await hub.join(first.operation)
            leaving = asyncio.create_task(hub.leave(first.operation))
            await layer.leaving.wait()
            gone = asyncio.create_task(hub.join(cancelled.operation))
            await turn()
            gone.cancel()
            await turn()
            joining = asyncio.create_task(hub.join(last.operation))
            await turn()
            layer.go_on.set()
            await asyncio.gather(leaving, joining)
            await asyncio.gather(gone, return_exceptions=True)
            assert names.model_group(MESSAGE) in layer.groups
            await hub.dispatch("default", stretch(inserted(1)))
            await last.has("hello")
            await hub.leave(last.operation)
            assert left_in(hub) == ({}, {}, {}, {})

    async def test_a_later_leader_that_is_heard_of_while_somebody_joins_has_him_go_back_to_where_its_era_began(
        self,
    ) -> None:
        layer = InMemoryChannelLayer()

        class Overtaken(Reader):
            async def current(self) -> Any:
                """Return what was so before the database forgot something, when another leader has begun since."""
                beat = heartbeat_message("default", 2, Era("second", at(5)), at(7), {})
                await layer.group_send(names.heartbeat_group(), dict(beat))
                await eventually(lambda: feed_of(hub).epoch == 2)
                return Joined(at(10), 1, AT, "first", journal="the journal")

        reader = Overtaken()
        async with hub_with(reader, layer) as hub, hub.depending([Topic(Message)], Told()):
            assert reader.read == [Position(at(5))]
            # A message does not name the journal; cursors that did not either would be of no use to another process.
            assert feed_of(hub).journal == Journal("the journal", "second")


class TestReadingByItself:
    async def test_goes_on_when_it_fails(self, caplog: pytest.LogCaptureFixture) -> None:
        class Failing(Reader):
            async def missed(self, position: Position, label: str, batch_rows: int = 1) -> AsyncGenerator[Batch, None]:
                self.read.append(position)
                if len(self.read) == 1:
                    raise LookupError("a fault of ours")
                yield Batch(position.before, at(7), [])

        reader, subscriber = Failing(), Subscriber(Message)
        async with hub_with(reader, silence=0.03) as hub:
            await hub.join(subscriber.operation)
            await eventually(lambda: feed_of(hub).position(MESSAGE) == Position(at(7)))
        assert "the journal of database default could not be read" in caplog.text


def changes(seq: int, epoch: int = 1, era: str = "first") -> dict[str, Any]:
    """A message of the relay."""
    return dict(changes_message("default", MESSAGE, epoch, Era(era, at(0)), seq, at(1), at(2), [inserted(1)]))


@asynccontextmanager
async def receiving() -> AsyncIterator[tuple[Receiver, InMemoryChannelLayer]]:
    """A receiver in the group of a model."""
    layer = InMemoryChannelLayer()
    receiver = Receiver(layer, "default", lambda message: None)
    await receiver.join(names.model_group(MESSAGE))
    receiver.start()
    async with asyncio.timeout(EVENT_TIMEOUT):
        yield receiver, layer
    await receiver.close()


class TestReceiver:
    async def test_is_handed_what_is_for_its_groups_and_nothing_else(self) -> None:
        async with receiving() as (receiver, _):
            receiver.hand(names.model_group("stock.item"), changes(1), alone=True)
            receiver.hand(names.model_group(MESSAGE), changes(2), alone=True)
            assert await receiver.next() == changes(2)

    async def test_has_heard_what_no_layer_could_bring_and_of_the_rest_what_the_layer_brings(self) -> None:
        async with receiving() as (receiver, layer):
            for step in (
                partial(receiver.hand, names.model_group(MESSAGE), changes(1), alone=False),
                partial(receiver.hand, names.model_group("stock.item"), changes(1), alone=True),
            ):
                receiver.heard_at = 0.0
                step()
                assert receiver.heard_at == 0.0
            receiver.hand(names.model_group(MESSAGE), changes(2), alone=True)
            assert receiver.heard_at > 0.0
            receiver.heard_at = 0.0
            # Passed over, and heard all the same.
            await layer.group_send(names.model_group(MESSAGE), changes(2))
            await eventually(lambda: receiver.heard_at > 0.0)

    async def test_passes_over_what_the_layer_brings_of_what_it_was_handed(self) -> None:
        async with receiving() as (receiver, layer):
            receiver.hand(names.model_group(MESSAGE), changes(4, epoch=2), alone=False)
            assert await receiver.next() == changes(4, epoch=2)
            others = [changes(5, epoch=2), changes(4, epoch=3), changes(4, epoch=1), changes(4, epoch=2, era="second")]
            for message in [changes(3, epoch=2), changes(4, epoch=2), *others]:
                await layer.group_send(names.model_group(MESSAGE), message)
            assert [await receiver.next() for _ in others] == others

    async def test_leaves_it_to_the_feed_what_is_wrong_with_a_message_of_the_layer(self) -> None:
        wrong = [
            {"type": CHANGES, "label": MESSAGE},
            {"type": CHANGES, "label": MESSAGE, "database": "default"},
            {"type": CHANGES, "label": [MESSAGE]},
            changes(1) | {"seq": "one"},
            {"label": MESSAGE},
        ]
        async with receiving() as (receiver, layer):
            receiver.hand(names.model_group(MESSAGE), changes(1), alone=False)
            for message in wrong:
                await layer.group_send(names.model_group(MESSAGE), message)
            assert [await receiver.next() for _ in range(6)] == [changes(1), *wrong]

    async def test_takes_from_the_layer_what_it_had_no_room_for_when_it_was_handed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(receiver_module, "MOST_WAITING", 1)
        async with receiving() as (receiver, layer):
            for seq in (1, 2):
                receiver.hand(names.model_group(MESSAGE), changes(seq), alone=False)
            assert await receiver.next() == changes(1)
            await layer.group_send(names.model_group(MESSAGE), changes(2))
            assert await receiver.next() == changes(2)

    async def test_asking_a_layer_anew_ends_what_tidies_up_behind_its_messages(self) -> None:
        """On a dead connection channels_redis would wait for that for ever; the name of the list is its own."""
        assert RedisChannelLayer(hosts=[]).receive_cleaners == []
        layer: Any = InMemoryChannelLayer()
        cleaner = asyncio.create_task(asyncio.Event().wait())
        layer.receive_cleaners = [cleaner]
        receiver = Receiver(layer, "default", lambda message: None)
        await receiver.join("group")
        receiver.start()
        await receiver.restart()
        await layer.group_send("group", {"type": "test"})
        async with asyncio.timeout(EVENT_TIMEOUT):
            assert await receiver.next() == {"type": "test"}
        assert cleaner.cancelled()
        await receiver.close()
