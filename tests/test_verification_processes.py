"""
The processes of `verify_delivery`, and what faults do to them: programs of the shell stand for servers and listeners.

As theirs, the end of such a program is that of its parent.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from pgnotify_gql.verification import faults, processes
from pgnotify_gql.verification.child import Task
from pgnotify_gql.verification.errors import VerificationError
from pgnotify_gql.verification.faults import FAULTS, Begin, pause_listener, restart_server
from pgnotify_gql.verification.options import Options
from pgnotify_gql.verification.processes import Child, Processes
from pgnotify_gql.verification.schedule import Schedule
from pgnotify_gql.verification.world import NothingToBreakError, World
from tests.support.databases import Database
from tests.support.feed import NEVER, eventually
from tests.support.ports import free_port

RUNS = "echo $$; exec cat"
"""A program that tells its process id, and runs until it is ended."""

NOWHERE = "host=127.0.0.1 port=1 connect_timeout=5"


def child(name: str, script: str, folder: Path, port: int | None = None) -> Child:
    return Child(name, ["sh", "-c", script], Task("default", "nobody"), folder / f"{name}.log", port)


async def said_something(of: Child) -> None:
    await eventually(lambda: of.excerpt)


@asynccontextmanager
async def started(*children: Child) -> AsyncIterator[None]:
    try:
        for each in children:
            await each.start()
            await said_something(each)
        yield
    finally:
        for each in children:
            each.resume()
            each.kill()
            await each.ended()


def pids(of: Child) -> list[int]:
    """The process ids it has had, the latest one at the end."""
    return [int(line) for line in of.log.read_text().split()]


def frozen(of: Child) -> bool:
    return psutil.Process(pids(of)[-1]).status() == psutil.STATUS_STOPPED


def world_of(
    folder: Path, *, listeners: list[Child] | None = None, servers: list[Child] | None = None,
    chosen: list[str] | None = None, conninfo: str = NOWHERE, remark: Callable[[str], None] = pytest.fail,
) -> World:  # fmt: skip
    options = Options(
        database="default", duration=1, servers=0, listeners=0, writers=1, subscribers=0, server="daphne",
        faults=chosen or [], fault_every=0.001, rate=1, wait=1, seed=1,
    )  # fmt: skip
    every = Processes(options, folder, remark)
    every.listeners, every.servers = listeners or [], servers or []
    return World(options, every, [], [], conninfo, NEVER, random.Random(1))


class TestStarting:
    async def test_one_that_ends_as_it_starts_is_named_with_the_end_of_its_output(self, tmp_path: Path) -> None:
        server = child("server 1", "echo the address is in use; exit 3", tmp_path, free_port())
        with pytest.raises(VerificationError) as raised:
            await server.start()
        assert str(raised.value) == "server 1 ended as it started:\nthe address is in use\n"

    async def test_one_that_does_not_answer_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(processes, "START_TIMEOUT", 0.1)
        server = child("server 1", RUNS, tmp_path, free_port())
        try:
            with pytest.raises(VerificationError, match=r"^server 1 does not answer within 0\.1 s:\n"):
                await server.start()
        finally:
            server.kill()
            await server.ended()

    async def test_where_one_cannot_be_started_that_is_what_is_raised(self, tmp_path: Path) -> None:
        missing = Child("server 1", [str(tmp_path / "python")], Task("default", "nobody"), tmp_path / "server.log")
        with pytest.raises(FileNotFoundError):
            async with world_of(tmp_path, servers=[missing]).processes.running():
                pass
        assert not missing.alive

    async def test_where_one_does_not_start_the_others_end(self, tmp_path: Path) -> None:
        listener, server = child("listener 1", RUNS, tmp_path), child("server 1", "exit 3", tmp_path, free_port())
        with pytest.raises(VerificationError, match="server 1 ended as it started"):
            async with world_of(tmp_path, listeners=[listener], servers=[server]).processes.running():
                pass
        assert not listener.alive

    def test_where_every_port_is_in_use_it_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            monkeypatch.setattr(processes, "FIRST_PORT", port)
            monkeypatch.setattr(processes, "LAST_PORT", port + 1)
            with pytest.raises(VerificationError, match=f"every port from {port} to {port + 1} is in use"):
                processes._free_port()


class TestEndingByItself:
    async def test_it_is_counted_remarked_and_started_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(processes, "RESTART_DELAY", 0)
        listener, remarks = child("listener 1", RUNS, tmp_path), list[str]()
        every = world_of(tmp_path, listeners=[listener], remark=remarks.append).processes
        async with every.running():
            await said_something(listener)
            os.kill(pids(listener)[0], signal.SIGKILL)
            await eventually(lambda: len(pids(listener)) == 2 and listener.alive)
        assert every.unexpected_exits == 1
        assert remarks == [
            f"listener 1 ended by itself with status -9, and is started again: see {tmp_path}/listener 1.log"
        ]

    async def test_it_is_not_started_again_when_the_run_ends(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(processes, "RESTART_DELAY", NEVER)
        listener = child("listener 1", RUNS, tmp_path)
        every = world_of(tmp_path, listeners=[listener], remark=lambda sentence: None).processes
        async with every.running():
            await said_something(listener)
            os.kill(pids(listener)[0], signal.SIGKILL)
            await eventually(lambda: every.unexpected_exits)
        names = [task.get_name() for task in asyncio.all_tasks()]
        assert "pgnotify_gql restart listener 1" not in names

    async def test_before_anything_has_begun_it_is_an_error(self, tmp_path: Path) -> None:
        told = tmp_path / "told"
        until_told = f"while [ ! -e {told} ]; do sleep 0.01; done"
        listener = child("listener 1", f"echo the table is missing; {until_told}; exit 1", tmp_path)
        every = world_of(tmp_path, listeners=[listener]).processes
        async with started(listener):
            every.require_alive()
            told.touch()
            await listener.ended()
            with pytest.raises(VerificationError) as raised:
                every.require_alive()
        assert str(raised.value) == "listener 1 ended by itself:\nthe table is missing\n"


class TestFaults:
    async def test_a_listener_that_is_paused_is_frozen_until_it_is_undone(self, tmp_path: Path) -> None:
        listener = child("listener 1", RUNS, tmp_path)
        world, begun = world_of(tmp_path, listeners=[listener]), list[str]()
        async with started(listener):
            pausing = asyncio.create_task(pause_listener(world, begun.append))
            await eventually(lambda: frozen(listener))
            world.ending.set()
            await pausing
            await eventually(lambda: not frozen(listener))
        assert begun == ["listener 1"]

    async def test_a_server_that_does_not_end_on_sigterm_is_remarked_killed_and_started_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for module in (processes, faults):
            monkeypatch.setattr(module, "STOP_TIMEOUT", 0.1)
        server, remarks = child("server 1", f"trap '' TERM; {RUNS}", tmp_path), list[str]()
        world = world_of(tmp_path, servers=[server], remark=remarks.append)
        async with started(server):
            await restart_server(world, lambda target: None)
            await eventually(lambda: len(pids(server)) == 2)
            assert not psutil.pid_exists(pids(server)[0])
        assert remarks == ["server 1 did not end within 0.1 s of SIGTERM, and was killed"]

    async def test_no_two_are_done_to_a_process_at_the_same_time(self, tmp_path: Path) -> None:
        listener = child("listener 1", RUNS, tmp_path)
        world, begun = world_of(tmp_path, listeners=[listener]), list[str]()
        async with started(listener):
            async with world.a_listener():
                pausing = asyncio.create_task(pause_listener(world, begun.append))
                # It begins in its first turn, if at all.
                await asyncio.sleep(0)
                assert begun == []
            await eventually(lambda: begun)
            world.ending.set()
            await pausing

    async def test_one_that_waits_for_a_process_gives_up_when_the_run_ends(self, tmp_path: Path) -> None:
        listener = child("listener 1", RUNS, tmp_path)
        world = world_of(tmp_path, listeners=[listener])
        async with started(listener), world.a_listener():
            pausing = asyncio.create_task(pause_listener(world, pytest.fail))
            await asyncio.sleep(0)
            world.ending.set()
            with pytest.raises(NothingToBreakError):
                await pausing

    @pytest.mark.postgres("18")
    async def test_sessions_are_ended_of_those_that_are_there(self, tmp_path: Path, database: Database) -> None:
        world = world_of(tmp_path, conninfo=database.conninfo)
        with pytest.raises(NothingToBreakError):
            await world.end_sessions("hub")
        database.connect(application_name=world.options.session_name("hub"))
        assert await world.end_sessions("hub", most=5) == 1


class TestSchedule:
    async def test_a_fault_that_finds_nothing_to_be_done_to_is_not_counted(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        chosen, tried = ["drop-client", "kill-listener"], list[str]()
        world = world_of(tmp_path, chosen=chosen)

        def noting(name: str, inject: Callable[[World, Begin], object]) -> Callable[[World, Begin], object]:
            def noted(world: World, begin: Begin) -> object:
                tried.append(name)
                if len(tried) == 10:
                    world.ending.set()
                return inject(world, begin)

            return noted

        for name in chosen:
            noted = replace(FAULTS[name], inject=noting(name, FAULTS[name].inject))  # type: ignore[arg-type]
            monkeypatch.setitem(FAULTS, name, noted)
        injecting = Schedule(world, pytest.fail)
        await injecting.run()
        assert set(tried) == set(chosen)
        assert injecting.injected == {"drop-client": 0, "kill-listener": 0}
        assert (injecting.windows, injecting.current) == ([], [])

    async def test_a_fault_that_the_database_refuses_is_told_and_others_follow(self, tmp_path: Path) -> None:
        world, told = world_of(tmp_path, chosen=["end-hub-session"]), list[str]()

        def say(sentence: str) -> None:
            told.append(sentence)
            if len(told) == 2:
                world.ending.set()

        injecting = Schedule(world, say)
        await injecting.run()
        assert all(sentence.startswith("end-hub-session could not be done: ") for sentence in told)
        assert injecting.injected == {"end-hub-session": 0}
        assert injecting.windows == []
