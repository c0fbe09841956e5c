"""An initial state while others write: it and the stream behind it are together exactly what was committed."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress

import psycopg
import pytest
from django.test import override_settings

from pgnotify_gql.hub import Audience
from pgnotify_gql.transport import GraphqlSubscriptionConsumer
from tests.faults.load import Connect, Load
from tests.support.databases import Database
from tests.support.feed import Room, eventually
from tests.support.initial import Told, declare_initial
from tests.support.layers import default_layer
from tests.support.sockets import open_socket
from tests.support.subscribers import QUERY, Subscriber

CLIENTS = 8

ROWS = 40
"""Rows of the bulk writer."""

UNDER_LOAD = 5
"""Seconds for which clients may become live while the writers go on; it takes one or two."""

HOLD = 0.05
"""Seconds for which a transaction of the bulk writer stays open, at most."""


class Bulk:
    """Changes all of its rows in one statement, again and again, and holds its transactions open for a moment."""

    def __init__(self, room: Room, connect: Connect) -> None:
        self._connect = connect
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bulk writer", daemon=True)
        self.keys = room.say(*["bulk 0"] * ROWS)
        self.committed = [0]

    @contextmanager
    def running(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            self._thread.join()

    def _run(self) -> None:
        chance, number = random.Random(7), 0
        with self._connect() as connection:
            while not self._stopping.is_set():
                number += 1
                lost = chance.random() < 0.2
                with connection.transaction():
                    self._change(connection, f"{'lost ' if lost else ''}bulk {number}")
                    time.sleep(chance.random() * HOLD)
                    if lost:
                        raise psycopg.Rollback
                if not lost:
                    self.committed.append(number)

    def _change(self, connection: psycopg.Connection, text: str) -> None:
        connection.execute("update conversations_message set text = %s where id = any(%s)", [text, self.keys])


class Client:
    """One operation: what it was shown, and what it was told afterwards, by row."""

    def __init__(self) -> None:
        self.told = Told()
        self.live = asyncio.Event()

    async def read(self, subscriber: Subscriber, delay: float) -> None:
        await asyncio.sleep(delay)
        subscriber.socket.subscribe(QUERY)
        while True:
            # One that is behind waits for its turn at the journal, for longer than a socket of a test has patience.
            with suppress(TimeoutError):
                if self.told.take(await subscriber.result()) == "live":
                    self.live.set()

    def is_at_the_end(self, last: Sequence[str]) -> bool:
        texts = [text for kind, text in self.told.events if kind in ("state", "change")]
        return set(last) <= set(texts)

    def check(self, load: Load, bulk: Bulk, connection: psycopg.Connection) -> None:
        """Assert that the state and the stream are one history, without a gap and without a repetition."""
        assert self.told.all("resync") == []
        kinds = [kind for kind, _ in self.told.events]
        assert kinds[: len(self.told.state)] == ["state"] * len(self.told.state)
        # Again each time that it has fallen behind, and has caught up.
        assert kinds.count("live") >= 1
        state, changes = self.told.state, self.told.changes
        assert not [text for text in [*state, *changes] if "lost" in text]
        for name, expected in load.expected(connection).items():
            history = [f"{name}.0", *expected]
            (shown,) = [text for text in state if text.startswith(f"{name}.")]
            followed = [text for text in changes if text.startswith(f"{name}.")]
            assert followed == history[history.index(shown) + 1 :], f"the row of writer {name}, shown as {shown}"
            new = [text for text in [*state, *changes] if text.startswith(f"new {name}.")]
            assert sorted(new) == sorted(f"new {text}" for text in expected), f"rows of writer {name}"
            # What one transaction has written is shown together.
            assert (f"new {shown}" in state) == (shown != f"{name}.0")
        self._check_bulk(bulk, state, changes)

    def _check_bulk(self, bulk: Bulk, state: list[str], changes: list[str]) -> None:
        shown = [text for text in state if text.startswith("bulk")]
        assert len(shown) == ROWS
        (version,) = {int(text.split()[1]) for text in shown}
        followed = [int(text.split()[1]) for text in changes if text.startswith("bulk")]
        rest = bulk.committed[bulk.committed.index(version) + 1 :]
        assert followed == [number for number in rest for _ in range(ROWS)]


@pytest.mark.parametrize("messages", [1_000, 100])
async def test_clients_that_subscribe_at_any_moment_see_one_history_without_a_gap_or_a_repetition(
    database_triggers: Database, messages: int
) -> None:
    """With room for 1,000 messages, and with so little that they fall behind all the time."""
    room, chance = Room(database_triggers), random.Random(11)
    load, bulk = Load(room, database_triggers.connect), Bulk(room, database_triggers.connect)
    applications = [
        GraphqlSubscriptionConsumer.as_asgi(schema=declare_initial(audience=audience))
        for audience in (Audience.NOBODY, Audience.EVERYBODY)
    ]
    clients = [Client() for _ in range(CLIENTS)]
    settings = {"INLINE_LISTENER": True, "OUTBOX_MESSAGES": messages}
    async with AsyncExitStack() as stack:
        stack.enter_context(default_layer())
        stack.enter_context(override_settings(PGNOTIFY_GQL=settings))
        sockets = [await stack.enter_async_context(open_socket(chance.choice(applications))) for _ in clients]
        async with asyncio.TaskGroup() as tasks:
            with load.running(), bulk.running():
                await eventually(load.grown_by(20))
                reading = []
                for client, socket in zip(clients, sockets, strict=True):
                    await socket.init()
                    reading.append(tasks.create_task(client.read(Subscriber(socket), chance.random() * 2)))
                # A machine that has other things to do may never catch up with writers at full speed.
                with suppress(TimeoutError):
                    async with asyncio.timeout(UNDER_LOAD):
                        await asyncio.gather(*[client.live.wait() for client in clients])
                await eventually(load.grown_by(20))
            for client in clients:
                await eventually(client.live.is_set, 60)
            expected = load.expected(room.connection)
            last = [texts[-1] for texts in expected.values()] + [f"bulk {bulk.committed[-1]}"]
            last += [f"new {text}" for texts in expected.values() for text in texts]
            for client in clients:
                await eventually(lambda client=client: client.is_at_the_end(last), 60)  # type: ignore[misc]
            # What came twice would come now, if it has not come yet: a change behind everything else.
            room.say("the end")
            for client in clients:
                await eventually(lambda client=client: client.told.changes[-1:] == ["the end"], 60)  # type: ignore[misc]
                client.told.events.pop()
            for task in reading:
                task.cancel()
    for client in clients:
        client.check(load, bulk, room.connection)
