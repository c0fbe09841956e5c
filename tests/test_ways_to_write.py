"""
Every way to write becomes the same changes, in whichever form a table is captured.

The forms are: statement-level triggers, without and with images; row-level triggers, because the table is replicated,
because it is partitioned, because another one inherits from it.  After each write it is also made sure that the
changes, applied in order, lead from the rows before to the rows after, and that each transaction rang once, or not at
all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tests.support.databases import Database
from tests.support.watched import Connection
from tests.support.ways import (
    FORMS,
    INHERITED,
    MILK,
    PARTITIONED,
    RUM,
    TEA,
    TRUNCATED,
    Form,
    Way,
    deleted,
    in_every_form,
    inserted,
    moved,
    row,
    step,
    updated,
    way,
)


def copied(statement: str, *rows: Sequence[Any], types: Sequence[str] = ()) -> Any:
    """Return what sends rows to a COPY."""

    def run(connection: Connection) -> None:
        with connection.cursor() as cursor, cursor.copy(statement) as copy:
            if types:
                copy.set_types(types)
            for each in rows:
                copy.write_row(each)

    return run


GIN, ALE = row(7, "gin"), row(8, "ale")

INSERTS = [
    way("one", step("insert into item (id, name) values (7, 'gin')", inserted(GIN))),
    way(
        "many",
        step("insert into item (id, name) values (7, 'gin'), (0, 'sap'), (8, 'ale')",
             inserted(GIN), inserted(row(0, "sap")), inserted(ALE)),
    ),
    way("defaults", step("insert into item default values", inserted(row(50)))),
    way(
        "select",
        step("insert into item (id, name) select id + 10, name from item",
             inserted(row(11, "tea")), inserted(row(12, "milk")), inserted(row(13, "rum"))),
    ),
    way("none", step("insert into item (name) select 'gin' where false")),
    way(
        "do nothing on conflict",
        step("insert into item (id, name) values (1, 'x') on conflict do nothing"),
        step("insert into item (id, name) values (1, 'x'), (7, 'gin') on conflict do nothing", inserted(GIN)),
    ),
    way(
        "update on conflict",
        step("insert into item (id) values (1) on conflict (id) do update set version = 1", updated(TEA, version=1)),
        step("insert into item (id, name) values (2, 'soy'), (7, 'gin') on conflict (id) do update"
             " set name = excluded.name",
             updated(MILK, name="soy"), inserted(GIN)),
    ),
    way(
        "update nothing on conflict",
        step("insert into item (id) values (1) on conflict (id) do update set version = 1 where false"),
        step("insert into item (id) values (1), (2) on conflict (id) do update set name = item.name"),
    ),
    way(
        "update the key on conflict",
        step("insert into item (id) values (1) on conflict (id) do update set id = 0", *moved(TEA, id=0)),
    ),
]  # fmt: skip

UPDATES = [
    way("one", step("update item set version = 1 where id = 1", updated(TEA, version=1))),
    way(
        "all",
        step("update item set version = id, note = name",
             updated(TEA, version=1, note="tea"), updated(MILK, version=2, note="milk"),
             updated(RUM, version=3, note="rum")),
    ),
    way("none", step("update item set version = 1 where false")),
    way(
        "nothing different",
        step("update item set version = version where id = 1"),
        step("update item set version = version, name = upper(lower(name))", *[
            updated(TEA, name="TEA"), updated(MILK, name="MILK"), updated(RUM, name="RUM")]),
        step("update item set version = version, name = upper(name)"),
    ),
    way("some different", step("update item set version = 1 where id = 1", updated(TEA, version=1)),
          step("update item set version = 1", updated(MILK, version=1), updated(RUM, version=1))),
    way("a key", step("update item set id = 9, version = 1 where id = 1", *moved(TEA, id=9, version=1))),
    way(
        "all keys",
        step("update item set id = id + 10", *moved(TEA, id=11), *moved(MILK, id=12), *moved(RUM, id=13)),
    ),
    way(
        "keys that shift onto each other",
        step("update item set id = id - 1", *moved(TEA, id=0), deleted(MILK), inserted({**MILK, "id": 1}),
             deleted(RUM), inserted({**RUM, "id": 2})),
    ),
    way(
        "some keys",
        step("update item set id = case id when 2 then 9 else id end, note = case id when 3 then 'x' end",
             *moved(MILK, id=9), updated(RUM, note="x")),
    ),
    way(
        "from another table",
        step("update item set version = price from price where price.item = item.id",
             updated(TEA, version=10), updated(RUM, version=30)),
        before="create table price as select * from (values (1, 10), (1, 10), (3, 30)) as price (item, price)",
    ),
]  # fmt: skip

DELETES = [
    way("one", step("delete from item where id = 1", deleted(TEA))),
    way("all", step("delete from item", deleted(TEA), deleted(MILK), deleted(RUM))),
    way("none", step("delete from item where false")),
    way(
        "using another table",
        step("delete from item using sold where sold.item = item.id", deleted(TEA), deleted(RUM)),
        before="create table sold as select * from (values (1), (1), (3)) as sold (item)",
    ),
]

TRUNCATES = [
    way("alone", step("truncate item", TRUNCATED)),
    way("an empty table", step("delete from item where id > 0", deleted(TEA), deleted(MILK), deleted(RUM)),
          step("truncate item", TRUNCATED)),
    way(
        "numbers start again",
        step("select nextval('item_number')"),
        step("truncate item restart identity", TRUNCATED),
        step("insert into item (name) values ('gin')", inserted(row(50, "gin"))),
    ),
    way(
        "with a table that refers to it",
        step("truncate item, sale", TRUNCATED),
        before="create table sale (item bigint references item)",
    ),
    way(
        "by a table that it refers to",
        step("truncate maker cascade", TRUNCATED),
        before="create table maker (id int primary key); alter table item add maker int references maker",
        forms=[form for form in FORMS if form is not INHERITED],  # see below
    ),
    way(
        "twice in a transaction, with rows between",
        step("truncate item", TRUNCATED),
        step("insert into item (id, name) values (7, 'gin')", inserted(GIN)),
        step("truncate item", TRUNCATED),
        step("insert into item (id, name) values (8, 'ale')", inserted(ALE)),
        together=True,
    ),
    way("in two transactions", step("truncate item", TRUNCATED), step("truncate item", TRUNCATED)),
]  # fmt: skip

BINARY_TYPES = ("int8", "text")

COPIES = [
    way(
        "text",
        step(copied("copy item (id, name) from stdin", (7, "gin"), (0, "a\tb\n\\"), (8, "ale")),
             inserted(GIN), inserted(row(0, "a\tb\n\\")), inserted(ALE)),
    ),
    way(
        "binary",
        step(copied("copy item (id, name) from stdin (format binary)", (7, "gin"), (8, "ale"), types=BINARY_TYPES),
             inserted(GIN), inserted(ALE)),
    ),
    way("one row", step(copied("copy item (id, name) from stdin", (7, "gin")), inserted(GIN))),
    way("no rows", step(copied("copy item (id, name) from stdin"))),
    way(
        "some of the rows",
        step(copied("copy item (id, name) from stdin where id > 7", (7, "gin"), (8, "ale")), inserted(ALE)),
    ),
    way(
        "frozen",
        step("truncate item", TRUNCATED),
        step(copied("copy item (id, name) from stdin (freeze)", (7, "gin"), (8, "ale")), inserted(GIN), inserted(ALE)),
        together=True,
        forms=[form for form in FORMS if form is not PARTITIONED],  # refused by PostgreSQL
    ),
    way("out", step("copy (select * from item) to '/dev/null'")),
]  # fmt: skip

MERGE = "merge into item using (values (1), (2), (7)) as wanted (id) on item.id = wanted.id"

MERGES = [
    way("update", step(f"{MERGE} when matched then update set version = wanted.id",
                         updated(TEA, version=1), updated(MILK, version=2))),
    way("delete", step(f"{MERGE} when matched then delete", deleted(TEA), deleted(MILK))),
    way("insert", step(f"{MERGE} when not matched then insert (id, name) values (wanted.id, 'gin')", inserted(GIN))),
    way("do nothing", step(f"{MERGE} when matched then do nothing when not matched then do nothing")),
    way("update nothing", step(f"{MERGE} when matched then update set version = version")),
    way("a key", step(f"{MERGE} when matched and item.id = 1 then update set id = 0", *moved(TEA, id=0))),
    way(
        "each",
        step(f"{MERGE} when matched and item.id = 1 then delete when matched then update set note = 'x'"
             " when not matched then insert (id, name) values (wanted.id, 'gin')",
             deleted(TEA), updated(MILK, note="x"), inserted(GIN)),
    ),
]  # fmt: skip

MERGES_SINCE_17 = [
    way(
        "not matched by source",
        step(f"{MERGE} when not matched by source then delete when matched and item.id = 1 then update set version = 1"
             " returning merge_action(), item.id",
             updated(TEA, version=1), deleted(RUM)),
    ),
]  # fmt: skip

WITHS = [
    way(
        "each",
        step("with gone as (delete from item where id = 1 returning id),"
             " new as (insert into item (id, name) values (7, 'gin'), (8, 'ale') returning id)"
             " update item set version = (select count(*) from new) where id > 1",
             deleted(TEA), inserted(GIN), inserted(ALE), updated(MILK, version=2), updated(RUM, version=2)),
    ),
    way(
        "a row that the main query cannot see",
        step("with new as (insert into item (id, name) values (7, 'gin') returning id)"
             " update item set version = 1 where id in (select id from new) or id = 2",
             inserted(GIN), updated(MILK, version=1)),
    ),
    way(
        "two updates",
        step("with first as (update item set version = 1 where id = 1 returning id)"
             " update item set version = 2 where id = 2",
             updated(TEA, version=1), updated(MILK, version=2)),
    ),
    way(
        "the main query writes another table",
        step("with new as (insert into item (id, name) values (7, 'gin') returning id) update total set n = n + 1",
             inserted(GIN)),
        step("with new as (update total set n = n + 1 returning n)"
             " insert into item (id, name) select n + 6, 'x' from new",
             inserted(row(8, "x"))),
        before="create table total as select 0 as n",
    ),
    way("only read", step("with new as (insert into item (id, name) values (7, 'gin') returning id) select 1",
                            inserted(GIN))),
]  # fmt: skip

CALLS = [
    way(
        "a function of a select",
        step("select put(7, 'gin')", inserted(GIN)),
        step("select put(n, 'x') from generate_series(8, 9) n", inserted(row(8, "x")), inserted(row(9, "x"))),
        before="create function put(bigint, text) returns void language sql as"
               " $$ insert into item (id, name) values ($1, $2) $$",
    ),
    way(
        "a prepared statement",
        step("prepare put (bigint, text) as insert into item (id, name) values ($1, $2)"),
        *(step(f"execute put ({n}, 'x')", inserted(row(n, "x"))) for n in range(10, 18)),
        step("prepare raise as update item set version = version + 1 where id < 3"),
        *(step("execute raise", updated(row(1, "tea", n), version=n + 1), updated(row(2, "milk", n), version=n + 1))
          for n in range(8)),
    ),
    way(
        "a DO block",
        step("do $$ begin for n in 10..12 loop insert into item (id) values (n); update item set version = n"
             " where id = n; end loop; end $$",
             *(change for n in range(10, 13) for change in (inserted(row(n)), updated(row(n), version=n)))),
    ),
    way(
        "a procedure that commits",
        step("call put()", inserted(GIN), inserted(ALE)),
        before="create procedure put() language plpgsql as $$ begin"
               " insert into item (id, name) values (7, 'gin'); commit;"
               " insert into item (id, name) values (6, 'x'); rollback;"
               " insert into item (id, name) values (8, 'ale'); end $$",
    ),
    way(
        "a block whose exception is caught",
        step("do $$ begin insert into item (id, name) values (7, 'gin');"
             " begin update item set version = 1; insert into item (id) values (1);"
             " exception when unique_violation then null; end;"
             " begin delete from item where id = 3; exception when others then null; end; end $$",
             inserted(GIN), deleted(RUM)),
    ),
    way(
        "a cursor's row",
        step("declare cup cursor for select * from item order by id for update"),
        step("fetch cup"),
        step("update item set version = 1 where current of cup", updated(TEA, version=1)),
        step("fetch cup"),
        step("delete from item where current of cup", deleted(MILK)),
        together=True,
    ),
]  # fmt: skip

NO_WRITES = [
    way(
        "locked rows",
        step("select * from item for update"),
        step("select * from item for no key update"),
        step("select * from item for share"),
        step("select * from item for key share"),
        step("lock table item in exclusive mode"),
        together=True,
    ),
    way(
        "rows referred to",
        step("insert into sale values (1), (2)"),
        step("delete from sale"),
        before="create table sale (item bigint references item)",
    ),
    way(
        "altered columns",
        step("alter table item add colour text default 'red', add at timestamptz default clock_timestamp()"),
        step("alter table item alter name type varchar(100), alter version type bigint"),
        step("alter table item drop colour"),
        step("create index on item (name)"),
        step("update item set at = now() where id = 1", updated(TEA)),
    ),
    way(
        "the table written anew",
        step("vacuum full item"),
        step("cluster item using item_pkey"),
        step("reindex table item"),
        step("analyze item"),
        step("update item set version = 1 where id = 1", updated(TEA, version=1)),
    ),
    way("a copy of the table", step("create table copy as select * from item"), step("drop table copy")),
]


@pytest.mark.parametrize("way", INSERTS)
def test_an_insert_becomes_the_same_changes_in_every_form(
    database: Database, way: Way, subtests: pytest.Subtests
) -> None:
    in_every_form(database, way, subtests)


@pytest.mark.parametrize("way", UPDATES)
def test_an_update_becomes_the_same_changes_in_every_form(
    database: Database, way: Way, subtests: pytest.Subtests
) -> None:
    in_every_form(database, way, subtests)


@pytest.mark.parametrize("way", DELETES)
def test_a_delete_becomes_the_same_changes_in_every_form(
    database: Database, way: Way, subtests: pytest.Subtests
) -> None:
    in_every_form(database, way, subtests)


@pytest.mark.parametrize("way", TRUNCATES)
def test_a_truncate_becomes_the_same_changes_in_every_form(
    database: Database, way: Way, subtests: pytest.Subtests
) -> None:
    in_every_form(database, way, subtests)


@pytest.mark.parametrize(
    ("form", "statement"),
    [
        (INHERITED, "truncate only item"),
        (INHERITED, "truncate maker cascade"),
        (INHERITED, "truncate special_item"),
        (PARTITIONED, "truncate item_low"),
    ],
)
def test_a_truncate_that_leaves_rows_in_other_tables_of_the_family_is_told_all_the_same(
    database: Database, form: Form, statement: str
) -> None:
    """So TRUNCATE means: rows went, nobody knows which."""
    table = form.make(database)
    table.run("create table maker (id int primary key); alter table item add maker int references maker")
    table.run(statement)
    assert table.seen() == [("TRUNCATE", None)]
    assert table.run("select count(*) > 0 from item") == [(True,)]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_table_truncated_twice_in_a_transaction_and_empty_between_is_told_once_or_twice(
    database: Database, form: Form
) -> None:
    """Row-level capture cannot tell the second one from one that reached another table of the family."""
    table = form.make(database)
    with table.connection.transaction():
        table.run("truncate item")
        table.run("truncate item")
    assert table.seen() == [("TRUNCATE", None)] * (1 if form.by_row else 2)


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_becomes_the_same_changes_in_every_form(database: Database, way: Way, subtests: pytest.Subtests) -> None:
    in_every_form(database, way, subtests)


@pytest.mark.parametrize("way", MERGES)
def test_a_merge_becomes_the_same_changes_in_every_form(
    database: Database, way: Way, subtests: pytest.Subtests
) -> None:
    in_every_form(database, way, subtests)


@pytest.mark.postgres("18")
@pytest.mark.parametrize("way", MERGES_SINCE_17)
def test_what_merge_can_do_since_17_becomes_the_same_changes_in_every_form(
    database: Database, way: Way, subtests: pytest.Subtests
) -> None:
    in_every_form(database, way, subtests)


@pytest.mark.parametrize("way", WITHS)
def test_a_statement_with_statements_inside_becomes_the_same_changes_in_every_form(
    database: Database, way: Way, subtests: pytest.Subtests
) -> None:
    in_every_form(database, way, subtests)


@pytest.mark.parametrize("way", CALLS)
def test_what_code_in_the_database_writes_becomes_the_same_changes_in_every_form(
    database: Database, way: Way, subtests: pytest.Subtests
) -> None:
    in_every_form(database, way, subtests)


@pytest.mark.parametrize("way", NO_WRITES)
def test_what_changes_no_row_is_no_change_in_any_form(database: Database, way: Way, subtests: pytest.Subtests) -> None:
    in_every_form(database, way, subtests)
