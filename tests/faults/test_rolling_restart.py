"""A deployment: every server process is replaced under load, and every subscriber receives everything once."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count

import pytest

from tests.faults.load import Load
from tests.faults.returning import ReturningClient
from tests.support import processes
from tests.support.databases import Database
from tests.support.feed import EVENT_TIMEOUT, Room, eventually
from tests.support.processes import Process, ProjectServer, RedisServer, project_environment

SITE = "tests.faults.load_site:application"

SERVERS = 2

CLIENTS = 10

WINDOW = 6.0

PAUSE = 0.05
"""Seconds between two transactions of a writer: of what comes faster, a client that shares a busy machine with the
servers may leave so much unread that Daphne, which gives it a second for the close behind it, cuts it."""

RESTART_CODES = {"daphne": 4012, "uvicorn": 1012}
"""Daphne sends 1000 and private codes only."""

LIMIT = 30.0


def readiness(server: ProjectServer) -> int:
    try:
        with urllib.request.urlopen(f"{server.http_url}/readyz/", timeout=10) as response:
            status: int = response.status
            return status
    except urllib.error.HTTPError as error:
        return error.code


class Fleet:
    """Server processes behind a load balancer that asks for their readiness."""

    def __init__(self, make: Callable[[], ProjectServer]) -> None:
        self._make = make
        self.ready = [make() for _ in range(SERVERS)]
        self._turns = count()

    def pick(self) -> ProjectServer:
        """Return each in turn."""
        return self.ready[next(self._turns) % len(self.ready)]

    async def replace(self, old: ProjectServer) -> None:
        self.ready.append(await asyncio.to_thread(self._make))
        assert await asyncio.to_thread(readiness, old) == 200
        old.terminate()
        self.ready.remove(old)
        async with asyncio.timeout(EVENT_TIMEOUT):
            while await asyncio.to_thread(readiness, old) != 503:  # noqa: ASYNC110  (another process is asked)
                await asyncio.sleep(0.005)
        await asyncio.to_thread(old.wait, LIMIT)


@pytest.mark.postgres("18")
@pytest.mark.parametrize("kind", ["daphne", "uvicorn"])
async def test_a_rolling_restart_under_load_loses_and_doubles_nothing(
    kind: str,
    database_triggers: Database,
    redis_server: RedisServer,
    run_listener: Callable[..., Process],
) -> None:
    run_listener(database_triggers, redis_server)
    variables = project_environment(
        database_triggers.url, redis_server, inline=False, environment={"DRAIN_WINDOW": str(WINDOW)}
    )
    room = Room(database_triggers)
    load = Load(room, database_triggers.connect, pause=PAUSE)
    with ExitStack() as running:
        fleet = Fleet(lambda: running.enter_context(getattr(processes, kind)(variables, SITE)))
        first = list(fleet.ready)
        clients = [
            ReturningClient(field, fleet.pick) for field in ("texts", "sharedTexts") for _ in range(CLIENTS // 2)
        ]
        receiving = [asyncio.create_task(client.run()) for client in clients]
        try:
            # Whoever has received nothing has no cursor to come back with.
            await eventually(lambda: all(client.at for client in clients))
            while not all(client.cursor for client in clients):
                room.say("begin")
                await asyncio.sleep(0.1)
            with load.running():
                for old in first:
                    here = [client for client in clients if client.at is old]
                    for client in here:
                        client.closed_at.clear()
                    await fleet.replace(old)
                    await eventually(lambda: all(client.at in fleet.ready for client in clients), LIMIT)
                    times = sorted(client.closed_at[0] for client in here)
                    if len(times) > 2:
                        # Two thirds of it, less by what the first one was late on a machine that is busy.
                        assert times[-1] - times[0] > WINDOW / 4, "they were not spread over the window"
                    await eventually(load.grown_by(20))
            for client in clients:
                await client.until(lambda: load.arrived(client.received, room.connection), LIMIT)  # noqa: B023
        finally:
            for task in receiving:
                task.cancel()
            await asyncio.gather(*receiving, return_exceptions=True)
        logs = [server.log for server in [*first, *fleet.ready]]
    for client in clients:
        load.check(client.received, room.connection)
        assert (client.resyncs, client.errors) == ([], [])
        assert set(client.closes) <= {RESTART_CODES[kind]}
    assert sum(sum(client.closes.values()) for client in clients) >= CLIENTS
    assert not [log for log in logs if "Traceback" in log]
