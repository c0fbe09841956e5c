"""`manage.py journal`: what it finds in real databases, in each state, and that it disturbs nobody."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connections
from django.test import override_settings

from pgnotify_gql import names
from pgnotify_gql.journal import inspection
from pgnotify_gql.journal.inspection import inspect
from pgnotify_gql.journal.reader import Connection, current_snapshot
from pgnotify_gql.journal.retention import rotate
from pgnotify_gql.listener.doorbell import Doorbell
from tests.support.databases import Database, migrated_template, new_database, used_by_django
from tests.support.feed import RARELY, Recorder, Room, eventually, leading, lock_holders, opened, terminate, transaction
from tests.support.postgres import PostgresServer
from tests.support.processes import CHECKOUT, PgBouncer, project_environment

NOBODY = "nobody leads: with INLINE_LISTENER one does while somebody subscribes, and changes wait meanwhile"
"""The example's listeners run inside its server."""

LABELS = ["listener", "relayed", "lag", "size", "slot 0", "slot 1", "slot 2", "oldest row", "retention"]


def run(*arguments: str) -> str:
    output = StringIO()
    call_command("journal", *arguments, stdout=output)
    return output.getvalue()


def shown(*arguments: str) -> dict[str, str]:
    """What it prints, by the words at the beginning of each line."""
    _, *lines = run(*arguments).splitlines()
    return {line[:16].strip(): line[16:] for line in lines}


def found(*arguments: str) -> dict[str, Any]:
    """What it prints as JSON."""
    decoded: dict[str, Any] = json.loads(run("--json", *arguments))
    return decoded


def failure(*arguments: str) -> str:
    """Run the command, which must fail with exit status 1, and return the sentence it ends with."""
    with pytest.raises(CommandError) as caught:
        run(*arguments)
    assert caught.value.returncode == 1
    return str(caught.value)


@pytest.fixture
def room(database_triggers: Database) -> Room:
    return Room(database_triggers)


def age(room: Room, interval: str = "2 hours") -> None:
    """Let time pass for all that is committed."""
    for assignment in ("journal set at = at", "journal_state set rotated_at = rotated_at"):
        room.connection.execute(f"update pgnotify_gql.{assignment} - interval '{interval}'")


