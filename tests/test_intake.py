"""The intake of one model: nothing twice, nothing past a gap."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgnotify_gql.capture.kinds import Kind
from pgnotify_gql.hub.intake import RECENT_ROWS, Intake
from pgnotify_gql.journal.change import JournalRow
from pgnotify_gql.journal.position import Position
from pgnotify_gql.journal.reader import Batch
from pgnotify_gql.journal.snapshot import Snapshot
from pgnotify_gql.journal.state import Era, Joined
from pgnotify_gql.relay.messages import (
    CHANGES,
    ChangesMessage,
    HeartbeatMessage,
    changes_message,
    heartbeat_message,
)
from tests.support.feed import in_order_per_row
from tests.support.watched import micros

LABEL = "one.model"

AT = datetime(2026, 1, 2, tzinfo=UTC)


def row(number: int, xid: int) -> JournalRow:
    return JournalRow(number, xid, LABEL, Kind.UPDATE, "[[[1]]]", micros(AT))


def at(xid: int) -> Snapshot:
    """Everything below has ended."""
    return Snapshot(xid, xid)


def joined(cursor: int, epoch: int = 0) -> Joined:
    """Before any row was written."""
    return Joined(at(cursor), epoch, AT - timedelta(seconds=1), str(epoch))


ONE, TWO = Era("1", Snapshot(100, 100)), Era("2", Snapshot(100, 100))


def message(seq: int, before: int, after: int, *xids: int, epoch: int = 1, began: int = 0) -> ChangesMessage:
    """The message of a batch; journal ids are 10 times the xids."""
    return changes_message(
        "default",
        LABEL,
        epoch,
        Era(str(epoch), at(began)),
        seq,
        at(before),
        at(after),
        [row(xid * 10, xid) for xid in xids],
    )


def meet(intake: Intake, found: ChangesMessage | HeartbeatMessage) -> None:
    intake.meet(found["epoch"], Era(found["era"], Snapshot.parse(found["began"])))


def heartbeat(cursor: int, seq: int | None, epoch: int = 1, began: int = 0) -> HeartbeatMessage:
    seqs = {} if seq is None else {LABEL: seq}
    return heartbeat_message("default", epoch, Era(str(epoch), at(began)), at(cursor), seqs)


def taken(intake: Intake, message: ChangesMessage) -> list[int]:
    return [found.xid for found in intake.take(message).rows]


@pytest.fixture
def intake() -> Intake:
    """Has taken message 3 of epoch 1, of a batch from 100 to 110."""
    intake = Intake(LABEL, joined(100, epoch=1))
    intake.healed(1, 2)
    assert taken(intake, message(3, 100, 110, 101, 102)) == [101, 102]
    return intake


def test_the_first_message_after_joining_is_a_gap() -> None:
    assert not Intake(LABEL, joined(100)).follows(message(1, 100, 110, 101))


@pytest.mark.parametrize(
    ("found", "follows", "xids"),
    [
        (message(4, 110, 120, 111), True, [111]),
        (message(5, 120, 130, 121), False, [121]),
        (message(3, 100, 110, 101, 102), True, []),
        (message(2, 90, 100, 95), True, []),
        (message(1, 100, 120, 101, 111, epoch=2), False, [111]),
    ],
    ids=["next", "one missing", "duplicate", "late one", "new epoch"],
)
def test_a_message(intake: Intake, found: ChangesMessage, follows: bool, xids: list[int]) -> None:
    assert intake.follows(found) == follows
    assert taken(intake, found) == xids


@pytest.mark.parametrize(
    ("found", "agrees"),
    [
        (heartbeat(110, 3), True),
        (heartbeat(150, 3), True),
        (heartbeat(110, 2), True),
        (heartbeat(110, 4), False),
        (heartbeat(90, None), True),
        (heartbeat(120, 1, epoch=2), False),
        (heartbeat(120, None, epoch=2), False),
        (heartbeat(100, None, epoch=2), False),
    ],
    ids=[
        "equal",
        "equal, later cursor",
        "behind",
        "ahead",
        "a leader that sent nothing yet",
        "new epoch, ahead",
        "new epoch, later cursor",
        "new epoch, from before the batch",
    ],
)
def test_a_heartbeat(intake: Intake, found: HeartbeatMessage, agrees: bool) -> None:
    assert intake.agrees(found) == agrees


def test_a_heartbeat_moves_the_position_on(intake: Intake) -> None:
    intake.note(heartbeat(150, 3))
    assert intake.position == Position(at(150))


def test_a_heartbeat_from_before_does_not_move_the_position_back(intake: Intake) -> None:
    intake.position = Position(at(200))
    intake.note(heartbeat(150, 3))
    assert intake.position == Position(at(200))


def test_what_was_healed_further_than_the_batch_is_not_taken_again(intake: Intake) -> None:
    intake.position = Position(at(113))
    intake.healed(1, 5)
    assert taken(intake, message(5, 110, 120, 111, 112, 115)) == [115]
    # Of the next batch, which begins before what was healed by somebody who was faster.
    assert taken(intake, message(6, 120, 130, 121)) == [121]
    assert taken(intake, message(5, 110, 120, 111, 112, 115)) == []


def test_a_late_message_after_a_heal_brings_nothing_new_and_does_not_count_back(intake: Intake) -> None:
    intake.position = Position(at(130))
    intake.healed(1, 5)
    assert intake.follows(message(4, 110, 120, 111))
    assert taken(intake, message(4, 110, 120, 111)) == []
    assert intake.follows(message(6, 130, 140, 131))


def test_parts_of_one_batch_follow_each_other(intake: Intake) -> None:
    parts = [
        changes_message("default", LABEL, 1, ONE, 4 + index, at(110), at(120), [row(number, 111)])
        for index, number in enumerate((1111, 1112, 1113))
    ]
    assert [found.id for part in parts for found in intake.take(part).rows] == [1111, 1112, 1113]
    assert intake.take(parts[1]).rows == []


def test_a_transaction_that_commits_late_is_taken_with_the_batch_that_sees_it(intake: Intake) -> None:
    first = changes_message("default", LABEL, 1, ONE, 4, at(110), Snapshot(111, 115, (111,)), [row(1120, 112)])
    second = changes_message(
        "default", LABEL, 1, ONE, 5, Snapshot(111, 115, (111,)), at(120), [row(1110, 111), row(1160, 116)]
    )
    assert [found.xid for found in intake.take(first).rows] == [112]
    assert [found.xid for found in intake.take(second).rows] == [111, 116]


def test_a_heartbeat_of_a_new_epoch_agrees_with_what_was_healed_up_to_it() -> None:
    intake = Intake(LABEL, joined(120))
    assert intake.agrees(heartbeat(120, None, epoch=2))
    assert intake.agrees(heartbeat(110, 1, epoch=2))
    assert not intake.agrees(heartbeat(121, None, epoch=2))


def test_a_leader_that_cuts_its_batches_elsewhere_brings_nothing_twice() -> None:
    """The old one relayed 102 and not yet 101, which the new one finds in the same batch and sends before it."""
    intake = Intake(LABEL, joined(100))
    intake.note(heartbeat(100, None))
    taken_of_old = changes_message("default", LABEL, 1, ONE, 1, at(100), Snapshot(101, 103, (101,)), [row(20, 102)])
    assert intake.follows(taken_of_old)
    assert intake.take(taken_of_old).rows == [row(20, 102)]
    first = changes_message("default", LABEL, 2, TWO, 1, at(100), at(103), [row(10, 101)])
    assert not intake.agrees(heartbeat(100, None, epoch=2))
    assert not intake.follows(first)


def test_healing_that_broke_off_begins_anew_without_taking_anything_twice() -> None:
    """What it has of its batch has higher ids than what it lacks: a transaction that ended late wrote them early."""
    intake = Intake(LABEL, joined(100))
    intake.note(heartbeat(100, None))
    had = row(1010, 101)
    assert intake.take(changes_message("default", LABEL, 1, ONE, 1, at(100), Snapshot(103, 103), [had])).rows == [had]
    early, late = row(1005, 103), row(1006, 104)
    assert intake.heal(Batch(at(100), at(104), [early], last=False)).rows == [early]
    assert intake.heal(Batch(at(100), at(105), [early, late, had], last=False)).rows == [late]
    assert intake.heal(Batch(at(100), at(105), [])).rows == []
    assert intake.position == Position(at(105))


def test_in_the_same_era_a_new_leader_takes_nothing_back_however_far_behind_it_begins(intake: Intake) -> None:
    many = RECENT_ROWS + 5
    cursor = Snapshot(200, 200)
    first = changes_message(
        "default", LABEL, 1, ONE, 4, at(110), cursor, [row(number, 111) for number in range(1, many + 1)]
    )
    meet(intake, first)
    assert len(intake.take(first).rows) == many
    again = changes_message("default", LABEL, 2, ONE, 1, at(110), cursor, [row(1, 111), row(many + 1, 112)])
    meet(intake, again)
    assert not intake.follows(again)
    intake.healed(2, 1)
    assert [found.id for found in intake.take(again).rows] == [many + 1]


# A journal, a leader, and a layer that does what it likes with messages.


@dataclass
class Journal:
    """Transactions write rows and end in any order; rows of the same table row are causal, as in PostgreSQL."""

    rows: list[JournalRow] = field(default_factory=list)
    keys: dict[datetime, int] = field(default_factory=dict)
    running: dict[int, list[int]] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    next_xid: int = 1
    clock: datetime = AT

    def begin(self) -> None:
        self.running[self.next_xid] = []
        self.next_xid += 1

    def write(self, xid: int, key: int) -> None:
        if any(key in keys for other, keys in self.running.items() if other != xid):
            return  # it would wait for the row's lock
        self.running[xid].append(key)
        self.clock += timedelta(seconds=1)
        self.rows.append(row(len(self.rows) + 1, xid)._replace(micros=micros(self.clock)))
        self.keys[self.clock] = key

    def end(self, xid: int) -> None:
        del self.running[xid]
        self.ended.add(xid)

    def snapshot(self) -> Snapshot:
        xmax = max(self.ended, default=0) + 1
        xip = tuple(sorted(xid for xid in self.running if xid < xmax))
        return Snapshot(min(xip, default=xmax), xmax, xip)

    def new(self, cursor: Snapshot) -> list[JournalRow]:
        return [found for found in self.rows if found.xid in self.ended and not cursor.sees(found.xid)]


class World:
    """What a hub does with an intake, and everything before it, simulated."""

    def __init__(self, parts: int) -> None:
        self.journal = Journal()
        self.parts = parts
        self.epoch = 1
        self.seq = 0
        self.cursor = self.stored = self.journal.snapshot()
        self.era = Era("1", self.stored)
        self.sent: list[ChangesMessage | HeartbeatMessage] = []
        self.received: list[ChangesMessage | HeartbeatMessage] = []
        self.intake: Intake | None = None
        self.met = 0
        self.old: set[datetime] = set()
        self.lost: set[datetime] = set()
        self.saved = deepcopy(self.journal)
        self.dispatched: list[JournalRow] = []

    def join(self) -> None:
        cursor = self.journal.snapshot()
        self.old = {found.at for found in self.journal.rows if cursor.sees(found.xid)}
        self.intake = Intake(LABEL, Joined(cursor, self.epoch, self.journal.clock, self.era.id))
        self.met = self.epoch

    def relay(self) -> None:
        before, self.cursor = self.cursor, self.journal.snapshot()
        rows = self.journal.new(before)
        for start in range(0, len(rows), self.parts):
            self.seq += 1
            part = rows[start : start + self.parts]
            self.sent.append(self.message(before, part))

    def beat(self) -> None:
        seqs = {LABEL: self.seq} if self.seq else {}
        self.sent.append(heartbeat_message("default", self.epoch, self.era, self.cursor, seqs))

    def message(self, before: Snapshot, rows: list[JournalRow]) -> ChangesMessage:
        return changes_message("default", LABEL, self.epoch, self.era, self.seq, before, self.cursor, rows)

    def store(self) -> None:
        self.stored = self.cursor
        self.saved = deepcopy(self.journal)

    def lose(self) -> None:
        """The database is as it was when the cursor was stored; ids of rows and transactions are given out again."""
        journal = deepcopy(self.saved)
        journal.ended |= set(journal.running)
        journal.rows = [found for found in journal.rows if found.xid not in journal.running]
        journal.running = {}
        journal.next_xid = max(journal.ended, default=0) + 1
        journal.clock, journal.keys = self.journal.clock, self.journal.keys
        self.lost |= {found.at for found in self.journal.rows} - {found.at for found in journal.rows}
        self.journal = journal
        self.era = Era(str(int(self.era.id) + 1), self.stored)
        self.crash()

    def crash(self) -> None:
        self.epoch += 1
        self.seq = 0
        self.cursor = self.stored

    def receive(self, found: ChangesMessage | HeartbeatMessage) -> None:
        intake = self.intake
        if intake is None or found["epoch"] < self.met:
            return
        self.met = found["epoch"]
        meet(intake, found)
        if found["type"] == CHANGES:
            if not intake.follows(found):
                self.heal(intake, found["epoch"], found["seq"])
            self.dispatched += intake.take(found).rows
        else:
            if not intake.agrees(found):
                self.heal(intake, found["epoch"], found["seqs"].get(LABEL, 0))
            intake.note(found)

    def heal(self, intake: Intake, epoch: int, seq: int) -> None:
        # In parts, as a backlog is read; after the first part the database is lost once, and time goes by.
        self.read_missed(intake, lost_after=1)
        for xid in list(self.journal.running)[:1]:
            self.journal.end(xid)
        self.read_missed(intake)
        intake.healed(epoch, seq)

    def read_missed(self, intake: Intake, lost_after: int | None = None) -> None:
        start, before, after = intake.position, intake.position.before, self.journal.snapshot()
        rows = [found for found in self.journal.new(before) if not start.includes(found.xid, found.id)]
        for number, index in enumerate(range(0, len(rows), self.parts)):
            if number == lost_after:
                return
            self.dispatched += intake.heal(Batch(before, after, rows[index : index + self.parts], last=False)).rows
        self.dispatched += intake.heal(Batch(before, after, [])).rows


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *[
                    "begin",
                    "write",
                    "write",
                    "write",
                    "end",
                    "relay",
                    "relay",
                    "deliver",
                    "deliver",
                    "deliver",
                    "deliver",
                ],
                *["beat", "store", "crash", "drop", "late", "again", "lose"],
            ]
        ),
        st.integers(0, 7),
        st.integers(0, 3),
    ),
    min_size=20,
    max_size=120,
)


@settings(max_examples=1000)
@given(steps=STEPS, joins_at=st.integers(0, 20), parts=st.integers(1, 3))
def test_every_change_after_joining_is_taken_once_and_in_order_whatever_the_layer_does(
    steps: Sequence[tuple[str, int, int]], joins_at: int, parts: int
) -> None:
    """Messages are lost, doubled, reordered, late; leaders crash; databases forget; transactions end in any order."""
    world = World(parts)
    for number, (step, which, key) in enumerate(steps):
        if number == joins_at:
            world.join()
        journal = world.journal
        running = list(journal.running)
        if step == "begin":
            journal.begin()
        elif step == "write" and running:
            journal.write(running[which % len(running)], key)
        elif step == "end" and running:
            journal.end(running[which % len(running)])
        elif step == "relay":
            world.relay()
        elif step == "beat":
            world.beat()
        elif step == "store":
            world.store()
        elif step == "crash":
            world.crash()
        elif step == "lose":
            world.lose()
        elif step == "deliver" and world.sent:
            world.received.append(world.sent.pop(0))
            world.receive(world.received[-1])
        elif step == "drop" and world.sent:
            world.sent.pop(0)
        elif step == "late" and world.sent:
            world.sent.append(world.sent.pop(0))
        elif step == "again" and world.received:
            world.receive(world.received[-1 - which % len(world.received)])
    if world.intake is None:
        world.join()
    journal = world.journal
    for xid in list(journal.running):
        journal.end(xid)
    world.relay()
    # Everything else may have been lost.
    world.beat()
    world.receive(world.sent[-1])
    taken = [found.at for found in world.dispatched]
    assert len(taken) == len(set(taken))
    assert {found.at for found in journal.rows} - world.old <= set(taken)
    # What was lost may have been seen before.
    assert set(taken) <= {found.at for found in journal.rows} - world.old | world.lost
    assert in_order_per_row([(journal.keys[at], int(at.timestamp())) for at in taken if at not in world.lost])
