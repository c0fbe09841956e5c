"""`manage.py tail_changes`: what it prints of a change, where it begins, how it ends, and what it survives."""

from __future__ import annotations

import array
import asyncio
import fcntl
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, aclosing, contextmanager
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any

import psutil
import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.db import connections
from django.test import override_settings

from pgnotify_gql.capture import Kind
from pgnotify_gql.capture.registry import Registry
from pgnotify_gql.capture.registry import registry as watches
from pgnotify_gql.journal import Snapshot, reader
from pgnotify_gql.journal.change import Source
from pgnotify_gql.journal.position import Position
from pgnotify_gql.journal.sighting import Sighting
from pgnotify_gql.journal.tail import Tail
from pgnotify_gql.management import sightings
from tests.support.databases import Database, migrated_template, new_database
from tests.support.feed import (
    CONVERSATION,
    EVENT_TIMEOUT,
    MESSAGE,
    Recorder,
    Room,
    leading,
    opener,
    sessions,
    terminate,
    transaction,
)
from tests.support.postgres import PostgresServer
from tests.support.processes import CHECKOUT, PgBouncer
from tests.support.watched import LINE_SQL, Line, watched

# What is read is tested in test_journal_reader.py, on each version.
pytestmark = pytest.mark.postgres("18")

TIME = r"\d\d\d\d-\d\d-\d\d \d\d:\d\d:\d\d\.\d\d\d"

APPLICATION = "pgnotify_gql tail"

NEWS = "insert into pgnotify_gql.journal (label, kind, rows, at) values (%s, %s, %s, %s)"

READY = "showing changes of"

ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
"""As users have it: what a buffer still holds at the end is a case of its own."""


def run(*arguments: str) -> tuple[list[str], str]:
    """Run the command to its end; return the lines it prints, and its remarks."""
    output, remarks = StringIO(), StringIO()
    call_command("tail_changes", *arguments, stdout=output, stderr=remarks)
    return output.getvalue().splitlines(), remarks.getvalue()


def shown(*arguments: str) -> list[str]:
    """What it prints of all that there is since `--since`."""
    return run(*arguments, "--no-follow")[0]


def objects(*arguments: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in shown("--json", *arguments)]


def failure(*arguments: str) -> str:
    """Run the command, which must fail with exit status 1, and return the sentence it ends with."""
    with pytest.raises(CommandError) as caught:
        run(*arguments)
    assert caught.value.returncode == 1
    return str(caught.value)


def cursor_of(database: Database) -> str:
    """The cursor from which on only what comes now is new."""
    found = database.connect().execute("select pg_current_snapshot()::text").fetchone()
    assert found is not None
    return str(found[0])


def journaled(
    database: Database, rows: str = "[[[1]]]", *, label: str = MESSAGE, kind: str = "INSERT", at: datetime | None = None
) -> None:
    """Write into the journal itself, as triggers would."""
    database.connect().execute(NEWS, [label, kind, rows, at or datetime.now(UTC)])


@pytest.fixture
def room(database_triggers: Database) -> Room:
    return Room(database_triggers)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """An empty one, in place of the one that holds the example's watches."""
    registry = Registry()
    monkeypatch.setattr("pgnotify_gql.management.commands.tail_changes.registry", registry)
    return registry


@contextmanager
def alias(name: str, **parameters: Any) -> Iterator[None]:
    """Another alias for Django, like the default one but for these parameters."""
    connections.databases[name] = connections.databases["default"] | parameters
    try:
        yield
    finally:
        connections[name].close()
        del connections[name]
        del connections.databases[name]


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (datetime(2026, 7, 1, 12, 0, 0, 123456, UTC), "2026-07-01T12:00:00.123456+00:00"),
        (datetime(2026, 7, 1, 12, 0, 0, 123456), "2026-07-01T12:00:00.123456"),
        (datetime(2026, 7, 1, 12, 0, 0, 123456).time(), "12:00:00.123456"),
    ],
)
def test_moments_in_json_keep_their_microseconds(value: Any, written: str) -> None:
    assert json.loads(json.dumps(value, cls=sightings.ValueEncoder)) == written


