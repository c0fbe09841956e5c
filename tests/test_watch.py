"""Declaring a watch, and what is refused while models are loaded, before any database is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import models

from pgnotify_gql.capture import Kind, notify_on_model_changes
from pgnotify_gql.capture.function import triggered_kinds
from pgnotify_gql.capture.kinds import ALL_KINDS
from pgnotify_gql.capture.registry import Registry
from pgnotify_gql.capture.render import render
from pgnotify_gql.capture.watch import Watch
from pgnotify_gql.errors import WatchError
from tests.support.databases import Database
from tests.support.watched import Item, make_model, watched


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """An empty registry in place of the one that holds the example's watches."""
    registry = Registry()
    monkeypatch.setattr("pgnotify_gql.capture.registry.registry", registry)
    return registry


class TestDeclaring:
    def test_a_call_watches_the_model_and_returns_it(self, registry: Registry) -> None:
        assert notify_on_model_changes(Item) is Item
        assert registry.get("stock.item") == Watch(Item)

    def test_a_decorator_without_arguments_watches_the_class(self, registry: Registry) -> None:
        model = make_model("Plain", "plain")
        assert notify_on_model_changes(model) is model
        assert [watch.model for watch in registry] == [model]

    def test_a_decorator_with_arguments_watches_the_class(self, registry: Registry) -> None:
        model = make_model("Decorated", "decorated", name=models.TextField())
        decorator = notify_on_model_changes(columns=["name"], kinds=["INSERT", Kind.DELETE])
        assert decorator(model) is model
        assert registry.get("stock.decorated") == Watch(model, ("name",), frozenset({Kind.INSERT, Kind.DELETE}))

    def test_nothing_else_is_said_means_keys_only_and_every_kind(self, registry: Registry) -> None:
        notify_on_model_changes(Item)
        watch = registry.get("stock.item")
        assert watch is not None
        assert (watch.columns, watch.kinds, watch.fields) == ((), ALL_KINDS, ())

    def test_one_kind_may_be_given_as_a_word(self, registry: Registry) -> None:
        notify_on_model_changes(Item, kinds="UPDATE")
        watch = registry.get("stock.item")
        assert watch is not None
        assert watch.kinds == {Kind.UPDATE}

    def test_the_same_declaration_twice_is_harmless(self, registry: Registry) -> None:
        notify_on_model_changes(Item, columns=["name"])
        notify_on_model_changes(Item, columns=["name"])
        assert len(list(registry)) == 1

    def test_watches_come_in_the_order_of_their_labels(self, registry: Registry) -> None:
        for name in ("Pear", "Apple", "Quince"):
            notify_on_model_changes(make_model(name, name.lower()))
        assert [watch.label for watch in registry] == ["stock.apple", "stock.pear", "stock.quince"]


class TestRefusals:
    @pytest.mark.parametrize(
        ("declare", "message"),
        [
            (lambda: notify_on_model_changes("Item"), "takes a model class, not 'Item'"),  # type: ignore[call-overload]
            (lambda: notify_on_model_changes(int), "takes a model class, not <class 'int'>"),  # type: ignore[type-var]
            (lambda: notify_on_model_changes(Abstract), "Abstract is abstract .* watch the models that inherit"),
            (lambda: notify_on_model_changes(Item, columns="name"), 'give a list of names, or "__all__"'),
            (lambda: notify_on_model_changes(Item, kinds=["UPSERT"]), "'UPSERT' .* use some of INSERT, UPDATE"),
            (lambda: notify_on_model_changes(Item, kinds=[]), "stock.item has no kinds: leave kinds= out"),
        ],
    )
    def test_what_cannot_be_watched_is_refused_with_a_sentence(
        self, registry: Registry, declare: Callable[[], Any], message: str
    ) -> None:
        with pytest.raises(WatchError, match=message):
            declare()
        assert list(registry) == []

    def test_a_different_declaration_of_the_same_model_is_refused(self) -> None:
        notify_on_model_changes(Item)
        with pytest.raises(WatchError, match=r"stock.item is watched twice, .* keep one watch a model"):
            notify_on_model_changes(Item, columns="__all__")

    def test_an_unknown_column_is_named_when_the_watch_is_rendered(self) -> None:
        with pytest.raises(WatchError) as caught:
            render(Watch(Item, ("colour",)))
        assert str(caught.value) == (
            "the watch of stock.item names the column 'colour', which its table does not have: "
            'use one of id, name, version, note, or "__all__"'
        )

    def test_a_relation_without_a_column_is_no_column(self) -> None:
        with pytest.raises(WatchError, match=r"a table of its own: watch User\.user_permissions\.through"):
            render(Watch(User, ("user_permissions",)))


