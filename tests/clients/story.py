"""What is written by raw SQL while a server is stopped and started, and what clients must have received of it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any, Protocol

from tests.acceptance.room import Room
from tests.clients.clients import Change
from tests.support.processes import ProjectServer

LIMIT = 30.0
"""Seconds until something that must come counts as missing."""

LOOK = 0.01
"""Seconds between two looks at what was received."""

PROBE = 0.1
"""Seconds until the next probe."""


class Receivers(Protocol):
    """Clients that run."""

    @property
    def received(self) -> Mapping[str, Sequence[Change]]:
        """What each client has received, in order."""

    @property
    def complaints(self) -> Sequence[str]:
        """What went wrong, as far as clients were told."""


class Story:
    """
    Writes, and compares: a client has received each change once, in order, from the moment on at which it was live.

    Nothing tells when that is. So probes are written, in each part of the story, until one has arrived everywhere.
    """

    def __init__(self, room: Room, server: ProjectServer, *clients: Receivers) -> None:
        self._room = room
        self._server = server
        self._clients = clients
        self._before: dict[str, int] = {}
        self._probes: list[Change] = []
        self._changes: list[Change] = []

    def tell(self) -> None:
        """The whole story: before, between and after two restarts."""
        self.part("at first")
        self.restart()
        self.part("after a restart")
        self.crash()
        self.part("after a crash")

    def restart(self) -> None:
        """Ask the server to end, and start it again at its port."""
        self._server.stop(signal.SIGTERM)
        self._start_again()

    def crash(self) -> None:
        """Kill the server, and start it again at its port."""
        self._server.kill()
        self._start_again()

    def part(self, name: str) -> None:
        """Changes of all kinds, from one that finds out who is live."""
        self._begin()
        self._probe(name)
        for number in range(10):
            self._insert(f"{number} {name}")
        self._write(
            "INSERT",
            "insert into conversations_message (conversation_id, author_id, text)"
            " select %s, %s, n || %s from generate_series(10, 99) n returning id, text",
            self._room.id,
            self._room.author,
            f" {name}",
        )
        self._expect()
        written = [int(change.pk) for change in self._changes]
        # Each statement waits for what the one before it did: results show the row as it is, not as it was.
        self._write(
            "UPDATE",
            "update conversations_message set text = 'not ' || text where id = any(%s) returning id, text",
            written[::10],
        )
        self._expect()
        self._write("DELETE", "delete from conversations_message where id = any(%s) returning id, null", written[1::10])
        self._expect()
        # What came twice has come before this.
        self._insert(f"the end {name}")
        self._expect()

    def check(self) -> None:
        """Each client has received what was written, once and in order, and was told of nothing else."""
        assert not self._complaints, self._complaints
        for name, received in self._received.items():
            # Live from some probe on, and then nothing is missing.
            live = next((at for at, probe in enumerate(self._probes) if received[:1] == [probe]), 0)
            expected = [*self._probes[live:], *self._changes]
            assert received == expected, f"{name}: {_difference(received, expected)}"

    @property
    def last(self) -> Change:
        """What was written last."""
        return self._changes[-1]

    @property
    def _received(self) -> dict[str, list[Change]]:
        """What each client has received in this part."""
        everything = [client.received.items() for client in self._clients]
        return {name: list(changes[self._before.get(name, 0) :]) for name, changes in chain(*everything)}

    @property
    def _complaints(self) -> list[str]:
        return [complaint for client in self._clients for complaint in client.complaints]

    def _start_again(self) -> None:
        # Who sends no cursor begins with what is written when it is back.
        self._room.insert("while no server runs")
        self._server.start()

    def _begin(self) -> None:
        if self._changes:
            self.check()
        for name, changes in self._received.items():
            self._before[name] = self._before.get(name, 0) + len(changes)
        self._probes, self._changes = [], []

    def _probe(self, name: str) -> None:
        def all_live() -> bool:
            text = f"probe {len(self._probes)} {name}"
            self._probes.append(Change("INSERT", self._room.insert(text), text))
            return self._until(lambda: all(self._received.values()), PROBE)

        if not self._until(all_live):
            deaf = [name for name, changes in self._received.items() if not changes]
            raise AssertionError(f"not live {name}: {', '.join(deaf)}; {self._complaints}")

    def _insert(self, text: str) -> None:
        self._changes.append(Change("INSERT", self._room.insert(text), text))

    def _write(self, kind: str, statement: str, *parameters: Any) -> None:
        for pk, text in self._room.connection.execute(statement.encode(), parameters):
            self._changes.append(Change(kind, str(pk), text))

    def _expect(self) -> None:
        """Wait until the last change has arrived everywhere, then compare all."""
        self._until(lambda: all(self.last in received for received in self._received.values()))
        self.check()

    def _until(self, condition: Callable[[], bool], limit: float = LIMIT) -> bool:
        deadline = time.monotonic() + limit
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(LOOK)
        return True


def _difference(received: Sequence[Change], expected: Sequence[Change]) -> str:
    """The first two that differ, for people."""
    pairs = enumerate(zip_longest(received, expected))
    return next(f"{number}: {came} came, not {due}" for number, (came, due) in pairs if came != due)
