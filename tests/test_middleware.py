"""The context of HTTP requests: who asked, in every change that a request makes, and in nothing else."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import psycopg
import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.auth import login, logout
from django.contrib.auth.models import User
from django.db import DatabaseError, IntegrityError, connection, connections, transaction
from django.db.models import F
from django.db.transaction import TransactionManagementError
from django.db.utils import InternalError
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client, override_settings
from django.test.utils import CaptureQueriesContext
from django.urls import path
from psycopg import sql

from example.settings import MIDDLEWARE
from pgnotify_gql.capture import change_context, suppress_changes
from pgnotify_gql.capture.attribution import Attribution, attach
from pgnotify_gql.capture.middleware import ChangeContextMiddleware
from pgnotify_gql.capture.setting import LONGEST_CONTEXT
from tests.support.databases import Database, forget_connections
from tests.support.postgres import PostgresServer
from tests.support.processes import PgBouncer, project_environment
from tests.support.second import second_alias
from tests.support.watched import Item, WatchedTable, watched

# What the server does with a setting is tested in test_change_context.py, on each version.
pytestmark = pytest.mark.postgres("18")

OURS = "pgnotify_gql.capture.middleware.ChangeContextMiddleware"

Task = Callable[[HttpRequest], object]
Ask = Callable[..., None]

_tasks: list[Task] = []


def view(request: HttpRequest) -> HttpResponse:
    """Do what the test wants done."""
    _tasks[0](request)
    return HttpResponse("done")


async def async_view(request: HttpRequest) -> HttpResponse:
    await sync_to_async(_tasks[0])(request)
    return HttpResponse("done")


urlpatterns = [path("sync/", view), path("async/", async_view)]


@pytest.fixture(autouse=True)
def site() -> Iterator[None]:
    with override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=[*MIDDLEWARE, OURS], ALLOWED_HOSTS=["testserver"]):
        yield
    _tasks.clear()


@pytest.fixture
def items(database: Database) -> WatchedTable:
    return watched(database)


@pytest.fixture
def second(postgres: PostgresServer, items: WatchedTable) -> Iterator[WatchedTable]:
    with second_alias(postgres) as table:
        yield table


@pytest.fixture
def user(database: Database) -> User:
    return User.objects.create_user("alice")


def get(task: Task, user: User | None = None, *, url: str = "/sync/", request_id: str = "r1") -> None:
    """Do `task` in a request, as `user`; what the task raises is raised."""
    _tasks[:] = [task]
    client = Client()
    if user is not None:
        client.force_login(user)
    client.get(url, headers={"X-Request-ID": request_id})


def get_async(task: Task, user: User | None = None, *, url: str = "/async/") -> None:
    """The same through Django's asynchronous handler."""
    _tasks[:] = [task]

    async def ask() -> None:
        client = AsyncClient()
        if user is not None:
            await client.aforce_login(user)
        await client.get(url, headers={"X-Request-ID": "r1"})

    asyncio.run(ask())


def get_atomic(task: Task, user: User | None = None) -> None:
    with atomic_requests():
        get(task, user)


@contextmanager
def atomic_requests() -> Iterator[None]:
    """ATOMIC_REQUESTS, on."""
    connections["default"].settings_dict["ATOMIC_REQUESTS"] = True
    try:
        yield
    finally:
        connections["default"].settings_dict["ATOMIC_REQUESTS"] = False


