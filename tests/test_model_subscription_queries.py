"""`ModelSubscription` and how often it asks the database: by changes and batches, not by subscribers where it can."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import graphene
import pytest
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from graphene_django import DjangoObjectType

from example.conversations.models import Message
from pgnotify_gql.hub import Audience, executor
from pgnotify_gql.hub.payloads import Payloads
from pgnotify_gql.hub.process import open_hub
from pgnotify_gql.transport.context import OperationRequest
from pgnotify_gql.transport.documents import Documents
from pgnotify_gql.transport.engine import GraphqlEngine
from pgnotify_gql.transport.frames import Request
from tests.support.databases import Database
from tests.support.model_changes import Letter, Postcard, everybody_can_see, query, schema_of
from tests.support.sockets import WAIT, socket_scope
from tests.support.subscribers import Chat, inline_feed, joined, subscribers

pytestmark = pytest.mark.postgres("18")

BURST = 50
"""Changes of one statement. A hop takes 250 executions, so that no cohort's batch is cut in two by that."""

MESSAGES = 'from "conversations_message"'


class Queries:
    """The statements that Django has run since the last look, in whichever thread."""

    def __init__(self) -> None:
        self._statements: list[str] = []

    def __call__(self, execute: Callable[..., Any], sql: str, parameters: Any, many: bool, context: Any) -> Any:
        self._statements.append(sql.lower())
        return execute(sql, parameters, many, context)

    def install(self, connection: BaseDatabaseWrapper, **kwargs: object) -> None:
        connection.execute_wrappers.append(self)

    def take(self) -> list[str]:
        """Return them, without what a connection begins with."""
        taken, self._statements = self._statements, []
        return [statement for statement in taken if statement.startswith("select") and "conversations_" in statement]


@pytest.fixture
def queries() -> Iterator[Queries]:
    counted = Queries()
    connection_created.connect(counted.install)
    try:
        yield counted
    finally:
        connection_created.disconnect(counted.install)


