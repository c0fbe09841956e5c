"""
Writers that go on through every fault, and what must have arrived of what they wrote.

Each transaction of a writer changes the writer's own row and adds a row, and so tells afterwards whether it was
committed, also where the answer to the commit was lost.  Some are rolled back on purpose.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import psycopg

from tests.support.feed import Room

WRITERS = 3

PAUSE = 0.004
"""Seconds between two transactions of a writer, at most: so many changes that each fault meets some in every state."""

RETRY = 0.02
"""Seconds before a writer that lost its connection connects again."""

Connect = Callable[[], psycopg.Connection]


@dataclass
class Writer:
    """Writes one transaction after the other; its row's texts are ``<writer>.1``, ``<writer>.2`` and so on."""

    name: str
    connect: Connect
    room: Room
    stopping: threading.Event
    row: int
    pause: float = PAUSE
    committed: list[int] = field(default_factory=list)
    doubtful: list[int] = field(default_factory=list)
    faults: int = 0

    def run(self) -> None:
        chance, number = random.Random(self.name), 0
        while not self.stopping.is_set():
            try:
                with self.connect() as connection:
                    connection.autocommit = False
                    while not self.stopping.is_set():
                        number += 1
                        self._write(connection, number, chance)
                        time.sleep(chance.random() * self.pause)
            except (psycopg.Error, psycopg.Rollback):  # the latter where a savepoint is lost with its connection
                self.faults += 1
                self.stopping.wait(RETRY)

    def _write(self, connection: psycopg.Connection, number: int, chance: random.Random) -> None:
        if chance.random() < 0.1:
            self._change(connection, f"lost {self.name}.{number}")
            connection.rollback()
            return
        self._change(connection, f"{self.name}.{number}")
        if chance.random() < 0.1:
            with connection.transaction():
                self.room.say(f"lost {self.name}.{number}", connection=connection)
                raise psycopg.Rollback
        # Doubtful until the server has answered, and afterwards if it never does.
        self.doubtful.append(number)
        connection.commit()
        self.committed.append(self.doubtful.pop())

    def _change(self, connection: psycopg.Connection, text: str) -> None:
        self.room.edit(self.row, text, connection=connection)
        self.room.say(f"new {text}", connection=connection)


class Load:
    """
    Writers in threads, from `start` to `stop`.

    `connect` opens a connection for a writer; one that fails is tried again until the load is stopped.
    """

    def __init__(self, room: Room, connect: Connect, writers: int = WRITERS, pause: float = PAUSE) -> None:
        self._stopping = threading.Event()
        self.writers = []
        for name in [chr(ord("a") + number) for number in range(writers)]:
            (row,) = room.say(f"{name}.0")
            self.writers.append(Writer(name, connect, room, self._stopping, row, pause))
        self._threads = [
            threading.Thread(target=writer.run, name=f"writer {writer.name}", daemon=True) for writer in self.writers
        ]

    def __str__(self) -> str:
        return ", ".join(f"{w.name}: {len(w.committed)} committed, {w.faults} faults" for w in self.writers)

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    @contextmanager
    def running(self) -> Iterator[Load]:
        """Write until the block ends; every writer has ended then."""
        self.start()
        try:
            yield self
        finally:
            self.stop()

    @property
    def committed(self) -> int:
        """How many transactions were answered so far."""
        return sum(len(writer.committed) for writer in self.writers)

    def grown_by(self, count: int) -> Callable[[], bool]:
        """Whether each writer has committed so many transactions more than now."""
        before = {writer.name: len(writer.committed) for writer in self.writers}
        return lambda: all(len(writer.committed) >= before[writer.name] + count for writer in self.writers)

    def expected(self, connection: psycopg.Connection) -> dict[str, list[str]]:
        """
        What each writer has committed, in order, as the database knows it once the load has stopped.

        An answered commit that the database has not is an error of the test's, unless the fault loses some.
        """
        found = {text for (text,) in connection.execute("select text from conversations_message").fetchall()}
        by_writer = {}
        for writer in self.writers:
            numbers = sorted({*writer.committed, *writer.doubtful})
            by_writer[writer.name] = [
                f"{writer.name}.{number}" for number in numbers if f"new {writer.name}.{number}" in found
            ]
        return by_writer

    def all_answered(self, connection: psycopg.Connection) -> bool:
        """Whether the database has every transaction whose commit it had answered."""
        expected = self.expected(connection)
        return all(
            set(expected[writer.name]) >= {f"{writer.name}.{number}" for number in writer.committed}
            for writer in self.writers
        )

    def arrived(self, received: Sequence[str], connection: psycopg.Connection) -> bool:
        """Whether everything that was committed is among the texts received; the load has stopped."""
        expected = [text for texts in self.expected(connection).values() for text in texts]
        return {*expected, *(f"new {text}" for text in expected)} <= set(received)

    def check(self, received: Sequence[str], connection: psycopg.Connection) -> None:
        """Assert that these texts are what was committed: each once, in order per row, and nothing else."""
        expected = self.expected(connection)
        known = set()
        for writer in self.writers:
            texts = expected[writer.name]
            own = [text for text in received if text.startswith(f"{writer.name}.") and text != f"{writer.name}.0"]
            assert own == texts, f"changes of the row of writer {writer.name}"
            new = [text for text in received if text.startswith(f"new {writer.name}.")]
            assert sorted(new) == sorted(f"new {text}" for text in texts), f"rows of writer {writer.name}"
            known |= {*own, *new, f"{writer.name}.0"}
        assert not [text for text in received if "lost" in text], "rolled back, and yet received"
        assert {text for text in received if text.startswith("new")} <= known
