"""The judge of `verify_delivery`: each kind of violation is found, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from pgnotify_gql.journal.snapshot import Snapshot
from pgnotify_gql.verification.judge import Verdict, ViolationKind, judge
from pgnotify_gql.verification.latency import Distribution, Window, delays
from pgnotify_gql.verification.ledger import Entry, Ledger
from pgnotify_gql.verification.stream import Stream

# Row 1 is made, moved from bucket 1 to bucket 2, deleted and made again; rows 2 and 3 are made and changed.
ENTRIES = [
    Entry(1, 100, 1, 11, False, 1, 1),
    Entry(2, 101, 2, 12, False, 2, 2),
    Entry(3, 102, 1, 13, False, 1, 2),
    Entry(4, 102, 3, 14, False, 3, 3),
    Entry(5, 104, 1, 13, True, 2, 2),
    Entry(6, 103, 2, 15, False, 2, 2),
    Entry(7, 106, 1, 16, False, 1, 1),
    Entry(8, 107, 3, 17, False, 3, 3),
]

LEDGER = Ledger(ENTRIES)

NAME = "private 1"


def stream_of(entries: Iterable[Entry], **options: object) -> Stream:
    stream = Stream(NAME, **options)  # type: ignore[arg-type]
    for number, entry in enumerate(entries):
        stream.add(entry.key, entry.change, float(number))
    return stream


def verdict_of(entries: Iterable[Entry], **options: object) -> Verdict:
    return judge([stream_of(entries, **options)], LEDGER)


def found(verdict: Verdict) -> list[tuple[str, int | None, int | None]]:
    return [(violation.kind.value, violation.key, violation.version) for violation in verdict.violations]


def test_a_stream_with_every_change_once_and_in_order_has_no_violation() -> None:
    verdict = verdict_of(ENTRIES)
    assert found(verdict) == []
    assert (verdict.expected, verdict.received) == (8, 8)


def test_changes_of_different_rows_may_come_in_any_order() -> None:
    by_row = sorted(ENTRIES, key=lambda entry: entry.key)
    assert found(verdict_of(by_row)) == []


@pytest.mark.parametrize("place", range(len(ENTRIES)))
def test_a_change_that_is_missing_is_lost(place: int) -> None:
    left_out = ENTRIES[place]
    verdict = verdict_of(entry for entry in ENTRIES if entry is not left_out)
    assert found(verdict) == [("lost", left_out.key, left_out.version)]
    assert verdict.violations[0].deleted is left_out.deleted
    assert (verdict.expected, verdict.received) == (8, 7)


@pytest.mark.parametrize("place", range(len(ENTRIES)))
@pytest.mark.parametrize("later", [False, True])
def test_a_change_that_comes_twice_is_doubled_and_nothing_else(place: int, later: bool) -> None:
    received = list(ENTRIES)
    received.insert(len(received) if later else place, ENTRIES[place])
    verdict = verdict_of(received)
    assert found(verdict) == [("doubled", ENTRIES[place].key, ENTRIES[place].version)]
    assert (verdict.expected, verdict.received) == (8, 9)


def test_a_change_behind_a_later_one_of_its_row_is_out_of_order() -> None:
    swapped = [*ENTRIES[:2], ENTRIES[4], ENTRIES[3], ENTRIES[2], *ENTRIES[5:]]
    verdict = verdict_of(swapped)
    assert found(verdict) == [("out_of_order", 1, 13)]
    assert verdict.violations[0].deleted is False


def test_a_row_that_is_deleted_and_made_again_is_one_row() -> None:
    verdict = verdict_of([*ENTRIES[:4], ENTRIES[6], ENTRIES[4], ENTRIES[5], ENTRIES[7]])
    assert found(verdict) == [("out_of_order", 1, 13)]
    assert verdict.violations[0].deleted is True


@pytest.mark.parametrize(
    "never",
    [Entry(9, 105, 2, 99, False, 2, 2), Entry(9, 105, 2, 12, True, 2, 2), Entry(9, 105, 3, 11, False, 3, 3)],
    ids=["a version", "a deletion", "another row's version"],
)
def test_what_was_never_committed_is_invented(never: Entry) -> None:
    verdict = verdict_of([*ENTRIES, never])
    assert found(verdict) == [("invented", never.key, never.version)]


def test_rows_without_a_positive_key_do_not_count() -> None:
    verdict = verdict_of([Entry(0, 1, -1, 5, False, 0, 0), *ENTRIES])
    assert found(verdict) == []
    assert verdict.received == 8


def test_a_topic_has_the_changes_into_and_out_of_its_bucket() -> None:
    assert found(verdict_of([ENTRIES[0], ENTRIES[2], ENTRIES[6]], bucket=1)) == []
    assert found(verdict_of([ENTRIES[1], ENTRIES[2], ENTRIES[4], ENTRIES[5]], bucket=2)) == []
    assert found(verdict_of([ENTRIES[0], ENTRIES[6]], bucket=1)) == [("lost", 1, 13)]


def test_what_is_of_another_topic_is_unwanted() -> None:
    verdict = verdict_of([ENTRIES[0], ENTRIES[1], ENTRIES[2], ENTRIES[6]], bucket=1)
    assert found(verdict) == [("unwanted", 2, 12)]


# Sees 100, 101, 103 and 104; 102 is still running, although its changes are between them.
SNAPSHOT = Snapshot(102, 105, (102,))
EARLY = Snapshot(102, 102)


def whole(entries: Iterable[Entry], start: Snapshot, state: dict[int, int]) -> Stream:
    return stream_of(entries, start=start, state=state, state_is_whole=True)


def test_a_state_and_what_its_snapshot_does_not_see_is_all_there_is() -> None:
    verdict = judge([whole(ENTRIES[2:], EARLY, {1: 11, 2: 12})], LEDGER)
    assert found(verdict) == []
    assert (verdict.expected, verdict.received) == (6, 6)


def test_snapshots_are_of_transactions_and_not_of_numbers() -> None:
    expected = [entry for entry in ENTRIES if not SNAPSHOT.sees(entry.xid)]
    assert [entry.id for entry in expected] == [3, 4, 7, 8]
    assert found(judge([whole(expected, SNAPSHOT, {2: 15})], LEDGER)) == []


@pytest.mark.parametrize(
    ("state", "wrong"),
    [({1: 11}, (2, 12)), ({1: 11, 2: 15}, (2, 12)), ({1: 11, 2: 12, 3: 14}, (3, 14))],
    ids=["a row is not sent", "another version", "a row that is not there"],
)
def test_a_state_that_is_not_that_of_its_snapshot_is_a_violation(state: dict[int, int], wrong: tuple[int, int]) -> None:
    assert found(judge([whole(ENTRIES[2:], EARLY, state)], LEDGER)) == [("state", *wrong)]


def test_a_change_that_is_in_the_state_already_is_unwanted() -> None:
    verdict = judge([whole(ENTRIES[1:], EARLY, {1: 11, 2: 12})], LEDGER)
    assert found(verdict) == [("unwanted", 2, 12)]


def test_a_change_between_state_and_stream_is_lost() -> None:
    verdict = judge([whole(ENTRIES[3:], EARLY, {1: 11, 2: 12})], LEDGER)
    assert found(verdict) == [("lost", 1, 13)]


def test_who_begins_anew_in_the_middle_of_a_state_is_not_judged_by_it() -> None:
    cut = Stream(NAME, start=EARLY, state={1: 11}, abandoned=True)
    verdict = judge([cut, whole(ENTRIES[2:], EARLY, {1: 11, 2: 12})], LEDGER)
    assert found(verdict) == []


def test_who_begins_anew_misses_what_was_left_out_before_and_nothing_behind() -> None:
    cut = whole([ENTRIES[2], ENTRIES[3], ENTRIES[5]], EARLY, {1: 11, 2: 12})
    cut.abandoned = True
    assert found(judge([cut], LEDGER)) == []
    gap = whole([ENTRIES[2], ENTRIES[6]], EARLY, {1: 11, 2: 12})
    gap.abandoned = True
    assert found(judge([gap], LEDGER)) == [("lost", 1, 13)]


def test_a_resync_and_an_error_are_violations() -> None:
    stream = stream_of(ENTRIES)
    stream.resyncs.append("changes have left the journal")
    stream.errors.append("refused")
    verdict = judge([stream], LEDGER)
    assert [(violation.kind, violation.detail) for violation in verdict.violations] == [
        (ViolationKind.RESYNC, "changes have left the journal"),
        (ViolationKind.ERROR, "refused"),
    ]
    assert verdict.counts == dict.fromkeys(map(str, ViolationKind), 0) | {"resync": 1, "error": 1}


@pytest.mark.parametrize(
    ("spoil", "kinds"),
    [
        (lambda entries: entries.pop(3), ["lost"]),
        (lambda entries: entries.append(entries[3]), ["doubled"]),
        (lambda entries: entries.insert(0, entries.pop()), ["out_of_order"]),
    ],
)
def test_each_subscriber_is_judged_by_itself(spoil: Callable[[list[Entry]], object], kinds: list[str]) -> None:
    entries = list(ENTRIES)
    spoil(entries)
    spoilt = stream_of(entries)
    spoilt.subscriber = "shared 1"
    verdict = judge([stream_of(ENTRIES), spoilt], LEDGER)
    assert [(violation.kind, violation.subscriber) for violation in verdict.violations] == [
        (kind, "shared 1") for kind in kinds
    ]


def test_a_violation_names_row_version_and_subscriber_in_one_line() -> None:
    (violation,) = verdict_of(entry for entry in ENTRIES if not entry.deleted).violations
    assert str(violation) == "lost: row 1 version 13 (deleted), private 1"


def test_latency_is_from_the_commit_to_the_first_delivery() -> None:
    stream = Stream(NAME)
    for entry, at in ((ENTRIES[0], 10.5), (ENTRIES[1], 21.0), (ENTRIES[0], 99.0), (ENTRIES[7], 31.0)):
        stream.add(entry.key, entry.change, at)
    commits = {100: 10.0, 101: 20.0}  # nobody knows when the last one was committed
    assert delays([stream], LEDGER, commits) == ([0.5, 1.0], [0.5, 1.0])
    assert delays([stream], LEDGER, commits, [Window(19, 20), Window(5, 9.9)]) == ([0.5, 1.0], [0.5])
    assert delays([stream], LEDGER, commits, [Window(5, 30), Window(6, 7)]) == ([0.5, 1.0], [])


def test_a_distribution_is_in_milliseconds() -> None:
    hundred = Distribution.of(number / 1000 for number in range(1, 101))
    assert hundred == Distribution(100, 51, 96, 100, 100)
    assert Distribution.of([]) == Distribution(0)