class Abstract(models.Model):
    class Meta:
        abstract = True
        app_label = "stock"


class TestFields:
    def test_a_foreign_key_is_named_with_or_without_its_suffix(self) -> None:
        model = make_model("Owned", "owned", owner=models.ForeignKey(User, models.CASCADE, related_name="+"))
        for name in ("owner", "owner_id"):
            assert [field.column for field in Watch(model, (name,)).fields] == ["owner_id"]

    def test_captured_columns_answer_to_every_name_an_application_may_use(self) -> None:
        model = make_model("Owned", "owned", owner=models.ForeignKey(User, models.CASCADE, related_name="+"))
        assert set(Watch(model, ("owner",)).captured) == {"id", "pk", "owner", "owner_id"}

    def test_a_model_that_inherits_from_another_table_has_its_own_columns_only(self, database: Database) -> None:
        """The other columns are in the parent's table: naming them in the child's trigger would fail every write."""
        parent = make_model("Parent", "parent", title=models.TextField())
        child = type(
            "Child",
            (parent,),
            {
                "size": models.IntegerField(),
                "__module__": __name__,
                "Meta": type("Meta", (), {"app_label": "stock", "db_table": "child", "apps": parent._meta.apps}),
            },
        )
        assert [field.name for field in Watch(child, "__all__").fields] == ["parent_ptr", "size"]
        with pytest.raises(WatchError, match=r"names the column 'title'.*use one of parent_ptr, size"):
            _ = Watch(child, ("title",)).fields
        connection = database.connect()
        connection.execute("create table parent (id bigint primary key, title text)")
        create = "create table child (parent_ptr_id bigint primary key references parent, size int)"
        table = watched(connection, child, create, columns="__all__")
        table.run("insert into parent values (1, 'one')")
        table.run("insert into child values (1, 5)")
        assert [(change.pk, change.new) for change in table.changes()] == [(1, {"parent_ptr": 1, "size": 5})]

    def test_a_proxy_has_the_columns_of_its_model(self) -> None:
        proxy = type(
            "ItemProxy",
            (Item,),
            {"__module__": __name__, "Meta": type("Meta", (), {"app_label": "stock", "proxy": True})},
        )
        assert [field.name for field in Watch(proxy, "__all__").fields] == ["id", "name", "note", "version"]


class TestRendering:
    def test_the_same_watch_renders_to_the_same_digest(self) -> None:
        assert render(Watch(Item, ("name",))) == render(Watch(Item, ("name",)))

    @pytest.mark.parametrize(
        "other",
        [
            render(Watch(Item)),
            render(Watch(Item, ("version",))),
            render(Watch(Item, "__all__")),
            render(Watch(Item, ("name",), frozenset({Kind.INSERT}))),
            render(Watch(Item, ("name",)), rings=False),
        ],
    )
    def test_whatever_changes_the_sql_changes_the_digest_and_the_name_of_the_function(self, other: Any) -> None:
        capture = render(Watch(Item, ("name",)))
        assert capture.digest != other.digest
        assert capture.function != other.function

    def test_an_update_trigger_is_there_for_the_sake_of_changed_keys(self) -> None:
        assert triggered_kinds(Watch(Item, (), frozenset({Kind.DELETE}))) == [Kind.UPDATE, Kind.DELETE]
        assert triggered_kinds(Watch(Item, (), frozenset({Kind.TRUNCATE}))) == [Kind.TRUNCATE]

    def test_polled_functions_do_not_mention_notify(self) -> None:
        assert "pg_notify" in render(Watch(Item)).create_function
        assert "pg_notify" not in render(Watch(Item), rings=False).create_function
