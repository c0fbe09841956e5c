"""A snapshot in Python says of every transaction what PostgreSQL says."""

from __future__ import annotations

import random

import pytest

from pgnotify_gql.errors import CursorError
from pgnotify_gql.journal import Snapshot
from tests.support.databases import Database


def random_snapshot(random: random.Random, low: int = 90, width: int = 20) -> Snapshot:
    """
    As PostgreSQL makes them: xmin is the oldest transaction in progress, and the one before xmax has ended.

    Small numbers, so that two of them overlap in every way.
    """
    xmax = low + random.randrange(width)
    running = sorted(random.sample(range(low - 5, xmax - 1), k=random.randrange(4))) if xmax > low + 5 else []
    return Snapshot(running[0] if running else xmax, xmax, tuple(running))


class TestSnapshot:
    @pytest.mark.parametrize(
        ("text", "snapshot"),
        [
            ("10:10:", Snapshot(10, 10)),
            ("10:20:10,14,15", Snapshot(10, 20, (10, 14, 15))),
            ("18446744073709551000:18446744073709551615:", Snapshot(2**64 - 616, 2**64 - 1)),
        ],
    )
    def test_is_read_and_written_as_postgresql_does(self, text: str, snapshot: Snapshot) -> None:
        assert Snapshot.parse(text) == snapshot
        assert str(snapshot) == text

    @pytest.mark.parametrize("text", ["", "10", "10:20", "10:20:30:40", "a:b:", "10:20:x", "10:20:11;12", "10,20,30"])
    def test_anything_else_is_no_snapshot(self, text: str) -> None:
        with pytest.raises(CursorError, match="not a snapshot"):
            Snapshot.parse(text)

    def test_a_long_text_that_is_no_snapshot_is_cut_in_the_message(self) -> None:
        with pytest.raises(CursorError) as caught:
            Snapshot.parse("x" * 10_000)
        assert len(str(caught.value)) < 200

    def test_sees_what_had_ended(self) -> None:
        snapshot = Snapshot.parse("10:20:10,14,15")
        assert [xid for xid in range(8, 23) if snapshot.sees(xid)] == [8, 9, 11, 12, 13, 16, 17, 18, 19]

    def test_agrees_with_postgresql_about_every_transaction(self, database: Database) -> None:
        connection = database.connect()
        source = random.Random(1)
        for snapshot in [random_snapshot(source) for _ in range(100)]:
            found = connection.execute(
                "select xid, pg_visible_in_snapshot(xid::text::xid8, %s::pg_snapshot)"
                " from generate_series(80, 115) as xid",
                [str(snapshot)],
            )
            for xid, visible in found:
                assert snapshot.sees(xid) == visible, (snapshot, xid)

    def test_agrees_with_postgresql_about_the_transactions_of_now(self, database: Database) -> None:
        """The same with snapshots that PostgreSQL took, while some transactions were open and others had ended."""
        writers = [database.connect() for _ in range(4)]
        xids = []
        for number, writer in enumerate(writers):
            writer.execute("begin")
            xids += [xid for (xid,) in writer.execute("select pg_current_xact_id()::text::bigint").fetchall()]
            if number % 2:
                writer.execute("commit" if number == 1 else "rollback")
        ((text,),) = database.connect().execute("select pg_current_snapshot()::text").fetchall()
        assert [Snapshot.parse(text).sees(xid) for xid in xids] == [False, True, False, True]
        assert str(Snapshot.parse(text)) == text

    def test_covers_another_that_saw_nothing_more(self) -> None:
        source = random.Random(2)
        outcomes = set()
        for _ in range(2000):
            one, other = random_snapshot(source), random_snapshot(source)
            expected = all(one.sees(xid) for xid in range(80, 120) if other.sees(xid))
            assert one.covers(other) == expected, (one, other)
            outcomes.add(expected)
        assert outcomes == {True, False}

    def test_covers_itself(self) -> None:
        snapshot = Snapshot.parse("10:20:10,14")
        assert snapshot.covers(snapshot)
