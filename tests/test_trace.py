"""The trace: what is remembered of the last changes, in bounded memory and without keeping anything alive."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import ref

import pytest

from pgnotify_gql.hub.cursor import Cursor
from pgnotify_gql.hub.operations import Cohort, Due, FailedResult, Interest, Mark, Operation, Resync, Taken
from pgnotify_gql.hub.payloads import Payloads
from pgnotify_gql.hub.trace import PART, SENT, Delivered, Trace
from pgnotify_gql.journal import Change, JournalRow
from pgnotify_gql.journal.sighting import RawSource
from tests.support.feed import MESSAGE

CURSOR = Cursor({}, {})

MODEL = ("default", MESSAGE)


@dataclass(frozen=True)
class Anything:
    """An outlet that has room."""

    def offer(self, payloads: Payloads) -> int:
        return len(payloads)

    async def room(self) -> None:
        pass


def nothing(change: Change, cursor: Cursor, batch: object) -> None:
    return None


def row(number: int) -> JournalRow:
    return JournalRow(number, 1000 + number, MESSAGE, "INSERT", json.dumps([[[number]], [[-number]]]), 0)


def changes(number: int) -> list[Change]:
    return row(number).changes(RawSource(MESSAGE))


def mark(number: int, index: int = 0) -> Mark:
    return MESSAGE, 1000 + number, number, index


def new_operation() -> Operation:
    return Operation(Interest(()), nothing, Anything())


def new_cohort(alone: Operation | None = None) -> Cohort:
    return Cohort(Interest(()), nothing, CURSOR, alone=alone)


def taken(*numbers: int, first: int = 1) -> Taken:
    return Taken(first, [Due(changes(number)[0], CURSOR) for number in numbers])


def failed(code: str) -> FailedResult:
    result = FailedResult("{}")
    result.code = code
    return result


def results_of(found: dict[Any, Delivered], cohort: Cohort, *numbers: int) -> Sequence[Any]:
    return [found[mark(number), cohort].result for number in numbers]


async def test_it_tells_when_a_journal_row_was_dispatched_whichever_of_its_changes_is_asked_for() -> None:
    trace, before = Trace(), time.time()
    for number in (1, 2):
        trace.dispatched(row(number))
    found = await trace.find([mark(2, 1), mark(3)])
    assert list(found.dispatched) == [(MESSAGE, 1002, 2)]
    assert before <= found.dispatched[MESSAGE, 1002, 2] <= time.time()


@pytest.mark.parametrize(
    ("result", "told"), [("{}", SENT), (None, None), (failed("FORBIDDEN"), "FORBIDDEN")], ids=["sent", "none", "failed"]
)
async def test_it_tells_what_was_delivered_to_a_cohort(result: Any, told: Any) -> None:
    trace, cohort = Trace(), new_cohort()
    trace.delivered(5e9, cohort, taken(7, first=3), [result])
    assert (await trace.find([mark(7)])).delivered == {(mark(7), cohort): Delivered(5e9, 3, told)}


async def test_of_several_changes_each_has_its_result_and_number() -> None:
    trace, cohort = Trace(), new_cohort()
    trace.delivered(5e9, cohort, taken(1, 2, 3, first=10), ["{}", None, failed("CODE")])
    delivered = (await trace.find([mark(1), mark(2), mark(3)])).delivered
    assert results_of(delivered, cohort, 1, 2, 3) == [SENT, None, "CODE"]
    assert [delivered[mark(number), cohort].number for number in (1, 2, 3)] == [10, 11, 12]


async def test_what_was_taken_and_not_executed_was_not_delivered() -> None:
    trace, cohort = Trace(), new_cohort()
    trace.delivered(5e9, cohort, taken(1, 2, 3), ["{}", "{}"])
    trace.delivered(5e9, cohort, taken(4, 5), ["{}"])
    trace.delivered(5e9, cohort, taken(6), [])
    found = await trace.find([mark(number) for number in range(1, 7)])
    assert [key[0][2] for key in found.delivered] == [1, 2, 4]


async def test_markers_are_passed_over() -> None:
    trace, cohort = Trace(), new_cohort()
    trace.delivered(5e9, cohort, Taken(1, [Resync(CURSOR, "lost")]), ["{}"])
    trace.delivered(5e9, cohort, Taken(2, [Resync(CURSOR, "lost"), *taken(1).dues]), ["{}", None])
    assert (await trace.find([mark(1)])).delivered == {(mark(1), cohort): Delivered(5e9, 3, None)}


async def test_what_is_delivered_to_one_operation_alone_is_found_by_it_whatever_cohort_it_is_in_later() -> None:
    trace, operation = Trace(), new_operation()
    trace.delivered(5e9, new_cohort(operation), taken(1), ["{}"])
    gc.collect()
    assert list((await trace.find([mark(1)])).delivered) == [(mark(1), operation)]


async def test_neither_cohorts_nor_changes_are_kept_alive() -> None:
    trace, cohort, dues = Trace(), new_cohort(), taken(1)
    trace.delivered(5e9, cohort, dues, ["{}"])
    due = dues.dues[0]
    assert isinstance(due, Due)
    cohort_gone, change_gone = ref(cohort), ref(due.change)
    del cohort, dues, due
    gc.collect()
    assert (cohort_gone(), change_gone()) == (None, None)
    assert (await trace.find([mark(1)])).delivered == {}


async def test_it_remembers_no_more_than_so_many_and_says_since_when_it_does() -> None:
    trace, cohort = Trace(most=3), new_cohort()
    assert (await trace.find([])).complete_since <= time.time()
    for number in range(1, 6):
        trace.dispatched(row(number))
        trace.delivered(5e9 + number, cohort, taken(number), ["{}"])
    found = await trace.find([mark(number) for number in range(1, 6)])
    assert [key[2] for key in found.dispatched] == [3, 4, 5]
    assert [key[0][2] for key in found.delivered] == [3, 4, 5]
    assert found.complete_since == 5e9 + 3


async def test_what_is_too_old_is_not_told() -> None:
    trace, cohort = Trace(seconds=60), new_cohort()
    trace.delivered(time.time() - 61, cohort, taken(1), ["{}"])
    trace.delivered(time.time() - 30, cohort, taken(2), ["{}"])
    found = await trace.find([mark(1), mark(2)])
    assert [key[0][2] for key in found.delivered] == [2]


async def test_all_of_it_is_looked_through_also_in_several_turns() -> None:
    trace, cohort = Trace(), new_cohort()
    last = 2 * PART + 1
    for number in range(1, last + 1):
        trace.dispatched(row(number))
        trace.delivered(5e9, cohort, taken(number), ["{}"])
    wanted = [mark(1), mark(PART), mark(PART + 1), mark(last)]
    found = await trace.find(wanted)
    assert [key for key, _ in found.delivered] == wanted
    assert len(found.dispatched) == 4


def test_it_counts_operations_that_were_there_and_have_ended() -> None:
    trace = Trace()
    for since, models in ((10.0, (MODEL,)), (20.0, (MODEL,)), (10.0, (("default", "another.model"),))):
        operation = new_operation()
        operation.since = since
        operation.interest.__dict__["models"] = models
        trace.left(operation)
    assert trace.ended_since(15.0, MODEL) == 1
    assert trace.ended_since(25.0, MODEL) == 2
    assert trace.ended_since(time.time() + 60, MODEL) == 0


def test_it_tells_the_first_loss_after_a_time() -> None:
    trace, before = Trace(), time.time()
    trace.lost(MESSAGE, "the first")
    trace.lost(MESSAGE, "the second")
    told = trace.lost_since(before, MESSAGE)
    assert told is not None
    assert told[1] == "the first"
    assert trace.lost_since(before, "another.model") is None
    assert trace.lost_since(time.time() + 60, MESSAGE) is None
