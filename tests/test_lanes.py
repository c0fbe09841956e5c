"""Lanes: threads that compute are not used all at once, and threads that wait are."""

from __future__ import annotations

import pytest

from pgnotify_gql.hub.lanes import FEWEST, Lanes

HOPS = 200


def settled(workers: int, use: float, lanes: Lanes | None = None) -> int:
    """Return how many are open after many hops, each of which uses so much of a core if nobody is in its way."""
    found = lanes or Lanes(workers)
    for _ in range(HOPS):
        found.note(min(use, 0.8 / found.open), 1.0)
    return found.open


@pytest.mark.parametrize(
    ("use", "expected"),
    [(0.0, 4), (0.01, 4), (0.1, 4), (0.25, 3), (0.8, FEWEST), (1.0, FEWEST)],
)
def test_as_many_are_open_as_a_core_bears(use: float, expected: int) -> None:
    assert settled(4, use) == expected


def test_at_first_all_are_open() -> None:
    assert Lanes(4).open == 4


def test_there_is_one_where_there_is_one_thread() -> None:
    assert settled(1, 1.0) == 1
    assert settled(1, 0.0) == 1


def test_they_open_again_when_threads_begin_to_wait() -> None:
    lanes = Lanes(4)
    assert settled(4, 1.0, lanes) == FEWEST
    assert settled(4, 0.01, lanes) == 4


def test_a_hop_that_took_no_time_says_nothing() -> None:
    lanes = Lanes(4)
    for _ in range(HOPS):
        lanes.note(0.0, 0.0)
    assert lanes.open == 4
