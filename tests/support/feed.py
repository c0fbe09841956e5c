"""
Listeners, hubs and subscribers inside the test's own process, and events to wait for.

Writers are plain psycopg connections: what they commit is seen by the triggers alone.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from copy import copy
from functools import partial
from itertools import pairwise
from typing import Any

import psycopg

from pgnotify_gql import names
from pgnotify_gql.hub.executor import Executor
from pgnotify_gql.hub.feed import Feed
from pgnotify_gql.hub.hub import Hub
from pgnotify_gql.hub.reader import HubReader
from pgnotify_gql.hub.receiver import Layer
from pgnotify_gql.journal import Change, JournalRow, Snapshot
from pgnotify_gql.journal.reader import Batch, Connection
from pgnotify_gql.journal.state import Era
from pgnotify_gql.listener import Listener, Sink, Timing, connect
from tests.support.databases import Database

EVENT_TIMEOUT = 20.0
"""Seconds after which an event that a test waits for counts as missing; the events take milliseconds."""

NEVER = 3600.0
"""Seconds, for an interval that must not be what makes a test pass."""

RARELY = Timing(safety_poll=60.0, session_timeout=600.0)
"""A listener that looks by itself once a minute: what is relayed sooner was rung for."""

MESSAGE = "conversations.message"
CONVERSATION = "conversations.conversation"


class Notebook:
    """Somewhere things are noted; a test waits until what it needs has been noted."""

    def __init__(self) -> None:
        self._changed: set[asyncio.Event] = set()

    def noted(self) -> None:
        for event in self._changed:
            event.set()

    async def until(self, condition: Callable[[], bool], timeout: float = EVENT_TIMEOUT) -> None:  # noqa: ASYNC109
        changed = asyncio.Event()
        self._changed.add(changed)
        try:
            async with asyncio.timeout(timeout):
                while not condition():
                    changed.clear()
                    await changed.wait()
        except TimeoutError:
            raise AssertionError(f"it did not happen within {timeout} s; noted: {self}") from None
        finally:
            self._changed.discard(changed)


async def eventually(condition: Callable[[], Any], timeout: float = EVENT_TIMEOUT) -> None:  # noqa: ASYNC109
    """Wait for what tells nobody, such as a row of pg_locks."""
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110  (there is no event)
            await asyncio.sleep(0.005)


class Recorder(Notebook):
    """A sink that keeps what it is handed."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs: list[int] = []
        self.batches: list[Batch] = []
        self.rows: list[JournalRow] = []
        self.heartbeats: list[Snapshot] = []

    def __str__(self) -> str:
        return f"{len(self.rows)} rows, {len(self.heartbeats)} heartbeats, epochs {self.epochs}"

    @property
    def texts(self) -> list[str]:
        return [text for row in self.rows for text in texts_of(row)]

    def led(self, terms: int) -> bool:
        """Whether so many terms of leadership have begun."""
        return len(self.epochs) >= terms

    def begin(self, epoch: int, era: Era) -> None:
        self.epochs.append(epoch)
        self.noted()

    async def relay(self, batch: Batch) -> None:
        self.batches.append(batch)
        self.rows.extend(batch.rows)
        self.noted()

    async def heartbeat(self, cursor: Snapshot) -> None:
        self.heartbeats.append(cursor)
        self.noted()

    async def has(self, *texts: str, timeout: float = EVENT_TIMEOUT) -> None:  # noqa: ASYNC109
        """Wait until messages with all of these texts were relayed."""
        await self.until(lambda: set(texts) <= set(self.texts), timeout)


def texts_of(row: JournalRow) -> list[str]:
    """The texts of inserted or updated messages."""
    return [entry[2]["text"] for entry in json.loads(row.rows) if len(entry) == 3 and entry[2]]


