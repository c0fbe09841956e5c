"""Transactions of every kind, and rows that change their partition, in every form of a captured table."""

from __future__ import annotations

import psycopg
import pytest

from tests.support.databases import Database
from tests.support.watched import WatchedTable
from tests.support.ways import (
    FORMS,
    MILK,
    PARTITIONED,
    PLAIN,
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
    way,
    written,
)

GIN, ALE = row(7, "gin"), row(8, "ale")

ADD_GIN = "insert into item (id, name) values (7, 'gin')"
ADD_ALE = "insert into item (id, name) values (8, 'ale')"

TRANSACTIONS = [
    way("rolled back", step("begin"), step(ADD_GIN), step("update item set version = 1"), step("truncate item"),
        step("rollback")),
    way(
        "savepoints",
        step(ADD_GIN, inserted(GIN)),
        step("savepoint one"),
        step("update item set version = 1"),
        step("delete from item where id = 1"),
        step("rollback to one"),
        step("savepoint two"),
        step(ADD_ALE, inserted(ALE)),
        step("release two"),
        step("savepoint three"),
        step("update item set id = 9 where id = 1"),
        step("savepoint four"),
        step("delete from item"),
        step("release four"),
        step("rollback to three"),
        step("update item set id = 0 where id = 1", *moved(TEA, id=0)),
        together=True,
    ),
    way(
        "a savepoint with a truncate",
        step("savepoint one"),
        step("truncate item"),
        step("rollback to one"),
        step("update item set version = 1 where id = 1", updated(TEA, version=1)),
        step("truncate item", TRUNCATED),
        step(ADD_GIN, inserted(GIN)),
        together=True,
    ),
    way(
        "a row that comes and goes",
        step(ADD_GIN, inserted(GIN)),
        step("update item set version = 1 where id = 7", updated(GIN, version=1)),
        step("delete from item where id = 7", deleted({**GIN, "version": 1})),
        together=True,
    ),
    *(
        way(
            f"isolated as {level}",
            step(f"begin isolation level {level}"),
            step("select * from item"),
            step(ADD_GIN, inserted(GIN)),
            step("update item set version = id where id < 3", updated(TEA, version=1), updated(MILK, version=2)),
            step("delete from item where id = 1", deleted({**TEA, "version": 1})),
            step("commit"),
        )
        for level in ("read uncommitted", "repeatable read", "serializable", "serializable, deferrable")
    ),
    way(
        "a stored generated column",
        step("update item set version = 2 where id = 1", updated(TEA, version=2)),
        step("update item set doubled = default"),
        step("update item set id = id + 10", *moved({**TEA, "version": 2}, id=11), *moved(MILK, id=12),
             *moved(RUM, id=13)),
        before="alter table item add doubled int generated always as (version * 2) stored",
    ),
]  # fmt: skip


@pytest.mark.parametrize("way", TRANSACTIONS)
def test_transactions_leave_what_they_committed_in_every_form(
    database: Database, way: Way, subtests: pytest.Subtests
) -> None:
    in_every_form(database, way, subtests)


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_a_transaction_that_cannot_be_serialised_leaves_only_what_its_second_try_did(
    database: Database, subtests: pytest.Subtests, level: str
) -> None:
    for form in FORMS:
        with subtests.test(form.name):
            table = made_anew(form, database)
            writer = database.connect()
            writer.execute(f"begin isolation level {level}")
            writer.execute("insert into item (id, name) select 7, 'gin' from item where id = 1")
            table.run("update item set version = 1 where id = 1")
            with pytest.raises(psycopg.errors.SerializationFailure):
                writer.execute("update item set version = 2 where id = 1")
            writer.execute("rollback")
            writer.execute("update item set version = 2 where id = 1")
            first, second = updated(TEA, version=1), updated({**TEA, "version": 1}, version=2)
            require_same(table.changes(), form, [[first], [second]])


def test_a_row_that_one_statement_updates_twice_is_one_change(database: Database, subtests: pytest.Subtests) -> None:
    """PostgreSQL does one of the two, and does not promise which."""
    for form in FORMS:
        with subtests.test(form.name):
            table = made_anew(form, database)
            table.run(
                "with first as (update item set version = 1 where id = 1 returning id)"
                " update item set version = 2 where id = 1"
            )
            change = updated(TEA, version=rows_of(table)[1]["version"])
            require_same(table.changes(), form, [[change]])


