"""Messages of conversations, as they are measured: rows to change, and who subscribes to them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.support import bare
from benchmarks.support.subscribers import NUMBER, Dialogue
from tests.support.databases import Database
from tests.support.watched import Connection, install

SITE = "benchmarks.support.messages_site"
"""The module that server processes import."""

ACKNOWLEDGED = '"connection_ack"'
ANSWERED = '"pong"'

MAKE = """
    with author as (
        insert into auth_user (username, password, is_superuser, first_name, last_name, email, is_staff, is_active,
            date_joined)
        values ('ann', '', false, '', '', '', false, true, now()) returning id
    ), conversations as (
        insert into conversations_conversation (title) select 'room' from generate_series(1, %s) returning id
    )
    insert into conversations_message (conversation_id, author_id, text)
    select conversations.id, author.id, '' from author, conversations, generate_series(1, %s)
    returning conversation_id, id
"""


class Rows:
    """
    Rows that are changed by raw SQL, each change a transaction.

    Changes are numbered, and the number is in the text that is written: a text as it was before would be no change.
    """

    def __init__(self, session: Connection, table: str, keys: Sequence[int]) -> None:
        self._session = session
        self._table = table
        self.keys = keys
        self._numbers = itertools.count(1)

    def change(self) -> int:
        """Change one of the rows, each in its turn; return the number of the change."""
        number = next(self._numbers)
        statement = f"update {self._table} set text = %s where id = %s"
        self._session.execute(statement, [text(number), self.keys[number % len(self.keys)]])
        return number

    def change_all(self) -> int:
        """Change every row, in one statement; return the number of the change."""
        number = next(self._numbers)
        self._session.execute(f"update {self._table} set text = %s", [text(number)])
        return number


@dataclass(frozen=True)
class Conversations:
    """Conversations with ids one behind the other, and all of their messages."""

    first: int
    messages: Rows

    def same(self, field: str) -> Dialogue:
        """Return what those say who all subscribe to the first."""
        return _dialogue(field, str(self.first))

    def own(self, field: str) -> Dialogue:
        """Return what those say of whom each subscribes to another."""
        return _dialogue(field, NUMBER, self.first)


def make_conversations(database: Database, count: int = 1, messages: int = 1) -> Conversations:
    """Make conversations with so many messages each, and install the triggers of the example's watches."""
    from pgnotify_gql.capture.registry import registry

    session = database.connect()
    made = session.execute(MAKE, [count, messages]).fetchall()
    session.execute("vacuum analyze conversations_message")
    install(*registry)
    keys = [pk for _, pk in made]
    return Conversations(min(conversation for conversation, _ in made), Rows(session, "conversations_message", keys))


def make_bare_messages(database: Database, messages: int) -> Rows:
    """Make the table of the bare application, with its trigger and so many rows."""
    session = database.connect()
    session.execute(bare.SETUP)
    session.execute("insert into bare_message select i, '' from generate_series(1, %s) as i", [messages])
    session.execute("vacuum analyze bare_message")
    return Rows(session, "bare_message", range(1, messages + 1))


def text(number: int) -> str:
    """Return the text that a message has after a change, as subscribers look for it."""
    return f"change {number}."


def query(field: str) -> str:
    """Return what is asked of a field."""
    return f"subscription ($conversation: ID!) {{ message: {field}(conversation: $conversation) {{ id text }} }}"


def _dialogue(field: str, conversation: str, first: int = 0) -> Dialogue:
    payload = {"query": query(field), "variables": {"conversation": conversation}}
    subscribe = {"id": "1", "type": "subscribe", "payload": payload}
    return Dialogue(
        [
            ([json.dumps({"type": "connection_init"})], ACKNOWLEDGED),
            # Answered behind the subscription.
            ([json.dumps(subscribe), json.dumps({"type": "ping"})], ANSWERED),
        ],
        first,
    )
