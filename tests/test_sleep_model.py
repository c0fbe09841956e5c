"""
The sleep protocol as a model, explored exhaustively: every interleaving of the steps of writers and of the leader.

The argument is written out in ``listener/term.py``; here a machine looks for a hole in it.  Writers take a
transaction id, test the awake lock, and commit or roll back; the leader reads, releases the lock, ends a transaction
of its own, reads until whoever may be silent has ended, and sleeps.  Snapshots are what PostgreSQL makes them: xmax is
the newest id that has *ended* plus one, and only what is in progress below it is listed.

No safety poll is in the model: a change that is committed while the leader sleeps without a bell is lost in it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum, auto

import pytest

WRITERS = 3


class Step(Enum):
    """What may be left out, to see the model find the hole that this makes."""

    ID_BEFORE_TEST = auto()
    """The writer inserts its journal row, so it has an id, before it tests the lock."""
    OWN_TRANSACTION = auto()
    """After the release the leader ends a transaction with an id of its own."""
    READ_AFTER_RELEASE = auto()
    """The leader reads once more after it has released the lock."""
    WAIT_FOR_SILENT = auto()
    """The leader reads on until whoever was in progress at that read has ended."""
    BELL_WHILE_DROWSY = auto()
    """A bell that rings before the leader sleeps is kept for it."""


@dataclass(frozen=True)
class Snapshot:
    xmax: int
    running: frozenset[int]

    def sees(self, xid: int) -> bool:
        return xid < self.xmax and xid not in self.running


@dataclass(frozen=True)
class Writer:
    at: str = "begin"
    xid: int = 0
    rings: bool = False


@dataclass(frozen=True)
class State:
    writers: tuple[Writer, ...]
    leader: str = "awake"
    locked: bool = True
    bell: bool = False
    next_xid: int = 1
    newest_ended: int = 0
    committed: frozenset[int] = frozenset()
    taken: frozenset[int] = frozenset()
    cursor: Snapshot = Snapshot(1, frozenset())
    silent: frozenset[int] = frozenset()
    own_xid: int = 0

    def running(self) -> frozenset[int]:
        xids = {writer.xid for writer in self.writers if writer.xid and writer.at != "done"}
        return frozenset(xids | ({self.own_xid} if self.own_xid else set()))

    def snapshot(self) -> Snapshot:
        xmax = self.newest_ended + 1
        return Snapshot(xmax, frozenset(xid for xid in self.running() if xid < xmax))

    def read(self) -> State:
        """Take what is visible now and was not in the cursor; that snapshot is the next cursor."""
        now = self.snapshot()
        new = {xid for xid in self.committed if now.sees(xid) and not self.cursor.sees(xid)}
        return replace(self, cursor=now, taken=self.taken | new)

    def ended(self, xid: int) -> State:
        return replace(self, newest_ended=max(self.newest_ended, xid))


def next_states(state: State, left_out: frozenset[Step]) -> Iterator[State]:
    yield from leader_steps(state, left_out)
    for number in range(len(state.writers)):
        yield from writer_steps(state, number, left_out)


def writer_steps(state: State, number: int, left_out: frozenset[Step]) -> Iterator[State]:
    writer = state.writers[number]

    def moved(state: State, **changes: object) -> State:
        writers = list(state.writers)
        writers[number] = replace(writer, **changes)  # type: ignore[arg-type]
        return replace(state, writers=tuple(writers))

    order = ["begin", "id", "tested"] if Step.ID_BEFORE_TEST not in left_out else ["begin", "tested", "id"]
    if writer.at == "done":
        return
    if writer.at == order[-1]:
        done = moved(state, at="done").ended(writer.xid)
        yield done  # rolled back
        yield replace(done, committed=state.committed | {writer.xid}, bell=state.bell or rings(state, writer, left_out))
        return
    following = order[order.index(writer.at) + 1]
    if following == "id":
        yield moved(replace(state, next_xid=state.next_xid + 1), at="id", xid=state.next_xid)
    else:
        yield moved(state, at="tested", rings=not state.locked)


def rings(state: State, writer: Writer, left_out: frozenset[Step]) -> bool:
    heard = state.leader == "asleep" or Step.BELL_WHILE_DROWSY not in left_out
    return writer.rings and heard


def leader_steps(state: State, left_out: frozenset[Step]) -> Iterator[State]:
    match state.leader:
        case "awake":
            # It may stay awake for ever; one read is as good as many, and none as good as one.
            yield replace(state.read(), leader="has read")
        case "has read":
            yield replace(state, leader="released", locked=False)
        case "released":
            if Step.OWN_TRANSACTION in left_out:
                yield replace(state, leader="barrier")
            else:
                yield replace(state, leader="in transaction", own_xid=state.next_xid, next_xid=state.next_xid + 1)
        case "in transaction":
            yield replace(state.ended(state.own_xid), leader="barrier", own_xid=0)
        case "barrier":
            after = state if Step.READ_AFTER_RELEASE in left_out else state.read()
            yield replace(after, leader="drowsy", silent=after.cursor.running)
        case "drowsy":
            if state.bell:
                yield replace(state, leader="awake", locked=True, bell=False)
            elif Step.WAIT_FOR_SILENT in left_out or all(state.cursor.sees(xid) for xid in state.silent):
                yield replace(state, leader="asleep")
            else:
                yield state.read()
        case "asleep":
            if state.bell:
                yield replace(state, leader="awake", locked=True, bell=False)


def explore(writers: int, *left_out: Step) -> Iterator[tuple[State, list[State]]]:
    """Yield every reachable state with the states that may follow."""
    first = State(writers=(Writer(),) * writers)
    seen = {first}
    waiting = deque(seen)
    while waiting:
        state = waiting.popleft()
        following = [later for later in next_states(state, frozenset(left_out)) if later != state]
        yield state, following
        new = dict.fromkeys(later for later in following if later not in seen)
        seen.update(new)
        waiting.extend(new)


def is_hole(state: State, following: list[State]) -> bool:
    """Whether nobody will do anything more, and a committed change has not been taken."""
    return not following and bool(state.committed - state.taken)


def test_no_interleaving_leaves_a_committed_change_behind_a_sleeping_leader() -> None:
    """And by construction of the cursor every change is taken at most once, and only if it was committed."""
    explored = 0
    for state, following in explore(WRITERS):
        assert not is_hole(state, following)
        for later in following:
            assert state.taken <= later.taken <= later.committed
            assert all(later.cursor.sees(xid) for xid in state.taken)
        explored += 1
    assert explored > 10_000, "the model explores next to nothing"


@pytest.mark.parametrize("step", Step)
def test_leaving_out_a_step_leaves_a_change_behind(step: Step) -> None:
    assert any(is_hole(state, following) for state, following in explore(WRITERS, step))
