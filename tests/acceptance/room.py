"""A conversation of the example, written to by raw SQL: no code of ours runs in the writer."""

from typing import Any

import psycopg

TABLE = "conversations_message"


class Room:
    """One conversation; `probes` are the rows that only find out whether a subscriber is live."""

    def __init__(self, connection: psycopg.Connection, title: str = "Weekend in the hills") -> None:
        """`connection` is in autocommit: every statement is a change of its own."""
        self.connection = connection
        self.id = self._value("select id from conversations_conversation where title = %s", title)
        self.author = self._value("select id from auth_user where username = 'bob'")
        self.probes: set[str] = set()

    def insert(self, text: str) -> str:
        """Returns the key of the new message."""
        return str(
            self._value(
                f"insert into {TABLE} (conversation_id, author_id, text) values (%s, %s, %s) returning id",
                self.id,
                self.author,
                text,
            )
        )

    def update(self, pk: str, text: str) -> None:
        self._value(f"update {TABLE} set text = %s where id = %s returning id", text, pk)

    def delete(self, pk: str) -> None:
        self._value(f"delete from {TABLE} where id = %s returning id", pk)

    def probe(self) -> str:
        """Insert a message that no watcher reports, and return its key."""
        # The key is known before anybody can receive the row.
        pk = str(self._value("select nextval(pg_get_serial_sequence(%s, 'id'))", TABLE))
        self.probes.add(pk)
        self._value(
            f"insert into {TABLE} (id, conversation_id, author_id, text) values (%s, %s, %s, 'probe') returning id",
            pk,
            self.id,
            self.author,
        )
        return pk

    def _value(self, statement: str, *parameters: Any) -> Any:
        found = self.connection.execute(statement.encode(), parameters).fetchone()
        assert found is not None, statement
        return found[0]