class GoneReader(StringIO):
    """An output without a file, whose reader has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


class TestLines:
    def test_tell_time_kind_model_key_transaction_and_delay(self, database_triggers: Database, room: Room) -> None:
        begin = cursor_of(database_triggers)
        (key,) = room.say("hello")
        (xid,) = room.connection.execute("select xid::text from pgnotify_gql.journal order by id desc").fetchone() or ()
        (line,) = shown("--since", begin)
        assert re.fullmatch(rf"{TIME} INSERT   conversations\.message  {key}  xid {xid}  \d+ ms", line)

    def test_of_updates_name_the_changed_columns(self, database_triggers: Database, room: Room) -> None:
        (key,) = room.say("hello")
        begin = cursor_of(database_triggers)
        room.edit(key, "bye")
        (line,) = shown("--since", begin)
        assert re.search(rf" UPDATE   conversations\.message  {key}  \[text\]  xid ", line)

    def test_of_updates_without_images_name_no_columns(self, database_triggers: Database, room: Room) -> None:
        begin = cursor_of(database_triggers)
        room.connection.execute("update conversations_conversation set title = 'new'")
        (line,) = shown("--since", begin)
        assert re.search(rf" UPDATE   conversations\.conversation  {room.conversation}  xid ", line)

    def test_show_the_context_of_the_change(self, database_triggers: Database, room: Room) -> None:
        begin = cursor_of(database_triggers)
        with room.connection.transaction():
            room.connection.execute("select set_config('pgnotify_gql.context', %s, true)", ['{"user": "Jörg"}'])
            room.say("hello")
        (line,) = shown("--since", begin)
        assert line.endswith(' ms  {"user": "Jörg"}')

    def test_of_truncate_have_no_key(self, database_triggers: Database, room: Room) -> None:
        begin = cursor_of(database_triggers)
        room.connection.execute("truncate conversations_message")
        (line,) = shown("--since", begin)
        assert re.search(r" TRUNCATE conversations\.message  xid \d+  \d+ ms$", line)

    def test_are_one_for_each_change_of_a_statement(self, database_triggers: Database, room: Room) -> None:
        begin = cursor_of(database_triggers)
        room.say_at_once(3)
        keys = [line.split("  ")[2] for line in shown("--since", begin)]
        assert keys == [
            str(key) for (key,) in room.connection.execute("select id from conversations_message order by id")
        ]

    def test_show_old_and_new_values_when_asked(self, database_triggers: Database, room: Room) -> None:
        begin = cursor_of(database_triggers)
        (key,) = room.say("it's\nnew")
        room.edit(key, "other")
        room.connection.execute("delete from conversations_message")
        lines = shown("--since", begin, "--values")
        assert [line for line in lines if line.startswith(" ")] == [
            f"    conversation: {room.conversation}",
            f"    author: {room.author}",
            '    text: "it\'s\\nnew"',
            "    text: \"it's\\nnew\" -> 'other'",
            f"    conversation: {room.conversation}",
            f"    author: {room.author}",
            "    text: 'other'",
        ]

    def test_of_a_model_that_is_not_watched_here_show_its_raw_key(self, database: Database) -> None:
        items, lines = watched(database), watched(database, Line, LINE_SQL)
        begin = cursor_of(database)
        items.run("insert into item (id) values (7)")
        lines.run("insert into line values (1, 'a', 1)")
        first, second = shown("--since", begin)
        assert " INSERT   stock.item  7  (not watched here)  xid " in first
        assert " INSERT   stock.line  (1, 'a')  (not watched here)  xid " in second

    def test_of_a_key_that_the_watch_does_not_know_show_it_raw(self, database_triggers: Database) -> None:
        """As after a migration that changed the key, until the triggers are installed again."""
        begin = cursor_of(database_triggers)
        journaled(database_triggers, '[[["a", 2]]]')
        assert " INSERT   conversations.message  ('a', 2)  xid " in shown("--since", begin)[0]
        assert objects("--since", begin)[0]["pk"] == ["a", 2]

    @pytest.mark.parametrize(
        ("kind", "rows"), [("UPDATE", '[[[1], 5, {"text": "a"}]]'), ("INSERT", "[[[1], null, 5]]"), ("DELETE", "5")]
    )
    def test_of_what_cannot_be_decoded_say_so_and_the_next_ones_follow(
        self, database_triggers: Database, room: Room, kind: str, rows: str
    ) -> None:
        begin = cursor_of(database_triggers)
        journaled(database_triggers, rows, kind=kind)
        room.say("hello")
        bad, good = shown("--since", begin)
        assert re.search(rf"{kind:<8} conversations\.message  cannot be decoded \(\w+Error: 'int' .+\)  xid \d", bad)
        assert "INSERT" in good
        assert shown("--since", begin, "--values")[1] == f"    {rows}"
        bad_object, good_object = objects("--since", begin, "--values")
        assert "Error: 'int' object" in bad_object["error"]
        assert (bad_object["raw"], bad_object["pk"], bad_object["model"]) == (rows, None, MESSAGE)
        assert "error" not in good_object

    def test_of_a_kind_that_this_version_does_not_know_say_so_unless_kinds_were_chosen(
        self, database_triggers: Database, room: Room
    ) -> None:
        begin = cursor_of(database_triggers)
        journaled(database_triggers, "[[[1]]]", kind="ARCHIVE")
        room.say("hello")
        unknown, known = shown("--since", begin)
        assert "ARCHIVE  conversations.message  cannot be decoded" in unknown
        assert "'ARCHIVE' is not a valid Kind" in unknown
        assert "INSERT" in known
        (only,) = shown("--since", begin, "--kind", "INSERT")
        assert only.split("  xid")[0] == known.split("  xid")[0]

    def test_never_hold_what_a_terminal_would_obey(self, database_triggers: Database, room: Room) -> None:
        begin = cursor_of(database_triggers)
        with room.connection.transaction():
            context = json.dumps({"a": "\x9b2J\x7f"}, ensure_ascii=False)
            room.connection.execute("select set_config('pgnotify_gql.context', %s, true)", [context])
            room.say("\x1b[2J")
        journaled(database_triggers, '[[["\\u001b[2J"]]]', label="\x1b[2J\n")
        assert all(line.isprintable() for line in shown("--since", begin, "--values"))
        assert len(shown("--since", begin)) == 2

    def test_show_the_local_time(self, database_triggers: Database) -> None:
        journaled(database_triggers, at=datetime(2026, 7, 1, 20, 0, 0, 120_000, tzinfo=UTC))
        with override_settings(TIME_ZONE="Asia/Tokyo"):
            (line,) = shown("--since", "2026-07-01T20:00:00Z")
        assert line.startswith("2026-07-02 05:00:00.120 INSERT ")

    def test_show_the_time_from_the_statement_to_our_seeing_it(self, database_triggers: Database) -> None:
        begin = cursor_of(database_triggers)
        journaled(database_triggers, at=datetime.now(UTC) - timedelta(hours=1))
        (line,) = shown("--since", begin)
        delay = int(line.removesuffix(" ms").rpartition(" ")[2])
        assert 3_600_000 <= delay < 3_600_000 + EVENT_TIMEOUT * 1000


class TestJson:
    def test_is_an_object_a_line_with_these_keys(self, database_triggers: Database, room: Room) -> None:
        (key,) = room.say("hello")
        begin = cursor_of(database_triggers)
        with room.connection.transaction():
            room.connection.execute("""select set_config('pgnotify_gql.context', '{"request_id": "r1"}', true)""")
            room.edit(key, "bye")
        (xid,) = room.connection.execute("select max(xid::text::bigint) from pgnotify_gql.journal").fetchone() or ()
        (at,) = room.connection.execute("select at from pgnotify_gql.journal order by id desc").fetchone() or ()
        (found,) = objects("--since", begin)
        assert datetime.fromisoformat(found.pop("at")) == at
        assert 0 <= found.pop("delay_ms") < EVENT_TIMEOUT * 1000
        assert Snapshot.parse(found.pop("cursor")).sees(xid)
        assert found == {
            "kind": "UPDATE",
            "model": MESSAGE,
            "pk": key,
            "changed": ["text"],
            "xid": xid,
            "context": {"request_id": "r1"},
        }

    def test_has_null_for_what_there_is_not(self, database_triggers: Database, room: Room) -> None:
        begin = cursor_of(database_triggers)
        room.connection.execute("truncate conversations_message")
        (found,) = objects("--since", begin, "--values")
        assert [found[key] for key in ("pk", "changed", "context", "old", "new")] == [None] * 5

    def test_has_old_and_new_values_when_asked(self, database_triggers: Database, room: Room) -> None:
        (key,) = room.say("hello")
        begin = cursor_of(database_triggers)
        room.edit(key, "bye")
        (found,) = objects("--since", begin, "--values")
        same = {"conversation": room.conversation, "author": room.author}
        assert (found["old"], found["new"]) == ({**same, "text": "hello"}, {**same, "text": "bye"})

    def test_has_a_list_for_a_composite_key(self, database: Database) -> None:
        lines = watched(database, Line, LINE_SQL)
        begin = cursor_of(database)
        lines.run("insert into line values (1, 'a', 1)")
        assert objects("--since", begin)[0]["pk"] == [1, "a"]

    def test_bears_values_that_json_has_no_form_for(self) -> None:
        values = {"nan": float("nan"), "more": [float("-inf"), 1.5], "bytes": b"\x00\xff", "other": Kind, "é": "é"}
        assert json.loads(sightings._dumps(values), parse_constant=pytest.fail) == {
            "nan": "NaN",
            "more": ["-Infinity", 1.5],
            "bytes": "\\x00ff",
            "other": str(Kind),
            "é": "é",
        }

    def test_is_alone_on_stdout(self, database_triggers: Database, room: Room) -> None:
        output, remarks = run("--json", "--since", "1h", "--no-follow", "auth.User")
        assert output == []
        assert "auth.user is not watched" in remarks


class TestSince:
    def test_a_time_shows_what_was_written_from_then_on(self, database_triggers: Database) -> None:
        for minute in range(3):
            journaled(database_triggers, f"[[[{minute}]]]", at=datetime(2026, 7, 1, 12, minute, tzinfo=UTC))

        def keys(since: str) -> list[int]:
            return [found["pk"] for found in objects("--since", since)]

        assert keys("2026-07-01T12:01:00Z") == [1, 2]
        assert keys("2026-07-01 14:01:00+02:00") == [1, 2]
        assert keys("2026-07-01T12:01:00.001") == [2]
        assert keys("2026-07-01") == [0, 1, 2]
        with override_settings(TIME_ZONE="Asia/Tokyo"):
            assert keys("2026-07-01T21:02") == [2]

    @pytest.mark.parametrize(("ago", "seconds"), [("90s", 90), ("10m", 600), ("2h", 7200), ("1d", 86400)])
    def test_how_long_ago_shows_what_was_written_from_then_on(
        self, database_triggers: Database, ago: str, seconds: int
    ) -> None:
        begin = datetime.now(UTC) - timedelta(seconds=seconds)
        journaled(database_triggers, "[[[1]]]", at=begin - timedelta(seconds=EVENT_TIMEOUT))
        journaled(database_triggers, "[[[2]]]", at=begin + timedelta(seconds=EVENT_TIMEOUT))
        assert [found["pk"] for found in objects("--since", ago)] == [2]

    def test_long_before_there_was_a_calendar_shows_everything(self, database_triggers: Database) -> None:
        journaled(database_triggers)
        assert len(objects("--since", "999999999d")) == 1

    def test_a_time_shows_later_rows_of_a_transaction_and_not_its_earlier_ones(
        self, database_triggers: Database
    ) -> None:
        with transaction(database_triggers) as writer:
            writer.execute(NEWS, [MESSAGE, "INSERT", "[[[1]]]", datetime(2026, 7, 1, tzinfo=UTC)])
            journaled(database_triggers, "[[[2]]]", at=datetime(2026, 7, 1, tzinfo=UTC))
            writer.execute(NEWS, [MESSAGE, "INSERT", "[[[3]]]", datetime(2026, 7, 2, tzinfo=UTC)])
            writer.commit()
        assert [found["pk"] for found in objects("--since", "2026-07-02")] == [3]

    def test_a_cursor_goes_on_without_a_gap_or_a_repetition(self, database_triggers: Database, room: Room) -> None:
        begin = cursor_of(database_triggers)
        with transaction(database_triggers) as late:
            room.say("late", connection=late)
            room.say("first")
            (first,) = objects("--since", begin, "--values")
            late.commit()
        room.say("second")
        rest = objects("--since", first["cursor"], "--values")
        assert [found["new"]["text"] for found in (first, *rest)] == ["first", "late", "second"]
        assert objects("--since", rest[-1]["cursor"]) == []

    @pytest.mark.parametrize("size", [1, 3, 400])
    def test_a_cursor_within_a_batch_goes_on_where_it_was_left(
        self, database_triggers: Database, room: Room, size: int
    ) -> None:
        """However the batch was made: statements of many rows, many statements, a backlog that is read in parts."""
        begin = cursor = cursor_of(database_triggers)
        room.say_at_once(5, "many ")
        for number in range(600 if size > 100 else 5):
            room.say(f"single {number}")
        found: list[str] = []
        while part := objects("--since", cursor, "--limit", str(size), "--values"):
            assert len(part) <= size
            found += [change["new"]["text"] for change in part]
            cursor = part[-1]["cursor"]
        assert found == [change["new"]["text"] for change in objects("--since", begin, "--values")]
        assert len(found) == len(set(found)) >= 10

    def test_a_cursor_older_than_the_journal_is_said_so_and_what_is_left_is_shown(
        self, database_triggers: Database, room: Room
    ) -> None:
        begin = cursor_of(database_triggers)
        room.say("emptied")
        room.connection.execute("truncate pgnotify_gql.journal")
        room.connection.execute(
            "update pgnotify_gql.journal_state set emptied = pg_current_snapshot(),"
            " emptied_xid = pg_snapshot_xmax(pg_current_snapshot())"
        )
        # Twice what is read at once, and yet it is said once.
        room.say(*(f"left {number}" for number in range(1000)))
        lines, remarks = run("--since", begin, "--no-follow")
        assert len(lines) == 1000
        assert remarks.count("some are missing here, showing what is left: changes after this cursor have left") == 1

    def test_a_time_before_what_the_journal_still_holds_is_said_so(
        self, database_triggers: Database, room: Room
    ) -> None:
        room.connection.execute("update pgnotify_gql.journal_state set emptied_xid = '1'")
        room.say("left")
        assert "the journal goes back less far" in run("--since", "1d", "--no-follow")[1]
        assert "the journal goes back less far" not in run("--since", "10m", "--no-follow")[1]

    def test_a_time_before_the_first_change_is_no_news(self, database_triggers: Database, room: Room) -> None:
        room.say("first")
        assert "the journal goes back" not in run("--since", "1d", "--no-follow")[1]

    @pytest.mark.parametrize("cursor", ["99999999:99999999:", "1:2:/99999998:99999999:/1/1"])
    def test_a_cursor_of_another_database_is_refused(self, database_triggers: Database, cursor: str) -> None:
        assert "it is of another database, or this one was put back" in failure("--since", cursor, "--no-follow")

    @pytest.mark.parametrize(
        "text",
        [
            *("", "yesterday", "10", "10 minutes", "-10m", "1w", "10:30:15", "2026-13-01"),
            *("3:2:", "812:815", "812:815:816", "812:815:1,2", "812:815:/816", "1:2:/3:4:/5/6/7", "1:2:/9:3:/1/1"),
        ],
    )
    def test_anything_else_is_refused_with_what_is_accepted(self, database_triggers: Database, text: str) -> None:
        sentence = failure(f"--since={text}", "--no-follow")
        assert sentence.startswith(f"--since {text}: it takes a time (2026-01-31T14:30")
        assert "30s, 10m, 2h, 1d" in sentence
        assert "812:815:812" in sentence


class TestFilters:
    @pytest.fixture
    def begin(self, database_triggers: Database) -> str:
        """A cursor before one change of each kind."""
        begin = cursor_of(database_triggers)
        room = Room(database_triggers)
        (key,) = room.say("hello")
        room.edit(key, "bye")
        room.connection.execute("delete from conversations_message")
        room.connection.execute("truncate conversations_message")
        return begin

    def test_of_a_kind_may_be_repeated_and_in_any_case(self, begin: str) -> None:
        found = objects("--since", begin, "--kind", "update", "--kind", "Delete")
        assert [change["kind"] for change in found] == ["UPDATE", "DELETE"]

    def test_of_an_unknown_kind_are_refused(self, begin: str) -> None:
        assert "one of INSERT, UPDATE, DELETE, TRUNCATE, not 'upsert'" in failure("--kind", "upsert")

    @pytest.mark.parametrize(
        ("names", "labels"),
        [
            ([], {CONVERSATION, MESSAGE, "stock.item"}),
            (["Conversations.Message"], {MESSAGE}),
            (["CONVERSATIONS.MESSAGE", "conversations.conversation"], {CONVERSATION, MESSAGE}),
        ],
    )
    def test_of_models_take_their_names_in_any_case(
        self, database: Database, begin: str, names: list[str], labels: set[str]
    ) -> None:
        journaled(database, label="stock.item")
        assert {change["model"] for change in objects("--since", begin, *names)} == labels

    @pytest.mark.parametrize(
        ("name", "hint"),
        [
            ("conversations.Mesage", "did you mean conversations.message or conversations.membership or "),
            ("Message", "did you mean conversations.message?"),
            ("example.conversations.models.Message", "did you mean conversations.message?"),
            ("xqz", "give it as app.Model"),
        ],
    )
    def test_of_an_unknown_model_are_refused_with_the_nearest_ones(self, begin: str, name: str, hint: str) -> None:
        assert failure(name).startswith(f"there is no model '{name}': {hint}")

    def test_end_after_so_many_changes(self, begin: str) -> None:
        assert len(shown("--since", begin, "--limit", "2")) == 2
        assert len(run("--since", begin, "--limit", "2")[0]) == 2

    @pytest.mark.parametrize("limit", ["0", "-1", "x"])
    def test_that_are_no_number_of_changes_are_refused(self, begin: str, limit: str) -> None:
        assert "a whole number above 0" in failure("--since", begin, f"--limit={limit}")

    def test_that_cannot_show_anything_are_refused(self, database: Database) -> None:
        assert failure("--no-follow") == "--no-follow prints what there is since --since: give that as well"


class TestWarnings:
    def remarks(self, *arguments: str) -> str:
        return run("--since", "0s", "--no-follow", *arguments)[1]

    def test_say_nothing_while_all_is_well(self, database_triggers: Database) -> None:
        assert self.remarks() == "showing changes of every model in database 'default' (Ctrl-C ends)\n"
        assert self.remarks("conversations.Message").startswith("showing changes of conversations.message in ")

    def test_a_model_that_is_not_watched(self, database_triggers: Database) -> None:
        assert self.remarks("auth.User").startswith(
            "auth.user is not watched, so nothing of it will arrive: call notify_on_model_changes() on it, "
            "then run `manage.py install_triggers --database default`\n"
        )

    def test_a_watched_model_without_triggers(self, database: Database) -> None:
        sentence = (
            "conversations.message has no triggers in database 'default', so nothing of it will arrive: "
            "run `manage.py install_triggers --database default`\n"
        )
        assert sentence in self.remarks("conversations.message")
        assert "conversations.conversation" not in self.remarks("conversations.message")
        assert sentence in self.remarks()
        assert "conversations.conversation has no triggers" in self.remarks()

    def test_triggers_of_a_model_that_this_process_does_not_watch_are_no_reason(
        self, database_triggers: Database, registry: Registry
    ) -> None:
        assert self.remarks("conversations.message").startswith("showing changes")

    def test_nothing_is_watched(self, database: Database, registry: Registry) -> None:
        assert self.remarks().startswith("no model is watched, so nothing will arrive: call notify_on_model_changes()")

    def test_a_model_of_another_database(self, database_triggers: Database) -> None:
        with (
            alias("other"),
            override_settings(
                DATABASE_ROUTERS=[f"{__name__}.ToOther"], PGNOTIFY_GQL={"DATABASES": ["default", "other"]}
            ),
        ):
            database_triggers.connect().execute("drop trigger pgnotify_gql_insert on conversations_message")
            for name in ("update", "delete", "truncate"):
                database_triggers.connect().execute(f"drop trigger pgnotify_gql_{name} on conversations_message")
            assert self.remarks("conversations.message").startswith(
                "conversations.message is not in database 'default', so nothing of it will arrive: try --database other"
            )

    def test_a_database_that_no_listener_follows(self, database_triggers: Database) -> None:
        with alias("other"):
            assert "PGNOTIFY_GQL['DATABASES'] does not name 'other': no listener relays" in self.remarks(
                "--database", "other"
            )


class ToOther:
    """A router that sends messages to the alias "other"."""

    def db_for_write(self, model: type[Any], **hints: Any) -> str | None:
        return "other" if model._meta.label_lower == MESSAGE else None

    def allow_migrate(self, database: str, app_label: str, model_name: str | None = None, **hints: Any) -> bool | None:
        return database == "other" if model_name == "message" else None


class TestDatabase:
    def test_is_the_one_that_is_named(self, postgres: PostgresServer, database_triggers: Database) -> None:
        with (
            new_database(postgres, migrated_template(postgres)) as second,
            alias("other", NAME=second.name),
            override_settings(PGNOTIFY_GQL={"LISTENER_CONNINFO": database_triggers.conninfo}),
        ):
            journaled(second, "[[[2]]]")
            journaled(database_triggers, "[[[1]]]")
            assert [found["pk"] for found in objects("--since", "1h", "--database", "other")] == [2]
            assert [found["pk"] for found in objects("--since", "1h")] == [1]

    @pytest.mark.postgres("18")
    def test_may_be_behind_a_pooler(
        self, database_triggers: Database, room: Room, pgbouncer: Callable[..., PgBouncer]
    ) -> None:
        begin = cursor_of(database_triggers)
        texts = [f"message {number}" for number in range(1100)]
        room.say(*texts)
        with alias("pooled", HOST="127.0.0.1", PORT=str(pgbouncer(database_triggers).port)):
            found = objects("--since", begin, "--values", "--database", "pooled")
            assert [change["new"]["text"] for change in found] == texts
            assert len(objects("--since", "1h", "--database", "pooled", "conversations.message")) == len(texts)

    def test_has_no_journal(self, database: Database) -> None:
        database.connect().execute("drop schema pgnotify_gql cascade")
        assert failure().startswith("database 'default' has no journal: run `manage.py migrate pgnotify_gql")

    def test_is_down(self) -> None:
        sentence = failure()
        assert sentence.startswith("database 'default' cannot be used: connection failed:")
        assert "\n" not in sentence

    def test_lets_nobody_read_the_journal(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        role = f"reader_{database.name}"
        with database.server.connect() as admin:
            admin.execute(f"create role {role} login")
            try:
                monkeypatch.setitem(connections.databases["default"], "USER", role)
                assert failure("--since", "1h").startswith("database 'default' cannot be used: permission denied for")
            finally:
                admin.execute(f"drop role {role}")

    def test_is_not_postgresql(self) -> None:
        with alias("lite", ENGINE="django.db.backends.sqlite3", NAME=":memory:"):
            assert failure("--database", "lite") == "database 'lite' is sqlite: the journal needs PostgreSQL"

    def test_is_asked_in_vain_where_nobody_reads(self, database_triggers: Database, room: Room) -> None:
        room.say("hello")
        call_command("tail_changes", "--since", "1h", "--no-follow", stdout=GoneReader(), stderr=StringIO())

    def test_is_unknown(self) -> None:
        assert "invalid choice: 'nowhere'" in failure("--database", "nowhere")


class Running:
    """The command as a process, ready as soon as it has said so."""

    def __init__(
        self,
        database: Database,
        *arguments: str,
        output: int | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self._files = ExitStack()
        self._output = self._files.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        self._remarks = self._files.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "manage.py", "tail_changes", *arguments],
            cwd=CHECKOUT,
            env=ENVIRONMENT | {"DATABASE_URL": database.url} | (environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=self._output if output is None else output,
            stderr=self._remarks,
        )
        self.wait_until(lambda: READY in self.remarks)

    @property
    def lines(self) -> list[str]:
        return _content(self._output).splitlines()

    @property
    def remarks(self) -> str:
        return _content(self._remarks)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + EVENT_TIMEOUT
        while not condition():
            assert time.monotonic() < deadline, f"it did not happen:\n{self.lines}\n{self.remarks}"
            time.sleep(0.02)

    def wait_for(self, *texts: str) -> None:
        self.wait_until(lambda: all(any(text in line for line in self.lines) for text in texts))

    def wait(self) -> int:
        return self.process.wait(EVENT_TIMEOUT)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._files.close()


def _content(file: Any) -> str:
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode()


Start = Callable[..., Running]


@pytest.fixture
def start() -> Iterator[Start]:
    with ExitStack() as started:

        def start(*arguments: Any, **options: Any) -> Running:
            running = Running(*arguments, **options)
            started.callback(running.close)
            return running

        yield start


class TestFollowing:
    def test_shows_only_what_comes_from_now_on(self, database_triggers: Database, room: Room, start: Start) -> None:
        room.say("before")
        tail = start(database_triggers, "--values")
        room.say("one", "two")
        tail.wait_for("text: 'two'")
        assert [line.split(": ")[1] for line in tail.lines if "text: " in line] == ["'one'", "'two'"]

    @pytest.mark.postgres("18")
    def test_goes_on_after_what_there_was(self, database_triggers: Database, room: Room, start: Start) -> None:
        begin = cursor_of(database_triggers)
        room.say("before")
        tail = start(database_triggers, "--values", "--since", begin, "conversations.message")
        room.say("after")
        tail.wait_for("text: 'after'")
        assert [line.split(": ")[1] for line in tail.lines if "text: " in line] == ["'before'", "'after'"]

    @pytest.mark.postgres("18")
    def test_a_program_reads_each_line_at_once(self, database_triggers: Database, room: Room, start: Start) -> None:
        ours, its = os.pipe()
        with os.fdopen(ours, "rb", buffering=0) as output:
            tail = start(database_triggers, "--json", output=its)
            os.close(its)
            for number in range(2):
                (key,) = room.say(f"message {number}")
                assert select.select([output], [], [], EVENT_TIMEOUT)[0]
                (line,) = output.read(100_000).splitlines()
                assert json.loads(line)["pk"] == key
            assert tail.process.poll() is None

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    @pytest.mark.postgres("18")
    def test_ends_with_status_0_when_told_to_stop(
        self, database_triggers: Database, start: Start, number: signal.Signals
    ) -> None:
        tail = start(database_triggers)
        before = tail.remarks
        tail.process.send_signal(number)
        assert tail.wait() == 0
        assert tail.remarks == before

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    @pytest.mark.postgres("18")
    def test_ends_when_told_to_stop_while_nobody_takes_its_output(
        self, database_triggers: Database, room: Room, start: Start, number: signal.Signals
    ) -> None:
        """As with a pager that shows the first page: the pipe is full."""
        begin = cursor_of(database_triggers)
        room.say_at_once(5000, "a message of some length ")
        ours, its = os.pipe()
        with os.fdopen(ours, "rb", buffering=0) as output:
            tail = start(database_triggers, "--values", "--since", begin, output=its)
            os.close(its)
            tail.wait_until(lambda: _is_blocked(tail, output.fileno()))
            tail.process.send_signal(number)
            assert tail.wait() == 0
        assert "Traceback" not in tail.remarks
        assert "rror" not in tail.remarks

    def test_keeps_no_transaction_open_while_nobody_takes_its_output(
        self, database_triggers: Database, room: Room, start: Start
    ) -> None:
        """Which would keep VACUUM from its work, and slots of the journal from being emptied."""
        begin = cursor_of(database_triggers)
        texts = [f"message {number}" for number in range(1100)]
        room.say(*texts)
        ours, its = os.pipe()
        with os.fdopen(ours) as output:
            tail = start(
                *(database_triggers, "--json", "--values", "--since", begin),
                output=its,
                environment={"DJANGO_SETTINGS_MODULE": "tests.support.listener_settings", "SESSION_TIMEOUT": "1"},
            )
            os.close(its)
            tail.wait_until(lambda: _is_blocked(tail, output.fileno()))
            tail.wait_until(lambda: not sessions(database_triggers, APPLICATION))
            assert [json.loads(output.readline())["new"]["text"] for _ in texts] == texts
        assert "going on where it was lost" in tail.remarks

    @pytest.mark.postgres("18")
    def test_ends_without_a_traceback_when_its_reader_has_gone(
        self, database_triggers: Database, room: Room, start: Start
    ) -> None:
        """Without another change: nothing has to be written for it to notice."""
        ours, its = os.pipe()
        tail = start(database_triggers, output=its)
        os.close(its)
        os.close(ours)
        assert tail.wait() == 0
        assert "Traceback" not in tail.remarks

    @pytest.mark.postgres("18")
    def test_the_first_lines_may_be_all_that_is_read(self, database_triggers: Database, room: Room) -> None:
        begin = cursor_of(database_triggers)
        room.say_at_once(5000)
        command = f"{sys.executable} manage.py tail_changes --since {begin} | head -n 1; echo ${{PIPESTATUS[0]}}"
        result = subprocess.run(
            ["bash", "-c", command],
            cwd=CHECKOUT,
            env=ENVIRONMENT | {"DATABASE_URL": database_triggers.url},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        line, status = result.stdout.splitlines()
        assert "INSERT" in line
        assert status == "0"
        assert result.stderr.splitlines() == ["showing changes of every model in database 'default' (Ctrl-C ends)"]

    def test_goes_on_when_the_database_is_back(self, database_triggers: Database, room: Room, start: Start) -> None:
        tail = start(database_triggers, "--values")
        room.say("first")
        tail.wait_for("'first'")
        database_triggers.server.stop("immediate")
        tail.wait_until(lambda: "trying again in" in tail.remarks)
        database_triggers.server.start()
        room.connection = database_triggers.connect()
        room.say("second")
        tail.wait_for("'second'")
        room.say("third")
        tail.wait_for("'third'")
        assert [line.split(": ")[1] for line in tail.lines if "text: " in line] == ["'first'", "'second'", "'third'"]
        assert "connected to database 'default' again, going on where it was lost" in tail.remarks

    @pytest.mark.postgres("18")
    def test_can_be_stopped_while_it_waits_for_the_database(self, database_triggers: Database, start: Start) -> None:
        tail = start(database_triggers)
        database_triggers.server.stop("immediate")
        tail.wait_until(lambda: "trying again in" in tail.remarks)
        tail.process.terminate()
        assert tail.wait() == 0
        assert "Traceback" not in tail.remarks

    @pytest.mark.postgres("18")
    def test_a_database_that_is_down_from_the_start_is_one_sentence_and_status_1(self, database: Database) -> None:
        database.server.stop()
        result = subprocess.run(
            [sys.executable, "manage.py", "tail_changes"],
            cwd=CHECKOUT,
            env=ENVIRONMENT | {"DATABASE_URL": database.url},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert result.returncode == 1
        assert result.stdout == ""
        assert result.stderr.startswith("CommandError: database 'default' cannot be used: connection failed: ")
        assert result.stderr.count("\n") == 1

    @pytest.mark.postgres("18")
    def test_holds_no_lock_and_no_snapshot(self, database_triggers: Database, room: Room, start: Start) -> None:
        tail = start(database_triggers)
        room.say("hello")
        tail.wait_until(lambda: bool(tail.lines))
        (pid,) = sessions(database_triggers, APPLICATION)
        with database_triggers.server.connect() as admin:
            for _ in range(20):
                assert admin.execute(
                    "select from pg_locks where pid = %s and locktype = 'advisory'", [pid]
                ).fetchall() == []  # fmt: skip
                assert admin.execute(
                    "select state from pg_stat_activity where pid = %s and state like 'idle in%%'", [pid]
                ).fetchall() == []  # fmt: skip


def _is_blocked(tail: Running, pipe: int) -> bool:
    """Whether it waits for somebody to take what it writes: it sleeps, and the pipe has no room for another line."""
    waiting = array.array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, waiting)
    return waiting[0] > 60_000 and psutil.Process(tail.process.pid).status() == psutil.STATUS_SLEEPING


class TestColours:
    def on_a_terminal(self, database: Database, *arguments: str) -> str:
        """What a terminal is sent by a run that ends by itself."""
        ours, its = pty.openpty()
        with os.fdopen(ours, "rb", buffering=0) as terminal:
            subprocess.run(
                [sys.executable, "manage.py", "tail_changes", "--no-follow", *arguments],
                cwd=CHECKOUT,
                env=ENVIRONMENT | {"DATABASE_URL": database.url, "TERM": "xterm", "DJANGO_COLORS": ""},
                stdout=its,
                stderr=subprocess.DEVNULL,
                check=True,
                timeout=60,
            )
            os.close(its)
            return terminal.read(100_000).decode()

    @pytest.mark.postgres("18")
    def test_mark_the_kind_on_a_terminal(self, database_triggers: Database, room: Room) -> None:
        begin = cursor_of(database_triggers)
        (key,) = room.say("hello")
        room.edit(key, "bye")
        insert, update = self.on_a_terminal(database_triggers, "--since", begin).splitlines()
        assert re.fullmatch(rf"{TIME} \x1b\[32;1mINSERT  \x1b\[0m conversations\.message .*", insert)
        assert re.fullmatch(rf"{TIME} \x1b\[33;1mUPDATE  \x1b\[0m conversations\.message .*", update)

    @pytest.mark.postgres("18")
    @pytest.mark.parametrize("option", ["--no-color", "--json"])
    def test_are_left_out_where_they_are_not_wanted(self, database_triggers: Database, room: Room, option: str) -> None:
        begin = cursor_of(database_triggers)
        room.say("hello")
        assert "\x1b" not in self.on_a_terminal(database_triggers, "--since", begin, option)

    @pytest.mark.postgres("18")
    def test_can_be_forced(self, database_triggers: Database, room: Room) -> None:
        begin = cursor_of(database_triggers)
        room.say("hello")
        (line,) = shown("--since", begin, "--force-color")
        assert "\x1b[32;1mINSERT" in line
        assert "\x1b" not in shown("--since", begin)[0]
        assert "\x1b" not in shown("--since", begin, "--force-color", "--json")[0]


class Onlooker:
    """A tail inside the test's process, and what it has shown."""

    def __init__(self, tail: Tail, told: list[str]) -> None:
        self.told = told
        self.seen: list[Sighting] = []
        self._sightings = tail.sightings()

    async def take(self, count: int) -> list[str]:
        """Take so many changes; return the texts of their messages."""
        taken = []
        async with asyncio.timeout(EVENT_TIMEOUT):
            for _ in range(count):
                sighting = await anext(self._sightings)
                self.seen.append(sighting)
                taken.append(_text(sighting))
        return taken

    async def close(self) -> None:
        await self._sightings.aclose()