class Room:
    """A conversation with its author, and a connection that writes messages into it."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.connection = database.connect()
        self.author = self._new(
            "insert into auth_user (username, password, is_superuser, first_name, last_name, email, is_staff,"
            " is_active, date_joined) values ('ann', '', false, '', '', '', false, true, now()) returning id"
        )
        self.conversation = self._new("insert into conversations_conversation (title) values ('room') returning id")

    def next_door(self) -> "Room":
        """Another conversation of the same author."""
        another = copy(self)
        another.conversation = self._new(
            "insert into conversations_conversation (title) values ('next door') returning id"
        )
        return another

    def say(self, *texts: str, connection: psycopg.Connection | None = None) -> list[int]:
        """Write messages, a statement each; return their keys."""
        return [
            self._new(
                "insert into conversations_message (conversation_id, author_id, text) values (%s, %s, %s) returning id",
                self.conversation,
                self.author,
                text,
                connection=connection,
            )
            for text in texts
        ]

    def say_at_once(self, count: int, prefix: str = "") -> None:
        """Write many messages with one statement: '<prefix>1', '<prefix>2', ..."""
        self.connection.execute(
            "insert into conversations_message (conversation_id, author_id, text)"
            " select %s, %s, %s || number from generate_series(1, %s) as number",
            [self.conversation, self.author, prefix, count],
        )

    def edit(self, key: int, text: str, connection: psycopg.Connection | None = None) -> None:
        (connection or self.connection).execute("update conversations_message set text = %s where id = %s", [text, key])

    def _new(self, statement: Any, *parameters: Any, connection: psycopg.Connection | None = None) -> int:
        row = (connection or self.connection).execute(statement, parameters).fetchone()
        assert row is not None
        return int(row[0])


def opener(dsn: str, session_timeout: float = 0, application_name: str = "test") -> Callable[[], Awaitable[Connection]]:
    """What listeners and hubs take to open a connection."""
    return partial(connect, dsn, session_timeout=session_timeout, application_name=application_name)


@asynccontextmanager
async def opened(dsn: str) -> AsyncIterator[Connection]:
    """A connection like a listener's."""
    connection = await connect(dsn, session_timeout=0)
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def running(listener: Listener) -> AsyncIterator[asyncio.Task[None]]:
    """Run a listener; stop it at the end, which must take less than the timeout of an event."""
    task = asyncio.create_task(listener.run())
    try:
        yield task
    finally:
        listener.stop()
        async with asyncio.timeout(EVENT_TIMEOUT):
            await task


@asynccontextmanager
async def leading(
    database: Database,
    sink: Sink,
    *,
    timing: Timing = RARELY,
    polls: bool = False,
    dsn: str | None = None,
    alias: str = "default",
) -> AsyncIterator[Listener]:
    """A listener that leads."""
    connect = opener(dsn or database.conninfo, 0, "test leader")
    listener = Listener(connect, sink, database=alias, timing=timing, polls=polls)
    async with running(listener):
        async with asyncio.timeout(EVENT_TIMEOUT):
            await listener.leading.wait()
        yield listener


def sessions(database: Database, application_name: str) -> list[int]:
    """The backends of an application in this database."""
    with database.server.connect() as admin:
        return [
            pid
            for (pid,) in admin.execute(
                "select pid from pg_stat_activity where datname = %s and application_name = %s",
                [database.name, application_name],
            )
        ]


def terminate(database: Database, application_name: str) -> None:
    """End the sessions of an application, and wait until they are gone."""
    pids = sessions(database, application_name)
    assert pids, f"nobody is connected as {application_name!r}"
    with database.server.connect() as admin:
        for pid in pids:
            admin.execute("select pg_terminate_backend(%s, 10000)", [pid])


def lock_holders(database: Database, key: int, mode: str = "ExclusiveLock") -> list[int]:
    """The backends that hold one of our advisory locks."""
    with database.server.connect() as admin:
        return [
            pid
            for (pid,) in admin.execute(
                "select l.pid from pg_locks l join pg_database d on d.oid = l.database"
                " where d.datname = %s and locktype = 'advisory' and classid = %s and objid = %s and granted"
                " and mode = %s",
                [database.name, names.LOCK_CLASS, key, mode],
            )
        ]


class Bells:
    """A connection that listens beside the listener, and counts what rings."""

    def __init__(self, database: Database) -> None:
        self._connection = database.connect()
        self._connection.execute(f"listen {names.NOTIFY_CHANNEL}")

    def rung(self) -> int:
        """How many bells rang since the last call; what was committed before the call is counted."""
        # A notification is sent no later than the answer to a statement that follows its commit.
        self._connection.execute("select 1")
        return len(list(self._connection.notifies(timeout=0.05)))


@asynccontextmanager
async def hub_of(
    layer: Any, dsn: str, *, workers: int = 2, connect: Callable[[], Awaitable[Connection]] | None = None
) -> AsyncIterator[Hub]:
    """A hub that has started."""
    channel_layer: Layer = layer
    reader = HubReader(connect or opener(dsn, 0, "test hub"))
    hub = Hub(channel_layer, [reader], Executor(workers))
    await hub.start()
    try:
        yield hub
    finally:
        async with asyncio.timeout(EVENT_TIMEOUT):
            await hub.close()


def feed_of(hub: Hub, database: str = "default") -> Feed:
    """What a hub has of a database."""
    return hub._feeds[database]


def told(change: Change) -> tuple[int, str, Any]:
    """What tests compare: the key, the kind, and the text if there is one."""
    return change.pk, str(change.kind), (change.new or {}).get("text")


def in_order_per_row(changes: list[tuple[int, int]]) -> bool:
    """Whether numbers of each key only grow; takes (key, number)."""
    by_key: dict[int, list[int]] = {}
    for key, number in changes:
        by_key.setdefault(key, []).append(number)
    return all(before < after for numbers in by_key.values() for before, after in pairwise(numbers))


@contextmanager
def transaction(database: Database) -> Iterator[psycopg.Connection]:
    """A writer whose transaction stays open until the test commits it; rolled back if the test does not."""
    connection = database.connect()
    connection.autocommit = False
    try:
        yield connection
    finally:
        connection.close()
