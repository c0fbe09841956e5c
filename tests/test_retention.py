"""Slots of the journal are emptied in turn, when all that they hold was relayed and is old, and never before."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest
from psycopg import AsyncConnection

from pgnotify_gql.errors import CursorTooOldError
from pgnotify_gql.journal import Snapshot, reader, retention
from pgnotify_gql.journal.reader import current_snapshot, read_new, require_complete
from pgnotify_gql.journal.retention import rotate
from tests.support.databases import Database
from tests.support.watched import WatchedTable, watched

HOUR = 3600.0


@pytest.fixture
def items(database: Database) -> WatchedTable:
    return watched(database)


@pytest.fixture
async def leader(database: Database) -> AsyncIterator[reader.Connection]:
    """The connection that rotates, as the leader does."""
    async with await AsyncConnection.connect(database.conninfo, autocommit=True) as connection:
        yield connection


def age(items: WatchedTable) -> None:
    """Let two hours pass for all that is committed."""
    items.run("update pgnotify_gql.journal set at = at - interval '2 hours'")
    items.run("update pgnotify_gql.journal_state set rotated_at = rotated_at - interval '2 hours'")


def write(items: WatchedTable) -> int:
    """Insert an item and return its key."""
    ((key,),) = items.run("insert into item default values returning id")
    return int(key)


def slots(items: WatchedTable) -> dict[int, list[int]]:
    """The keys of the items in each slot that has rows."""
    found = items.run("select slot, (rows->0->0->>0)::int from pgnotify_gql.journal order by id")
    return {slot: [key for other, key in found if other == slot] for slot, _ in found}


async def relay_and_rotate(leader: reader.Connection) -> None:
    """Rotate as a leader does that has relayed everything there is."""
    await rotate(leader, await current_snapshot(leader), HOUR)


class TestMovingOn:
    async def test_young_rows_stay_and_writers_stay_in_their_slot(
        self, items: WatchedTable, leader: reader.Connection
    ) -> None:
        write(items)
        await relay_and_rotate(leader)
        write(items)
        assert slots(items) == {0: [1, 2]}

    async def test_writers_move_on_when_their_slot_is_older_than_the_retention(
        self, items: WatchedTable, leader: reader.Connection
    ) -> None:
        write(items)
        age(items)
        await relay_and_rotate(leader)
        write(items)
        assert slots(items) == {0: [1], 1: [2]}

    async def test_an_old_slot_is_emptied_once_writers_have_left_it(
        self, items: WatchedTable, leader: reader.Connection
    ) -> None:
        for _ in range(2):
            write(items)
            age(items)
            await relay_and_rotate(leader)
        assert slots(items) == {1: [2]}
        await relay_and_rotate(leader)
        assert slots(items) == {}

    async def test_slots_are_used_in_turn_for_ever(self, items: WatchedTable, leader: reader.Connection) -> None:
        used = []
        for _ in range(7):
            key = write(items)
            used += [slot for slot, keys in slots(items).items() if key in keys]
            age(items)
            await relay_and_rotate(leader)
        assert used == [0, 1, 2, 0, 1, 2, 0]
        assert slots(items) == {0: [7]}

    async def test_a_journal_without_rows_does_not_move(self, items: WatchedTable, leader: reader.Connection) -> None:
        age(items)
        await relay_and_rotate(leader)
        write(items)
        assert slots(items) == {0: [1]}

    async def test_writers_wait_for_no_slot(self, items: WatchedTable, leader: reader.Connection) -> None:
        """Where the next slot still holds rows, writers go on in theirs: the journal grows, and nothing is lost."""
        nothing = await current_snapshot(leader)
        for _ in range(6):
            write(items)
            age(items)
            await rotate(leader, nothing, HOUR)
        assert slots(items) == {0: [1], 1: [2], 2: [3, 4, 5, 6]}


class TestEmptying:
    async def test_what_is_not_relayed_stays_however_old_it_is(
        self, items: WatchedTable, leader: reader.Connection
    ) -> None:
        write(items)
        relayed = await current_snapshot(leader)
        write(items)
        for _ in range(4):
            age(items)
            await rotate(leader, relayed, HOUR)
        assert slots(items) == {0: [1, 2]}

    async def test_what_was_in_progress_when_the_leader_last_relayed_stays(
        self, database: Database, items: WatchedTable, leader: reader.Connection
    ) -> None:
        """Its id is smaller than those that were relayed, and so is its transaction's."""
        slow = database.connect()
        slow.execute("begin; insert into item default values")
        write(items)
        relayed = await current_snapshot(leader)
        slow.execute("commit")
        for _ in range(4):
            age(items)
            await rotate(leader, relayed, HOUR)
        assert slots(items)[0] == [1, 2]

    async def test_a_slot_with_one_young_row_stays(
        self, database: Database, items: WatchedTable, leader: reader.Connection
    ) -> None:
        """Also where the youngest row is not that of the youngest transaction."""
        slow = database.connect()
        slow.execute("begin; select pg_current_xact_id()")
        write(items)
        age(items)
        slow.execute("insert into item default values")
        slow.execute("commit")
        await relay_and_rotate(leader)
        write(items)
        await relay_and_rotate(leader)
        assert slots(items) == {0: [1, 2], 1: [3]}

    async def test_a_transaction_that_stays_open_across_a_rotation_loses_nothing(
        self, database: Database, items: WatchedTable, leader: reader.Connection
    ) -> None:
        cursor = await current_snapshot(leader)
        slow = database.connect()
        write(items)
        slow.execute("begin; insert into item default values")
        seen: list[int] = []
        for _ in range(4):
            write(items)
            age(items)
            cursor = await self.relay(items, leader, cursor, seen)
            await rotate(leader, cursor, HOUR)
        assert slots(items)[0] == [1, 3], "the slot that the open transaction wrote into"
        slow.execute("insert into item default values")
        slow.execute("commit")
        await rotate(leader, cursor, HOUR)
        await self.relay(items, leader, cursor, seen)
        ((committed,),) = items.run("select array_agg(id order by id) from item")
        assert sorted(seen) == committed

    async def relay(
        self, items: WatchedTable, leader: reader.Connection, cursor: Snapshot, seen: list[int]
    ) -> Snapshot:
        async for batch in read_new(leader, cursor):
            seen += [change.pk for row in batch.rows for change in row.changes(items.watch)]
            cursor = batch.after
        return cursor

    async def test_what_is_committed_while_emptying_waits_for_its_lock_stays(
        self, database: Database, items: WatchedTable, leader: reader.Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The slot looked old and relayed before; with the lock it is looked at once more."""
        monkeypatch.setattr(retention, "LOCK_TIMEOUT", 20.0)
        write(items)
        age(items)
        late = database.connect()
        late.execute("begin; insert into item default values")
        await relay_and_rotate(leader)
        rotating = asyncio.create_task(relay_and_rotate(leader))
        await until_somebody_waits_for_a_lock(database)
        late.execute("commit")
        await rotating
        assert slots(items) == {0: [1, 2]}

    async def test_a_slot_in_use_is_emptied_later(
        self,
        database: Database,
        items: WatchedTable,
        leader: reader.Connection,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.INFO, "pgnotify_gql.journal")
        write(items)
        age(items)
        await relay_and_rotate(leader)
        slow_reader = database.connect()
        slow_reader.execute("begin; select from pgnotify_gql.journal")
        await relay_and_rotate(leader)
        assert slots(items) == {0: [1]}
        assert caplog.messages[-1] == "slot 0 of the journal of database default is in use; it is emptied later"
        slow_reader.execute("commit")
        await relay_and_rotate(leader)
        assert slots(items) == {}
        assert caplog.messages[-1] == "slot 0 of the journal of database default emptied"

    async def test_writers_of_other_slots_are_not_held_up_by_emptying(
        self, database: Database, items: WatchedTable, leader: reader.Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(retention, "LOCK_TIMEOUT", 20.0)
        write(items)
        age(items)
        await relay_and_rotate(leader)
        slow_writer = database.connect()
        slow_writer.execute("begin; lock table pgnotify_gql.journal_0 in row exclusive mode")
        rotating = asyncio.create_task(relay_and_rotate(leader))
        await until_somebody_waits_for_a_lock(database)
        items.run("set statement_timeout = '10s'")
        write(items)
        slow_writer.execute("rollback")
        await rotating
        assert slots(items) == {1: [2]}


async def until_somebody_waits_for_a_lock(database: Database) -> None:
    async with await AsyncConnection.connect(database.conninfo, autocommit=True) as observer:
        await observer.execute("set statement_timeout = '20s'")
        await observer.execute(
            "do $$ begin while not exists (select from pg_locks where not granted) loop perform pg_sleep(0.005);"
            " end loop; end $$"
        )


class TestTooOld:
    async def empty(self, items: WatchedTable, leader: reader.Connection) -> None:
        """Empty the slot that is written now."""
        age(items)
        await relay_and_rotate(leader)
        await relay_and_rotate(leader)

    async def test_a_cursor_before_what_was_emptied_is_too_old(
        self, items: WatchedTable, leader: reader.Connection
    ) -> None:
        cursor = await current_snapshot(leader)
        write(items)
        await require_complete(leader, cursor)
        await self.empty(items, leader)
        with pytest.raises(CursorTooOldError):
            await require_complete(leader, cursor)

    async def test_a_cursor_behind_what_was_emptied_is_not(
        self, items: WatchedTable, leader: reader.Connection
    ) -> None:
        write(items)
        cursor = await current_snapshot(leader)
        await self.empty(items, leader)
        assert slots(items) == {}
        await require_complete(leader, cursor)
        await require_complete(leader, await current_snapshot(leader))

    async def test_a_cursor_is_exact_to_the_transaction(self, items: WatchedTable, leader: reader.Connection) -> None:
        before_last: Snapshot | None = None
        for _ in range(3):
            before_last = await current_snapshot(leader)
            write(items)
        behind_last = await current_snapshot(leader)
        await self.empty(items, leader)
        assert before_last is not None
        with pytest.raises(CursorTooOldError):
            await require_complete(leader, before_last)
        await require_complete(leader, behind_last)

    async def test_a_transaction_that_is_open_all_the_time_makes_no_cursor_too_old(
        self, database: Database, items: WatchedTable, leader: reader.Connection
    ) -> None:
        """A batch job of hours: what it writes in the end is in the journal, however often slots were emptied."""
        job = database.connect()
        job.execute("begin; select pg_current_xact_id()")
        for _ in range(3):
            write(items)
            cursor = await current_snapshot(leader)
            assert cursor.xip
            await self.empty(items, leader)
            await require_complete(leader, cursor)
        job.execute("insert into item default values")
        job.execute("commit")
        found = [batch async for batch in read_new(leader, cursor)]
        assert [row.changes(items.watch)[0].pk for batch in found for row in batch.rows] == [4]
        await require_complete(leader, cursor)

    async def test_a_cursor_that_saw_a_transaction_in_progress_whose_rows_are_gone_is_too_old(
        self, database: Database, items: WatchedTable, leader: reader.Connection
    ) -> None:
        slow = database.connect()
        slow.execute("begin; insert into item default values")
        write(items)
        cursor = await current_snapshot(leader)
        slow.execute("commit")
        await self.empty(items, leader)
        assert slots(items) == {}
        with pytest.raises(CursorTooOldError):
            await require_complete(leader, cursor)

    async def test_a_new_journal_is_complete_for_every_cursor(
        self, items: WatchedTable, leader: reader.Connection
    ) -> None:
        await require_complete(leader, Snapshot(3, 3))
