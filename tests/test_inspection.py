"""What `manage.py journal` says of an inspection: every line in every state, without a database."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.utils import timezone

from pgnotify_gql.journal import Snapshot
from pgnotify_gql.journal.inspection import MOST_COUNTED, Inspection, Leader, OpenWriter, Slot
from pgnotify_gql.journal.reader import BATCH_ROWS
from pgnotify_gql.management.inspections import as_json, as_text, duration

NOW = datetime(2026, 7, 1, 3, 0, 0, 123456, tzinfo=UTC)

SLOTS = (
    Slot(0, False, 16_384, 0, None),
    Slot(1, True, 1_234_567, 1, NOW - timedelta(minutes=5)),
    Slot(2, False, 98_765_432, MOST_COUNTED, NOW - timedelta(hours=2)),
)

QUIET = Inspection(
    at=NOW,
    replica=False,
    epoch=7,
    leader=Leader(4711, False, "10.0.0.7", NOW - timedelta(days=2)),
    relayed=Snapshot(100, 105, (101, 103)),
    relayed_at=NOW - timedelta(seconds=1.5),
    unrelayed=0,
    waiting_since=None,
    slots=SLOTS,
    rotated_at=NOW - timedelta(minutes=30),
    now=Snapshot(106, 106),
    writers=(),
)

LEASE = 15.0

WRITER = OpenWriter(815, None, "shop", "web", "nightly job", "idle in transaction", NOW - timedelta(hours=3))


def ago(**parts: float) -> datetime:
    return NOW - timedelta(**parts)


def lines(**changes: Any) -> dict[str, str]:
    """What each line says of a quiet journal with these changes."""
    _, *rest = as_text(replace(QUIET, **changes), database="default", retention=3600, lease=LEASE).splitlines()
    return {line[:16].strip(): line[16:] for line in rest}


def test_a_quiet_journal_is_shown_like_this() -> None:
    with timezone.override(UTC):
        assert as_text(QUIET, database="default", retention=3600, lease=LEASE).splitlines() == [
            "Journal of database 'default' at 2026-07-01 03:00:00+00:00",
            "listener        backend 4711 from 10.0.0.7 leads, asleep, in epoch 7",
            "relayed         snapshot 100:105:101,103, stored 1.5 s ago",
            "lag             none",
            "size            100 MB",
            "  slot 0        empty",
            "  slot 1        1.2 MB, 1 row, the oldest 5 min ago, written now",
            "  slot 2        99 MB, 100,000 or more rows, the oldest 2 h ago",
            "oldest row      2026-07-01 01:00:00+00:00, 2 h ago",
            "retention       1 h at least; at most twice that while a listener runs",
            "open writers    none",
        ]


def test_times_are_those_of_the_project() -> None:
    with timezone.override("Asia/Tokyo"):
        text = as_text(QUIET, database="default", retention=3600, lease=LEASE)
    assert "at 2026-07-01 12:00:00+09:00" in text
    assert "2026-07-01 10:00:00+09:00, 2 h ago" in text


class TestListener:
    def test_that_leads_is_a_backend_and_what_it_does(self) -> None:
        assert lines(leader=Leader(1, True, None, None))["listener"] == "backend 1 leads, awake, in epoch 7"

    def test_that_stores_nothing_for_longer_than_it_may_is_suspected(self) -> None:
        assert lines(relayed_at=ago(seconds=40))["listener"].endswith(
            "leads, asleep, in epoch 7; STUCK? it has stored nothing for 40 s"
        )
        assert "STUCK" not in lines(relayed_at=ago(seconds=14))["listener"]
        assert "STUCK" not in lines(relayed_at=None)["listener"]

    def test_behind_a_pooler_is_known_by_its_lease(self) -> None:
        found = lines(leader=None, relayed_at=ago(seconds=14))
        assert found["listener"] == "one leads through a pooler, or has just gone, in epoch 7"

    @pytest.mark.parametrize("relayed_at", [ago(seconds=16), None])
    def test_that_is_not_there_is_said_with_what_to_do(self, relayed_at: datetime | None) -> None:
        assert lines(leader=None, relayed_at=relayed_at)["listener"] == (
            "nobody leads: changes wait in the journal until `manage.py run_listener` runs"
        )

    def test_that_is_not_there_is_as_it_should_be_where_listeners_run_inside_servers(self) -> None:
        nobody = replace(QUIET, leader=None, relayed_at=None)
        text = as_text(nobody, database="default", retention=3600, lease=LEASE, inline=True)
        assert "nobody leads: with INLINE_LISTENER one does while somebody subscribes" in text

    def test_and_writers_of_a_replica_are_its_primarys_to_tell(self) -> None:
        found = lines(leader=None, replica=True, writers=(WRITER,))
        assert found["listener"] == "this is a replica; who leads is known to its primary"
        assert not {"open writers", "the oldest"} & found.keys()


class TestLag:
    def test_that_is_none(self) -> None:
        assert lines()["lag"] == "none"

    def test_tells_how_much_and_for_how_long(self) -> None:
        found = lines(unrelayed=3, waiting_since=ago(seconds=90))
        assert found["lag"] == "3 rows not relayed, the oldest for 1.5 min"

    def test_of_a_backlog_says_that_it_will_end_all_at_once(self) -> None:
        found = lines(unrelayed=BATCH_ROWS + 1, waiting_since=ago(hours=8))
        assert found["lag"] == "501 rows not relayed, the oldest for 8 h; they count until the last of them is relayed"

    def test_is_not_negative(self) -> None:
        assert replace(QUIET, unrelayed=1, waiting_since=NOW + timedelta(seconds=1)).lag == 0


class TestRelayed:
    def test_by_a_leader_that_has_resigned_has_no_time(self) -> None:
        assert lines(relayed_at=None)["relayed"] == "snapshot 100:105:101,103"


class TestSlots:
    def test_that_are_all_empty_have_no_oldest_row(self) -> None:
        empty = [Slot(number, number == 0, 16_384, 0, None) for number in range(3)]
        found = lines(slots=empty)
        assert found["size"] == "49 kB"
        assert found["slot 0"] == "empty, written now"
        assert found["oldest row"] == "-"

    def test_are_all_looked_at_for_the_oldest_row(self) -> None:
        assert QUIET.oldest == NOW - timedelta(hours=2)
        assert QUIET.bytes == 16_384 + 1_234_567 + 98_765_432


class TestWriters:
    def test_are_counted_and_the_oldest_is_shown(self) -> None:
        found = lines(writers=(WRITER, replace(WRITER, pid=2)))
        assert found["open writers"] == "2, in all databases of this server"
        assert found["the oldest"] == (
            "backend 815 ('nightly job', idle in transaction, role web, database shop), open for 3 h"
        )

    def test_that_are_prepared_have_a_name(self) -> None:
        prepared = OpenWriter(None, "it's one", "shop", "web", "", "", ago(days=3))
        assert lines(writers=(prepared,))["the oldest"] == (
            'prepared transaction "it\'s one" (role web, database shop), open for 3 d'
        )

    def test_of_whom_nothing_may_be_seen_are_there_nevertheless(self) -> None:
        unseen = OpenWriter(815, None, None, None, "", "", None)
        assert lines(writers=(unseen,))["the oldest"] == (
            "backend 815, open for a time that members of pg_read_all_stats see"
        )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0.0 s"),
        (0, "0.0 s"),
        (0.04, "0.0 s"),
        (0.25, "0.2 s"),
        (1, "1 s"),
        (59.94, "59.9 s"),
        (60, "1 min"),
        (90, "1.5 min"),
        (3600, "1 h"),
        (86_400, "1 d"),
        (1_000_000, "11.6 d"),
    ],
)
def test_durations_are_in_the_largest_unit_of_which_there_is_one(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (9_940, "9.9 kB"),
        (9_960, "10 kB"),
        (16_384, "16 kB"),
        (999_499, "999 kB"),
        (999_600, "1.0 MB"),
        (10**10, "10 GB"),
        (5 * 10**15, "5000 TB"),
    ],
)
def test_sizes_have_two_digits_at_least(size: int, text: str) -> None:
    assert lines(slots=[Slot(0, True, size, 0, None)])["size"] == text


@pytest.mark.parametrize(
    ("rows", "text"),
    [(1, "1 row"), (2, "2 rows"), (12_345, "12,345 rows"), (MOST_COUNTED, "100,000 or more rows")],
)
def test_rows_are_counted_up_to_a_limit(rows: int, text: str) -> None:
    assert f" {text}," in lines(slots=[Slot(0, True, 1, rows, ago(hours=1))])["slot 0"]
    assert lines(unrelayed=rows, waiting_since=ago(hours=1))["lag"].startswith(f"{text} not relayed")


def test_json_has_times_as_text_and_durations_as_seconds() -> None:
    waiting = replace(QUIET, unrelayed=2, waiting_since=ago(seconds=90.12345), writers=(WRITER,))
    found = json.loads(as_json(waiting, database="default", retention=3600.0))
    assert found["at"] == "2026-07-01T03:00:00.123Z"
    assert found["lag"] == 90.123
    assert found["relayed"] == "100:105:101,103"
    assert found["writers"][0] == {
        "pid": 815,
        "gid": None,
        "database": "shop",
        "role": "web",
        "application": "nightly job",
        "state": "idle in transaction",
        "since": "2026-07-01T00:00:00.123Z",
    }
    assert found["bytes"] == sum(slot["bytes"] for slot in found["slots"])
