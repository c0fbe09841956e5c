"""Reading the journal: every committed row once, from any cursor and any position, in parts of bounded size."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, suppress
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection, AsyncServerCursor
from psycopg.pq import TransactionStatus

from pgnotify_gql.errors import CursorTooOldError, JournalMissingError
from pgnotify_gql.journal import JournalRow, Position, Snapshot, reader
from pgnotify_gql.journal.reader import (
    Batch,
    current_snapshot,
    read_missed,
    read_new,
    require_journal,
)
from tests.support.databases import Database
from tests.support.watched import Connection

INSERT = "insert into pgnotify_gql.journal (label, kind, rows) values (%s, 'INSERT', '[[[1]]]') returning id"


@pytest.fixture
async def feed(database: Database) -> AsyncIterator[reader.Connection]:
    """The connection that reads."""
    async with await AsyncConnection.connect(database.conninfo, autocommit=True) as connection:
        yield connection


@pytest.fixture
def writer(database: Database) -> Connection:
    return database.connect()


def write(writer: Connection, label: str = "stock.item") -> int:
    """Write one row into the journal, as a trigger function does, and return its id."""
    found = writer.execute(INSERT, [label]).fetchone()
    assert found is not None
    return int(found[0])


def write_many(writer: Connection, count: int, label: str = "stock.item") -> list[int]:
    """Write as many rows, each in a transaction of its own."""
    writer.execute(
        "do $$ begin for n in 1.." + str(count) + " loop"
        f" insert into pgnotify_gql.journal (label, kind, rows) values ('{label}', 'INSERT', '[[[1]]]'); commit;"
        " end loop; end $$"
    )
    found = writer.execute("select id from pgnotify_gql.journal where label = %s order by id", [label]).fetchall()
    return [row_id for (row_id,) in found[-count:]]


async def batches(feed: reader.Connection, cursor: Snapshot, **options: Any) -> list[Batch]:
    return [batch async for batch in read_new(feed, cursor, **options)]


async def read(feed: reader.Connection, cursor: Snapshot, **options: Any) -> tuple[list[int], Snapshot]:
    """Read everything new; return the ids of the rows and the next cursor."""
    found = await batches(feed, cursor, **options)
    return ids([row for batch in found for row in batch.rows]), found[-1].after


def standing(database: Database, writer: Connection) -> list[Connection]:
    """Begin two transactions, and let them outlast many."""
    sessions = [database.connect(), database.connect()]
    for session in sessions:
        session.execute("begin; select pg_current_xact_id()")
    write_many(writer, reader.STANDING + 1)
    return sessions


def note_asked(
    feed: reader.Connection, monkeypatch: pytest.MonkeyPatch, note: Callable[[str, list[str]], object]
) -> None:
    """Call `note` before each statement of the reader, with those of whom it asks whether they have ended."""
    execute = feed.execute

    async def noted(statement: str, parameters: Any) -> Any:
        note(statement, parameters["xip"])
        return await execute(statement, parameters)

    monkeypatch.setattr(feed, "execute", noted)


async def missed(feed: reader.Connection, position: Position, label: str = "stock.item") -> list[int]:
    return ids([row async for batch in read_missed(feed, position, label) for row in batch.rows])


def ids(rows: Sequence[JournalRow]) -> list[int]:
    return [row.id for row in rows]


class TestCursor:
    async def test_what_is_committed_after_the_cursor_is_read_once(
        self, feed: reader.Connection, writer: Connection
    ) -> None:
        write(writer)
        cursor = await current_snapshot(feed)
        new = [write(writer), write(writer)]
        found, cursor = await read(feed, cursor)
        assert found == new
        assert (await read(feed, cursor))[0] == []

    async def test_nothing_new_gives_the_next_cursor_too(self, feed: reader.Connection, writer: Connection) -> None:
        cursor = await current_snapshot(feed)
        writer.execute("select pg_current_xact_id()")
        (batch,) = await batches(feed, cursor)
        assert (batch.rows, batch.before, batch.last) == ([], cursor, True)
        assert batch.after.xmax > cursor.xmax

    async def test_a_row_that_commits_late_is_read_though_later_ones_were_read_before(
        self, database: Database, feed: reader.Connection, writer: Connection
    ) -> None:
        """What a sequence number for a cursor would lose."""
        cursor = await current_snapshot(feed)
        slow = database.connect()
        slow.execute("begin")
        late = write(slow)
        early = write(writer)
        assert late < early
        found, cursor = await read(feed, cursor)
        assert found == [early]
        slow.execute("commit")
        found, cursor = await read(feed, cursor)
        assert found == [late]
        assert (await read(feed, cursor))[0] == []

    async def test_a_long_transaction_holds_nobody_up(
        self, database: Database, feed: reader.Connection, writer: Connection
    ) -> None:
        slow = database.connect()
        slow.execute("begin; select pg_current_xact_id()")
        cursor = await current_snapshot(feed)
        for _ in range(3):
            new = write(writer)
            found, cursor = await read(feed, cursor)
            assert found == [new]
        late = write(slow)
        slow.execute("commit")
        assert (await read(feed, cursor))[0] == [late]

    async def test_who_outlasted_many_is_not_asked_about_until_he_has_ended(
        self, database: Database, feed: reader.Connection, writer: Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A batch job writes for minutes in one transaction; each read would look at every row, for nothing."""
        slow, other = standing(database, writer)
        cursor = await current_snapshot(feed)
        asked: list[tuple[str, int]] = []
        note_asked(feed, monkeypatch, lambda statement, xip: asked.append((statement, len(xip))))
        early, new = write(slow), write(writer)
        found, cursor = await read(feed, cursor)
        assert (found, asked) == ([new], [(reader.READ_BEHIND, 0)])
        slow.execute("commit")
        new = write(writer)
        found, cursor = await read(feed, cursor)
        assert (found, asked[1:]) == ([early, new], [(reader.READ_BEHIND, 0), (reader.READ, 1)])
        assert (await read(feed, cursor))[0] == []
        late = write(other)
        other.execute("commit")
        assert (await read(feed, cursor))[0] == [late]

    async def test_who_outlasted_many_and_ends_in_the_middle_of_a_read_comes_before_who_came_after_him(
        self, database: Database, feed: reader.Connection, writer: Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first, second = standing(database, writer)
        cursor = await current_snapshot(feed)
        rows = [write(first), write(second)]
        first.execute("commit")

        def end(_: str, xip: list[str]) -> None:
            if len(xip) == 1:
                second.execute("commit")
                rows.append(write(writer))

        note_asked(feed, monkeypatch, end)
        found, cursor = await read(feed, cursor)
        assert found == rows
        assert len(rows) == 3
        assert (await read(feed, cursor))[0] == []

    async def test_what_is_rolled_back_is_never_read(self, feed: reader.Connection, writer: Connection) -> None:
        cursor = await current_snapshot(feed)
        with writer.transaction():
            kept = [write(writer)]
            with writer.transaction(force_rollback=True):
                write(writer)
            with writer.transaction():
                kept.append(write(writer))
        with writer.transaction(force_rollback=True):
            write(writer)
        found, cursor = await read(feed, cursor)
        assert found == kept
        assert (await read(feed, cursor))[0] == []

    async def test_rows_are_in_the_order_of_their_ids_not_of_their_transactions(
        self, database: Database, feed: reader.Connection, writer: Connection
    ) -> None:
        """An older transaction may change a row after a younger one has committed its change of it."""
        cursor = await current_snapshot(feed)
        older = database.connect()
        older.execute("begin; select pg_current_xact_id()")
        first = write(writer)
        second = write(older)
        older.execute("commit")
        (batch,) = await batches(feed, cursor)
        assert ids(batch.rows) == [first, second]
        assert batch.rows[0].xid > batch.rows[1].xid

    async def test_a_prepared_transaction_is_read_when_it_is_committed(
        self, feed: reader.Connection, writer: Connection
    ) -> None:
        cursor = await current_snapshot(feed)
        writer.execute("begin")
        row_id = write(writer)
        writer.execute("prepare transaction 'prepared'")
        found, cursor = await read(feed, cursor)
        assert found == []
        writer.execute("commit prepared 'prepared'")
        assert (await read(feed, cursor))[0] == [row_id]

    async def test_a_label_filters_rows_and_not_the_cursor(self, feed: reader.Connection, writer: Connection) -> None:
        cursor = await current_snapshot(feed)
        slow = write(writer, "stock.box")
        item = write(writer)
        found, after = await read(feed, cursor, label="stock.item")
        assert found == [item]
        assert (await read(feed, after, label="stock.box"))[0] == []
        assert (await read(feed, cursor, label="stock.box"))[0] == [slow]
        assert (await read(feed, cursor, label="stock"))[0] == []


class TestBacklog:
    @pytest.mark.parametrize(
        ("count", "sizes"), [(10, [10]), (11, [10, 1, 0]), (35, [10, 25, 0]), (95, [10, 40, 40, 5, 0])]
    )
    async def test_is_read_in_parts_of_bounded_size(
        self, feed: reader.Connection, writer: Connection, count: int, sizes: list[int]
    ) -> None:
        cursor = await current_snapshot(feed)
        new = write_many(writer, count)
        found = await batches(feed, cursor, batch_rows=10)
        assert [len(batch.rows) for batch in found] == sizes
        assert ids([row for batch in found for row in batch.rows]) == new
        assert [batch.last for batch in found] == [False] * (len(sizes) - 1) + [True]
        assert {batch.before for batch in found} == {cursor}
        assert len({batch.after for batch in found}) == 1
        assert (await read(feed, found[-1].after))[0] == []

    async def test_has_fewer_rows_in_a_part_where_they_are_large(
        self, feed: reader.Connection, writer: Connection
    ) -> None:
        cursor = await current_snapshot(feed)
        writer.execute(
            "insert into pgnotify_gql.journal (label, kind, rows)"
            " select 'stock.item', 'INSERT', to_json(repeat('x', %s)) from generate_series(1, 30)",
            [reader.PART_BYTES // 5 - 2],
        )
        found = await batches(feed, cursor, batch_rows=10)
        assert [len(batch.rows) for batch in found] == [10, 5, 5, 5, 5, 0]

    async def test_rows_that_arrive_meanwhile_are_new_to_the_next_read(
        self, feed: reader.Connection, writer: Connection
    ) -> None:
        cursor = await current_snapshot(feed)
        backlog = write_many(writer, 20)
        found, meanwhile = [], []
        async for batch in read_new(feed, cursor, batch_rows=10):
            found += ids(batch.rows)
            meanwhile.append(write(writer))
            cursor = batch.after
        assert found == backlog
        assert (await read(feed, cursor))[0] == meanwhile

    async def test_of_one_label_is_streamed_too(self, feed: reader.Connection, writer: Connection) -> None:
        cursor = await current_snapshot(feed)
        write_many(writer, 15, "stock.box")
        new = write_many(writer, 15)
        found = await batches(feed, cursor, label="stock.item", batch_rows=10)
        assert [len(batch.rows) for batch in found] == [10, 5, 0]
        assert ids([row for batch in found for row in batch.rows]) == new

    async def test_leaves_the_connection_as_it_was(self, feed: reader.Connection, writer: Connection) -> None:
        cursor = await current_snapshot(feed)
        write_many(writer, 15)
        await batches(feed, cursor, batch_rows=10)
        assert (feed.info.transaction_status, feed.isolation_level) == (TransactionStatus.IDLE, None)

    @pytest.mark.parametrize("healing", [False, True])
    async def test_that_is_given_up_leaves_the_connection_as_it_was(
        self, feed: reader.Connection, writer: Connection, healing: bool
    ) -> None:
        """A transaction left open would go on showing the journal as it was."""
        cursor = await current_snapshot(feed)
        write_many(writer, reader.BATCH_ROWS + 1)
        parts = read_missed(feed, Position(cursor), "stock.item") if healing else read_new(feed, cursor)
        async with aclosing(parts):
            await anext(parts)
            assert feed.info.transaction_status == TransactionStatus.INTRANS
        assert (feed.info.transaction_status, feed.isolation_level) == (TransactionStatus.IDLE, None)

    async def test_that_is_lost_with_its_connection_is_an_error_of_the_database(
        self, feed: reader.Connection, writer: Connection
    ) -> None:
        cursor = await current_snapshot(feed)
        write_many(writer, 25)
        parts = read_new(feed, cursor, batch_rows=10)
        await anext(parts)
        writer.execute("select pg_terminate_backend(%s)", [feed.info.backend_pid])
        with pytest.raises(psycopg.OperationalError):
            await anext(parts)

    async def test_that_is_given_up_when_its_connection_was_lost_leaves_no_cursor_open(
        self, feed: reader.Connection, writer: Connection
    ) -> None:
        cursor = await current_snapshot(feed)
        write_many(writer, 25)
        parts = read_new(feed, cursor, batch_rows=10)
        await anext(parts)
        writer.execute("select pg_terminate_backend(%s, 10000)", [feed.info.backend_pid])
        with suppress(psycopg.OperationalError):
            await parts.aclose()
        # A cursor that is left open is a warning when it is collected, and so an error of this test.
        del parts
        gc.collect()

    async def test_that_is_cancelled_while_it_closes_its_cursor_leaves_none_open(
        self, feed: reader.Connection, writer: Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Cancelled(AsyncServerCursor[tuple[Any, ...]]):
            async def close(self) -> None:
                raise asyncio.CancelledError

        monkeypatch.setattr(reader, "AsyncServerCursor", Cancelled)
        cursor = await current_snapshot(feed)
        write_many(writer, 25)
        parts = read_new(feed, cursor, batch_rows=10)
        await anext(parts)
        with suppress(asyncio.CancelledError):
            await parts.aclose()
        del parts
        gc.collect()

    async def test_from_a_cursor_with_transactions_in_progress_has_their_rows_as_well(
        self, database: Database, feed: reader.Connection, writer: Connection
    ) -> None:
        slow = database.connect()
        slow.execute("begin")
        late = [write(slow)]
        cursor = await current_snapshot(feed)
        new = write_many(writer, 12)
        late.append(write(slow))
        slow.execute("commit")
        assert (await read(feed, cursor, batch_rows=10))[0] == sorted(late + new)


class TestPosition:
    async def test_in_the_middle_of_a_backlog_misses_nothing_and_repeats_nothing(
        self, database: Database, feed: reader.Connection, writer: Connection
    ) -> None:
        """From every row on: all later ones, and those that commit after the batch though their ids are small."""
        slow = database.connect()
        slow.execute("begin")
        late = write(slow)
        cursor = await current_snapshot(feed)
        new = write_many(writer, 25)
        found = await batches(feed, cursor, batch_rows=10)
        slow.execute("commit")
        for taken, row_id in enumerate(new, 1):
            position = Position(cursor).taking(found[-1].after, row_id + 1)
            assert await missed(feed, position) == [late, *new[taken:]]
        assert await missed(feed, Position(cursor)) == [late, *new]

    async def test_of_a_part_stands_behind_its_last_row(self, feed: reader.Connection, writer: Connection) -> None:
        cursor = await current_snapshot(feed)
        new = write_many(writer, 55)
        first, second, third, last = await batches(feed, cursor, batch_rows=10)
        assert await missed(feed, first.position) == new[10:]
        assert await missed(feed, second.position) == new[50:]
        assert await missed(feed, third.position) == []
        assert last.position == Position(last.after)
        assert await missed(feed, last.position) == []

    async def test_after_a_backlog_is_healed_in_parts_as_well(
        self, feed: reader.Connection, writer: Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cursor = await current_snapshot(feed)
        new = write_many(writer, 3000)
        found = [batch async for batch in read_missed(feed, Position(cursor), "stock.item")]
        assert ids([row for batch in found for row in batch.rows]) == new
        assert max(len(batch.rows) for batch in found) == reader.BATCH_ROWS * reader.PART_ROWS

    async def test_has_only_the_rows_of_its_model(self, feed: reader.Connection, writer: Connection) -> None:
        cursor = await current_snapshot(feed)
        write(writer, "stock.box")
        item = write(writer)
        assert await missed(feed, Position(cursor)) == [item]

    async def test_where_nothing_is_missed_still_gives_the_next_cursor(self, feed: reader.Connection) -> None:
        cursor = await current_snapshot(feed)
        (batch,) = [batch async for batch in read_missed(feed, Position(cursor), "stock.item")]
        assert (batch.rows, batch.last) == ([], True)
        assert batch.after.covers(cursor)

    async def test_that_is_too_old_is_told_so_after_what_is_left(
        self, feed: reader.Connection, writer: Connection
    ) -> None:
        cursor = await current_snapshot(feed)
        row_id = write(writer)
        writer.execute(
            "update pgnotify_gql.journal_state set emptied_xid = %s::text::xid8, emptied = pg_current_snapshot()",
            [str(cursor.xmax)],
        )
        parts = read_missed(feed, Position(cursor), "stock.item")
        assert ids((await anext(parts)).rows) == [row_id]
        with pytest.raises(CursorTooOldError, match="have left the journal: raise PGNOTIFY_GQL"):
            await anext(parts)


async def test_a_journal_that_is_not_there_is_said_so(feed: reader.Connection, writer: Connection) -> None:
    await require_journal(feed, "default")
    writer.execute("drop schema pgnotify_gql cascade")
    with pytest.raises(JournalMissingError, match="database 'default' has no journal: run"):
        await require_journal(feed, "default")


async def test_reading_uses_the_index_however_large_the_journal_is(feed: reader.Connection, writer: Connection) -> None:
    """Both halves of "not visible in the cursor" are probes: what was read before is not looked at again."""
    write_many(writer, 3000)
    writer.execute("analyze pgnotify_gql.journal")
    slow_xid = 5
    cursor = await current_snapshot(feed)
    parameters = {"xmax": str(cursor.xmax), "xip": [str(slow_xid)], "label": None, "limit": 501}
    plan = await (await feed.execute("explain " + reader.READ, parameters)).fetchall()
    lines = [line for (line,) in plan]
    assert [line for line in lines if "Seq Scan" in line and "journal_0" in line] == []
    assert any("journal_0_xid_id_idx" in line for line in lines)
