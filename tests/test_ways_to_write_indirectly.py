"""What triggers, views, rules and foreign keys write becomes the same changes, in every form of a captured table."""

from __future__ import annotations

import pytest

from tests.support.databases import Database
from tests.support.ways import (
    FORMS,
    MILK,
    REPLICATED,
    RUM,
    TEA,
    Form,
    Way,
    deleted,
    in_every_form,
    inserted,
    moved,
    require_replay,
    require_same,
    row,
    rows_of,
    step,
    updated,
    way,
    written,
)

GIN = row(7, "gin")


def trigger(when: str, body: str, *, returns: str = "null", on: str = "item", level: str = "row") -> str:
    """Return the SQL of somebody else's trigger."""
    return (
        f"create function react() returns trigger language plpgsql as $$ begin {body}; return {returns}; end $$;"
        f"create trigger react {when} on {on} for each {level} execute function react()"
    )


TRIGGERS = [
    way(
        "one before an insert changes the row",
        step("insert into item (id, name) values (7, 'gin')", inserted(row(107, "GIN"))),
        before=trigger("before insert", "new.name := upper(new.name); new.id := new.id + 100", returns="new"),
    ),
    way(
        "one before an insert returns null",
        step("insert into item (id, name) values (7, 'gin')"),
        before=trigger("before insert", "null"),
    ),
    way(
        "one before an insert returns null for some",
        step("insert into item (id, name) values (7, 'gin'), (-1, 'x')", inserted(GIN)),
        before=trigger("before insert", "if new.id < 0 then return null; end if", returns="new"),
    ),
    way(
        "one before an insert makes room for the row",
        step("insert into item (id, name) values (1, 'oolong')", deleted(TEA), inserted(row(1, "oolong"))),
        before=trigger("before insert", "delete from item where id = new.id", returns="new"),
    ),
    way(
        "one before an insert updates the row that is there instead",
        step("insert into item (id, name) values (1, 'oolong')", updated(TEA, name="oolong")),
        before=trigger("before insert", "update item set name = new.name where id = new.id"),
    ),
    way(
        "one before an update changes the row",
        step("update item set name = 'x' where id = 1", updated(TEA, name="x", version=1)),
        before=trigger("before update", "new.version := old.version + 1", returns="new"),
    ),
    way(
        "one before an update takes it back",
        step("update item set name = 'x'"),
        before=trigger("before update", "null", returns="old"),
        forms=[form for form in FORMS if form.home_of_rum == "item"],  # that of a table is none of its children
    ),
    way(
        "one before an update returns null",
        step("update item set name = 'x' where id < 3", updated(MILK, name="x")),
        before=trigger("before update", "if new.id = 1 then return null; end if", returns="new"),
    ),
    way(
        "one before a delete returns null",
        step("delete from item where id < 3", deleted(MILK)),
        before=trigger("before delete", "if old.id = 1 then return null; end if", returns="old"),
    ),
    way(
        "one before a delete updates the row instead",
        step("delete from item where id = 1", updated(TEA, note="deleted")),
        before=trigger("before delete", "update item set note = 'deleted' where id = old.id"),
    ),
    way(
        "one after an insert writes another row",
        step("insert into item (id, name) values (7, 'gin')", inserted(GIN), updated(TEA, version=1)),
        step("insert into item (id) values (8), (9)", inserted(row(8)), inserted(row(9)),
             updated(row(1, "tea", 1), version=2), updated(row(1, "tea", 2), version=3)),
        before=trigger("after insert", "update item set version = version + 1 where id = 1"),
    ),
    way(
        "one after a delete writes other rows",
        step("delete from item where id = 1", deleted(TEA), updated(MILK, version=1), updated(RUM, version=1)),
        before=trigger("after delete", "update item set version = version + 1"),
    ),
    way(
        "one of another table writes",
        step("update price set price = 2", updated(TEA, version=2)),
        step("insert into price values (2, 3)", updated(MILK, version=3)),
        before="create table price (item bigint, price int); insert into price values (1, 1);"
               + trigger("after insert or update", "update item set version = new.price where id = new.item",
                         on="price"),
    ),
    way(
        "one at the end of the transaction writes the row again",
        step("insert into item (id, name) values (7, 'gin')", inserted(GIN)),
        step("update item set note = 'x' where id = 1", updated(TEA, note="x")),
        step("set constraints all immediate", updated(GIN, version=1)),
        before="create function late() returns trigger language plpgsql as"
               " $$ begin update item set version = 1 where id = new.id; return null; end $$;"
               "create constraint trigger late after insert on item deferrable initially deferred"
               " for each row execute function late()",
        together=True,
    ),
    way(
        "one at commit writes the row again",
        step("insert into item (id, name) values (7, 'gin'), (8, 'ale')",
             inserted(GIN), inserted(row(8, "ale")), updated(GIN, version=1), updated(row(8, "ale"), version=1)),
        before="create function late() returns trigger language plpgsql as"
               " $$ begin update item set version = 1 where id = new.id; return null; end $$;"
               "create constraint trigger late after insert on item deferrable initially deferred"
               " for each row execute function late()",
    ),
]  # fmt: skip

