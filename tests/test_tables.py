"""Every kind of table that Django makes or is pointed at: keys, names, schemas, inheritance, relations, columns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from uuid import UUID

import pytest
from django.db import connection, connections, models
from django.db.models.fields.composite import CompositePrimaryKey
from django.db.models.functions import Now
from django.test import override_settings

from pgnotify_gql.capture.registry import Registry, make_watch
from tests.support.databases import Database
from tests.support.stock import Stock, command


@pytest.fixture
def stock(database: Database, monkeypatch: pytest.MonkeyPatch) -> Stock:
    """An application without models, in place of the example."""
    registry = Registry()
    monkeypatch.setattr("pgnotify_gql.management.commands.install_triggers.registry", registry)
    return Stock(database, registry)


class TestKeys:
    def test_a_composite_key_of_three_columns_with_a_relation_and_a_uuid(self, stock: Stock) -> None:
        shelf = stock.model("Shelf", code=models.TextField(primary_key=True))
        place = stock.model(
            "Place",
            pk=CompositePrimaryKey("shelf", "tag", "level"),
            shelf=models.ForeignKey(shelf, models.CASCADE),
            tag=models.UUIDField(),
            level=models.BigIntegerField(),
            note=models.TextField(default=""),
        )
        stock.create(shelf, place)
        stock.watch(place, columns=["note", "shelf"])
        low, high = UUID(int=1), UUID(int=2)
        for code in ("a", "b"):
            shelf.objects.create(code=code)
        place.objects.create(shelf_id="a", tag=low, level=2**62)
        place.objects.bulk_create([place(shelf_id="b", tag=tag, level=1, note="x") for tag in (low, high)])
        first = ("a", low, 2**62)
        assert stock.images() == [
            ("place", "INSERT", None, {"note": "", "shelf": "a"}),
            ("place", "INSERT", None, {"note": "x", "shelf": "b"}),
            ("place", "INSERT", None, {"note": "x", "shelf": "b"}),
        ]
        place.objects.filter(pk=first).update(note="y")
        place.objects.filter(pk=first).update(shelf_id="b")
        place.objects.filter(tag=high).delete()
        changes = stock.changes()
        assert [(change.kind.value, change.pk) for change in changes] == [
            ("UPDATE", first),
            ("DELETE", first),
            ("INSERT", ("b", *first[1:])),
            ("DELETE", ("b", high, 1)),
        ]
        assert changes[0].keys == {"shelf": "a", "tag": low, "level": 2**62}
        assert (changes[1].old, changes[2].new) == ({"note": "y", "shelf": "a"}, {"note": "y", "shelf": "b"})

    def test_a_composite_key_of_two_columns_whose_parts_trade_places(self, stock: Stock) -> None:
        """Many rows at once, whose keys differ in one column only."""
        pair = stock.model(
            "Pair", pk=CompositePrimaryKey("left", "right"), left=models.IntegerField(), right=models.IntegerField()
        )
        stock.create(pair)
        stock.watch(pair)
        pair.objects.bulk_create([pair(left=1, right=2), pair(left=1, right=3), pair(left=5, right=5)])
        assert stock.seen() == [("pair", "INSERT", (1, 2)), ("pair", "INSERT", (1, 3)), ("pair", "INSERT", (5, 5))]
        stock.run('update stock_pair set "left" = "right", "right" = "left"')
        assert sorted(stock.seen()) == [
            ("pair", "DELETE", (1, 2)),
            ("pair", "DELETE", (1, 3)),
            ("pair", "INSERT", (2, 1)),
            ("pair", "INSERT", (3, 1)),
        ]

    @pytest.mark.parametrize(
        ("field", "first", "second"),
        [
            (models.UUIDField, UUID(int=1), UUID(int=2**128 - 1)),
            (models.TextField, "ä'\"\\ %s {} \n", "x" * 5_000),
            (models.BigIntegerField, -(2**63), 2**63 - 1),
        ],
    )
    def test_what_the_orm_writes_has_the_key_that_the_orm_gives(
        self, stock: Stock, field: type[models.Field[Any, Any]], first: Any, second: Any
    ) -> None:
        thing = stock.model("Thing", key=field(primary_key=True), size=models.IntegerField(default=0))
        part = stock.model("Part", thing=models.OneToOneField(thing, models.CASCADE, primary_key=True))
        stock.create(thing, part)
        stock.watch(thing, part)
        # Longer texts would not fit into an index if they were not compressible.
        thing.objects.bulk_create([thing(key=first), thing(key=second)])
        part.objects.create(thing_id=second)
        thing.objects.update(size=1)
        thing.objects.filter(pk=second).delete()
        seen = stock.seen()
        assert seen[:3] == [("thing", "INSERT", first), ("thing", "INSERT", second), ("part", "INSERT", second)]
        assert {first, second} == {key for model, kind, key in seen[3:5] if (model, kind) == ("thing", "UPDATE")}
        assert seen[5:] == [("part", "DELETE", second), ("thing", "DELETE", second)]


CUT = "grün" * 15
"""75 bytes, of which PostgreSQL keeps 63: 12 times `grün`, and the first three letters of one more."""

DJANGO_NAMES = [
    "Capital", "with space", 'quo""te', '"quoted already"', '"quo""ted"', "it's", "back\\slash", "brace{}", "{0}{x}",
    "grün", "名前", "a.b", "select", "x" * 62, "x" * 63, "ü" * 31, CUT,
]  # fmt: skip
"""Names as they are written in `db_table` and `db_column`."""


class TestNames:
    @pytest.mark.parametrize("name", DJANGO_NAMES)
    def test_tables_and_columns_with_names_that_django_understands(self, stock: Stock, name: str) -> None:
        """Made, written and read by the ORM, which must find the same objects."""
        model = stock.model(
            "Named", name, code=models.TextField(primary_key=True, db_column=name), size=models.IntegerField(default=0)
        )
        with connection.schema_editor() as editor:
            # Without the index for LIKE, whose name Django derives from the table's with less care.
            statement, _ = editor.table_sql(model)
            editor.execute(statement, None)
        stock.watch(model, columns="__all__")
        self.write_and_compare(stock, model)
        assert stock.uninstall() != []
        assert stock.run("select tgname from pg_trigger where not tgisinternal") == []

    @pytest.mark.parametrize("name", ["100%%", "%%s", "%%(x)s"])
    def test_a_percent_sign_is_written_twice_as_the_orm_needs_it(self, stock: Stock, name: str) -> None:
        """Django's migrations would take both for letters, so such a table is somebody else's."""
        model = stock.model(
            "Named",
            name,
            code=models.TextField(primary_key=True, db_column=name),
            size=models.IntegerField(default=0),
            meta={"managed": False},
        )
        one = name.replace("%%", "%")
        stock.run(f'create table "{one}" ("{one}" text primary key, size int)')
        stock.watch(model, columns="__all__", condition=models.Q(code__gt=""))
        self.write_and_compare(stock, model)

    def test_a_percent_sign_that_the_orm_would_take_for_a_placeholder_is_refused_in_a_condition(
        self, stock: Stock
    ) -> None:
        model = stock.model("Named", "named", size=models.IntegerField(db_column="100%"), meta={"managed": False})
        stock.run('create table named (id bigint primary key, "100%" int)')
        stock.registry.add(make_watch(model, condition=models.Q(size__gt=1)))
        assert stock.refusal() == (
            "the condition of the watch of stock.named cannot be evaluated in a trigger: a percent sign in a db_column "
            "has to be written twice, as the ORM needs it"
        )

    def write_and_compare(self, stock: Stock, model: type[Any]) -> None:
        model.objects.create(code="a")
        model.objects.bulk_create([model(code="b"), model(code="c")])
        model.objects.filter(code="a").update(size=1)
        model.objects.filter(code="a").update(code="d")
        model.objects.exclude(code="d").delete()
        changes = stock.changes()
        assert [change.kind.value for change in changes] == ["INSERT"] * 3 + ["UPDATE", "DELETE", "INSERT"] + [
            "DELETE"
        ] * 2
        assert [change.pk for change in changes[:6]] == ["a", "b", "c", "a", "a", "d"]
        assert {change.pk for change in changes[6:]} == {"b", "c"}
        assert (changes[3].old, changes[3].new) == ({"code": "a", "size": 0}, {"code": "a", "size": 1})
        assert changes[5].instance.size == 1

    def test_long_columns_that_differ_only_at_the_end(self, stock: Stock) -> None:
        columns = ["x" * 62 + end for end in "ab"]
        fields: list[models.Field[Any, Any]] = [models.IntegerField(db_column=column) for column in columns]
        model = stock.model("Twins", one=fields[0], two=fields[1])
        stock.create(model)
        stock.watch(model, columns="__all__", update_of=["two"])
        model.objects.create(id=1, one=1, two=2)
        model.objects.update(one=5)
        model.objects.update(two=6)
        assert stock.images() == [
            ("twins", "INSERT", None, {"id": 1, "one": 1, "two": 2}),
            ("twins", "UPDATE", {"id": 1, "one": 5, "two": 2}, {"id": 1, "one": 5, "two": 6}),
        ]

    def test_long_tables_that_differ_only_at_the_end(self, stock: Stock) -> None:
        """Their models have labels of more than 63 bytes, which trigger functions are named after."""
        one, two = (stock.model("N" + "ame" * 25 + end, "t" * 62 + end) for end in "ab")
        stock.create(one, two)
        stock.watch(one, two)
        one.objects.create(id=1)
        two.objects.create(id=2)
        one.objects.update(id=3)
        names = [model._meta.model_name for model in (one, two)]
        assert stock.seen() == [
            (names[0], "INSERT", 1),
            (names[1], "INSERT", 2),
            (names[0], "DELETE", 1),
            (names[0], "INSERT", 3),
        ]
        assert stock.uninstall(f"stock.{names[0]}") == [f"stock.{names[0]}: removed from {'t' * 62}a"]
        two.objects.create(id=4)
        assert stock.seen() == [(names[1], "INSERT", 4)]

    def test_an_application_whose_label_has_capitals(self, stock: Stock) -> None:
        """Django lowers the name of the model only, and commands take both in any case."""
        model = stock.model("Item", meta={"app_label": "Shop"})
        stock.create(model)
        stock.watch(model)
        model.objects.create(id=1)
        assert stock.seen() == [("Shop.item", "INSERT", 1)]
        assert stock.uninstall("Shop.Item") == ['Shop.item: removed from "Shop_item"']

    def test_a_label_with_letters_of_other_scripts(self, stock: Stock) -> None:
        model = stock.model("Größe", "größe", größe=models.IntegerField())
        stock.create(model)
        stock.watch(model, columns="__all__")
        model.objects.create(id=1, größe=5)
        assert stock.images() == [("größe", "INSERT", None, {"id": 1, "größe": 5})]
        assert stock.uninstall("stock.Größe") == ['stock.größe: removed from "größe"']


class TestSchemas:
    @pytest.mark.parametrize("name", ['"ware house"."Item"', 'ware house"."Item'])
    def test_a_table_of_another_schema_by_the_name_that_django_quotes(self, stock: Stock, name: str) -> None:
        stock.run('create schema "ware house"')
        model = stock.model("Item", name, size=models.IntegerField(default=0))
        stock.run('create table "ware house"."Item" (id bigint primary key, size int); create table "Item" (id int)')
        stock.watch(model, columns="__all__", condition=models.Q(size__gte=0))
        model.objects.create(id=1)
        model.objects.update(size=1)
        stock.run('insert into "Item" values (7)')
        assert stock.images() == [
            ("item", "INSERT", None, {"id": 1, "size": 0}),
            ("item", "UPDATE", {"id": 1, "size": 0}, {"id": 1, "size": 1}),
        ]
        assert stock.uninstall() == ['stock.item: removed from "ware house"."Item"']

    def test_a_table_of_another_schema_by_the_search_path_of_the_connection(
        self, stock: Stock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stock.run("create schema tenant; create table public.item (id bigint primary key, size int)")
        connection.close()
        monkeypatch.setitem(connections.databases["default"], "OPTIONS", {"options": "-c search_path=tenant,public"})
        model = stock.model("Item", "item", size=models.IntegerField(default=0))
        stock.create(model)
        stock.watch(model, columns="__all__", condition=models.Q(size__lt=9))
        model.objects.create(id=1)
        stock.run("insert into tenant.item (id, size) values (2, 2), (3, 9)")
        stock.run("insert into public.item (id, size) values (4, 4)")
        assert stock.images() == [
            ("item", "INSERT", None, {"id": 1, "size": 0}),
            ("item", "INSERT", None, {"id": 2, "size": 2}),
        ]
        assert stock.uninstall() == ["stock.item: removed from item"]
        connection.close()

    def test_tables_of_one_name_in_two_schemas_are_two_tables(self, stock: Stock) -> None:
        stock.run("create schema north; create schema south")
        north, south = (stock.model(end.title(), f'"{end}"."item"') for end in ("north", "south"))
        for end in ("north", "south"):
            stock.run(f"create table {end}.item (id bigint primary key)")
        stock.watch(north, south)
        north.objects.create(id=1)
        south.objects.create(id=2)
        stock.run("insert into south.item values (3); truncate north.item")
        assert stock.seen() == [
            ("north", "INSERT", 1),
            ("south", "INSERT", 2),
            ("south", "INSERT", 3),
            ("north", "TRUNCATE", None),
        ]
        stock.forget(north)
        assert stock.install() == ["stock.north: removed (was ORPHANED)"]
        stock.run("insert into north.item values (4); insert into south.item values (4)")
        assert stock.seen() == [("south", "INSERT", 4)]


class TestMultiTableInheritance:
    @pytest.fixture
    def thing(self, stock: Stock) -> type[Any]:
        return stock.model("Thing", title=models.TextField(default=""))

    @pytest.fixture
    def book(self, stock: Stock, thing: type[Any]) -> type[Any]:
        book = stock.model("Book", "", thing, pages=models.IntegerField(default=0))
        stock.create(thing, book)
        return book

    def test_parent_and_child_are_told_of_their_own_columns(
        self, stock: Stock, thing: type[Any], book: type[Any]
    ) -> None:
        stock.watch(thing, book, columns="__all__")
        made = book.objects.create(id=1, title="Emma", pages=400)
        assert stock.images() == [
            ("thing", "INSERT", None, {"id": 1, "title": "Emma"}),
            ("book", "INSERT", None, {"thing_ptr": 1, "pages": 400}),
        ]
        book.objects.update(title="Emma II")
        made.title, made.pages = "Emma III", 401
        made.save()
        book.objects.update(pages=402)
        made.delete()
        assert stock.images() == [
            ("thing", "UPDATE", {"id": 1, "title": "Emma"}, {"id": 1, "title": "Emma II"}),
            ("thing", "UPDATE", {"id": 1, "title": "Emma II"}, {"id": 1, "title": "Emma III"}),
            ("book", "UPDATE", {"thing_ptr": 1, "pages": 400}, {"thing_ptr": 1, "pages": 401}),
            ("book", "UPDATE", {"thing_ptr": 1, "pages": 401}, {"thing_ptr": 1, "pages": 402}),
            ("book", "DELETE", {"thing_ptr": 1, "pages": 402}, None),
            ("thing", "DELETE", {"id": 1, "title": "Emma III"}, None),
        ]

    def test_a_change_of_the_child_has_an_instance_with_the_columns_of_the_parent(
        self, stock: Stock, book: type[Any]
    ) -> None:
        stock.watch(book, columns="__all__")
        book.objects.create(id=1, title="Emma", pages=400)
        (change,) = stock.changes()
        assert (change.pk, change.keys) == (1, {"thing_ptr": 1})
        assert (change.instance.title, change.instance.pages) == ("Emma", 400)

    def test_a_watch_of_the_parent_alone_sees_the_part_of_its_children_that_is_its_own(
        self, stock: Stock, thing: type[Any], book: type[Any]
    ) -> None:
        stock.watch(thing)
        book.objects.create(id=1)
        book.objects.update(pages=5)
        book.objects.update(title="x")
        book.objects.all().delete()
        assert stock.seen() == [("thing", "INSERT", 1), ("thing", "UPDATE", 1), ("thing", "DELETE", 1)]

    def test_a_watch_of_the_child_alone_sees_nothing_of_the_parent(
        self, stock: Stock, thing: type[Any], book: type[Any]
    ) -> None:
        stock.watch(book)
        thing.objects.create(id=1)
        book.objects.create(id=2)
        book.objects.update(title="x")
        thing.objects.all().delete()
        assert stock.seen() == [("book", "INSERT", 2), ("book", "DELETE", 2)]

    def test_truncating_the_parent_in_cascade_is_a_change_of_both(
        self, stock: Stock, thing: type[Any], book: type[Any]
    ) -> None:
        stock.watch(thing, book)
        stock.run("truncate stock_thing cascade")
        assert sorted(stock.seen()) == [("book", "TRUNCATE", None), ("thing", "TRUNCATE", None)]

    def test_a_child_of_two_parents_is_a_change_of_all_three(self, stock: Stock) -> None:
        left = stock.model("Left", left_id=models.AutoField(primary_key=True))
        right = stock.model("Right", right_id=models.UUIDField(primary_key=True))
        both = stock.model("Both", "", left, right, own=models.IntegerField())
        stock.create(left, right, both)
        stock.watch(left, right, both, columns="__all__")
        key = UUID(int=7)
        both.objects.create(left_id=1, right_id=key, own=5)
        both.objects.all().delete()
        image = {"left_ptr": 1, "right_ptr": key, "own": 5}
        seen = stock.images()
        assert seen[:3] == [
            ("left", "INSERT", None, {"left_id": 1}),
            ("right", "INSERT", None, {"right_id": key}),
            ("both", "INSERT", None, image),
        ]
        assert seen[3] == ("both", "DELETE", image, None)
        assert sorted(model for model, *_ in seen[4:]) == ["left", "right"]

    def test_a_grandchild_is_three_tables(self, stock: Stock, thing: type[Any], book: type[Any]) -> None:
        atlas = stock.model("Atlas", "", book, maps=models.IntegerField(default=1))
        stock.create(atlas)
        stock.watch(thing, book, atlas, columns="__all__")
        atlas.objects.create(id=1, title="World")
        atlas.objects.update(title="x", pages=2, maps=3)
        seen = stock.images()
        assert seen[:3] == [
            ("thing", "INSERT", None, {"id": 1, "title": "World"}),
            ("book", "INSERT", None, {"thing_ptr": 1, "pages": 0}),
            ("atlas", "INSERT", None, {"book_ptr": 1, "maps": 1}),
        ]
        assert sorted((model, new) for model, _, _, new in seen[3:]) == [
            ("atlas", {"book_ptr": 1, "maps": 3}),
            ("book", {"thing_ptr": 1, "pages": 2}),
            ("thing", {"id": 1, "title": "x"}),
        ]

    def test_a_condition_on_the_own_columns_of_a_child_holds(self, stock: Stock, book: type[Any]) -> None:
        stock.watch(book, condition=models.Q(pages__gt=10) & models.Q(pk__lt=9))
        for key, pages in ((1, 5), (2, 11), (9, 11)):
            book.objects.create(id=key, pages=pages)
        assert stock.seen() == [("book", "INSERT", 2)]

    def test_columns_of_the_parent_are_refused_for_the_child(self, stock: Stock, book: type[Any]) -> None:
        for options in ({"columns": ["title"]}, {"update_of": ["title"]}, {"condition": models.Q(title="x")}):
            stock.registry.remove("stock.book")
            with pytest.raises(AssertionError, match="installing again"):
                stock.watch(book, **options)
            refusal = stock.refusal()
            assert "stock.book" in refusal
            assert "title" in refusal or "Joined field references" in refusal

    def test_what_inherits_from_an_abstract_model_has_all_columns_in_its_own_table(self, stock: Stock) -> None:
        base = stock.model("Base", "", meta={"abstract": True}, title=models.TextField())
        leaf = stock.model("Leaf", "", base, size=models.IntegerField())
        stock.create(leaf)
        stock.watch(leaf, columns="__all__")
        leaf.objects.create(id=1, title="x", size=2)
        assert stock.images() == [("leaf", "INSERT", None, {"id": 1, "title": "x", "size": 2})]


class TestProxies:
    @pytest.fixture
    def item(self, stock: Stock) -> type[Any]:
        item = stock.model("Item", size=models.IntegerField(default=0))
        stock.create(item)
        return item

    @pytest.fixture
    def proxy(self, stock: Stock, item: type[Any]) -> type[Any]:
        return stock.model("Proxy", "", item, meta={"proxy": True})

    def test_a_watched_proxy_is_told_of_every_write_to_its_table(
        self, stock: Stock, item: type[Any], proxy: type[Any]
    ) -> None:
        stock.watch(proxy, columns="__all__", condition=models.Q(pk__lt=9))
        item.objects.create(id=1)
        proxy.objects.update(size=5)
        stock.run("delete from stock_item")
        assert stock.images() == [
            ("proxy", "INSERT", None, {"id": 1, "size": 0}),
            ("proxy", "UPDATE", {"id": 1, "size": 0}, {"id": 1, "size": 5}),
            ("proxy", "DELETE", {"id": 1, "size": 5}, None),
        ]

    def test_its_instances_are_of_the_proxy(self, stock: Stock, item: type[Any], proxy: type[Any]) -> None:
        stock.watch(proxy)
        item.objects.create(id=1)
        (change,) = stock.changes()
        assert type(change.instance) is proxy

    def test_a_proxy_beside_its_model_is_refused(self, stock: Stock, item: type[Any], proxy: type[Any]) -> None:
        stock.watch(item)
        stock.registry.add(make_watch(proxy))
        assert stock.refusal() == (
            'stock.proxy and stock.item are both watched and share the table "stock_item": keep one watch a table'
        )
        item.objects.create(id=1)
        assert stock.seen() == [("item", "INSERT", 1)]

    def test_the_model_takes_over_from_its_proxy(self, stock: Stock, item: type[Any], proxy: type[Any]) -> None:
        stock.watch(proxy)
        stock.forget(proxy)
        stock.watch(item)
        item.objects.create(id=1)
        assert stock.seen() == [("item", "INSERT", 1)]
        assert stock.uninstall("stock.item") == ["stock.item: removed from stock_item"]

    def test_a_proxy_of_a_child_model_has_the_columns_of_the_child(self, stock: Stock, item: type[Any]) -> None:
        box = stock.model("Box", "", item, lid=models.BooleanField(default=False))
        proxy = stock.model("BoxProxy", "", box, meta={"proxy": True})
        stock.create(box)
        stock.watch(proxy, columns="__all__")
        proxy.objects.create(id=1)
        assert stock.images() == [("boxproxy", "INSERT", None, {"item_ptr": 1, "lid": False})]


class TestManyToMany:
    @pytest.fixture
    def tag(self, stock: Stock) -> type[Any]:
        return stock.model("Tag", code=models.TextField(primary_key=True))

    def test_an_automatic_through_table_is_watched_like_a_model(self, stock: Stock, tag: type[Any]) -> None:
        post = stock.model("Post", tags=models.ManyToManyField(tag))
        stock.create(tag, post)
        stock.watch(post.tags.through, columns="__all__")
        one, two = post.objects.create(id=1), post.objects.create(id=2)
        red, blue, gold = (tag.objects.create(code=code) for code in ("red", "blue", "gold"))
        one.tags.add(red, blue)
        one.tags.add(red)
        two.tags.add(red)
        rows = {(new["post"], new["tag"]) for _, _, _, new in stock.images()}
        assert rows == {(1, "red"), (1, "blue"), (2, "red")}
        one.tags.remove(red)
        one.tags.set([blue, gold])
        ((*removed, old, _), (*added, _, new)) = stock.images()
        assert (removed, old["post"], old["tag"]) == (["post_tags", "DELETE"], 1, "red")
        assert (added, new["post"], new["tag"]) == (["post_tags", "INSERT"], 1, "gold")
        one.tags.clear()
        red.delete()
        assert [(kind, old["post"], old["tag"]) for _, kind, old, _ in stock.images()] in (
            [("DELETE", 1, "blue"), ("DELETE", 1, "gold"), ("DELETE", 2, "red")],
            [("DELETE", 1, "gold"), ("DELETE", 1, "blue"), ("DELETE", 2, "red")],
        )

    def test_a_through_table_whose_name_django_shortened(self, stock: Stock, tag: type[Any]) -> None:
        post = stock.model("P" + "o" * 60 + "st", tags=models.ManyToManyField(tag))
        stock.create(tag, post)
        through = post.tags.through
        stock.watch(through)
        assert len(through._meta.db_table) == 63
        post.objects.create(id=1).tags.add(tag.objects.create(code="red"))
        assert stock.seen() == [(through._meta.model_name, "INSERT", 1)]

    def test_a_relation_with_itself_is_two_rows(self, stock: Stock) -> None:
        person = stock.model("Person", friends=models.ManyToManyField("self"))
        stock.create(person)
        stock.watch(person.friends.through, columns="__all__")
        one, two = person.objects.create(id=1), person.objects.create(id=2)
        one.friends.add(two)
        assert {(new["from_person"], new["to_person"]) for _, _, _, new in stock.images()} == {(1, 2), (2, 1)}

    def test_a_through_model_with_a_key_and_columns_of_its_own(self, stock: Stock, tag: type[Any]) -> None:
        post = stock.model("Post")
        label = stock.model(
            "Label",
            pk=CompositePrimaryKey("post", "tag"),
            post=models.ForeignKey(post, models.CASCADE),
            tag=models.ForeignKey(tag, models.CASCADE),
            weight=models.IntegerField(default=1),
        )
        models.ManyToManyField(tag, through=label).contribute_to_class(post, "tags")
        stock.create(tag, post, label)
        stock.watch(label, columns=["weight"])
        red, blue = (tag.objects.create(code=code) for code in ("red", "blue"))
        one = post.objects.create(id=1)
        one.tags.add(red, through_defaults={"weight": 5})
        label.objects.filter(tag=red).update(weight=6)
        label.objects.create(post=one, tag=blue)
        one.tags.clear()
        changes = stock.changes()
        assert [(change.kind.value, change.pk, change.old, change.new) for change in changes[:3]] == [
            ("INSERT", (1, "red"), None, {"weight": 5}),
            ("UPDATE", (1, "red"), {"weight": 5}, {"weight": 6}),
            ("INSERT", (1, "blue"), None, {"weight": 1}),
        ]
        assert {(change.kind.value, change.pk) for change in changes[3:]} == {
            ("DELETE", (1, "red")),
            ("DELETE", (1, "blue")),
        }
        assert len(changes) == 5


class TestModelsWithoutATableOfTheirOwn:
    def test_an_unmanaged_model_is_captured_like_any_other(self, stock: Stock) -> None:
        legacy = stock.model("Legacy", "OLD Data", code=models.TextField(primary_key=True), meta={"managed": False})
        stock.run('create table "OLD Data" (code varchar(3), other json)')
        stock.watch(legacy)
        stock.run("""insert into "OLD Data" values ('a', '[]')""")
        stock.run("""update "OLD Data" set other = '[1]'""")
        assert stock.seen() == [("legacy", "INSERT", "a"), ("legacy", "UPDATE", "a")]

    def test_an_unmanaged_model_without_a_table_is_not_told_to_migrate(self, stock: Stock) -> None:
        stock.registry.add(make_watch(stock.model("Legacy", "legacy", meta={"managed": False})))
        assert stock.refusal() == (
            "the table \"legacy\" of stock.legacy does not exist in database 'default': the model is unmanaged, so "
            "make the table first, or let the search_path of the connection lead to it"
        )

    def test_an_unmanaged_model_with_a_column_too_many_is_not_told_to_migrate(self, stock: Stock) -> None:
        stock.run("create table legacy (id bigint primary key)")
        legacy = stock.model("Legacy", "legacy", size=models.IntegerField(), meta={"managed": False})
        stock.registry.add(make_watch(legacy, columns="__all__"))
        assert stock.refusal() == (
            "the table \"legacy\" of stock.legacy has no column size in database 'default': the model is unmanaged, so "
            "change it, or the table"
        )

    def test_a_swapped_model_is_refused_by_the_name_of_the_one_in_its_place(
        self, stock: Stock, settings_with: Any
    ) -> None:
        settings_with(STOCK_ITEM_MODEL="shop.Article")
        item = stock.model("Item", meta={"swappable": "STOCK_ITEM_MODEL"})
        stock.registry.add(make_watch(item))
        assert stock.refusal() == (
            "stock.item cannot be watched: STOCK_ITEM_MODEL puts shop.Article in its place, watch that"
        )

    def test_a_swappable_model_that_is_not_swapped_is_captured(self, stock: Stock, settings_with: Any) -> None:
        settings_with(STOCK_ITEM_MODEL="stock.Item")
        item = stock.model("Item", meta={"swappable": "STOCK_ITEM_MODEL"})
        stock.create(item)
        stock.watch(item)
        item.objects.create(id=1)
        assert stock.seen() == [("item", "INSERT", 1)]

    @pytest.mark.parametrize("create", ["create type item as (id bigint)", "create index item on other (id)"])
    def test_what_is_no_table_at_all_is_refused(self, stock: Stock, create: str) -> None:
        stock.run(f"create table other (id bigint); {create}")
        stock.registry.add(make_watch(stock.model("Item", "item")))
        assert stock.refusal() == 'stock.item cannot be watched: "item" is no table'


@pytest.fixture
def settings_with() -> Iterator[Any]:
    """Set settings for the length of a test."""
    with ExitStack() as changed:
        yield lambda **settings: changed.enter_context(override_settings(**settings))


class TestColumnsThatPostgresqlFills:
    @pytest.fixture
    def area(self, stock: Stock) -> type[Any]:
        return stock.model(
            "Area",
            "area",
            width=models.IntegerField(),
            height=models.IntegerField(),
            size=models.GeneratedField(
                expression=models.F("width") * models.F("height"),
                output_field=models.BigIntegerField(),
                db_persist=True,
            ),
        )

    def test_a_stored_generated_column_is_captured_as_it_was_computed(self, stock: Stock, area: type[Any]) -> None:
        stock.create(area)
        stock.watch(area, columns="__all__", update_of=["size"], condition=models.Q(size__gt=5))
        area.objects.create(id=1, width=2, height=3)
        area.objects.create(id=2, width=1, height=1)
        area.objects.update(width=3, height=2)
        area.objects.update(height=1)
        seen = stock.images()
        first = {"id": 1, "width": 2, "height": 3, "size": 6}
        assert seen[:2] == [
            ("area", "INSERT", None, first),
            (
                "area",
                "UPDATE",
                {"id": 2, "width": 1, "height": 1, "size": 1},
                {"id": 2, "width": 3, "height": 2, "size": 6},
            ),
        ]
        assert sorted((old["size"], new["size"], new["id"]) for _, _, old, new in seen[2:]) == [(6, 3, 1), (6, 3, 2)]

    @pytest.mark.postgres("18")
    def test_a_virtual_generated_column_is_left_out_unless_named(self, stock: Stock) -> None:
        expression = models.F("width") * 2
        twice = models.GeneratedField(expression=expression, output_field=models.IntegerField(), db_persist=False)
        area = stock.model("Area", "area", width=models.IntegerField(), twice=twice, meta={"managed": False})
        stock.run(
            "create table area (id bigint primary key, width int, twice int generated always as (width * 2) virtual)"
        )
        stock.watch(area, columns="__all__")
        stock.run("insert into area values (1, 5); update area set width = 6; update area set width = width")
        stock.run("update area set id = 2")
        old, new = {"id": 1, "width": 5}, {"id": 1, "width": 6}
        changes = stock.changes()
        assert [(change.kind.value, change.old, change.new) for change in changes] == [
            ("INSERT", None, old),
            ("UPDATE", old, new),
            ("DELETE", new, None),
            ("INSERT", None, new | {"id": 2}),
        ]
        assert changes[-1].instance.twice == 12
        for options in ({"columns": ["twice"]}, {"update_of": ["twice"]}, {"condition": models.Q(twice__gt=1)}):
            stock.forget(area)
            stock.registry.add(make_watch(area, **options))
            assert stock.refusal() == (
                'stock.area cannot be watched with column twice of "area": PostgreSQL does not compute virtual '
                "generated columns in triggers; leave it out of the watch, or make it a stored one"
            )

    @pytest.mark.postgres("18")
    def test_a_virtual_column_that_django_does_not_know_as_one_has_to_be_excluded(self, stock: Stock) -> None:
        area = stock.model("Area", "area", width=models.IntegerField(), twice=models.IntegerField())
        stock.run("create table area (id bigint primary key, width int, twice int generated always as (width * 2))")
        stock.registry.add(make_watch(area, columns="__all__"))
        assert "leave it out of the watch" in stock.refusal()
        stock.watch(area, columns="__all__", exclude=["twice"])
        stock.run("insert into area values (1, 5)")
        assert stock.images() == [("area", "INSERT", None, {"id": 1, "width": 5})]

    @pytest.mark.parametrize(
        "column",
        [
            "bigint primary key generated always as identity",
            "bigint primary key generated by default as identity",
            "bigserial primary key",
            "serial primary key",
            "smallserial primary key",
        ],
    )
    def test_keys_that_postgresql_numbers_are_captured(self, stock: Stock, column: str) -> None:
        item = stock.model("Item", "item", size=models.IntegerField(default=0))
        stock.run(f"create table item (id {column}, size int)")
        stock.watch(item, columns="__all__")
        item.objects.create()
        item.objects.bulk_create([item(size=5), item(size=6)])
        stock.copy("copy item (size) from stdin", (7,))
        stock.run("truncate item restart identity")
        item.objects.create()
        assert stock.images() == [
            ("item", "INSERT", None, {"id": 1, "size": 0}),
            ("item", "INSERT", None, {"id": 2, "size": 5}),
            ("item", "INSERT", None, {"id": 3, "size": 6}),
            ("item", "INSERT", None, {"id": 4, "size": 7}),
            ("item", "TRUNCATE", None, None),
            ("item", "INSERT", None, {"id": 1, "size": 0}),
        ]

    def test_defaults_of_the_database_are_captured(self, stock: Stock) -> None:
        item = stock.model("Item", size=models.IntegerField(db_default=7), at=models.DateTimeField(db_default=Now()))
        stock.create(item)
        stock.watch(item, columns="__all__")
        made = item.objects.create()
        made.refresh_from_db()
        assert stock.images() == [("item", "INSERT", None, {"id": made.pk, "size": 7, "at": made.at})]

    def test_an_identity_column_that_is_no_key_is_captured(self, stock: Stock) -> None:
        item = stock.model("Item", "item", code=models.TextField(primary_key=True), number=models.IntegerField())
        stock.run("create table item (code text primary key, number int generated always as identity)")
        stock.watch(item, columns="__all__")
        stock.run("insert into item (code) values ('a'), ('b')")
        stock.run("update item set number = default where code = 'a'")
        assert stock.images() == [
            ("item", "INSERT", None, {"code": "a", "number": 1}),
            ("item", "INSERT", None, {"code": "b", "number": 2}),
            ("item", "UPDATE", {"code": "a", "number": 1}, {"code": "a", "number": 3}),
        ]


EVERY_TABLE = {
    "plain": "create table one (id bigint primary key, size int)",
    "odd names": """create schema "o'd d";create table "o'd d"."One""%{} ü" (id int primary key, size int)""",
    "generated": "create table one (id bigint primary key generated always as identity,"
    " size int generated always as (5) stored)",
    "multi-table inheritance": "create table one (id bigint primary key, size int);"
    "create table two (id bigint primary key references one, size int)",
    "range partitions": "create table one (id bigint primary key, size int) partition by range (id);"
    "create table two partition of one for values from (1) to (10);"
    "create table three partition of one default",
    "hash partitions": "create table one (id bigint primary key, size int) partition by hash (id);"
    "create table two partition of one for values with (modulus 2, remainder 0);"
    "create table three partition of one for values with (modulus 2, remainder 1)",
    "partitions of partitions": "create table one (id bigint primary key, size int) partition by range (id);"
    "create table two partition of one for values from (1) to (10) partition by list (id);"
    "create table three partition of two for values in (1);"
    "create table four (size int, gone int, id bigint not null); alter table four drop gone;"
    "alter table two attach partition four for values in (2)",
    "no partition": "create table one (id bigint primary key, size int) partition by list (id)",
    "inheritance": "create table one (id bigint primary key, size int);"
    "create table two (more int) inherits (one); create table three () inherits (two)",
    "two parents": "create table one (id bigint primary key, size int); create table two (id bigint, size int);"
    "create table three () inherits (one, two)",
    "unlogged": "create unlogged table one (id bigint primary key, size int)",
}
"""Statements that make a table `one`, and maybe others with the same columns."""

EVERY_WATCH: dict[str, dict[str, Any]] = {
    "keys": {},
    "everything": {"columns": "__all__", "condition": models.Q(size__gt=0), "update_of": ["size"]},
    "replicated": {"replicated": True},
    "kinds": {"kinds": ["DELETE"]},
}


class TestEveryTable:
    """What holds for all of them; installing asserts each time that nothing differs afterwards."""

    @pytest.fixture(params=EVERY_TABLE)
    def tables(self, request: pytest.FixtureRequest, stock: Stock) -> list[type[Any]]:
        """The models of the tables that there are."""
        stock.run(EVERY_TABLE[request.param])
        name = '"o\'d d"."One""%%{} ü"' if request.param == "odd names" else "one"
        names = [name, *(other for other in ("two", "three") if f"table {other} " in EVERY_TABLE[request.param])]
        return [
            stock.model(f"Model{number}", name, size=models.IntegerField(), meta={"managed": False})
            for number, name in enumerate(names)
        ]

    def test_uninstalling_leaves_nothing_behind(
        self, stock: Stock, tables: list[type[Any]], subtests: pytest.Subtests
    ) -> None:
        before = stock.objects()
        for name, options in EVERY_WATCH.items():
            with subtests.test(watch=name):
                stock.watch(tables[0], **options)
                assert stock.objects() != before
                assert len(stock.uninstall()) == 1
                assert stock.objects() == before
                stock.watch(*tables, **options)
                stock.uninstall()
                assert stock.objects() == before
                stock.forget(*tables)

    def test_uninstalling_one_model_leaves_the_others(self, stock: Stock, tables: list[type[Any]]) -> None:
        stock.watch(*tables[1:])
        before = stock.objects()
        stock.watch(tables[0])
        assert stock.uninstall("stock.model0") != []
        assert stock.objects() == before

    def test_a_watch_may_change_again_and_again(self, stock: Stock, tables: list[type[Any]]) -> None:
        before = stock.objects()
        for options in (*EVERY_WATCH.values(), *EVERY_WATCH.values()):
            stock.watch(*tables, **options)
        functions = stock.run("select proname from pg_proc where proname like 'capture%'")
        assert len(functions) == len(tables)
        stock.forget(*tables)
        stock.install()
        assert stock.objects() == before

    def test_the_sql_of_a_dry_run_does_the_same(self, stock: Stock, tables: list[type[Any]]) -> None:
        before = stock.objects()
        for model in tables:
            stock.registry.add(make_watch(model, columns="__all__"))
        stock.run("\n".join(command("install_triggers", "--dry-run")))
        assert {line.split()[0] for line in stock.check()} == {"INSTALLED"}
        stock.run("\n".join(command("uninstall_triggers", "--dry-run")))
        assert stock.objects() == before
