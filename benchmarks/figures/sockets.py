"""
What an idle socket costs: memory while it is open, and the time of its opening.

A server process is started for each run, and sockets are opened on it that do not count, so that everything is there
that is there once, and nothing is left over that was there before.  Then so many more are opened, at most 50 at a
time: KiB are the growth of the server's unique set size by one of them, and sockets/s how many there are in a second
until the last is ready.  The baseline's is ready when it is accepted.  Ours has been acknowledged, has subscribed, and
has had a pong behind that; when all are there, a change must reach every one.

`shared`: all ask the same, and share an execution.  `private`: each asks for another conversation, and shares with
nobody.  `with users`: both ours and the baseline are behind Channels' session and authentication middleware and its
check of origins, as the documentation has it; nobody is logged in.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import psutil

from benchmarks.benchmark import AtLeast, AtMost, Benchmark, Comparison, Plan, Target, Variant, World
from benchmarks.support.asgi import SERVERS, Start
from benchmarks.support.messages import SITE, Conversations, make_conversations
from benchmarks.support.postgres import conditions, database, server
from benchmarks.support.subscribers import IN_FLIGHT, Dialogue, subscribers
from tests.support.databases import Database
from tests.support.processes import ProjectServer

MEMORY, RATE = "KiB", "sockets/s"

TARGETS: Mapping[str, Target] = {MEMORY: AtMost(1.6), RATE: AtLeast(0.5)}

BARE = "benchmarks.support.bare:accepting"

WARM_UP = 1_000
"""Sockets that are not counted: they take up the 6 MB that a process has left over from its imports."""

SPARE_FILES = 100
"""Files that a process opens besides its sockets, and more."""


@dataclass(frozen=True)
class Sockets:
    """Sockets on one server."""

    database: Database
    conversations: Conversations
    start: Start
    warm_up: int = WARM_UP

    def bare(self, application: str, count: int) -> dict[str, float]:
        """Measure sockets that are accepted and nothing else."""
        with self.start(self._environment, application) as process:
            return self._open(process, count, Dialogue())

    def ours(self, application: str, dialogue: Dialogue, count: int) -> dict[str, float]:
        """Measure sockets with a subscription."""
        with self.start(self._environment, application) as process:
            return self._open(process, count, dialogue, check=True)

    @property
    def _environment(self) -> dict[str, str]:
        return {"DATABASE_URL": self.database.url, "DEBUG": "0", "PGNOTIFY_INLINE": "1"}

    def _open(self, process: ProjectServer, count: int, dialogue: Dialogue, *, check: bool = False) -> dict[str, float]:
        assert process.process is not None
        assert process.port is not None
        watched = psutil.Process(process.process.pid)
        with subscribers() as crowd:
            crowd.open(process.port, self.warm_up, dialogue)
            before = watched.memory_full_info().uss
            seconds = crowd.open(process.port, count, dialogue)
            grown = watched.memory_full_info().uss - before
            if check:
                crowd.until_live(self.conversations.messages.change_all)
        return {MEMORY: grown / count / 1024, RATE: count / seconds}


@contextmanager
def world(plan: Plan) -> Iterator[World]:
    warm_up = plan.pick(WARM_UP, 100)
    sizes = [size for size in plan.pick((1_000, 4_000), (100,)) if _may_open(size + warm_up + SPARE_FILES)]
    with server(plan) as postgres, database(postgres) as made:
        conversations = make_conversations(made, max(sizes) + warm_up)
        comparisons = [
            comparison
            for name in plan.pick(tuple(SERVERS), ("Daphne",))
            for size in sizes
            for comparison in _compare(
                name, size, Sockets(made, conversations, SERVERS[name], warm_up), with_users=size == 1_000
            )
        ]
        load = f"{warm_up:,} sockets before those that count, {IN_FLIGHT} at the same time, none with compression"
        yield World(comparisons, {**conditions(postgres), "load": load})


def _compare(name: str, size: int, sockets: Sockets, *, with_users: bool) -> Iterator[Comparison]:
    shared, private = sockets.conversations.same("captured"), sockets.conversations.own("private")
    bare = Variant(f"{name}, accepted only", partial(sockets.bare, BARE, size))
    cases = [
        (Variant(f"{name}, shared", partial(sockets.ours, f"{SITE}:consumer", shared, size)), bare),
        (Variant(f"{name}, private", partial(sockets.ours, f"{SITE}:consumer", private, size)), bare),
    ]
    for ours, baseline in cases:
        for figure, target in TARGETS.items():
            yield Comparison(f"{size:,} sockets", ours, baseline, figure, target, figure, size=size)
    if with_users:
        ours = Variant(f"{name}, private, with users", partial(sockets.ours, f"{SITE}:authenticated", private, size))
        bare = Variant(f"{name}, accepted, with users", partial(sockets.bare, f"{SITE}:bare_authenticated", size))
        for figure in TARGETS:
            yield Comparison(f"{size:,} sockets", ours, bare, figure, figure=figure)


def _may_open(files: int) -> bool:
    """Return whether the system lets a process open so many files, and those that are started from here."""
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < files:
        return False
    if allowed != resource.RLIM_INFINITY and allowed < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))
    return True


BENCHMARK = Benchmark("sockets", "Sockets: memory of an idle one, and how fast they are opened", world, "sockets")
