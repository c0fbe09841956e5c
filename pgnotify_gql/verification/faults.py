"""
The faults: each is done to something that this run has started, and undone.

A fault function says what it is done to, by calling `begin`, at the moment in which it is done, and returns when it is
undone: the process runs again, the client reads again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from .processes import STOP_TIMEOUT
from .world import World

Begin = Callable[[str], None]


@dataclass(frozen=True)
class Fault:
    """A fault by name, what it does, and what there must be of: ``listeners``, or nothing in particular."""

    name: str
    summary: str
    inject: Callable[[World, Begin], Awaitable[None]]
    needs_listeners: bool = False


async def kill_listener(world: World, begin: Begin) -> None:
    async with world.a_listener() as listener:
        begin(listener.name)
        listener.kill()
        await listener.ended()
        await world.hold(0, 3)
        await listener.start()


async def pause_listener(world: World, begin: Begin) -> None:
    async with world.a_listener() as listener:
        begin(listener.name)
        listener.pause()
        try:
            await world.hold(world.session_timeout + 1, world.session_timeout + 4)
        finally:
            listener.resume()


async def end_listener_session(world: World, begin: Begin) -> None:
    # A listener inside a server has the name that the hub has.
    whose = "hub" if world.options.inline else "listener"
    begin(f"{await world.end_sessions(whose, most=2)} sessions")


async def kill_server(world: World, begin: Begin) -> None:
    async with world.a_server() as server:
        begin(server.name)
        server.kill()
        await server.ended()
        await world.hold(0, 3)
        await server.start()


async def restart_server(world: World, begin: Begin) -> None:
    async with world.a_server() as server:
        begin(server.name)
        server.terminate()
        if not await server.ended():
            world.processes.remark(f"{server.name} did not end within {STOP_TIMEOUT:g} s of SIGTERM, and was killed")
        await server.start()


async def pause_server(world: World, begin: Begin) -> None:
    async with world.a_server() as server:
        begin(server.name)
        server.pause()
        try:
            # Sometimes for so long that its clients leave it for another.
            await world.hold(*world.chance.choice([(0.5, 5), (0.5, 5), (21, 24)]))
        finally:
            server.resume()


async def end_hub_session(world: World, begin: Begin) -> None:
    begin(f"{await world.end_sessions('hub', most=world.chance.randint(1, 3))} sessions")


async def drop_client(world: World, begin: Begin) -> None:
    subscribers = world.some_subscribers()
    begin(", ".join(subscriber.name for subscriber in subscribers))
    for subscriber in subscribers:
        subscriber.cut()


async def slow_client(world: World, begin: Begin) -> None:
    subscribers = world.some_subscribers()
    begin(", ".join(subscriber.name for subscriber in subscribers))
    for subscriber in subscribers:
        subscriber.reading.clear()
    for writer in world.chance.sample(world.writers, min(2, len(world.writers))):
        writer.flood()
    try:
        await world.hold(3, 9)
    finally:
        for subscriber in subscribers:
            subscriber.reading.set()


async def kill_writer_session(world: World, begin: Begin) -> None:
    begin(f"{await world.end_sessions('writer', most=world.chance.randint(1, len(world.writers)))} sessions")


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("kill-listener", "SIGKILL a listener", kill_listener, needs_listeners=True),
        Fault("pause-listener", "SIGSTOP a listener for longer than SESSION_TIMEOUT", pause_listener, True),
        Fault("end-listener-session", "end database sessions of listeners", end_listener_session),
        Fault("kill-server", "SIGKILL a server", kill_server),
        Fault("restart-server", "SIGTERM a server, and start it again", restart_server),
        Fault("pause-server", "SIGSTOP a server, for 0.5 to 24 seconds", pause_server),
        Fault("end-hub-session", "end database sessions in which servers read the journal", end_hub_session),
        Fault("drop-client", "cut sockets of subscribers", drop_client),
        Fault("slow-client", "subscribers that do not read for some seconds, while much is written", slow_client),
        Fault("kill-writer-session", "end database sessions of writers", kill_writer_session),
    )
}
