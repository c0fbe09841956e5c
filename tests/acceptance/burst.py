"""A burst of changes by several writers, and what each subscriber must have received of it."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from tests.acceptance.clients import Data, Watcher, key
from tests.acceptance.room import Room
from tests.support.databases import Database

WRITERS = 4
ROWS = 15
UPDATES = 6
CHANGES = WRITERS * ROWS * (UPDATES + 2)
"""480: each row is inserted, updated and deleted."""


@dataclass
class Burst:
    """Writers on connections of their own, each with rows of its own, whose changes it interleaves."""

    database: Database

    def write(self, halfway: Callable[[], Any] = lambda: None) -> list[str]:
        """
        Write everything and return the keys of the rows.

        The first writer calls `halfway` in the middle of its changes; the others go on meanwhile.
        """
        with ExitStack() as opened, ThreadPoolExecutor(WRITERS) as threads:
            rooms = [
                Room(opened.enter_context(self.database.server.connect(self.database.name))) for _ in range(WRITERS)
            ]
            pauses = [halfway] + [lambda: None] * (WRITERS - 1)
            return [pk for pks in threads.map(_write, rooms, pauses) for pk in pks]


def _write(room: Room, halfway: Callable[[], Any]) -> list[str]:
    pks = [room.insert("0") for _ in range(ROWS)]
    for number in range(1, UPDATES + 1):
        if number == UPDATES // 2:
            halfway()
        for pk in pks:
            room.update(pk, str(number))
    for pk in pks:
        room.delete(pk)
    return pks


async def expect_all_of(watcher: Watcher, pks: Sequence[str], fence: str) -> None:
    """Every change once, and in order per row; `fence` is a row that was inserted after the burst."""
    received = await watcher.up_to(fence)
    by_row: defaultdict[str, list[Data]] = defaultdict(list)
    for data in received[:-1]:
        by_row[key(data)].append(data)
    expected = ["INSERT", *["UPDATE"] * UPDATES, "DELETE"]
    assert {pk: kinds(changes) for pk, changes in by_row.items()} == dict.fromkeys(pks, expected)
    for changes in by_row.values():
        times = [data["at"] for data in changes]
        # The time of a statement tells its changes apart, so that one twice and one missing are not taken for all.
        assert times == sorted(set(times))


def kinds(changes: Iterable[Data]) -> list[str]:
    return [data["kind"] for data in changes]
