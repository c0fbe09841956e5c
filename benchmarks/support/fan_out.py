"""
Sockets on server processes, and a row that changes: how many results arrive in a second.

The row is updated by raw SQL, each time in a transaction, as fast as one connection can; the figure is how many results
arrive in a second, from before the first update until the last socket has its last result.  Every socket must have
exactly one for each update.  Writing is not what takes the time: it is over long before.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from benchmarks.benchmark import Plan
from benchmarks.support.asgi import SERVERS, Start
from benchmarks.support.messages import SITE, Conversations, make_conversations
from benchmarks.support.postgres import conditions, database, server
from benchmarks.support.receivers import Receivers, receivers
from benchmarks.support.subscribers import Dialogue
from tests.support.databases import Database
from tests.support.processes import RedisServer, listener

FRAME_SIZE = 445
"""Characters of a result of ours, most of which are its cursor."""

BARE = "benchmarks.support.bare_fan_out:application"
NAIVE = "benchmarks.support.naive_site:application"

QUIET = 0.5
"""Seconds after the last result in which another one would have come."""

LEADS = "leading database"
"""What run_listener says when it does."""


@dataclass(frozen=True)
class FanOut:
    """Sockets on a server, and a row that changes."""

    database: Database
    conversations: Conversations
    start: Start
    sockets: int

    def ours(self, field: str, changes: int) -> float:
        """Return results a second, of one process with everything in it."""
        return self._ours(field, changes, 1, {"PGNOTIFY_INLINE": "1"})

    def with_redis(self, field: str, changes: int, processes: int, redis: RedisServer) -> float:
        """Return results a second, of so many processes that have the same number of sockets each."""
        redis.flush()
        environment = {"PGNOTIFY_INLINE": "0", "REDIS_URL": redis.url}
        with listener(self._environment | environment, banner=LEADS):
            return self._ours(field, changes, processes, environment)

    def bare(self, changes: int) -> float:
        """Return frames a second, of a loop that sends ready ones."""
        return self._told(BARE, Dialogue(), changes, lambda count: f"{count} {FRAME_SIZE}")

    def naive(self, changes: int) -> float:
        """Return results a second, of the usual design."""
        pk = self.conversations.messages.keys[0]
        order = {"type": "change", "pk": pk}
        return self._told(
            NAIVE, self.conversations.same("message"), changes, lambda count: json.dumps({**order, "changes": count})
        )

    def _ours(self, field: str, changes: int, processes: int, environment: dict[str, str]) -> float:
        with ExitStack() as opened:
            started = [
                opened.enter_context(self.start(self._environment | environment, f"{SITE}:consumer"))
                for _ in range(processes)
            ]
            crowd = opened.enter_context(receivers())
            crowd.open(
                [process.port for process in started if process.port], self.sockets, self.conversations.same(field)
            )
            self._until_live(crowd)
            crowd.expect(changes)
            begun = time.perf_counter()
            for _ in range(changes):
                self.conversations.messages.change()
            return self.sockets * changes / (crowd.complete() - begun)

    def _told(self, application: str, dialogue: Dialogue, changes: int, order: Callable[[int], str]) -> float:
        """Measure what makes changes by itself, when it is told to; once before, to see that it does."""
        with self.start(self._environment, application) as process, receivers() as crowd:
            assert process.port is not None
            crowd.open([process.port], self.sockets, dialogue)
            for count in (1, changes):
                crowd.expect(count)
                begun = time.perf_counter()
                crowd.say(order(count))
                taken = crowd.complete() - begun
            return self.sockets * changes / taken

    def _until_live(self, crowd: Receivers) -> None:
        # Answered to a ping behind the subscription, which is live once its subscribe() has been run.
        while self._reached(crowd) < self.sockets:
            pass

    def _reached(self, crowd: Receivers) -> int:
        """Make a change, and return how many results come until none has come for a while."""
        crowd.expect(1)
        self.conversations.messages.change()
        before, count = -1, 0
        while count > before:
            time.sleep(QUIET)
            before, count = count, crowd.counted()
        return count

    @property
    def _environment(self) -> dict[str, str]:
        return {"DATABASE_URL": self.database.url, "DEBUG": "0"}


@contextmanager
def fan_outs(plan: Plan, load: str) -> Iterator[tuple[dict[str, FanOut], dict[str, str]]]:
    """Make the database; gives a fan-out for each server, and the conditions."""
    sockets = plan.pick(1_000, 50)
    with server(plan) as postgres, database(postgres) as made:
        conversations = make_conversations(made)
        found = {name: FanOut(made, conversations, start, sockets) for name, start in SERVERS.items()}
        yield (
            found,
            {**conditions(postgres), "load": f"{sockets:,} sockets, updates of one row, each a transaction; {load}"},
        )


INLINE = "inline listener, in-memory layer"
"""The load of a single process."""
