"""The demo as a newcomer meets it: it starts from nothing, stops on Ctrl-C, and says in a sentence what is wrong."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import AsyncExitStack, closing, contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.acceptance.clients import CLIENTS, PLAIN, watching
from tests.acceptance.demo import Demo, paste_into_shell, refusal
from tests.acceptance.room import Room
from tests.acceptance.site import Visitor
from tests.support.databases import Database
from tests.support.ports import free_port

STOP = 5.0
"""Seconds in which everything must have stopped."""

COUNT = "select count(*) from conversations_message where text = 'Hello from psql'"


@contextmanager
def connected(demo: Demo) -> Iterator[psycopg.Connection]:
    with psycopg.connect(demo.conninfo, autocommit=True) as connection:
        yield connection


def first_conversation(connection: psycopg.Connection) -> str:
    found = connection.execute("select title from conversations_conversation order by title, id limit 1").fetchone()
    assert found is not None
    return str(found[0])


def psql_count(demo: Demo) -> int:
    return int(paste_into_shell(f'{demo.psql} -At -c "{COUNT}"'))


def expect_nothing_left(demo: Demo) -> None:
    assert demo.database_processes() == []
    assert "Traceback" not in demo.log
    assert "Exception" not in demo.log


async def test_the_printed_command_writes_a_row_that_a_subscriber_receives(directory: Path) -> None:
    with Demo(directory) as demo, connected(demo) as connection:
        alice = Visitor.logged_in(demo.site, "alice")
        async with watching(PLAIN, alice, Room(connection, first_conversation(connection))) as watcher:
            assert paste_into_shell(f'{demo.psql} -c "{demo.sample_insert}"') == "INSERT 0 1\n"
            data = await watcher.next()
            watcher.server_may_vanish = True
    assert (data["kind"], data["via"], data["message"]["text"]) == ("INSERT", "SQL", "Hello from psql")


def test_a_second_start_keeps_the_data(directory: Path) -> None:
    with Demo(directory) as demo:
        paste_into_shell(f'{demo.psql} -c "{demo.sample_insert}"')
        demo.press_ctrl_c()
        assert demo.ends_within(STOP) == 0
    with Demo(directory) as again:
        assert psql_count(again) == 1
        users = paste_into_shell(f"{again.psql} -At -c 'select username from auth_user order by id'")
        assert users.split() == ["alice", "bob"]


async def test_ctrl_c_stops_everything_while_sockets_are_open_and_somebody_writes(directory: Path) -> None:
    with Demo(directory) as demo:
        alice = Visitor.logged_in(demo.site, "alice")
        with closing(psycopg.connect(demo.conninfo)) as unfinished, connected(demo) as connection:
            room = Room(connection)
            async with AsyncExitStack() as subscribed:
                for client in CLIENTS.values():
                    watcher = await subscribed.enter_async_context(watching(client, alice, room))
                    watcher.server_may_vanish = True
                unfinished.execute("update conversations_message set text = 'never committed'")
                for number in range(50):
                    room.insert(str(number))
                demo.press_ctrl_c()
                assert demo.ends_within(STOP) == 0
        expect_nothing_left(demo)
        assert demo.log.rstrip().endswith("stopped")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_closed_terminal_or_a_shutdown_stops_everything_too(directory: Path, number: int) -> None:
    with Demo(directory) as demo:
        demo.send_signal(number)
        assert demo.ends_within(STOP) == 0
        expect_nothing_left(demo)


@pytest.mark.parametrize("moment", ["database +started", "tables +migrated"])
def test_ctrl_c_during_the_start_leaves_nothing_behind(directory: Path, moment: str) -> None:
    with Demo(directory, banner=moment) as demo:
        demo.press_ctrl_c()
        assert demo.ends_within(STOP) == 0
        expect_nothing_left(demo)
    # And nothing half done.
    with Demo(directory) as again:
        assert psql_count(again) == 0


def test_a_killed_demo_starts_again_with_its_data(directory: Path) -> None:
    with Demo(directory) as demo:
        paste_into_shell(f'{demo.psql} -c "{demo.sample_insert}"')
        demo.kill_alone()
        assert demo.database_processes() != []
    with Demo(directory) as again:
        assert psql_count(again) == 1
        again.press_ctrl_c()
        assert again.ends_within(STOP) == 0
        expect_nothing_left(again)


def test_a_demo_whose_database_was_killed_with_it_starts_again_with_its_data(directory: Path) -> None:
    with Demo(directory) as demo:
        paste_into_shell(f'{demo.psql} -c "{demo.sample_insert}"')
        demo.kill_with_database()
    with Demo(directory) as again:
        assert psql_count(again) == 1


def test_a_port_in_use_is_one_sentence_and_touches_no_database(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert f"port {port} of 127.0.0.1 is in use" in refusal(directory, PORT=str(port))
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("port", ["abc", "0", "65536", "-1", "8000 "])
def test_a_port_that_is_none_is_one_sentence(directory: Path, port: str) -> None:
    assert f"PORT is '{port}'" in refusal(directory, PORT=port)


def test_a_host_that_is_not_of_this_machine_is_one_sentence(directory: Path) -> None:
    assert "HOST 203.0.113.1 is no address of this machine" in refusal(
        directory, HOST="203.0.113.1", PORT=str(free_port())
    )


def test_another_host_is_listened_on_and_printed(directory: Path) -> None:
    with Demo(directory, HOST="127.0.0.2") as demo:
        assert demo.site.startswith("http://127.0.0.2:")
        assert Visitor.logged_in(demo.site, "alice").execute("{ me { username } }") == {"me": {"username": "alice"}}


def test_data_of_another_version_is_one_sentence_and_is_left_alone(directory: Path) -> None:
    data = directory / ".demo" / "pgdata"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("15\n")
    sentence = refusal(directory, PORT=str(free_port()))
    assert "was made by PostgreSQL 15" in sentence
    assert str(data) in sentence
    assert (data / "PG_VERSION").read_text() == "15\n"


def test_data_whose_making_was_interrupted_is_one_sentence(directory: Path) -> None:
    with Demo(directory) as demo:
        demo.press_ctrl_c()
        demo.ends_within(STOP)
    data = directory / ".demo" / "pgdata"
    (data / "global" / "pg_control").unlink()
    assert "delete this directory and start again" in refusal(directory, PORT=str(free_port()))


def test_a_directory_that_is_something_else_is_one_sentence(directory: Path) -> None:
    (directory / ".demo").write_text("not a directory")
    assert str(directory / ".demo") in refusal(directory, PORT=str(free_port()))


def test_a_directory_with_foreign_files_is_one_sentence(directory: Path) -> None:
    data = directory / ".demo" / "pgdata"
    data.mkdir(parents=True)
    (data / "holiday.jpg").write_text("sand")
    assert "delete this directory" in refusal(directory, PORT=str(free_port()))
    assert (data / "holiday.jpg").exists()


def test_a_second_demo_in_the_same_directory_is_one_sentence_and_does_not_disturb_the_first(directory: Path) -> None:
    with Demo(directory) as demo:
        assert "another demo is using" in refusal(directory, PORT=str(free_port()))
        assert psql_count(demo) == 0
        assert Visitor.logged_in(demo.site, "bob").execute("{ me { username } }") == {"me": {"username": "bob"}}


async def test_a_real_server_is_used_and_left_running(directory: Path, empty_database: Database) -> None:
    for _ in range(2):
        with Demo(directory, DATABASE_URL=empty_database.url) as demo:
            alice = Visitor.logged_in(demo.site, "alice")
            room = Room(empty_database.connect())
            async with watching(PLAIN, alice, room) as watcher:
                pk = room.insert("from the real server")
                assert (await watcher.next())["pk"] == pk
                watcher.server_may_vanish = True
                demo.press_ctrl_c()
                assert demo.ends_within(STOP) == 0
            assert "Traceback" not in demo.log
    assert os.listdir(directory) == []
    assert empty_database.server.running()


def test_a_real_server_that_cannot_be_reached_is_one_sentence(directory: Path) -> None:
    url = f"postgresql://nobody@127.0.0.1:{free_port()}/nothing"
    assert "the database of DATABASE_URL cannot be used" in refusal(directory, DATABASE_URL=url, PORT=str(free_port()))


def test_a_database_url_that_is_none_is_one_sentence(directory: Path) -> None:
    assert "the database of DATABASE_URL cannot be used" in refusal(
        directory, DATABASE_URL="sqlite:///db.sqlite3", PORT=str(free_port())
    )