def _text(sighting: Sighting) -> str:
    assert sighting.change is not None
    return str((sighting.change.new or {}).get("text"))


@pytest.fixture
async def looking(database_triggers: Database) -> AsyncIterator[Callable[..., Any]]:
    async with aclosing(_Looking(database_triggers)) as looking:
        yield looking.on


class _Looking:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._open: list[tuple[Tail, Onlooker]] = []

    async def on(self, **options: Any) -> Onlooker:
        told: list[str] = []

        def source(label: str) -> Source | None:
            return watches.get(label)

        opening = opener(self._database.conninfo, 0, "test tail")
        tail = Tail(opening, source, told.append, **{"interval": 0.001, "labels": [MESSAGE], **options})
        await tail.__aenter__()
        onlooker = Onlooker(tail, told)
        self._open.append((tail, onlooker))
        return onlooker

    async def aclose(self) -> None:
        for tail, onlooker in self._open:
            await onlooker.close()
            await tail.__aexit__(None, None, None)


class TestTail:
    async def test_and_a_listener_see_the_same_and_do_not_disturb_each_other(
        self, database_triggers: Database, room: Room, looking: Callable[..., Any]
    ) -> None:
        recorder = Recorder()
        async with leading(database_triggers, recorder):
            onlooker = await looking()
            texts = [f"message {number}" for number in range(20)]
            room.say(*texts)
            assert await onlooker.take(20) == texts
            await recorder.has(*texts)
        assert recorder.texts == texts

    async def test_a_session_that_is_ended_in_the_middle_of_a_backlog_costs_nothing(
        self,
        database_triggers: Database,
        room: Room,
        looking: Callable[..., Any],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        # Small parts, so that each session is ended while there are some left to read.
        monkeypatch.setattr(reader, "PART_ROWS", 1)
        begin = cursor_of(database_triggers)
        with transaction(database_triggers) as late, transaction(database_triggers) as later:
            # Their ids are the lowest, and they are committed when higher ones have been taken.
            room.say("late", connection=late)
            room.say("later", connection=later)
            texts = [f"message {number}" for number in range(1700)]
            room.say(*texts)
            onlooker = await looking(since=Position.parse(begin))
            taken = await onlooker.take(700)
            terminate(database_triggers, "test tail")
            late.commit()
            # What had been fetched is shown first; then it begins again, and finds the late one.
            taken += await onlooker.take(600)
            terminate(database_triggers, "test tail")
            later.commit()
        room.say("last")
        while "last" not in taken:
            taken += await onlooker.take(1)
        assert sorted(taken) == sorted([*texts, "late", "later", "last"])
        assert [text for text in taken if text in set(texts)] == texts
        assert sum("going on where it was lost" in sentence for sentence in onlooker.told) == 2

    async def test_a_cursor_in_the_middle_of_a_backlog_loses_nothing_that_commits_late_and_brings_nothing_twice(
        self, database_triggers: Database, room: Room, looking: Callable[..., Any]
    ) -> None:
        begin = cursor_of(database_triggers)
        with transaction(database_triggers) as late:
            room.say("late", connection=late)
            texts = [f"message {number}" for number in range(10)]
            room.say(*texts)
            first = await looking(since=Position.parse(begin))
            taken = await first.take(5)
            late.commit()
        second = await looking(since=Position.parse(str(first.seen[-1].position)))
        # Late by its commit, first by its id.
        taken += await second.take(1)
        assert taken[-1] == "late"
        third = await looking(since=Position.parse(str(second.seen[-1].position)), follow=False)
        assert await third.take(5) == texts[5:]

    async def test_since_a_time_shows_what_commits_afterwards_however_old_it_is(
        self, database_triggers: Database, room: Room, looking: Callable[..., Any]
    ) -> None:
        with transaction(database_triggers) as late:
            room.say("late", connection=late)
            room.say("before")
            onlooker = await looking(since=timedelta(0))
            late.commit()
        assert await onlooker.take(1) == ["late"]

    async def test_what_does_not_mend_by_waiting_ends_it(
        self, database_triggers: Database, room: Room, looking: Callable[..., Any]
    ) -> None:
        onlooker = await looking()
        room.connection.execute("alter table pgnotify_gql.journal rename to gone")
        with pytest.raises(Exception, match="database 'default' has no journal"):
            await onlooker.take(1)
        assert onlooker.told == []

    async def test_without_following_a_lost_database_is_an_error(
        self, database_triggers: Database, room: Room, looking: Callable[..., Any]
    ) -> None:
        begin = Position.parse(cursor_of(database_triggers))
        room.say(*(f"message {number}" for number in range(600)))
        onlooker = await looking(since=begin, follow=False)
        await onlooker.take(1)
        terminate(database_triggers, "test tail")
        with pytest.raises(psycopg.OperationalError):
            await onlooker.take(600)

    async def test_its_delays_do_not_depend_on_our_clock(
        self, database_triggers: Database, room: Room, looking: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Behind(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return datetime.now(tz) - timedelta(hours=1)

        monkeypatch.setattr("pgnotify_gql.journal.tail.datetime", Behind)
        onlooker = await looking()
        room.say("hello")
        await onlooker.take(1)
        assert 0 < onlooker.seen[0].delay < EVENT_TIMEOUT

    async def test_the_seconds_ago_are_those_of_the_server(
        self, database_triggers: Database, room: Room, looking: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Ahead(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return datetime.now(tz) + timedelta(hours=1)

        monkeypatch.setattr("pgnotify_gql.journal.tail.datetime", Ahead)
        room.say("hello")
        onlooker = await looking(since=timedelta(minutes=10))
        assert await onlooker.take(1) == ["hello"]
