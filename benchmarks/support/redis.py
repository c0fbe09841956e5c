"""Redis for those variants that want one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.benchmark import Plan
from tests.support.processes import RedisServer


@contextmanager
def redis(plan: Plan) -> Iterator[RedisServer | None]:
    """A Redis that keeps nothing on disk, or None where it is not installed: what needs it is then left out."""
    if shutil.which("redis-server") is None:
        plan.tell("redis-server is not installed: what needs it is left out")
        yield None
        return
    with RedisServer() as server:
        yield server
