"""A client that sends too fast is found without a timer, and one that keeps to the rate is never disturbed."""

from __future__ import annotations

import sys
import tracemalloc
from itertools import accumulate, combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgnotify_gql.transport.rate import ROUNDING, Rate

NOW = 4_000_000.3
"""Seconds, as of a clock that started a while ago."""

IDLE_BYTES = 100


def passed(rate: Rate, *times: float) -> list[bool]:
    return [rate.taken(NOW + time) for time in times]


def test_a_burst_passes_at_once_and_no_more() -> None:
    assert passed(Rate(2, 3), *[0] * 5) == [True, True, True, False, False]


def test_the_first_message_passes_whatever_the_clock_says() -> None:
    for now in (0.0, 1e-9, NOW, 1e12):
        assert Rate(1, 1).taken(now)


def test_tokens_come_back_at_the_rate() -> None:
    rate = Rate(2, 3)
    passed(rate, 0, 0, 0, 0)
    assert passed(rate, 0.2, 0.5, 0.5, 1.0, 1.0) == [False, True, False, True, False]


def test_a_bucket_fills_up_to_the_burst_and_no_further() -> None:
    rate = Rate(2, 3)
    passed(rate, 0, 0, 0)
    assert passed(rate, *[3_600] * 5) == [True, True, True, False, False]


def test_what_is_refused_takes_nothing() -> None:
    rate = Rate(1, 1)
    assert passed(rate, 0, *[0.3] * 1_000, 1) == [True, *[False] * 1_000, True]


@pytest.mark.parametrize("per_second", [0.1, 0.3, 1, 3, 10, 30, 1_000])
def test_a_client_that_keeps_to_the_rate_is_never_refused(per_second: float) -> None:
    assert all(passed(Rate(per_second, 1), *(number / per_second for number in range(10_000))))


@pytest.mark.parametrize(("per_second", "burst"), [(0.1, 10), (10, 100), (3, 1_000), (1_000, 10_000)])
def test_a_burst_is_as_large_as_promised_whatever_the_clock_loses(per_second: float, burst: int) -> None:
    assert sum(passed(Rate(per_second, burst), *[0] * (burst + 10))) == burst


def test_two_sockets_do_not_share_tokens() -> None:
    one, other = Rate(1, 1), Rate(1, 1)
    assert one.taken(NOW)
    assert other.taken(NOW)


PAUSES = st.lists(st.sampled_from([0.0, 0.01, 0.3, 0.5, 1.0, 5.0]) | st.floats(0, 3), max_size=40)


@given(st.floats(0.1, 50), st.integers(1, 10), PAUSES)
def test_in_no_time_more_pass_than_the_burst_and_the_rate_allow(
    per_second: float, burst: int, pauses: list[float]
) -> None:
    rate = Rate(per_second, burst)
    passes = [time for time in accumulate(pauses, initial=NOW) if rate.taken(time)]
    for (first, began), (last, ended) in combinations(enumerate(passes), 2):
        assert last - first + 1 <= burst + per_second * (ended - began) + ROUNDING + 1e-3


@given(st.floats(0.1, 50), st.integers(1, 10), PAUSES)
def test_what_a_bucket_of_tokens_has_passes(per_second: float, burst: int, pauses: list[float]) -> None:
    rate = Rate(per_second, burst)
    tokens, before = float(burst), NOW
    for time in accumulate(pauses, initial=NOW):
        tokens, before = min(burst, tokens + (time - before) * per_second), time
        taken = rate.taken(time)
        assert taken or tokens < 1
        tokens -= taken


def test_an_idle_socket_pays_little_for_it() -> None:
    per_second, burst, sockets = 10.0, 100, 1_000
    tracemalloc.start()
    try:
        rates: list[Rate | None] = [None] * sockets
        before, _ = tracemalloc.get_traced_memory()
        for number in range(sockets):
            rates[number] = rate = Rate(per_second, burst)
            rate.taken(NOW + number)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (after - before) / sockets <= IDLE_BYTES
    assert not hasattr(rate, "__dict__")
    assert sys.getsizeof(rate) <= IDLE_BYTES