SHELF = "create view shelf as select id, name from item where id <> 3;"

VIEWS = [
    way(
        "updatable",
        step("insert into shelf values (7, 'gin')", inserted(GIN)),
        step("update shelf set name = upper(name) where id < 3", updated(TEA, name="TEA"), updated(MILK, name="MILK")),
        step("update shelf set id = 9 where id = 2", *moved(row(2, "MILK"), id=9)),
        step("delete from shelf", deleted(row(1, "TEA")), deleted(row(9, "MILK")), deleted(GIN)),
        before=SHELF,
    ),
    way(
        "with a trigger instead",
        step("insert into shelf values (7, 'gin'), (1, 'x')", inserted(GIN), updated(TEA, name="x")),
        step("delete from shelf where id = 2", updated(MILK, note="deleted")),
        before=SHELF + trigger(
            "instead of insert or delete",
            "if tg_op = 'DELETE' then update item set note = 'deleted' where id = old.id; return old; end if;"
            "insert into item (id, name) values (new.id, new.name) on conflict (id) do update set name = excluded.name",
            on="shelf", returns="new"),
    ),
    way(
        "with a rule",
        step("insert into memo values ('gin')", inserted(row(50, "gin"))),
        before="create view memo as select name from item;"
               "create rule put as on insert to memo do instead insert into item (name) values (new.name)",
    ),
    way(
        "a rule of the table itself",
        step("delete from item where id = 1", updated(TEA, note="deleted")),
        before="create rule keep as on delete to item do instead"
               " update item set note = 'deleted' where id = old.id",
    ),
    way(
        "a rule that writes besides",
        step("update price set price = 5 where item = 1", updated(TEA, version=5)),
        before="create table price as select 1 as item, 1 as price;"
               "create rule spread as on update to price do also"
               " update item set version = new.price where id = new.item",
    ),
]  # fmt: skip


def referring(*actions: str) -> str:
    """Return the SQL that lets notes refer to makers, with the first two items made by 'a'."""
    return (
        "create table maker (code text primary key, place text); insert into maker values ('a'), ('b'), ('none');"
        "update item set note = 'a' where id < 3;"
        f"alter table item alter note set default 'none',"
        f" add constraint made foreign key (note) references maker {' '.join(actions)}"
    )


TEA_A, MILK_A = {**TEA, "note": "a"}, {**MILK, "note": "a"}

TEA_TEA = {**TEA, "note": "tea"}

