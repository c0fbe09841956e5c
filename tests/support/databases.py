"""
One database per test: a clone of a template that was migrated once per server.

Nothing of a test can leak into the next, transactions commit for real, and a clone takes some 20 ms in memory.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from uuid import uuid4

import psycopg
from django.core.management import call_command
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from psycopg import sql

from tests.support.postgres import PostgresServer

TEMPLATE = "migrated"

# The wrappers of all threads that ever connected: `connections.close_all()` closes those of its own thread
# only, and a worker thread would go on to use the database of the test before.
_connected: set[BaseDatabaseWrapper] = set()


def _remember(connection: BaseDatabaseWrapper, **kwargs: object) -> None:
    _connected.add(connection)


connection_created.connect(_remember)


class Database:
    """A database that belongs to one test."""

    def __init__(self, server: PostgresServer, name: str) -> None:
        self.server = server
        self.name = name
        self._opened = ExitStack()

    @property
    def conninfo(self) -> str:
        """For psycopg, through the unix socket."""
        return self.server.conninfo(self.name)

    @property
    def tcp_conninfo(self) -> str:
        """For psycopg, through TCP: what keepalives and network faults need."""
        return self.server.conninfo(self.name, tcp=True)

    @property
    def url(self) -> str:
        """For the environment variable DATABASE_URL."""
        return f"postgresql://{self.server.user}@127.0.0.1:{self.server.port}/{self.name}"

    def connect(self, **parameters: Any) -> psycopg.Connection:
        """A connection in autocommit, closed at the end of the test; it is not one of Django's."""
        connection = self.server.connect(self.name, **parameters)
        self._opened.callback(connection.close)
        return connection

    def close(self) -> None:
        self._opened.close()


@contextmanager
def new_database(server: PostgresServer, template: str = "template1") -> Iterator[Database]:
    """A copy of `template`, dropped at the end whatever is still connected to it."""
    name = f"test_{uuid4().hex[:12]}"
    create_database(server, name, template)
    database = Database(server, name)
    try:
        yield database
    finally:
        database.close()
        drop_database(server, name)


@contextmanager
def used_by_django(database: Database, alias: str = "default") -> Iterator[None]:
    """Let an alias of Django, a new one if it has none of this name, lead to this database, in every thread."""
    aliases = connections.databases
    before = aliases.get(alias, {}).copy()
    # Changed in place: the wrappers of other threads hold it.
    parameters = aliases.setdefault(alias, aliases["default"].copy())
    forget_connections()
    parameters.update(
        NAME=database.name,
        HOST=str(database.server.directory),
        PORT=str(database.server.port),
        USER=database.server.user,
        PASSWORD="",
    )
    try:
        yield
    finally:
        forget_connections()
        parameters.clear()
        parameters.update(before)
        if not before:
            del aliases[alias]


def migrated_template(server: PostgresServer) -> str:
    """The database to clone: all tables of the example and the journal, and no triggers. Made on first
    use."""
    session = server.session()
    exists = session.execute("select from pg_database where datname = %s", [TEMPLATE]).fetchone()
    if exists is None:
        create_database(server, TEMPLATE)
        with used_by_django(Database(server, TEMPLATE)):
            call_command("migrate", verbosity=0, interactive=False, skip_checks=True)
        # A connection would keep it from being cloned.
        session.execute(sql.SQL("alter database {} allow_connections false").format(sql.Identifier(TEMPLATE)))
    return TEMPLATE


def create_database(server: PostgresServer, name: str, template: str = "template1") -> None:
    # In memory copying the files takes half the time of writing their pages to the log.
    statement = sql.SQL("create database {} template {} strategy file_copy")
    server.session().execute(statement.format(sql.Identifier(name), sql.Identifier(template)))


def drop_database(server: PostgresServer, name: str) -> None:
    # "with (force)" ends sessions, but neither prepared transactions nor replication slots.
    session = server.session()
    if session.execute(HELD, {"name": name}).fetchone() == (True,):
        with server.connect(name) as connection:
            _release(connection)
    session.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


HELD = """
    select exists (select from pg_prepared_xacts where database = %(name)s)
        or exists (select from pg_replication_slots where database = %(name)s)
"""


def _release(connection: psycopg.Connection) -> None:
    for (gid,) in connection.execute("select gid from pg_prepared_xacts where database = current_database()"):
        connection.execute(sql.SQL("rollback prepared {}").format(sql.Literal(gid)))
    connection.execute(
        "select pg_drop_replication_slot(slot_name) from pg_replication_slots"
        " where database = current_database() and not active"
    )


def forget_connections() -> None:
    """Close Django's connections in all threads, and forget what this thread's know about their server."""
    for wrapper in list(_connected):
        wrapper.inc_thread_sharing()
        try:
            wrapper.close()
        finally:
            wrapper.dec_thread_sharing()
    _connected.clear()
    # A wrapper caches the version of its server, and the next test may run on another one.
    for wrapper in connections.all(initialized_only=True):
        del connections[wrapper.alias]
