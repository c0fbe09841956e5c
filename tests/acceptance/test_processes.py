"""Many processes: the listener beside the servers, Redis between them, and each of them killed in turn."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import pytest

from tests.acceptance.burst import Burst, expect_all_of
from tests.acceptance.clients import PLAIN, Watcher, watching
from tests.acceptance.room import Room
from tests.acceptance.site import Visitor
from tests.support.databases import Database
from tests.support.processes import Process, ProjectServer, RedisServer

LISTENERS = "select pid from pg_stat_activity where application_name = 'pgnotify_gql listener'"


class Cluster:
    """Two servers with two subscribers each, on one database and one Redis."""

    def __init__(self, servers: list[ProjectServer], watchers: list[list[Watcher]]) -> None:
        self.servers = servers
        self.watchers = watchers

    @property
    def all_watchers(self) -> list[Watcher]:
        return [watcher for watchers in self.watchers for watcher in watchers]


@pytest.fixture(params=["core", "pubsub"])
def environment(request: pytest.FixtureRequest) -> dict[str, str]:
    """Which of the two layers of channels_redis the processes use."""
    return {"REDIS_LAYER": request.param}


@pytest.fixture
def leader(
    room: Room,
    database_triggers: Database,
    redis_server: RedisServer,
    run_listener: Callable[..., Process],
    environment: dict[str, str],
) -> Process:
    return run_listener(database_triggers, redis_server, environment=environment)


@pytest.fixture
async def cluster(
    room: Room,
    leader: Process,
    database_triggers: Database,
    redis_server: RedisServer,
    daphne: Callable[..., ProjectServer],
    environment: dict[str, str],
) -> AsyncIterator[Cluster]:
    servers = [daphne(database_triggers, redis_server, inline=False, environment=environment) for _ in range(2)]
    async with AsyncExitStack() as subscribed:
        watchers = [
            [
                await subscribed.enter_async_context(watching(PLAIN, Visitor.logged_in(server.http_url, name), room))
                for name in ("alice", "bob")
            ]
            for server in servers
        ]
        yield Cluster(servers, watchers)


@pytest.mark.postgres("18")
async def test_subscribers_of_two_servers_receive_every_change_once_and_in_order(
    cluster: Cluster, database_triggers: Database, room: Room
) -> None:
    pks = await asyncio.to_thread(Burst(database_triggers).write)
    fence = room.insert("the end")
    for watcher in cluster.all_watchers:
        await expect_all_of(watcher, pks, fence)


@pytest.mark.postgres("18")
async def test_nothing_is_lost_or_doubled_when_the_leader_is_killed_and_a_standby_takes_over(
    cluster: Cluster,
    leader: Process,
    database_triggers: Database,
    redis_server: RedisServer,
    run_listener: Callable[..., Process],
    environment: dict[str, str],
    room: Room,
) -> None:
    standby = run_listener(database_triggers, redis_server, banner="standing by", environment=environment)
    pks = await asyncio.to_thread(Burst(database_triggers).write, halfway=leader.kill)
    fence = room.insert("the end")
    for watcher in cluster.all_watchers:
        await expect_all_of(watcher, pks, fence)
    assert standby.wait_for_log("leading database")


@pytest.mark.postgres("18")
async def test_a_killed_server_does_not_disturb_the_subscribers_of_the_other(
    cluster: Cluster, database_triggers: Database, room: Room
) -> None:
    for watcher in cluster.watchers[1]:
        watcher.server_may_vanish = True
    pks = await asyncio.to_thread(Burst(database_triggers).write, halfway=cluster.servers[1].kill)
    fence = room.insert("the end")
    for watcher in cluster.watchers[0]:
        await expect_all_of(watcher, pks, fence)


async def test_nothing_is_lost_or_doubled_when_the_backend_of_the_listener_is_terminated(
    room: Room, database_triggers: Database, daphne: Callable[..., ProjectServer]
) -> None:
    server = daphne(database_triggers)
    admin = database_triggers.connect()

    def terminate() -> None:
        terminated = admin.execute(f"select pg_terminate_backend(pid) from ({LISTENERS}) as found").fetchall()
        assert terminated == [(True,)]

    async with AsyncExitStack() as subscribed:
        watchers = [
            await subscribed.enter_async_context(watching(PLAIN, Visitor.logged_in(server.http_url, name), room))
            for name in ("alice", "bob", "alice")
        ]
        pks = await asyncio.to_thread(Burst(database_triggers).write, halfway=terminate)
        fence = room.insert("the end")
        for watcher in watchers:
            await expect_all_of(watcher, pks, fence)
    assert "lost the database" in server.log
