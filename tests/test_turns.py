"""Turns: live cohorts and those that replay."""

from __future__ import annotations

from typing import Any

import pytest

from pgnotify_gql.hub.cursor import Cursor
from pgnotify_gql.hub.operations import Cohort, Interest
from pgnotify_gql.hub.turns import Turns


def cohort(*, replays: bool) -> Cohort:
    execution: Any = None
    return Cohort(Interest(()), execution, Cursor({}, {}), replays=replays)


@pytest.fixture
def turns() -> Turns:
    return Turns()


def kinds(turns: Turns, count: int, *, may_replay: bool = True) -> str:
    """Return whose turn it was, so many times: (l)ive, (r)eplaying, or nobody's."""
    taken = ""
    for _ in range(count):
        queue = turns.next(may_replay=may_replay)
        taken += "-" if not queue else "r" if queue.popleft().replays else "l"
    return taken


def fill(turns: Turns, live: int, replaying: int) -> None:
    for replays, count in ((False, live), (True, replaying)):
        for _ in range(count):
            turns.add(cohort(replays=replays))


def test_live_and_replaying_cohorts_take_turns(turns: Turns) -> None:
    fill(turns, 3, 3)
    assert kinds(turns, 7) == "lrlrlr-"


@pytest.mark.parametrize(
    ("live", "replaying", "expected"), [(3, 0, "lll-"), (0, 3, "rrr-"), (1, 3, "lrrr"), (3, 1, "lrll")]
)
def test_one_kind_does_not_wait_for_the_other_where_there_is_none(
    turns: Turns, live: int, replaying: int, expected: str
) -> None:
    fill(turns, live, replaying)
    assert kinds(turns, 4) == expected


def test_a_live_cohort_comes_next_however_many_replay(turns: Turns) -> None:
    fill(turns, 0, 10)
    assert kinds(turns, 3) == "rrr"
    fill(turns, 1, 0)
    assert kinds(turns, 3) == "lrr"


def test_where_none_may_replay_they_wait_until_they_may(turns: Turns) -> None:
    fill(turns, 1, 2)
    assert kinds(turns, 3, may_replay=False) == "l--"
    assert kinds(turns, 3) == "rr-"


def test_the_first_of_a_kind_is_told_from_the_others(turns: Turns) -> None:
    assert [turns.add(cohort(replays=replays)) for replays in (True, True, False, False)] == [True, False, True, False]


def test_cohorts_of_a_kind_come_in_the_order_in_which_they_were_added(turns: Turns) -> None:
    cohorts = [cohort(replays=False) for _ in range(3)]
    for one in cohorts:
        turns.add(one)
    assert list(turns.next(may_replay=True)) == cohorts