@pytest.fixture
def chat(database_triggers: Database, queries: Queries) -> Iterator[Chat]:
    with inline_feed():
        yield Chat(database_triggers)


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hops have all the time that they need, so that a batch is not cut in two on a slow machine."""
    monkeypatch.setattr(executor, "HOP_TIME", 60.0)


class Inbox:
    """What one operation without a socket is sent."""

    def __init__(self) -> None:
        self.received: list[str] = []

    def send(self, payload: str) -> None:
        self.received.append(payload)

    def offer(self, payloads: Payloads) -> int:
        self.received.extend(payloads)
        return len(payloads)

    async def room(self) -> None:
        pass


class Crowd:
    """Many operations of a hub, without sockets."""

    def __init__(self, inboxes: list[Inbox]) -> None:
        self._inboxes = inboxes

    async def has(self, count: int) -> None:
        """Wait until each of them was sent so many results since the last look."""
        async with asyncio.timeout(3 * WAIT):
            while any(len(inbox.received) < count for inbox in self._inboxes):  # noqa: ASYNC110  (of thousands)
                await asyncio.sleep(0.002)
        for inbox in self._inboxes:
            assert len(inbox.received) == count
            assert not any('"errors"' in result for result in inbox.received), inbox.received[0]
            inbox.received.clear()


@asynccontextmanager
async def crowd(count: int, schema: Any, user: Any, asked: str | None = None) -> AsyncIterator[Crowd]:
    """Hold so many operations open that ask the same."""
    graphql_schema = schema.graphql_schema
    inboxes, documents = [Inbox() for _ in range(count)], Documents(graphql_schema)
    async with open_hub() as hub:
        engine = GraphqlEngine(graphql_schema, documents, hub, lambda: OperationRequest(socket_scope(user=user)))
        tasks = [asyncio.create_task(engine.run(Request(asked or query()), inbox)) for inbox in inboxes]
        try:
            async with asyncio.timeout(3 * WAIT):
                while joined() < count:  # noqa: ASYNC110  (an operation does not say when it is live)
                    await asyncio.sleep(0.002)
            yield Crowd(inboxes)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class Public(DjangoObjectType):  # type: ignore[misc]
    """A message that anybody may read, but which has to be asked for."""

    class Meta:
        model = Message
        fields = ("id", "text")
        skip_registry = True

    @classmethod
    def get_queryset(cls, queryset: Any, info: Any) -> Any:
        return queryset.exclude(text="")


@contextmanager
def asking(queries: Queries, count: int, of: str = MESSAGES) -> Iterator[None]:
    """Within, so many statements are run, all of which name something."""
    queries.take()
    yield
    taken = queries.take()
    assert len(taken) == count, "\n".join(taken)
    assert all(of in statement for statement in taken), "\n".join(taken)


class TestForEverybody:
    @pytest.mark.parametrize("count", [1, 100, 1_000])
    async def test_a_shared_execution_asks_once_however_many_share_it(
        self, chat: Chat, queries: Queries, count: int
    ) -> None:
        schema = schema_of(output=Public, audience=Audience.EVERYBODY)
        async with crowd(count, schema, chat.alice) as subscribed:
            with asking(queries, 1):
                chat.insert("hello")
                await subscribed.has(1)

    async def test_a_burst_costs_a_shared_execution_one_query(
        self, chat: Chat, queries: Queries, unhurried: None
    ) -> None:
        schema = schema_of(output=Public, audience=Audience.EVERYBODY)
        async with crowd(100, schema, chat.alice) as subscribed:
            with asking(queries, 1):
                chat.insert(*map(str, range(BURST)))
                await subscribed.has(BURST)

    @pytest.mark.parametrize("count", [1, 100, 1_000])
    async def test_a_type_without_a_get_queryset_of_its_own_has_each_row_fetched_once_in_a_process(
        self, chat: Chat, queries: Queries, count: int
    ) -> None:
        async with crowd(count, schema_of(output=Postcard), chat.alice) as subscribed:
            with asking(queries, 3):
                chat.insert("one", "two", "three")
                await subscribed.has(3)

    async def test_the_sockets_of_one_user_share_its_query(self, chat: Chat, queries: Queries) -> None:
        async with crowd(100, schema_of(audience=Audience.USER), chat.alice) as subscribed:
            with asking(queries, 1):
                chat.insert("hello")
                await subscribed.has(1)


class TestPrivateSubscribers:
    # Of 1,000 so few that all are pending at once: with 10,000 executions the hub reads no further.
    @pytest.mark.parametrize(("count", "burst"), [(1, BURST), (100, BURST), (1_000, 10)])
    async def test_a_burst_costs_each_one_query_and_not_one_for_each_change(
        self, chat: Chat, queries: Queries, unhurried: None, count: int, burst: int
    ) -> None:
        async with crowd(count, schema_of(), chat.alice) as subscribed:
            with asking(queries, count, of='"conversations_message"."id" in ('):
                chat.insert(*map(str, range(burst)))
                await subscribed.has(burst)

    async def test_a_burst_costs_few_queries_though_hops_are_short(self, chat: Chat, queries: Queries) -> None:
        async with crowd(20, schema_of(), chat.alice) as subscribed:
            queries.take()
            chat.insert(*map(str, range(BURST)))
            await subscribed.has(BURST)
            assert len(queries.take()) < 20 * 5

    async def test_changes_that_were_not_asked_for_cost_nothing(self, chat: Chat, queries: Queries) -> None:
        schema = schema_of(everybody_can_see, optional=["text"])
        async with crowd(20, schema, chat.alice, query('text: "x", kinds: [DELETE]')) as subscribed:
            with asking(queries, 0):
                chat.insert("x", "y")
                chat.execute("delete from conversations_message")
                await subscribed.has(1)


class Signed(DjangoObjectType):  # type: ignore[misc]
    """A message whose resolvers follow relations."""

    class Meta:
        model = Message
        fields = ("id", "text")
        skip_registry = True

    author_name = graphene.String()
    readers = graphene.List(graphene.String)

    @classmethod
    def get_queryset(cls, queryset: Any, info: Any) -> Any:
        return queryset.exclude(text="")

    @staticmethod
    def resolve_author_name(message: Any, info: Any) -> str:
        username: str = message.author.username
        return username

    @staticmethod
    def resolve_readers(message: Any, info: Any) -> list[str]:
        return sorted(user.username for user in message.conversation.members.all())


class Loader:
    """As in aiodataloader: what is asked for in one turn of the loop is loaded together."""

    batches: list[list[Any]] = []

    def __init__(self) -> None:
        self._asked: dict[Any, asyncio.Future[str]] = {}

    def load(self, key: Any) -> asyncio.Future[str]:
        loop = asyncio.get_running_loop()
        if not self._asked:
            loop.call_soon(self._load)
        return self._asked.setdefault(key, loop.create_future())

    def _load(self) -> None:
        asked, self._asked = self._asked, {}
        self.batches.append(list(asked))
        for key, future in asked.items():
            future.set_result(f"loaded {key}")


class TestResolvers:
    RELATED = "letter { authorName readers }"

    async def test_ask_no_more_for_what_the_declaration_relates(
        self, chat: Chat, queries: Queries, unhurried: None
    ) -> None:
        related: dict[str, Any] = {"select_related": ["author"], "prefetch_related": ["conversation__members"]}
        schema = schema_of(output=Signed, **related)
        async with crowd(1, schema, chat.alice, query("", self.RELATED)) as subscribed:
            # Messages with their authors, their conversations, and the members of those.
            with asking(queries, 3, of="conversations_"):
                chat.insert(*map(str, range(BURST)))
                await subscribed.has(BURST)

    async def test_ask_for_each_change_otherwise(self, chat: Chat, queries: Queries, unhurried: None) -> None:
        async with crowd(1, schema_of(output=Signed), chat.alice, query("", self.RELATED)) as subscribed:
            with asking(queries, 1 + 2 * 10, of="conversations_"):
                chat.insert(*map(str, range(10)))
                await subscribed.has(10)

    @pytest.mark.parametrize("output", [Letter, Postcard])
    async def test_that_are_asynchronous_find_a_dataloader_of_the_batch_with_the_keys_of_all_its_changes(
        self, chat: Chat, unhurried: None, monkeypatch: pytest.MonkeyPatch, output: Any
    ) -> None:
        monkeypatch.setattr(Loader, "batches", [])

        class Loaded(output):  # type: ignore[misc]
            class Meta:
                model = Message
                fields = ("id",)
                skip_registry = True

            extra = graphene.String()

            @staticmethod
            async def resolve_extra(message: Any, info: Any) -> str:
                found: str = await info.context.batch.once(Loader, Loader).load(message.pk)
                return found

        async with subscribers(schema_of(output=Loaded), chat.alice, chat.bob) as opened:
            for subscriber in opened:
                await subscriber.subscribe(query("", "letter { extra }"))
            keys = chat.insert(*map(str, range(BURST)))
            for subscriber in opened:
                found = [(await subscriber.change())["letter"]["extra"] for _ in keys]
                assert found == [f"loaded {key}" for key in keys]
        # Each of them has a batch of its own.
        assert Loader.batches == [keys, keys]