class TestListener:
    def test_is_missing(self, room: Room) -> None:
        found = shown()
        assert list(found) == [*LABELS, "open writers"]
        assert found["listener"] == NOBODY
        assert re.fullmatch(r"snapshot \d+:\d+:", found["relayed"])

    async def test_leads_and_sleeps(self, database_triggers: Database, room: Room) -> None:
        recorder = Recorder()
        async with leading(database_triggers, recorder):
            # It sends the second one when it falls asleep.
            await recorder.until(lambda: len(recorder.heartbeats) >= 2)
            (pid,) = lock_holders(database_triggers, names.LEADER_LOCK)
            found = await asyncio.to_thread(shown)
            epoch = room.connection.execute("select epoch from pgnotify_gql.journal_state").fetchone()
            assert found["listener"] == f"backend {pid} leads, asleep, in epoch {epoch[0] if epoch else None}"
            assert re.fullmatch(r"snapshot \d+:\d+:, stored \d+(\.\d)? s ago", found["relayed"])

    async def test_leads_and_is_awake(self, database_triggers: Database, room: Room) -> None:
        async with leading(database_triggers, Recorder()):
            with busy(room):
                await eventually(lambda: lock_holders(database_triggers, names.AWAKE_LOCK))
                for _ in range(20):
                    if " leads, awake, " in (await asyncio.to_thread(shown))["listener"]:
                        break
                else:
                    raise AssertionError("it was never seen awake")

    async def test_leads_from_another_host(self, database_triggers: Database) -> None:
        async with leading(database_triggers, Recorder(), dsn=database_triggers.tcp_conninfo):
            assert " from 127.0.0.1 leads, " in (await asyncio.to_thread(shown))["listener"]

    async def test_of_another_database_of_the_server_is_not_taken_for_this_ones(
        self, postgres: PostgresServer, database_triggers: Database
    ) -> None:
        with new_database(postgres, migrated_template(postgres)) as other:
            async with leading(other, Recorder()):
                assert (await asyncio.to_thread(shown))["listener"] == NOBODY

    async def test_has_resigned(self, database_triggers: Database) -> None:
        async with leading(database_triggers, Recorder()):
            pass
        found = await asyncio.to_thread(shown)
        assert found["listener"] == NOBODY
        assert "stored" not in found["relayed"]

    @pytest.mark.postgres("18")
    async def test_leads_through_a_pooler(
        self,
        database_triggers: Database,
        pgbouncer: Callable[..., PgBouncer],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(Doorbell.hears, "__defaults__", (0.3,))
        pooler = pgbouncer(database_triggers)
        async with leading(database_triggers, Recorder(), dsn=pooler.conninfo):
            found = await asyncio.to_thread(shown)
            assert found["listener"].startswith("one leads through a pooler, or has just gone, in epoch ")
            with override_settings(PGNOTIFY_GQL={"LISTENER_CONNINFO": pooler.conninfo}):
                assert await asyncio.to_thread(shown) == found | {"relayed": ANY_TIME}

    async def test_was_lost_a_moment_ago(self, database_triggers: Database) -> None:
        async with leading(database_triggers, Recorder(), timing=RARELY) as listener:
            listener.stop()
            terminate(database_triggers, "test leader")
        with override_settings(PGNOTIFY_GQL={"SESSION_TIMEOUT": 600.0}):
            assert "or has just gone" in (await asyncio.to_thread(shown))["listener"]
        with override_settings(PGNOTIFY_GQL={"SESSION_TIMEOUT": 0.001, "INLINE_LISTENER": True}):
            assert (await asyncio.to_thread(shown))["listener"] == NOBODY


class AnyTime:
    """Equal to every line."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


ANY_TIME: Any = AnyTime()


@contextmanager
def busy(room: Room) -> Iterator[None]:
    """Somebody who writes all the time."""
    stopping = threading.Event()
    writer = room.database.connect()

    def write() -> None:
        while not stopping.wait(0.005):
            room.say("hello", connection=writer)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


class TestLag:
    def test_is_what_the_stored_cursor_does_not_see(self, database_triggers: Database, room: Room) -> None:
        with transaction(database_triggers) as slow:
            room.say("late", connection=slow)
            room.say("in time")
            room.connection.execute("update pgnotify_gql.journal_state set relayed = pg_current_snapshot()")
            assert shown()["lag"] == "none"
            assert found()["lag"] == 0
            slow.commit()
        assert shown()["lag"].startswith("1 row not relayed, the oldest for ")
        room.say("another")
        age(room, "3 days")
        assert shown()["lag"] == "2 rows not relayed, the oldest for 3 d"

    def test_ends_with_status_1_when_it_is_longer_than_it_may_be(self, room: Room) -> None:
        age(room)
        assert shown("--max-lag", "8000")["lag"] == "1 row not relayed, the oldest for 2 h"
        assert failure("--max-lag", "7000") == ("a change has been waiting for 2 h to be relayed, more than 1.9 h")

    def test_of_nothing_is_never_too_long(self, room: Room) -> None:
        age(room)
        room.connection.execute("update pgnotify_gql.journal_state set relayed = pg_current_snapshot()")
        assert shown("--max-lag", "0.001")["lag"] == "none"

    def test_is_shown_also_when_it_is_too_long(self, database_triggers: Database, room: Room) -> None:
        """A monitor reads the object and the status."""
        age(room)
        command = [sys.executable, "manage.py", "journal", "--json", "--max-lag", "60"]
        environment = project_environment(database_triggers.url, None, inline=False, environment=None)
        ended = subprocess.run(
            command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False, timeout=60
        )
        assert ended.returncode == 1
        assert json.loads(ended.stdout)["lag"] > 7000
        assert ended.stderr == "CommandError: a change has been waiting for 2 h to be relayed, more than 1 min\n"

    @pytest.mark.parametrize("text", ["0", "-1", "soon", "inf", "nan"])
    def test_that_is_none_is_refused(self, text: str) -> None:
        assert f"a number of seconds, 0.001 at least, not {text!r}" in failure(f"--max-lag={text}")


class TestSlots:
    async def test_are_empty_full_or_written(self, database_triggers: Database, room: Room) -> None:
        age(room)
        async with opened(database_triggers.conninfo) as leader:
            await rotate(leader, await current_snapshot(leader), 3600)
        room.say("one", "two")
        found = await asyncio.to_thread(shown)
        assert re.fullmatch(r"\d+ kB, 1 row, the oldest 2 h ago", found["slot 0"])
        assert re.fullmatch(r"\d+ kB, 2 rows, the oldest \d+(\.\d)? s ago, written now", found["slot 1"])
        assert found["slot 2"] == "empty"
        assert found["oldest row"].endswith(", 2 h ago")

    def test_have_the_size_that_they_take_on_disk(self, room: Room) -> None:
        room.say_at_once(2000)
        sizes = room.connection.execute(
            "select pg_total_relation_size('pgnotify_gql.journal_' || slot) from generate_series(0, 2) as slot"
        ).fetchall()
        found_now = found()
        assert [slot["bytes"] for slot in found_now["slots"]] == [size for (size,) in sizes]
        assert found_now["bytes"] == sum(size for (size,) in sizes)

    def test_of_an_empty_journal_have_no_oldest_row(self, database: Database) -> None:
        found = shown()
        assert [found[f"slot {number}"] for number in range(3)] == ["empty, written now", "empty", "empty"]
        assert found["oldest row"] == "-"
        assert found["lag"] == "none"

    def test_are_kept_for_the_retention_of_the_settings(self, database: Database) -> None:
        with override_settings(PGNOTIFY_GQL={"RETENTION": 86_400 * 2}):
            assert shown()["retention"] == "2 d at least; at most twice that while a listener runs"
            assert found()["retention"] == 172_800


class TestWriters:
    def own(self, database: Database) -> list[dict[str, Any]]:
        return [writer for writer in found()["writers"] if writer["database"] == database.name]

    def test_that_have_written_nothing_are_none(self, database_triggers: Database, room: Room) -> None:
        with transaction(database_triggers) as reader:
            reader.execute("select from conversations_message")
            assert self.own(database_triggers) == []

    def test_are_counted_once_however_many_savepoints_they_have(self, database_triggers: Database, room: Room) -> None:
        with transaction(database_triggers) as slow:
            room.say("one", connection=slow)
            for name in ("first", "second", "third"):
                slow.execute(f"savepoint {name}")
                room.say(name, connection=slow)
            (writer,) = self.own(database_triggers)
            assert writer == {
                "pid": slow.info.backend_pid,
                "gid": None,
                "database": database_triggers.name,
                "role": "postgres",
                "application": "",
                "state": "idle in transaction",
                "since": writer["since"],
            }
            assert datetime.fromisoformat(writer["since"]) <= datetime.fromisoformat(found()["at"])

    def test_come_in_the_order_in_which_they_began_to_write(self, database_triggers: Database, room: Room) -> None:
        with transaction(database_triggers) as first, transaction(database_triggers) as second:
            first.execute("select")
            room.say("one", connection=second)
            room.say("two", connection=first)
            pids = [writer["pid"] for writer in self.own(database_triggers)]
            assert pids == [second.info.backend_pid, first.info.backend_pid]

    def test_that_are_prepared_transactions_have_their_name(self, database_triggers: Database, room: Room) -> None:
        gid = f"pending {database_triggers.name}"
        with transaction(database_triggers) as slow:
            slow.execute("create table some_table (id int)")
            with slow.transaction():
                slow.execute("insert into some_table values (1)")
            slow.execute(f"prepare transaction '{gid}'")
        (writer,) = self.own(database_triggers)
        assert (writer["pid"], writer["gid"], writer["role"]) == (None, gid, "postgres")
        assert writer["since"] is not None
        room.connection.execute(f"rollback prepared '{gid}'")
        assert self.own(database_triggers) == []

    def test_of_other_databases_of_the_server_count(self, postgres: PostgresServer, database: Database) -> None:
        """Their transactions are in progress for the cursor as well."""
        with new_database(postgres) as other, transaction(other) as slow:
            slow.execute("create table some_table ()")
            (writer,) = self.own(other)
            assert writer["pid"] == slow.info.backend_pid

    def test_the_oldest_is_shown_with_who_it_is(self, postgres: PostgresServer, database: Database) -> None:
        with transaction(database) as slow:
            slow.execute("set local application_name = 'nightly job'")
            slow.execute("select pg_current_xact_id()")
            found, pid = shown(), slow.info.backend_pid
        assert found["open writers"] == "1, in all databases of this server"
        who = f"backend {pid} ('nightly job', idle in transaction, role postgres, database "
        assert found["the oldest"].startswith(f"{who}{database.name}), open for ")

    def test_of_other_roles_are_there_for_who_may_see_nothing_of_them(
        self, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with own_role(database) as (role, admin), transaction(database) as slow:
            slow.execute("select pg_current_xact_id()")
            for grant in ("usage on schema", "select on all tables in schema", "select on all sequences in schema"):
                admin.connection.execute(f"grant {grant} pgnotify_gql to {role}")
            monkeypatch.setitem(connections.databases["default"], "USER", role)
            (writer,) = [writer for writer in found()["writers"] if writer["pid"] == slow.info.backend_pid]
            assert (writer["state"], writer["since"]) == ("", None)
            assert "open for a time that members of pg_read_all_stats see" in shown()["the oldest"]
            assert shown()["slot 0"] == "empty, written now"


class Admin:
    def __init__(self, database: Database) -> None:
        self.connection = database.connect()


@contextmanager
def own_role(database: Database) -> Iterator[tuple[str, Admin]]:
    """A role without rights, and somebody who may grant it some in this database."""
    role, admin = f"reader_{database.name}", Admin(database)
    admin.connection.execute(f"create role {role} login")
    try:
        yield role, admin
    finally:
        admin.connection.execute(f"drop owned by {role}")
        admin.connection.execute(f"drop role {role}")


class TestJson:
    async def test_is_one_object_with_these_keys_and_types(self, database_triggers: Database, room: Room) -> None:
        recorder = Recorder()
        async with leading(database_triggers, recorder):
            await recorder.until(lambda: len(recorder.heartbeats) >= 2)
            with transaction(database_triggers) as slow:
                room.say("hello", connection=slow)
                text = await asyncio.to_thread(run, "--json")
        assert text.count("\n") == 1
        assert kinds(json.loads(text)) == {
            "database": "str",
            "at": "time",
            "replica": "bool",
            "epoch": "int",
            "leader": {"pid": "int", "awake": "bool", "host": "NoneType", "since": "time"},
            "relayed": "str",
            "relayed_at": "time",
            "unrelayed": "int",
            "waiting_since": "NoneType",
            "lag": "float",
            "slots": [{"number": "int", "current": "bool", "bytes": "int", "rows": "int", "oldest": "time"}],
            "bytes": "int",
            "oldest": "time",
            "rotated_at": "time",
            "retention": "float",
            "counted_at_most": "int",
            "now": "str",
            "writers": [
                {
                    "pid": "int",
                    "gid": "NoneType",
                    "database": "str",
                    "role": "str",
                    "application": "str",
                    "state": "str",
                    "since": "time",
                }
            ],
        }

    def test_has_null_for_what_there_is_not(self, database: Database) -> None:
        decoded = found()
        assert [decoded[key] for key in ("leader", "relayed_at", "waiting_since", "oldest")] == [None] * 4
        assert [slot["oldest"] for slot in decoded["slots"]] == [None] * 3
        assert decoded["replica"] is False


def kinds(value: Any) -> Any:
    """The names of the types; of a list those of its first item, a time by its form."""
    if isinstance(value, dict):
        return {key: kinds(item) for key, item in value.items()}
    if isinstance(value, list):
        return [kinds(value[0])]
    if isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", value):
        return "time"
    return type(value).__name__


class TestDatabase:
    def test_is_the_one_that_is_named(self, postgres: PostgresServer, room: Room) -> None:
        with new_database(postgres, migrated_template(postgres)) as other, used_by_django(other, "other"):
            assert shown("--database", "other")["lag"] == "none"
            assert found("--database", "other")["database"] == "other"
            assert run("--database", "other").startswith("Journal of database 'other' at ")
            assert shown()["lag"] != "none"

    def test_has_no_journal(self, database: Database) -> None:
        database.connect().execute("drop schema pgnotify_gql cascade")
        assert failure().startswith("database 'default' has no journal: run `manage.py migrate pgnotify_gql")

    def test_is_down(self) -> None:
        sentence = failure()
        assert sentence.startswith("database 'default' cannot be used: connection failed:")
        assert "\n" not in sentence

    def test_is_not_postgresql(self) -> None:
        connections.databases["lite"] = connections.databases["default"] | {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": ":memory:",
        }
        try:
            assert failure("--database", "lite") == "database 'lite' is sqlite: the journal needs PostgreSQL"
        finally:
            del connections["lite"]
            del connections.databases["lite"]

    def test_is_unknown(self) -> None:
        assert "invalid choice: 'nowhere'" in failure("--database", "nowhere")

    @pytest.mark.parametrize("granted", [(), ("usage on schema", "select on all tables in schema")])
    def test_lets_this_role_not_read_all_of_the_journal(
        self, database: Database, monkeypatch: pytest.MonkeyPatch, granted: tuple[str, ...]
    ) -> None:
        with own_role(database) as (role, admin):
            for grant in granted:
                admin.connection.execute(f"grant {grant} pgnotify_gql to {role}")
            monkeypatch.setitem(connections.databases["default"], "USER", role)
            assert failure().startswith("database 'default' cannot be used: permission denied for ")

    def test_may_be_a_replica(self, postgres: PostgresServer) -> None:
        primary = PostgresServer.create(postgres.version, postgres.bin_path)
        try:
            with new_database(primary, migrated_template(primary)) as database:
                with used_by_django(database):
                    call_command("install_triggers", stdout=StringIO())
                room = Room(database)
                room.say("one", "two")
                replica = primary.standby()
                try:
                    copy = Database(replica, database.name)
                    with used_by_django(copy, "copy"), transaction(database) as slow:
                        room.say("three", connection=slow)
                        lines, decoded = shown("--database", "copy"), found("--database", "copy")
                finally:
                    replica.close()
        finally:
            primary.close()
        assert list(lines) == LABELS
        assert lines["listener"] == "this is a replica; who leads is known to its primary"
        assert lines["lag"].startswith("3 rows not relayed")
        assert lines["slot 0"].endswith("written now")
        assert decoded["replica"] is True
        assert decoded["leader"] is None


class TestCost:
    async def test_between_its_statements_it_holds_no_lock_and_no_snapshot(
        self, database_triggers: Database, room: Room, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Emptying a slot waits for a tenth of a second, and writers of the slot behind it."""
        observer, statements = database_triggers.connect(), 0
        async with opened(database_triggers.conninfo) as connection:
            execute = connection.execute

            async def watched(*arguments: Any) -> Any:
                nonlocal statements
                statements += 1
                result = await execute(*arguments)
                held = observer.execute(
                    "select state, backend_xmin::text, (select array_agg(l.locktype || l.mode) from pg_locks l"
                    " where l.pid = a.pid) from pg_stat_activity a where pid = %s",
                    [connection.info.backend_pid],
                ).fetchall()
                assert held == [("idle", None, None)], arguments[0]
                return result

            monkeypatch.setattr(connection, "execute", watched)
            await inspect(connection)
        assert statements >= 8

    def test_it_waits_for_no_writer_and_for_nobody_who_changes_a_table(self, database_triggers: Database) -> None:
        with transaction(database_triggers) as writer:
            writer.execute("lock table pgnotify_gql.journal, pgnotify_gql.journal_state in exclusive mode")
            assert shown()["slot 0"]

    @pytest.mark.parametrize("direct", [True, False])
    async def test_of_200000_rows_it_reads_no_more_than_it_counts(
        self, database: Database, monkeypatch: pytest.MonkeyPatch, direct: bool
    ) -> None:
        """Behind a pooler, where nothing can be set for the session, it is the planner who has to know."""
        monkeypatch.setattr(inspection, "MOST_COUNTED", 1000)
        writer = database.connect()
        writer.execute(
            "insert into pgnotify_gql.journal (label, kind, rows)"
            " select 'some.model', 'INSERT', '[[[1]]]' from generate_series(1, 200000)"
        )
        async with opened(database.conninfo) as connection:
            if not direct:
                writer.execute("analyze pgnotify_gql.journal_0")
                await connection.execute("reset enable_seqscan; reset enable_bitmapscan; reset plan_cache_mode")
            before = await read(connection)
            inspected = await inspect(connection)
            assert await read(connection) - before < 5 * 1000
        assert inspected.unrelayed == 1000
        assert [slot.rows for slot in inspected.slots] == [1000, 0, 0]
        assert inspected.waiting_since == inspected.oldest


async def read(connection: Connection) -> int:
    """How many rows of the journal a session has read, and told the server of."""
    await connection.execute("select pg_stat_force_next_flush()")
    result = await connection.execute(
        "select sum(seq_tup_read + coalesce(idx_tup_fetch, 0) + (select coalesce(sum(idx_tup_read), 0)"
        " from pg_stat_user_indexes i where i.relid = t.relid))::bigint from pg_stat_user_tables t"
        " where schemaname = 'pgnotify_gql' and relname like 'journal__'"
    )
    ((count,),) = await result.fetchall()
    return int(count)
