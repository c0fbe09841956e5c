"""``change.instance``: built from the image where that holds the whole row, and then like a row that was fetched."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from typing import Any, ClassVar

import pytest
from django.apps.registry import Apps
from django.contrib.auth.models import User
from django.db import DEFAULT_DB_ALIAS, connection, models
from django.db.models.fields.files import FieldFile
from django.db.models.signals import post_init
from django.test.utils import CaptureQueriesContext

from pgnotify_gql.journal.change import Change
from tests.support.databases import Database
from tests.support.watched import ITEM_SQL, LINE_SQL, Item, Line, WatchedTable, make_model, watched

# What values are captured as is tested in test_values.py, on each version.
pytestmark = pytest.mark.postgres("18")


@pytest.fixture
def items(database: Database) -> WatchedTable:
    """Items, of which everything is captured."""
    return watched(database, columns="__all__")


@contextmanager
def without_queries() -> Iterator[None]:
    def refuse(*arguments: Any) -> None:
        raise AssertionError("the database was asked")

    with connection.execute_wrapper(refuse):
        yield


def insert(table: WatchedTable, statement: str) -> Change:
    table.run(statement)
    (change,) = table.changes()
    return change


class TestBuilt:
    def test_is_the_row_as_the_change_left_it(self, items: WatchedTable) -> None:
        items.run("insert into item (id, name, version) values (7, 'tea', 1)")
        items.run("update item set version = 2")
        items.run("update item set version = 3")
        items.run("delete from item")
        inserted, *updated, deleted = items.changes()
        with without_queries():
            assert [change.instance.version for change in (inserted, *updated)] == [1, 2, 3]
            assert (inserted.instance.pk, inserted.instance.name, inserted.instance.note) == (7, "tea", None)
            assert deleted.instance is None

    def test_of_a_truncate_is_none(self, items: WatchedTable) -> None:
        items.run("truncate item")
        (change,) = items.changes()
        with without_queries():
            assert change.instance is None

    def test_can_be_refreshed_saved_and_deleted(self, items: WatchedTable) -> None:
        instance = insert(items, "insert into item (id, name) values (7, 'tea')").instance
        items.run("update item set name = 'hot tea'")
        instance.refresh_from_db()
        assert instance.name == "hot tea"
        instance.name = "cold tea"
        with CaptureQueriesContext(
            connection,
        ) as queries:
            instance.save()
        assert [query["sql"].split()[0] for query in queries] == ["UPDATE"]
        instance.delete()
        assert items.run("select count(*) from item") == [(0,)]

    def test_defers_nothing(self, items: WatchedTable) -> None:
        assert insert(items, "insert into item (id) values (7)").instance.get_deferred_fields() == set()

    def test_its_mutable_values_are_its_own(self, database: Database) -> None:
        model = make_model("Document", "document", data=models.JSONField())
        table = watched(database, model, "create table document (id bigint primary key, data jsonb)", columns="__all__")
        change = insert(table, """insert into document values (1, '{"tags": ["a"]}')""")
        change.instance.data["tags"].append("b")
        assert change.new == {"id": 1, "data": {"tags": ["a"]}}

    def test_has_a_composite_key(self, database: Database) -> None:
        table = watched(database, Line, LINE_SQL, columns="__all__")
        instance = insert(table, "insert into line values (1, 'a', 5)").instance
        with without_queries():
            assert (instance.pk, instance.amount) == ((1, "a"), 5)

    def test_of_a_proxy_is_of_the_proxy(self, database: Database) -> None:
        meta = type("Meta", (), {"app_label": "stock", "proxy": True, "apps": Apps()})
        proxy = type("CupProxy", (Item,), {"__module__": __name__, "Meta": meta})
        table = watched(database, proxy, ITEM_SQL, columns="__all__")
        change = insert(table, "insert into item (id, name) values (7, 'tea')")
        with without_queries():
            assert (type(change.instance), change.instance.name) == (proxy, "tea")
        assert change.instance == Item.objects.get()

    def test_follows_a_foreign_key_when_asked_for(self, database: Database) -> None:
        user = User.objects.create(username="ann")
        owner: Any = models.ForeignKey(User, models.CASCADE, related_name="+", null=True)
        create = "create table owned (id bigint primary key, owner_id int)"
        table = watched(database, make_model("Owned", "owned", owner=owner), create, columns="__all__")
        instance = insert(table, f"insert into owned values (1, {user.pk})").instance
        with CaptureQueriesContext(connection) as queries:
            assert [instance.owner_id, instance.owner, instance.owner] == [user.pk, user, user]
        assert len(queries) == 1

    def test_has_files(self, database: Database) -> None:
        model = make_model("Paper", "paper", scan=models.FileField())
        create = "create table paper (id bigint primary key, scan varchar(100))"
        table = watched(database, model, create, columns="__all__")
        change = insert(table, "insert into paper values (1, 'a/b.txt')")
        scan = change.instance.scan
        assert (type(scan), scan.name, scan.instance, bool(scan)) == (FieldFile, "a/b.txt", change.instance, True)
        assert change.new == {"id": 1, "scan": "a/b.txt"}

    def test_is_made_as_the_orm_makes_it_once(self, database: Database) -> None:
        """By from_db(), which models override, and with its signals; however many threads ask."""
        made: list[Any] = []
        post_init.connect(noted := lambda instance, **kwargs: made.append(instance), sender=Remembering)
        table = watched(
            database, Remembering, "create table remembering (id bigint primary key, n int)", columns="__all__"
        )
        change = insert(table, "insert into remembering values (1, 5)")
        together = Barrier(8)

        def ask() -> Any:
            together.wait(timeout=30)
            return change.instance

        try:
            with ThreadPoolExecutor(8) as threads:
                answers = [outcome.result(timeout=30) for outcome in [threads.submit(ask) for _ in range(8)]]
        finally:
            post_init.disconnect(noted, sender=Remembering)
        (instance,) = made
        assert all(answer is instance for answer in answers)
        assert instance.loaded == (DEFAULT_DB_ALIAS, {"id": 1, "n": 5})


class Remembering(models.Model):
    """What the documentation of from_db() suggests."""

    n: models.Field[int, int] = models.IntegerField()
    loaded: tuple[str | None, dict[str, Any]] | None = None

    class Meta:
        app_label = "stock"
        db_table = "remembering"
        apps: ClassVar[Apps] = Apps()

    def __str__(self) -> str:
        return str(self.n)

    @classmethod
    def from_db(  # type: ignore[override]  # before Django 6.1 there is no fetch_mode
        cls, db: str | None, field_names: Collection[str], values: Collection[Any]
    ) -> Remembering:
        instance = super().from_db(db, field_names, values)
        instance.loaded = (db, dict(zip(field_names, values, strict=True)))
        return instance


class TestFetched:
    """Where the image does not hold every column, the row is fetched as it is now."""

    @pytest.mark.parametrize(
        "watch",
        [
            lambda database: watched(database),
            lambda database: watched(database, columns=["id", "name", "version"]),
            lambda database: watched(database, columns=["name", "version", "note"]),
        ],
        ids=["keys", "some columns", "all but the key"],
    )
    def test_when_not_every_column_is_captured(
        self, database: Database, watch: Callable[[Database], WatchedTable]
    ) -> None:
        table = watch(database)
        change = insert(table, "insert into item (id, name) values (7, 'tea')")
        table.run("update item set name = 'hot tea'")
        with CaptureQueriesContext(connection) as queries:
            assert (change.instance.name, change.instance.name) == ("hot tea", "hot tea")
        assert len(queries) == 1

    def test_and_is_none_when_the_row_is_gone(self, database: Database) -> None:
        table = watched(database)
        change = insert(table, "insert into item (id) values (7)")
        table.run("delete from item")
        assert change.instance is None

    def test_but_never_for_a_delete_though_the_key_was_taken_again(self, database: Database) -> None:
        table = watched(database)
        table.run("insert into item (id) values (7)")
        table.run("delete from item")
        table.run("insert into item (id) values (7)")
        _, deleted, _ = table.changes()
        with without_queries():
            assert deleted.instance is None

    def test_of_a_model_whose_parent_has_a_table_of_its_own(self, database: Database) -> None:
        parent = make_model("Parent", "parent", title=models.TextField())
        meta = type("Meta", (), {"app_label": "stock", "db_table": "child", "apps": parent._meta.apps})
        child = type("Child", (parent,), {"size": models.IntegerField(), "__module__": __name__, "Meta": meta})
        connection_ = database.connect()
        connection_.execute("create table parent (id bigint primary key, title text)")
        create = "create table child (parent_ptr_id bigint primary key references parent, size int)"
        table = watched(connection_, child, create, columns="__all__")
        table.run("insert into parent values (1, 'one')")
        change = insert(table, "insert into child values (1, 5)")
        with CaptureQueriesContext(connection) as queries:
            assert (change.instance.title, change.instance.size) == ("one", 5)
        assert len(queries) == 1
        above = watched(connection_, parent, "", columns="__all__")
        of_parent = insert(above, "update parent set title = 'two'")
        with without_queries():
            assert of_parent.instance.title == "two"

    def test_when_the_triggers_did_not_find_a_column(self, items: WatchedTable) -> None:
        items.run("alter table item rename note to remark")
        change = insert(items, "insert into item (id, name) values (7, 'tea')")
        items.run("alter table item rename remark to note")
        with CaptureQueriesContext(connection) as queries:
            assert change.instance.name == "tea"
        assert len(queries) == 1

    def test_when_another_version_of_the_watch_captured_less(self, database: Database) -> None:
        table = watched(database, columns=["name"])
        table.run("insert into item (id, name) values (7, 'tea')")
        (row,) = table.journal()
        whole = watched(database, sql="", columns="__all__").watch
        (change,) = row.changes(whole)
        with CaptureQueriesContext(connection) as queries:
            assert change.instance.name == "tea"
        assert len(queries) == 1
