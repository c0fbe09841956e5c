"""What is written in the role of a replica, and by logical replication, is captured where a watch asks for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from django.db import connection
from psycopg import sql

from pgnotify_gql.capture import Kind
from pgnotify_gql.capture.installer import plan_install
from pgnotify_gql.journal.change import Change
from tests.support.databases import Database, new_database
from tests.support.feed import eventually
from tests.support.postgres import PostgresServer
from tests.support.watched import Connection, WatchedTable
from tests.support.ways import (
    FORMS,
    INHERITED,
    MILK,
    PARTITIONED,
    PLAIN,
    REPLICATED,
    RUM,
    TEA,
    TRUNCATED,
    Form,
    Listener,
    Way,
    deleted,
    in_every_form,
    inserted,
    made_anew,
    moved,
    require_same,
    row,
    rows_of,
    step,
    updated,
)

GIN, ALE = row(7, "gin"), row(8, "ale")

REPLICATED_FORMS = (
    REPLICATED,
    replace(PARTITIONED, name="replicated, partitioned", replicated=True),
    replace(INHERITED, name="replicated, with a child", replicated=True),
)

AS_REPLICA = "set session_replication_role = replica"

STATEMENTS = (
    step("insert into item (id, name) values (7, 'gin'), (8, 'ale')", inserted(GIN), inserted(ALE)),
    step("update item set version = 1 where id in (1, 3)", updated(TEA, version=1), updated(RUM, version=1)),
    step("update item set id = 9 where id = 2", *moved(MILK, id=9)),
    step("delete from item where id = 1", deleted({**TEA, "version": 1})),
    step("truncate item", TRUNCATED),
    step("insert into item (id, name) values (7, 'gin')", inserted(GIN)),
)


class TestTheRoleOfAReplica:
    @pytest.mark.parametrize("together", [False, True])
    def test_what_is_written_in_it_is_captured_where_the_watch_is_replicated(
        self, database: Database, subtests: pytest.Subtests, together: bool
    ) -> None:
        steps = (step(AS_REPLICA), *STATEMENTS)
        in_every_form(database, Way(steps, together=together, forms=REPLICATED_FORMS), subtests)

    def test_a_replicated_watch_captures_other_sessions_as_well(
        self, database: Database, subtests: pytest.Subtests
    ) -> None:
        in_every_form(database, Way(STATEMENTS, forms=REPLICATED_FORMS), subtests)

    def test_what_is_written_in_it_is_not_captured_otherwise(
        self, database: Database, subtests: pytest.Subtests
    ) -> None:
        """And nobody can know: the triggers are in their place, and the role is that of a session."""
        listener = Listener(database)
        for form in FORMS:
            if not form.replicated:
                with subtests.test(form.name):
                    table = made_anew(form, database)
                    listener.bells()
                    table.run(AS_REPLICA)
                    for each in STATEMENTS:
                        table.run(str(each.statement))
                    assert table.journal() == []
                    assert listener.bells() == 0
                    (step,) = plan_install(connection, [table.watch]).steps
                    assert (step.status, step.statements) == ("INSTALLED", ())
                    table.run("reset session_replication_role")
                    table.run("delete from item")
                    assert table.seen() == [("DELETE", 7)]

    def test_a_partition_that_is_attached_later_is_captured_too(self, database: Database) -> None:
        table = REPLICATED_FORMS[1].make(database)
        table.run("alter table item detach partition item_high; truncate item_high")
        table.run("alter table item attach partition item_high for values from (3) to (maxvalue)")
        table.journal()
        table.run(AS_REPLICA)
        table.run("insert into item (id, name) values (7, 'gin')")
        assert table.seen() == [("INSERT", 7)]


SAME = step("update item set version = version")

LAST = "insert into item (id, name) values (99, 'last')"
"""What arrives last, so that whatever else was on its way is there."""


@contextmanager
def subscribed(database: Database, publisher: Connection) -> Iterator[None]:
    """Replicate the publisher's items into a database of the same server."""
    slot = f"shop_{database.name}"
    # By hand: CREATE SUBSCRIPTION would wait for its own transaction to end, as the publisher is the same server.
    publisher.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])
    subscriber = database.connect()
    subscriber.execute(
        sql.SQL(
            "create subscription shop connection {} publication shop with (create_slot = false, slot_name = {})"
        ).format(sql.Literal(database.server.conninfo(publisher.info.dbname)), sql.Identifier(slot))
    )
    try:
        # A TRUNCATE that arrives while the first rows are copied waits for the lock of who copies, who waits for it.
        wait(lambda: copied(subscriber))
        yield
    finally:
        subscriber.execute("drop subscription shop")


def copied(subscriber: Connection) -> bool:
    """Whether the rows from before the subscription are there, and what is written arrives as it is written."""
    return subscriber.execute("select srsubstate::text from pg_subscription_rel").fetchall() == [("r",)]


class TestLogicalReplication:
    """Two databases of one server: what is written in one arrives in the other, where the table is watched."""

    @pytest.fixture
    def publisher(self, postgres: PostgresServer) -> Iterator[Connection]:
        """A session in another database, which has the same rows and no triggers."""
        with new_database(postgres) as other:
            connection = other.connect()
            connection.execute(PLAIN.create)
            connection.execute("insert into item (id, name) values (1, 'tea'), (2, 'milk'), (3, 'rum')")
            connection.execute("create publication shop for table item")
            yield connection

    @pytest.mark.parametrize("form", REPLICATED_FORMS, ids=str)
    def test_what_is_copied_and_what_arrives_is_captured_and_rings(
        self, database: Database, publisher: Connection, form: Form
    ) -> None:
        table = form.make(database)
        table.run("truncate item")
        table.journal()
        listener = Listener(database)
        changes: list[Change] = []
        with subscribed(database, publisher):
            wait(lambda: arrived(table, changes, 3))
            for each in (*STATEMENTS, SAME):
                publisher.execute(str(each.statement))
            with publisher.transaction():
                publisher.execute("insert into item (id, name) values (8, 'ale')")
                publisher.execute("update item set note = 'x'")
                publisher.execute("delete from item where id = 7")
            publisher.execute(LAST)
            wait(lambda: arrived(table, changes, 99))
        groups = [
            [inserted(TEA), inserted(MILK), inserted(RUM)],
            *(each.changes for each in STATEMENTS),
            [inserted(ALE)],
            [updated(GIN, note="x"), updated(ALE, note="x")],
            [deleted({**GIN, "note": "x"})],
            [inserted(row(99, "last"))],
        ]
        require_same(changes, form, groups)
        assert rows_of(table) == {8: {**ALE, "note": "x"}, 99: row(99, "last")}
        assert listener.bells() == len({change.xid for change in changes}) == 1 + len(STATEMENTS) + 2

    def test_what_arrives_is_not_captured_if_the_watch_is_not_replicated(
        self, database: Database, publisher: Connection
    ) -> None:
        table = PLAIN.make(database)
        table.run("truncate item")
        table.journal()
        with subscribed(database, publisher):
            for each in STATEMENTS:
                publisher.execute(str(each.statement))
            publisher.execute(LAST)
            wait(lambda: 99 in rows_of(table))
        assert table.journal() == []


def wait(condition: Callable[[], bool]) -> None:
    """Wait for what another process brings."""
    asyncio.run(eventually(condition))


def arrived(table: WatchedTable, changes: list[Change], pk: int) -> bool:
    """Collect what is there; return whether the insert of a key is among it."""
    changes += table.changes()
    return any((change.kind, change.pk) == (Kind.INSERT, pk) for change in changes)
