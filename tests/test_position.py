"""Positions: exactly what has been taken, in the middle of batches, of rows, and of what was begun anew."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgnotify_gql.errors import CursorError
from pgnotify_gql.journal import Position, Snapshot
from pgnotify_gql.journal.position import Part


class TestText:
    @pytest.mark.parametrize(
        "text",
        [
            "812:815:812",
            "812:815:",
            "812:815:812,814",
            "5:5:/812:815:813/4711/3",
            "5:5:/812:815:813/4711/3/812:820:/100/0",
        ],
    )
    def test_is_read_as_it_is_written(self, text: str) -> None:
        assert str(Position.parse(text)) == text

    @pytest.mark.parametrize(
        "text",
        ["", "1:2", "1:2:3", "2:1:", " 1:2:", "1:2:\n", "-1:2:", "1:2:/1:2:", "1:2:/1:2:/x/1", "1:2:/1:2:/1/1/1:2:"],
    )
    def test_that_is_none_is_refused(self, text: str) -> None:
        with pytest.raises(CursorError):
            Position.parse(text)


class TestPosition:
    def test_at_the_end_of_a_batch_includes_what_the_cursor_sees(self) -> None:
        position = Position(Snapshot.parse("10:20:10"))
        assert position.includes(19, 10**9)
        assert not position.includes(10, 1)
        assert not position.includes(20, 1)

    def test_inside_a_batch_includes_its_rows_below_the_next_one(self) -> None:
        position = Position(Snapshot.parse("10:20:10")).taking(Snapshot.parse("25:30:25"), 501)
        assert position.includes(19, 900), "a row of the batches before, whatever its id"
        assert position.includes(10, 500)
        assert position.includes(29, 499)
        assert not position.includes(29, 501), "a row of this batch that comes later"
        assert not position.includes(25, 400), "a row that was not committed yet, though its id is small"
        assert not position.includes(30, 400)

    def test_inside_a_row_knows_how_many_of_its_changes_were_taken(self) -> None:
        position = Position.parse("10:10:/15:20:15/100/2")
        assert position.includes(12, 99)
        assert not position.includes(12, 100)
        assert position.begun(12, 100) == 2
        assert not position.includes(15, 99)
        assert position.begun(15, 100) == 0
        assert position.begun(12, 101) == 0

    def test_going_on_in_the_same_batch_takes_the_place_of_what_it_was_before(self) -> None:
        after = Snapshot.parse("15:20:")
        position = Position.parse("10:10:").taking(after, 5, 1).taking(after, 7).taking(after, 6)
        assert position == Position(Snapshot.parse("10:10:"), (Part(after, 7),))

    def test_a_batch_that_was_begun_anew_counts_beside_the_one_before_until_it_has_come_as_far(self) -> None:
        first, second = Snapshot.parse("15:20:15"), Snapshot.parse("20:25:")
        position = Position.parse("10:10:").taking(first, 100).taking(second, 50)
        assert [part.id for part in position.parts] == [100, 50]
        assert position.includes(12, 99)
        assert position.includes(15, 49)
        assert not position.includes(15, 50)
        assert position.taking(second, 100).parts == (Part(second, 100),)

    def test_is_within_a_snapshot_that_sees_all_of_it(self) -> None:
        position = Position.parse("10:10:/15:20:15/100/2")
        assert position.within(Snapshot.parse("15:20:15"))
        assert not position.within(Snapshot.parse("10:19:"))
        assert not position.within(Snapshot.parse("12:30:12"))


@dataclass
class Reader:
    """Takes rows one by one from what is committed, and is stopped at any time."""

    position: Position
    taken: list[tuple[int, int]]

    def read(self, committed: list[tuple[int, int, int]], after: Snapshot, most: int) -> bool:
        """Take so many changes of what is visible now; return whether there was nothing left."""
        for row_id, xid, changes in sorted(committed):
            if not after.sees(xid) or self.position.includes(xid, row_id):
                continue
            for number in range(self.position.begun(xid, row_id) + 1, changes + 1):
                if not most:
                    return False
                most -= 1
                self.taken.append((row_id, number))
                self.position = self.position.taking(after, row_id, number)
            self.position = self.position.taking(after, row_id + 1)
        self.position = Position(after)
        return True


@given(
    rows=st.lists(st.tuples(st.integers(10, 19), st.integers(1, 3)), min_size=1, max_size=12),
    commits=st.permutations(range(10, 20)),
    stops=st.lists(st.tuples(st.integers(0, 10), st.integers(1, 8), st.booleans()), max_size=12),
)
def test_whoever_is_stopped_anywhere_takes_everything_once(
    rows: list[tuple[int, int]], commits: list[int], stops: list[tuple[int, int, bool]]
) -> None:
    """Transactions 10 to 19 commit in any order; each stop reads some changes under the snapshot of its time."""
    journal = [(row_id, xid, changes) for row_id, (xid, changes) in enumerate(rows, 1)]

    def snapshot(ended: int) -> Snapshot:
        done = set(commits[:ended])
        xmax = max(done, default=9) + 1
        running = tuple(xid for xid in range(10, xmax) if xid not in done)
        return Snapshot(min(running, default=xmax), xmax, running)

    reader = Reader(Position(Snapshot(10, 10)), [])
    ended = 0
    for step, most, written in stops:
        ended = min(len(commits), ended + step)
        visible = [row for row in journal if row[1] in commits[:ended]]
        reader.read(visible, snapshot(ended), most)
        if written:
            reader.position = Position.parse(str(reader.position))
    assert reader.read(journal, snapshot(len(commits)), 10**6)
    assert sorted(reader.taken) == [
        (row_id, number) for row_id, _, changes in journal for number in range(1, changes + 1)
    ]
    assert len(set(reader.taken)) == len(reader.taken)