CASCADES = [
    way("delete", step("delete from maker where code = 'a'", deleted(TEA_A), deleted(MILK_A)),
        before=referring("on delete cascade")),
    way("set null", step("delete from maker where code = 'a'", updated(TEA_A, note=None), updated(MILK_A, note=None)),
        before=referring("on delete set null")),
    way("set default", step("delete from maker", updated(TEA_A, note="none"), updated(MILK_A, note="none")),
        before=referring("on delete set default") + ";create rule keep as on delete to maker where old.code = 'none'"
                                                    " do instead nothing"),
    way("update", step("update maker set code = code || '2'", updated(TEA_A, note="a2"), updated(MILK_A, note="a2")),
        before=referring("on update cascade")),
    way("update set null", step("update maker set code = 'c' where code = 'a'",
                                updated(TEA_A, note=None), updated(MILK_A, note=None)),
        before=referring("on update set null")),
    way(
        "twice over",
        step("update maker set code = 'chai' where code = 'tea'",
             updated(TEA_TEA, name="chai"), updated({**TEA_TEA, "name": "chai"}, note="chai")),
        step("update maker set code = code || '2' where code <> 'rum'",
             updated(row(1, "chai", note="chai"), name="chai2"),
             updated(row(1, "chai2", note="chai"), note="chai2"),
             updated(row(2, "milk", note="milk"), name="milk2"),
             updated(row(2, "milk2", note="milk"), note="milk2")),
        before="create table maker (code text primary key); insert into maker values ('tea'), ('milk'), ('rum');"
               "update item set note = name where id < 3;"
               "alter table item add foreign key (name) references maker on update cascade,"
               " add foreign key (note) references maker on update cascade",
    ),
    way(
        "of a row that refers to itself",
        step("update item set id = 0 where id = 1",
             *moved(row(1, "tea", 1), id=0), updated(row(0, "tea", 1), version=0),
             updated(row(2, "milk", 1), version=0)),
        before="update item set version = case id when 3 then 3 else 1 end;"
               "alter table item add foreign key (version) references item on update cascade",
    ),
    way(
        "delete of rows that refer to each other",
        step("delete from item where id = 1", deleted(row(1, "tea", 1)), deleted(row(2, "milk", 1))),
        before="update item set version = case id when 3 then 3 else 1 end;"
               "alter table item add foreign key (version) references item on delete cascade",
    ),
    way("refused", step("do $$ begin delete from maker; exception when foreign_key_violation then null; end $$"),
        before=referring()),
]  # fmt: skip


@pytest.mark.parametrize("way", TRIGGERS)
def test_what_other_triggers_do_becomes_the_same_changes_in_every_form(
    database: Database, way: Way, subtests: pytest.Subtests
) -> None:
    in_every_form(database, way, subtests)


@pytest.mark.parametrize("way", VIEWS)
def test_what_views_and_rules_do_becomes_the_same_changes_in_every_form(
    database: Database, way: Way, subtests: pytest.Subtests
) -> None:
    in_every_form(database, way, subtests)


@pytest.mark.parametrize("way", CASCADES)
def test_what_foreign_keys_do_becomes_the_same_changes_in_every_form(
    database: Database, way: Way, subtests: pytest.Subtests
) -> None:
    in_every_form(database, way, subtests)


LATE = pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="a statement is journaled when its AFTER triggers have run, and after what they wrote",
)

AGAIN = trigger("after insert", "update item set version = 1 where id = new.id")


class TestTriggersThatWriteTheRowAgain:
    """A trigger after each row that writes this very row: the one thing that does not always come in order."""

    WAY = Way([step("insert into item (id, name) values (7, 'gin')", inserted(GIN), updated(GIN, version=1))])

    @pytest.mark.parametrize("form", FORMS, ids=str)
    def test_all_changes_are_captured(self, database: Database, form: Form) -> None:
        table = form.make(database)
        table.run(AGAIN)
        changes = written(table, self.WAY)
        if not form.by_row:
            changes.reverse()
        require_same(changes, form, [step.changes for step in self.WAY.steps])

    @pytest.mark.parametrize(
        "form", [pytest.param(form, marks=() if form.by_row else LATE, id=str(form)) for form in FORMS]
    )
    def test_the_changes_come_in_order(self, database: Database, form: Form) -> None:
        table = form.make(database)
        table.run(AGAIN)
        before = rows_of(table)
        changes = written(table, self.WAY)
        require_replay(before, changes, rows_of(table), whole=form.whole)

    @LATE
    def test_the_changes_come_in_order_if_the_other_trigger_runs_before_the_one_that_captures(
        self, database: Database
    ) -> None:
        """PostgreSQL runs triggers in the order of their names."""
        table = REPLICATED.make(database)
        table.run(AGAIN.replace("react", "a_trigger"))
        before = rows_of(table)
        require_replay(before, written(table, self.WAY), rows_of(table), whole=True)