@pytest.fixture(params=["sync", "atomic", "async", "sync view, async server", "async view, sync server"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Do a task in a request, in each way that Django can."""

    ways: dict[str, Ask] = {
        "sync": get,
        "atomic": get_atomic,
        "async": get_async,
        "sync view, async server": partial(get_async, url="/sync/"),
        "async view, sync server": partial(get, url="/async/"),
    }
    return ways[request.param]


def contexts(items: WatchedTable) -> list[Mapping[str, Any]]:
    """Those of the changes since the last look."""
    return [found.context for found in items.changes()]


def execute(statement: Any, *parameters: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters or None)


def in_force() -> str:
    with connection.cursor() as cursor:
        cursor.execute("select coalesce(current_setting('pgnotify_gql.context', true), '')")
        value: str = cursor.fetchone()[0]
        return value


def statements(task: Callable[[], object]) -> list[str]:
    """Everything that `task` sends through the connection of this thread, in one line each."""
    with CaptureQueriesContext(connection) as captured:
        task()
    return [" ".join(query["sql"].split()) for query in captured]


def sent_for_context(task: Callable[[], object]) -> int:
    """How many statements about the context `task` costs."""
    return sum("pgnotify_gql.context" in statement for statement in statements(task))


def many_values(count: int) -> list[list[str]]:
    return [[str(number)] for number in range(count)]


def execute_many() -> None:
    with connection.cursor() as cursor:
        cursor.executemany("insert into item (name) values (%s)", many_values(3))


WRITES: dict[str, Callable[[], object]] = {
    "save": lambda: Item(name="new").save(),
    "save again": lambda: Item(pk=1, name="changed").save(),
    "get_or_create": lambda: Item.objects.get_or_create(name="new"),
    "bulk_create": lambda: Item.objects.bulk_create([Item(), Item()]),
    "bulk_update": lambda: Item.objects.bulk_update([Item(pk=1, version=5)], ["version"]),
    "update": lambda: Item.objects.update(version=F("version") + 1),
    "delete": lambda: Item.objects.filter(pk=1).delete(),
    "raw": lambda: execute("insert into item (name) values (%s)", "raw"),
    "executemany": execute_many,
    "comment": lambda: execute("-- why\n  /* who\n */ UPDATE item set version = 9"),
    "composed": lambda: execute(sql.SQL("update {} set version = 9").format(sql.Identifier("item"))),
    "bytes": lambda: execute(b"update item set version = 9"),
    "with": lambda: execute("with made as (insert into item (name) values ('with') returning id) select id from made"),
    "merge": lambda: execute(
        "merge into item using (values (1)) as given (id) on item.id = given.id"
        " when matched then update set version = 9"
    ),
    "truncate": lambda: execute("truncate item"),
}


class TestEveryWrite:
    @pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
    def test_of_a_request_carries_its_context(
        self, items: WatchedTable, user: User, ask: Ask, write: Callable[[], object]
    ) -> None:
        items.run("insert into item (name) values ('old')")
        items.journal()
        ask(lambda request: write(), user)
        found = contexts(items)
        assert found
        assert found == [{"request_id": "r1", "user": user.pk}] * len(found)

    def test_after_the_request_carries_nothing(self, items: WatchedTable, user: User, ask: Ask) -> None:
        ask(lambda request: Item.objects.create(), user)
        Item.objects.create()
        get_async_write = sync_to_async(Item.objects.create)
        async_to_sync(get_async_write)()
        assert contexts(items)[1:] == [{}, {}]
        assert in_force() == ""

    def test_in_an_atomic_block_of_the_view_carries_it(self, items: WatchedTable, user: User, ask: Ask) -> None:
        def task(request: HttpRequest) -> None:
            for _ in range(2):
                with transaction.atomic():
                    Item.objects.count()
                    Item.objects.create()
                    Item.objects.create()
                Item.objects.create()

        ask(task, user)
        assert contexts(items) == [{"request_id": "r1", "user": user.pk}] * 6

    def test_by_way_of_on_commit_carries_it(self, items: WatchedTable, user: User, ask: Ask) -> None:
        def task(request: HttpRequest) -> None:
            with transaction.atomic():
                transaction.on_commit(Item.objects.create)

        ask(task, user)
        assert contexts(items) == [{"request_id": "r1", "user": user.pk}]

    def test_in_manual_transactions_carries_it(self, items: WatchedTable) -> None:
        def task(request: HttpRequest) -> None:
            transaction.set_autocommit(False)
            try:
                for end in (transaction.commit, transaction.rollback, transaction.commit):
                    Item.objects.create()
                    Item.objects.create()
                    end()
            finally:
                transaction.set_autocommit(True)

        get(task)
        assert contexts(items) == [{"request_id": "r1"}] * 4

    def test_in_a_transaction_begun_by_hand_carries_it(self, items: WatchedTable) -> None:
        def task(request: HttpRequest) -> None:
            execute("begin")
            execute("savepoint mine")
            execute("insert into item (name) values ('lost')")
            execute("rollback to mine")
            execute("insert into item (name) values ('again')")
            execute("insert into item (name) values ('and again')")
            execute("commit")

        get(task)
        assert contexts(items) == [{"request_id": "r1"}] * 2

    def test_with_parameters_bound_by_the_server_carries_it(
        self, items: WatchedTable, user: User, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        forget_connections()
        monkeypatch.setitem(connections.databases["default"], "OPTIONS", {"server_side_binding": True})

        def task(request: HttpRequest) -> None:
            Item.objects.create()
            with transaction.atomic(), change_context(why="test"):
                Item.objects.create()

        get(task, user)
        whole = {"request_id": "r1", "user": user.pk}
        assert contexts(items) == [whole, whole | {"why": "test"}]
        forget_connections()

    def test_of_requests_at_the_same_time_carries_its_own(self, items: WatchedTable) -> None:
        names = [f"r{number}" for number in range(20)]
        _tasks[:] = [lambda request: Item.objects.create(name=request.headers["X-Request-ID"])]

        async def ask_all() -> None:
            client = AsyncClient()
            urls = ["/async/", "/sync/"] * 10
            async with asyncio.TaskGroup() as group:
                for name, url in zip(names, urls, strict=True):
                    group.create_task(client.get(url, headers={"X-Request-ID": name}))

        asyncio.run(ask_all())
        written = {item.pk: item.name for item in Item.objects.all()}
        assert sorted(written.values()) == sorted(names)
        assert {change.pk: change.context["request_id"] for change in items.changes()} == written


class TestCost:
    @pytest.mark.parametrize("way", [get, get_atomic])
    def test_of_reading_is_no_statement(self, items: WatchedTable, user: User, way: Ask) -> None:
        Item.objects.create()

        def task(request: HttpRequest) -> None:
            list(Item.objects.all())
            list(Item.objects.iterator(chunk_size=10))
            execute("with found as (select 1) select * from found")
            execute("explain select 1")
            with transaction.atomic():
                Item.objects.select_for_update().first()

        with override_settings(MIDDLEWARE=MIDDLEWARE):
            without = statements(lambda: way(task, user))
        found = statements(lambda: way(task, user))
        assert len(found) == len(without)
        assert not any("pgnotify_gql" in statement for statement in found)

    def test_of_a_request_that_only_reads_is_not_even_its_user(self, items: WatchedTable, user: User) -> None:
        def only_reads() -> None:
            get(lambda request: Item.objects.first())

        assert [statement.split(" ")[0] for statement in statements(only_reads)] == ["SELECT"]

    def test_of_a_transaction_that_writes_is_one_statement(self, items: WatchedTable, user: User) -> None:
        def task(request: HttpRequest) -> None:
            Item.objects.first()
            for _ in range(3):
                Item.objects.create()
                Item.objects.update(version=F("version") + 1)
                with transaction.atomic():
                    Item.objects.create()

        def nothing(request: HttpRequest) -> None:
            pass

        # The session of a login is written outside the request.
        assert sent_for_context(lambda: get_atomic(task, user)) == 1
        assert sent_for_context(lambda: get_atomic(nothing, user)) == 0
        assert len(contexts(items)) == 3 + 3 + (1 + 3 + 5)

    def test_of_a_single_write_is_a_transaction_of_the_two(self, items: WatchedTable) -> None:
        found = statements(lambda: get(lambda request: execute("insert into item default values")))
        # A statement is logged when its wrappers are done, so the insert comes last.
        assert [statement.split(" ")[0] for statement in found] == ["BEGIN", "select", "COMMIT", "insert"]

    def test_of_a_context_inside_is_the_same_as_without_the_middleware(self, items: WatchedTable) -> None:
        def task(request: HttpRequest) -> None:
            with change_context(why="test"):
                Item.objects.create()
                Item.objects.create()

        with override_settings(MIDDLEWARE=MIDDLEWARE):
            without = sent_for_context(lambda: get(task))
        assert sent_for_context(lambda: get(task)) == without == 2

    def test_outside_requests_is_nothing(self, items: WatchedTable) -> None:
        get(lambda request: Item.objects.create())
        assert sent_for_context(Item.objects.create) == 0

    def test_of_a_rolled_back_savepoint_is_one_more_statement(self, items: WatchedTable) -> None:
        def task(request: HttpRequest) -> None:
            Item.objects.create(pk=1)
            for _ in range(2):
                with pytest.raises(IntegrityError), transaction.atomic():
                    Item.objects.bulk_create([Item(pk=1)])
            Item.objects.create(pk=2)

        assert sent_for_context(lambda: get_atomic(task)) == 3

    def test_the_context_is_asked_for_once(self, items: WatchedTable, asked: list[str]) -> None:
        def task(request: HttpRequest) -> None:
            Item.objects.first()
            assert asked == []
            for _ in range(3):
                Item.objects.create()
            with transaction.atomic():
                Item.objects.create()

        get(task)
        assert asked == ["/sync/"]


class OwnContext(ChangeContextMiddleware):
    """One that looks into the database, and writes there."""

    asked: list[str] = []

    def context(self, request: HttpRequest) -> dict[str, Any]:
        self.asked.append(request.path)
        Item.objects.create(name="by the context")
        count = Item.objects.filter(name="by the context").count()
        return {**super().context(request), "path": request.path, "count": count}


class BadContext(ChangeContextMiddleware):
    given: Any = None

    def context(self, request: HttpRequest) -> Any:
        if isinstance(self.given, Exception):
            raise self.given
        return self.given


@pytest.fixture
def asked() -> Iterator[list[str]]:
    OwnContext.asked = []
    with override_settings(MIDDLEWARE=[*MIDDLEWARE, f"{__name__}.OwnContext"]):
        yield OwnContext.asked


class TestOwnContext:
    def test_may_query_and_write_by_itself(self, items: WatchedTable, asked: list[str], ask: Ask) -> None:
        ask(lambda request: Item.objects.create())
        url = asked[0]
        assert asked == [url]
        assert contexts(items) == [{}, {"request_id": "r1", "path": url, "count": 1}]

    @pytest.mark.parametrize(
        ("given", "error"),
        [
            ({"user": UUID(int=7)}, TypeError),
            ({7: "user"}, TypeError),
            (["user"], TypeError),
            (None, TypeError),
            ({"user": float("nan")}, ValueError),
            ({"why": "x" * LONGEST_CONTEXT}, ValueError),
            (PermissionError("no"), PermissionError),
        ],
    )
    @pytest.mark.parametrize("way", [get, get_atomic])
    def test_that_is_none_is_raised_by_the_write_which_does_not_happen(
        self, items: WatchedTable, monkeypatch: pytest.MonkeyPatch, given: Any, error: type[Exception], way: Ask
    ) -> None:
        monkeypatch.setattr(BadContext, "given", given)
        with override_settings(MIDDLEWARE=[f"{__name__}.BadContext"]), pytest.raises(error):
            way(lambda request: Item.objects.create())
        assert Item.objects.count() == 0
        Item.objects.create()
        assert contexts(items) == [{}]

    def test_that_is_empty_costs_nothing(self, items: WatchedTable, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(BadContext, "given", {})
        with override_settings(MIDDLEWARE=[f"{__name__}.BadContext"]):
            assert sent_for_context(lambda: get(lambda request: Item.objects.create())) == 0
            assert sent_for_context(lambda: get_atomic(lambda request: Item.objects.create())) == 0
        assert contexts(items) == [{}, {}]


class TestWho:
    def context(self, **attributes: Any) -> Mapping[str, Any]:
        """What the middleware says about a request with these headers and attributes."""
        request = HttpRequest()
        request.META.update(attributes.pop("meta", {}))
        vars(request).update(attributes)
        return ChangeContextMiddleware(view).context(request)

    def test_is_left_out_of_an_anonymous_request(self, items: WatchedTable, ask: Ask) -> None:
        ask(lambda request: Item.objects.create())
        assert contexts(items) == [{"request_id": "r1"}]

    def test_is_left_out_without_authentication(self, items: WatchedTable, ask: Ask) -> None:
        with override_settings(MIDDLEWARE=[OURS]):
            ask(lambda request: Item.objects.create())
        assert contexts(items) == [{"request_id": "r1"}]

    @pytest.mark.parametrize(
        ("pk", "written"), [(7, 7), ("alice", "alice"), (UUID(int=7), str(UUID(int=7))), ((1, "a"), "(1, 'a')")]
    )
    def test_is_the_key_of_the_user_as_json(self, pk: Any, written: Any) -> None:
        user = SimpleNamespace(is_authenticated=True, pk=pk)
        assert self.context(user=user)["user"] == written

    @pytest.mark.parametrize("given", ["0", "4bf92f3577b34da6", "a:b/c=d,{e}", "x" * 128])
    def test_asked_is_told_by_the_header(self, given: str) -> None:
        assert self.context(meta={"HTTP_X_REQUEST_ID": given}) == {"request_id": given}

    @pytest.mark.parametrize("given", [None, "", "x" * 129, "a b", "a\nb", "a\0", "é", "a\n", "\ud800", "\x7f"])
    def test_asked_with_a_header_that_is_not_sane_gets_a_new_id(self, given: str | None) -> None:
        request = HttpRequest()
        if given is not None:
            request.META["HTTP_X_REQUEST_ID"] = given
        middleware = ChangeContextMiddleware(view)
        made = middleware.context(request)["request_id"]
        assert UUID(hex=str(made)).version == 4
        assert made == UUID(hex=str(made)).hex
        assert middleware.context(request) == {"request_id": made}
        assert middleware.context(HttpRequest()) != {"request_id": made}

    def test_is_the_new_user_from_the_login_on(self, items: WatchedTable, user: User, ask: Ask) -> None:
        backend = "django.contrib.auth.backends.ModelBackend"
        bob = User.objects.create_user("bob")

        def task(request: HttpRequest) -> None:
            Item.objects.create()
            login(request, user, backend=backend)
            Item.objects.create()
            with transaction.atomic():
                login(request, bob, backend=backend)
                Item.objects.create()
            Item.objects.create()
            logout(request)
            Item.objects.create()

        ask(task)
        whom = [found.get("user") for found in contexts(items)]
        assert whom == [None, user.pk, bob.pk, bob.pk, None]

    def test_changes_inside_a_context_too(self, items: WatchedTable, user: User, ask: Ask) -> None:
        def task(request: HttpRequest) -> None:
            with transaction.atomic():
                with change_context(why="login"):
                    Item.objects.create()
                    login(request, user, backend="django.contrib.auth.backends.ModelBackend")
                    Item.objects.create()
                Item.objects.create()

        ask(task)
        assert contexts(items) == [
            {"request_id": "r1", "why": "login"},
            {"request_id": "r1", "why": "login", "user": user.pk},
            {"request_id": "r1", "user": user.pk},
        ]


class TestWithinOthers:
    """What somebody has set in the same transaction."""

    def test_a_context_is_merged_and_wins(self, items: WatchedTable, user: User, ask: Ask) -> None:
        def task(request: HttpRequest) -> None:
            with change_context(why="test", user="import"):
                Item.objects.create()
                with change_context(step=1):
                    Item.objects.create()
                Item.objects.create()
            Item.objects.create()

        ask(task, user)
        inside = {"request_id": "r1", "user": "import", "why": "test"}
        assert contexts(items) == [inside, inside | {"step": 1}, inside, {"request_id": "r1", "user": user.pk}]

    @pytest.mark.parametrize("written_before", [True, False])
    def test_a_context_in_a_transaction_ends_with_its_block(
        self, items: WatchedTable, ask: Ask, written_before: bool
    ) -> None:
        def task(request: HttpRequest) -> None:
            with transaction.atomic():
                if written_before:
                    Item.objects.create()
                with change_context(why="test"):
                    Item.objects.create()
                Item.objects.create()
                with pytest.raises(IntegrityError), change_context(why="failing"):
                    Item.objects.bulk_create([Item(pk=1), Item(pk=1)])
                Item.objects.create(pk=100)

        ask(task)
        plain = {"request_id": "r1"}
        assert contexts(items) == [*[plain] * written_before, plain | {"why": "test"}, plain, plain]

    def test_a_context_that_began_before_the_request_stays(self, items: WatchedTable) -> None:
        """As around the requests of a TestCase."""
        with change_context(why="test"):
            get(lambda request: Item.objects.create())
            Item.objects.create()
        assert contexts(items) == [{"request_id": "r1", "why": "test"}, {"why": "test"}]

    def test_an_empty_context_is_merged_too(self, items: WatchedTable) -> None:
        with change_context():
            get(lambda request: Item.objects.create())
        assert contexts(items) == [{"request_id": "r1"}]

    @pytest.mark.parametrize("written_before", [True, False])
    def test_changes_that_are_suppressed_stay_so(self, items: WatchedTable, ask: Ask, written_before: bool) -> None:
        def task(request: HttpRequest) -> None:
            with transaction.atomic():
                if written_before:
                    Item.objects.create()
                with suppress_changes():
                    Item.objects.create()
                    with change_context(why="test"):
                        Item.objects.create()
                    with pytest.raises(IntegrityError), transaction.atomic():
                        Item.objects.bulk_create([Item(pk=100), Item(pk=100)])
                    Item.objects.create()
                Item.objects.create()
            with suppress_changes():
                Item.objects.create()

        ask(task)
        assert contexts(items) == [{"request_id": "r1"}] * (1 + written_before)

    def test_changes_suppressed_around_a_request_stay_so(self, items: WatchedTable) -> None:
        with suppress_changes():
            get(lambda request: Item.objects.create())
            Item.objects.create()
        assert contexts(items) == []

    @pytest.mark.parametrize(
        ("value", "context"),
        [
            ('{"why": "hand", "request_id": 9}', {"why": "hand", "request_id": 9}),
            ("no json", {"raw": "no json"}),
            ("[1]", {"raw": [1]}),
            ("", {"request_id": "r1"}),
            ("{}", {"request_id": "r1"}),
        ],
    )
    def test_what_was_set_by_hand_is_kept(
        self, items: WatchedTable, ask: Ask, value: str, context: Mapping[str, Any]
    ) -> None:
        def task(request: HttpRequest) -> None:
            with transaction.atomic():
                execute("select set_config('pgnotify_gql.context', %s, true)", value)
                Item.objects.create()
                Item.objects.create()

        ask(task)
        assert contexts(items) == [context] * 2

    def test_what_a_role_says_is_merged_with(self, items: WatchedTable) -> None:
        name = connections["default"].settings_dict["NAME"]
        execute(f"""alter database {name} set pgnotify_gql.context = '{{"program": "site"}}'""")
        connection.close()
        get(lambda request: Item.objects.create())
        Item.objects.create()
        assert contexts(items) == [{"program": "site", "request_id": "r1"}, {"program": "site"}]

    def test_a_context_too_long_together_is_raised_by_the_context(self, items: WatchedTable) -> None:
        def task(request: HttpRequest) -> None:
            with pytest.raises(ValueError, match="bytes long"):
                change_context(why="x" * (LONGEST_CONTEXT - 20)).__enter__()
            Item.objects.create()

        get(task)
        assert contexts(items) == [{"request_id": "r1"}]


class TestEndings:
    def test_a_failed_savepoint_takes_nothing_from_the_writes_after_it(self, items: WatchedTable, ask: Ask) -> None:
        def task(request: HttpRequest) -> None:
            with transaction.atomic():
                # The first write of the transaction is inside, and so is the setting.
                with pytest.raises(IntegrityError), transaction.atomic():
                    Item.objects.bulk_create([Item(pk=1), Item(pk=1)])
                Item.objects.create()
                with transaction.atomic():
                    Item.objects.create()
                    transaction.set_rollback(True)
                Item.objects.create()
                sid = transaction.savepoint()
                Item.objects.create()
                transaction.savepoint_rollback(sid)
                Item.objects.create()

        ask(task)
        assert contexts(items) == [{"request_id": "r1"}] * 3

    def test_a_view_that_raises_leaves_nothing_behind(self, items: WatchedTable, user: User, ask: Ask) -> None:
        def task(request: HttpRequest) -> None:
            Item.objects.create(name="by the view")
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            ask(task, user)
        kept = Item.objects.count()
        Item.objects.create()
        async_to_sync(sync_to_async(Item.objects.create))()
        assert contexts(items) == [*[{"request_id": "r1", "user": user.pk}] * kept, {}, {}]

    def test_a_transaction_around_requests_keeps_them_apart(self, items: WatchedTable, user: User) -> None:
        """As in a TestCase."""
        with transaction.atomic():
            get(lambda request: Item.objects.create(), user)
            Item.objects.create()
            get(lambda request: Item.objects.create(), request_id="r2")
            get(lambda request: Item.objects.first(), request_id="r3")
            Item.objects.create()
        Item.objects.create()
        assert contexts(items) == [{"request_id": "r1", "user": user.pk}, {}, {"request_id": "r2"}, {}, {}]

    def test_a_transaction_that_begins_past_the_wrapper_is_a_new_one(self, items: WatchedTable) -> None:
        def task(request: HttpRequest) -> None:
            with transaction.atomic():
                Item.objects.create()
            with transaction.atomic(), connection.cursor() as cursor:
                with cursor.copy("copy item (name) from stdin") as copy:
                    copy.write("copied\n")
                Item.objects.create()

        get(task)
        assert contexts(items) == [{"request_id": "r1"}, {}, {"request_id": "r1"}]

    def test_an_error_in_autocommit_mode_leaves_the_connection_usable(self, items: WatchedTable, ask: Ask) -> None:
        def task(request: HttpRequest) -> None:
            for _ in range(2):
                with pytest.raises(IntegrityError), transaction.atomic():
                    execute("insert into item (id) values (1), (1)")
            Item.objects.create(pk=7)

        def without_a_block(request: HttpRequest) -> None:
            for _ in range(2):
                with pytest.raises(IntegrityError):
                    execute("insert into item (id) values (1), (1)")
            assert not connection.in_atomic_block
            Item.objects.create(pk=8)

        ask(task)
        get(without_a_block)
        assert contexts(items) == [{"request_id": "r1"}] * 2

    def test_a_broken_transaction_raises_its_own_error(self, items: WatchedTable, asked: list[str]) -> None:
        def task(request: HttpRequest) -> None:
            with transaction.atomic():
                with pytest.raises(DatabaseError, match="division by zero"):
                    execute("select 1 / 0")
                with pytest.raises(InternalError, match="current transaction is aborted"):
                    execute("insert into item default values")
            with transaction.atomic():
                transaction.set_rollback(True)
                with pytest.raises(TransactionManagementError):
                    execute("insert into item default values")

        get(task)
        assert asked == []

    def test_a_cursor_of_a_closed_connection_raises_its_own_error(self, items: WatchedTable) -> None:
        def task(request: HttpRequest) -> None:
            with connection.cursor() as cursor:
                connection.close()
                with pytest.raises(DatabaseError, match="closed"):
                    cursor.execute("insert into item default values")
                # Nor was another one opened, only to have a context.
                assert connection.connection is None
            Item.objects.create()

        get(task)
        assert contexts(items) == [{"request_id": "r1"}]

    @pytest.mark.parametrize("statement", ["call note_twice()", "do $$ begin call note_twice(); end $$"])
    def test_a_procedure_that_commits_still_may(self, items: WatchedTable, statement: str) -> None:
        """In a transaction PostgreSQL refuses it.  So it gets none, and no context."""
        items.run("""
            create procedure note_twice() language plpgsql as $$
            begin
                insert into item (name) values ('first');
                commit;
                insert into item (name) values ('second');
            end $$
        """)
        get(lambda request: execute(statement))
        assert contexts(items) == [{}, {}]

    def test_a_procedure_in_a_transaction_is_attributed(self, items: WatchedTable) -> None:
        get_atomic(lambda request: execute("do $$ begin insert into item default values; end $$"))
        assert contexts(items) == [{"request_id": "r1"}]


class TestConnections:
    def test_a_second_database_is_not_touched(self, items: WatchedTable, second: WatchedTable) -> None:
        get(lambda request: Item.objects.create())
        assert connections["annex"].connection is None
        get_atomic(lambda request: Item.objects.create())
        assert connections["annex"].connection is None
        assert contexts(items) == [{"request_id": "r1"}] * 2
        assert contexts(second) == []

    def test_each_database_gets_the_context_of_what_is_written_there(
        self, items: WatchedTable, second: WatchedTable, ask: Ask
    ) -> None:
        def task(request: HttpRequest) -> None:
            with transaction.atomic(), transaction.atomic("annex"):
                Item.objects.using("annex").create()
                with change_context(using="annex", why="test"):
                    Item.objects.create()
                    Item.objects.using("annex").create()

        ask(task)
        plain = {"request_id": "r1"}
        assert contexts(items) == [plain]
        assert contexts(second) == [plain, plain | {"why": "test"}]

    def test_another_kind_of_database_is_left_alone(self, items: WatchedTable, tmp_path: Path) -> None:
        connections.databases["lite"] = connections.databases["default"] | {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": str(tmp_path / "lite.sqlite3"),
            "OPTIONS": {},
        }

        def task(request: HttpRequest) -> None:
            with connections["lite"].cursor() as cursor:
                cursor.execute("create table item (id integer primary key, name text)")
                cursor.execute("insert into item (name) values ('lite')")
                assert connections["lite"].execute_wrappers == []
            Item.objects.create()

        try:
            get(task)
        finally:
            forget_connections()
            del connections.databases["lite"]
        assert contexts(items) == [{"request_id": "r1"}]

    def test_the_wrapper_is_put_on_once_and_never_taken_off_by_another(self, items: WatchedTable) -> None:
        seen: list[str] = []

        def other(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
            seen.append(sql)
            return execute(sql, params, many, context)

        forget_connections()
        attach()
        attach()
        wrapped = connections["default"]
        with wrapped.execute_wrapper(other):
            # It connects inside the block, at whose end the last wrapper is removed.
            get(lambda request: Item.objects.create())
        assert [type(wrapper) for wrapper in wrapped.execute_wrappers] == [Attribution]
        assert any("pgnotify_gql.context" in statement for statement in seen)
        wrapped.close()
        get(lambda request: Item.objects.create())
        assert [type(wrapper) for wrapper in wrapped.execute_wrappers] == [Attribution]
        assert contexts(items) == [{"request_id": "r1"}] * 2

    def test_a_connection_may_be_older_than_the_middleware(self, items: WatchedTable, database: Database) -> None:
        """In a process of its own: in this one middleware was made before."""
        program = f"""
import asyncio, django
django.setup()
from django.conf import settings
from django.test import AsyncClient
from tests import test_middleware
from tests.support.watched import Item
settings.MIDDLEWARE.append("{OURS}")
settings.ROOT_URLCONF, settings.ALLOWED_HOSTS = "tests.test_middleware", ["testserver"]
test_middleware._tasks.append(lambda request: Item.objects.create())
async def run():
    # In the thread that the request will write in.
    await Item.objects.acreate()
    await AsyncClient().get("/async/", headers={{"X-Request-ID": "r1"}})
asyncio.run(run())
"""
        environment = os.environ | project_environment(database.url, None, inline=False, environment=None)
        checkout = Path(__file__).parent.parent
        subprocess.run([sys.executable, "-c", program], cwd=checkout, env=environment, check=True, timeout=60)
        assert contexts(items) == [{}, {"request_id": "r1"}]

    def test_a_copy_of_a_connection_is_left_alone(self, items: WatchedTable) -> None:
        """`atomic` knows connections by their alias only, and would open a transaction on another one."""
        copied = connections["default"].copy()

        def task(request: HttpRequest) -> None:
            with copied.cursor() as cursor:
                cursor.execute("insert into item default values")

        try:
            assert statements(lambda: get(task)) == []
        finally:
            copied.close()
        assert contexts(items) == [{}]

    def test_nothing_reaches_the_next_client_of_a_pooler(
        self, items: WatchedTable, database: Database, user: User, pgbouncer: Callable[..., PgBouncer]
    ) -> None:
        pooler = pgbouncer(database)
        parameters = connections.databases["default"]
        direct = parameters.copy()

        def task(request: HttpRequest) -> None:
            Item.objects.create()
            with change_context(why="test"):
                Item.objects.create()
            with transaction.atomic():
                Item.objects.create()

        with ExitStack() as stack:
            others = [stack.enter_context(psycopg.connect(pooler.conninfo, autocommit=True)) for _ in range(4)]
            forget_connections()
            parameters.update(HOST="127.0.0.1", PORT=str(psycopg.conninfo.conninfo_to_dict(pooler.conninfo)["port"]))
            try:
                get(task)
                get_atomic(task)
            finally:
                forget_connections()
                parameters.update(direct)
            own = contexts(items)
            for other in others * 2:
                other.execute("insert into item default values", prepare=False)
        plain = {"request_id": "r1"}
        assert own == [plain, plain | {"why": "test"}, plain] * 2
        assert contexts(items) == [{}] * 8