class TestTwoPhases:
    """Where the listener polls; a transaction that has called NOTIFY cannot be prepared."""

    STATEMENTS = (
        ADD_GIN,
        "update item set version = 1 where id = 1",
        "update item set id = 9 where id = 2",
        "truncate item",
        ADD_ALE,
    )

    CHANGES = (
        [inserted(GIN)],
        [updated(TEA, version=1)],
        [*moved(MILK, id=9)],
        [TRUNCATED],
        [inserted(ALE)],
    )

    def prepare(self, table: WatchedTable) -> None:
        table.run("begin")
        for statement in self.STATEMENTS:
            table.run(statement)
        table.run("prepare transaction 'one'")

    def test_a_prepared_transaction_is_captured_when_it_is_committed(
        self, database: Database, subtests: pytest.Subtests
    ) -> None:
        listener = Listener(database)
        for form in FORMS:
            with subtests.test(form.name):
                table = made_anew(form, database, rings=False)
                self.prepare(table)
                assert table.journal() == []
                table.run("commit prepared 'one'")
                require_same(table.changes(), form, self.CHANGES)
                assert listener.bells() == 0

    def test_a_prepared_transaction_that_is_rolled_back_is_not_captured(
        self, database: Database, subtests: pytest.Subtests
    ) -> None:
        for form in FORMS:
            with subtests.test(form.name):
                table = made_anew(form, database, rings=False)
                self.prepare(table)
                table.run("rollback prepared 'one'")
                assert table.journal() == []

    @pytest.mark.parametrize("form", [PLAIN, PARTITIONED], ids=str)
    def test_a_prepared_transaction_outlives_the_server(self, database: Database, form: Form) -> None:
        table = form.make(database, rings=False)
        self.prepare(table)
        database.server.restart()
        table.connection = database.connect()
        assert table.journal() == []
        table.run("commit prepared 'one'")
        require_same(table.changes(), form, self.CHANGES)


BY_VERSION = Form(
    "partitioned by version",
    PLAIN.create.replace("primary key", "not null"),
    relatives="""
        partition by range (version);
        create table item_old partition of item for values from (0) to (10);
        create table item_new partition of item for values from (10) to (20)
    """,
)

MOVES = [
    way("one row", step("update item set version = 10 where id = 1", deleted(TEA), inserted({**TEA, "version": 10}))),
    way(
        "and back",
        step("update item set version = 10 where id = 1", deleted(TEA), inserted({**TEA, "version": 10})),
        step("update item set version = 0 where id = 1", deleted({**TEA, "version": 10}), inserted(TEA)),
        together=True,
    ),
    way(
        "some of the rows",
        step("update item set version = case id when 2 then 1 else 10 end",
             deleted(TEA), inserted({**TEA, "version": 10}), updated(MILK, version=1),
             deleted(RUM), inserted({**RUM, "version": 10})),
    ),
    way("with a new key", step("update item set version = 10, id = 9 where id = 1", *moved(TEA, id=9, version=10))),
    way(
        "by a merge",
        step("merge into item using (values (1)) as wanted (id) on item.id = wanted.id"
             " when matched then update set version = 10",
             deleted(TEA), inserted({**TEA, "version": 10})),
    ),
]  # fmt: skip


class TestPartitions:
    @pytest.mark.parametrize("way", MOVES)
    def test_a_row_that_moves_to_another_partition_is_a_delete_and_an_insert(
        self, database: Database, way: Way
    ) -> None:
        """PostgreSQL fires these triggers, and no trigger of UPDATE."""
        table = BY_VERSION.make(database)
        require_same(written(table, way), BY_VERSION, [step.changes for step in way.steps])

    def test_a_partition_that_comes_or_goes_with_its_rows_is_no_change(self, database: Database) -> None:
        table = BY_VERSION.make(database)
        listener = Listener(database)
        table.run("create table item_newest (like item including all)")
        table.run("insert into item_newest (id, version) values (7, 20)")
        table.run("alter table item attach partition item_newest for values from (20) to (30)")
        table.run("alter table item detach partition item_newest")
        table.run("alter table item attach partition item_newest for values from (20) to (30)")
        assert table.journal() == []
        table.run("update item set name = 'gin' where id = 7")
        table.run("alter table item detach partition item_old concurrently")
        table.run("delete from item_old where id = 1")
        table.run("drop table item_newest")
        assert rows_of(table) == {}
        assert table.seen() == [("UPDATE", 7)]
        assert listener.bells() == 1
