"""For how long the user of a socket may stay: sessions, tokens, rows of users, and whoever has him leave."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any

import graphene
import pytest
from asgiref.sync import sync_to_async
from channels.layers import InMemoryChannelLayer
from django.conf import settings as settings_of_django
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.contrib.auth.models import AnonymousUser, User
from django.contrib.sessions.backends.db import SessionStore
from django.contrib.sessions.models import Session
from django.core.management import call_command
from django.test import override_settings

from pgnotify_gql import names
from pgnotify_gql.capture.registry import registry
from pgnotify_gql.capture.watch import Watch
from pgnotify_gql.errors import ConfigurationError
from pgnotify_gql.hub.visitors import disconnect_message
from pgnotify_gql.transport import GraphqlSseConsumer, GraphqlSubscriptionConsumer, adisconnect_user, disconnect_user
from pgnotify_gql.transport import presence as module
from tests.support.databases import Database
from tests.support.feed import Notebook, hub_of
from tests.support.layers import default_layer
from tests.support.sockets import Application, AsgiSocket, ClosedError, open_socket
from tests.support.streams import get, held

pytestmark = pytest.mark.postgres("18")

BOTH = pytest.mark.parametrize("subprotocol", ["graphql-transport-ws", "graphql-ws"])

SOON = 0.05
"""Seconds."""

BACKEND = "django.contrib.auth.backends.ModelBackend"


class Query(graphene.ObjectType):  # type: ignore[misc]
    username = graphene.String()

    @staticmethod
    def resolve_username(root: Any, info: Any) -> str:
        username: str = info.context.user.username
        return username


class Subscription(graphene.ObjectType):  # type: ignore[misc]
    forever = graphene.Int()

    @staticmethod
    async def subscribe_forever(root: Any, info: Any) -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()

    @staticmethod
    def resolve_forever(root: int, info: Any) -> int:
        return root


SCHEMA = graphene.Schema(query=Query, subscription=Subscription)


@pytest.fixture
def feed(database: Database) -> Iterator[Database]:
    with default_layer(), override_settings(PGNOTIFY_GQL={"INLINE_LISTENER": True}):
        yield database


@pytest.fixture
def alice(feed: Database) -> User:
    return User.objects.create_user("alice", password="p")


def application(**methods: Any) -> Application:
    """Return a consumer with these methods of a subclass."""
    consumer: type[GraphqlSubscriptionConsumer] = type("Consumer", (GraphqlSubscriptionConsumer,), methods)
    return consumer.as_asgi(schema=SCHEMA)


@pytest.fixture
def watched_users(feed: Database) -> Iterator[None]:
    registry.add(Watch(User, ("is_active",)))
    try:
        call_command("install_triggers", stdout=StringIO())
        yield
    finally:
        registry.remove("auth.user")


@pytest.fixture
def logged_in(alice: User) -> dict[str, Any]:
    """What AuthMiddlewareStack puts into the scope of somebody who has logged in."""
    session = SessionStore()
    session[SESSION_KEY], session[BACKEND_SESSION_KEY] = str(alice.pk), BACKEND
    session[HASH_SESSION_KEY] = alice.get_session_auth_hash()
    session.save()
    return {"user": alice, "session": session}


async def expire(seconds: float) -> datetime:
    """Let all sessions expire in so many seconds."""
    expires = datetime.now(UTC) + timedelta(seconds=seconds)
    await sync_to_async(Session.objects.update)(expire_date=expires)
    return expires


def settings(**values: Any) -> Any:
    return override_settings(PGNOTIFY_GQL={"INLINE_LISTENER": True, **values})


@asynccontextmanager
async def connected(app: Application, subprotocol: str = "graphql-transport-ws", **scope: Any) -> Any:
    async with open_socket(app, subprotocol, **scope) as socket:
        await socket.init()
        yield socket


async def forbidden(socket: AsgiSocket) -> None:
    closed = await socket.closed()
    assert (closed.code, closed.reason) == (4403, "Forbidden")


async def stays(socket: AsgiSocket, seconds: float = 5 * SOON) -> None:
    """See that a socket is open for a while, which is many times as long as what would close it takes."""
    await asyncio.sleep(seconds)
    assert (await socket.run("{ username }", id="stays"))["data"] is not None


class TestSessions:
    @BOTH
    async def test_a_logout_is_noticed_at_the_next_recheck(self, logged_in: dict[str, Any], subprotocol: str) -> None:
        with settings(AUTH_INTERVAL=SOON):
            async with connected(application(), subprotocol, **logged_in) as socket:
                await stays(socket)
                await sync_to_async(Session.objects.all().delete)()
                await forbidden(socket)

    async def test_a_new_password_ends_the_sessions_of_the_old_one(
        self, alice: User, logged_in: dict[str, Any]
    ) -> None:
        with settings(AUTH_INTERVAL=SOON):
            async with connected(application(), **logged_in) as socket:
                await stays(socket)

                def change() -> None:
                    alice.set_password("another")
                    alice.save()

                await sync_to_async(change)()
                await forbidden(socket)

    async def test_a_session_that_expires_is_looked_at_then(self, logged_in: dict[str, Any]) -> None:
        expires = await expire(4)
        async with connected(application(), **logged_in) as socket:
            await stays(socket, 0.1)
            await forbidden(socket)
        assert datetime.now(UTC) >= expires

    async def test_whoever_stays_behind_its_end_is_not_looked_at_all_the_time(self, logged_in: dict[str, Any]) -> None:
        calls: list[float] = []

        def on_recheck(self: Any) -> bool:
            calls.append(time.monotonic())
            return True

        await expire(3)
        async with connected(application(on_recheck=on_recheck), **logged_in) as socket:
            await stays(socket, 4)
        assert len(calls) == 2

    async def test_to_look_at_a_session_does_not_change_it(self, logged_in: dict[str, Any]) -> None:
        # Django gives a session another key when it finds it signed with an old one.
        with override_settings(SECRET_KEY="new", SECRET_KEY_FALLBACKS=[settings_of_django.SECRET_KEY]):
            key = logged_in["session"].session_key
            async with connected(application(), **logged_in) as socket:
                await stays(socket)
            assert await Session.objects.filter(session_key=key).aexists()

    async def test_a_session_that_was_prolonged_meanwhile_goes_on(self, logged_in: dict[str, Any]) -> None:
        await expire(3)
        async with connected(application(), **logged_in) as socket:
            await expire(3600)
            await stays(socket, 4)

    async def test_without_a_session_the_user_is_looked_at(self, alice: User) -> None:
        with settings(AUTH_INTERVAL=SOON):
            async with connected(application(), user=alice) as socket:
                await stays(socket)
                await sync_to_async(User.objects.update)(is_active=False)
                await forbidden(socket)

    async def test_what_changes_of_a_user_is_there_for_the_next_operation(self, alice: User) -> None:
        with settings(AUTH_INTERVAL=SOON):
            async with connected(application(), user=alice) as socket:
                await sync_to_async(User.objects.update)(username="alicia")
                await asyncio.sleep(5 * SOON)
                assert await socket.run("{ username }") == {"data": {"username": "alicia"}}

    async def test_visitors_without_a_login_are_not_looked_at(self, feed: Database) -> None:
        def on_recheck(self: Any) -> bool:
            raise AssertionError("it was asked")

        with settings(AUTH_INTERVAL=SOON):
            async with connected(application(on_recheck=on_recheck), user=AnonymousUser()) as socket:
                await stays(socket)

    async def test_a_stream_of_a_user_who_is_gone_is_cut_so_that_its_client_asks_again(
        self, logged_in: dict[str, Any]
    ) -> None:
        app = GraphqlSseConsumer.as_asgi(schema=SCHEMA)
        with settings(AUTH_INTERVAL=SOON):
            async with held(get(app, "subscription { forever }", scope=logged_in)) as stream:
                await stream.start()
                assert (await stream.result())["data"] == {"forever": 1}
                await sync_to_async(Session.objects.all().delete)()
                assert await stream.rest() == []


class TestRechecks:
    @pytest.mark.parametrize("asynchronous", [False, True])
    async def test_an_application_may_decide_itself(self, alice: User, asynchronous: bool) -> None:
        answers = iter([True, True, False])

        def plain(self: Any) -> bool:
            return next(answers)

        async def later(self: Any) -> bool:
            return next(answers)

        with settings(AUTH_INTERVAL=SOON):
            async with connected(application(on_recheck=later if asynchronous else plain), user=alice) as socket:
                await forbidden(socket)
        assert next(answers, None) is None

    async def test_while_the_database_does_not_tell_everybody_stays(
        self, alice: User, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(module, "RETRY", SOON)
        calls: list[float] = []

        def on_recheck(self: Any) -> bool:
            calls.append(time.monotonic())
            if len(calls) < 4:
                raise ConnectionError("the server closed the connection")
            return False

        with caplog.at_level(logging.WARNING, "pgnotify_gql.transport"):
            async with connected(application(on_recheck=on_recheck), user=alice) as socket:
                await forbidden(socket)
        assert len(calls) == 4
        assert [record.message for record in caplog.records].count(
            "a connected user could not be looked at again (ConnectionError('the server closed the connection')); "
            "trying again"
        ) == 3

    async def test_a_user_whose_row_changes_is_looked_at_within_moments(
        self, watched_users: None, alice: User, feed: Database
    ) -> None:
        bob = await sync_to_async(User.objects.create_user)("bob")
        session = feed.connect()
        async with connected(application(), user=alice) as hers, connected(application(), user=bob) as his:
            session.execute("update auth_user set is_active = false where id = %s", [alice.pk])
            begun = time.monotonic()
            await forbidden(hers)
            # Not by the interval, which is a minute.
            assert time.monotonic() - begun < 10
            await stays(his, 0)


class TestExpiry:
    @pytest.mark.parametrize("kind", ["seconds", "datetime"])
    @BOTH
    async def test_a_token_holds_for_as_long_as_it_says(self, feed: Database, kind: str, subprotocol: str) -> None:
        ends = time.time() + 3

        async def on_connect(self: Any, payload: Any) -> None:
            self.expires_at = ends if kind == "seconds" else datetime.fromtimestamp(ends, UTC)

        async with connected(application(on_connect=on_connect), subprotocol) as socket:
            await stays(socket, 0)
            await forbidden(socket)
        assert time.time() >= ends

    async def test_one_that_has_expired_already_is_no_welcome(self, feed: Database) -> None:
        def on_connect(self: Any, payload: Any) -> None:
            self.expires_at = 0

        async with open_socket(application(on_connect=on_connect)) as socket:
            socket.send("connection_init")
            await forbidden(socket)

    async def test_one_for_decades_is_no_trouble(self, feed: Database) -> None:
        def on_connect(self: Any, payload: Any) -> None:
            self.expires_at = datetime.max.replace(tzinfo=UTC)

        async with connected(application(on_connect=on_connect)) as socket:
            await stays(socket, 0)


class TestDisconnecting:
    @BOTH
    async def test_a_user_leaves_with_all_that_he_has(self, alice: User, subprotocol: str) -> None:
        bob = await sync_to_async(User.objects.create_user)("bob")
        app, sse = application(), GraphqlSseConsumer.as_asgi(schema=SCHEMA)
        async with AsyncExitStack() as stack:
            his = await stack.enter_async_context(connected(app, subprotocol, user=bob))
            hers = [await stack.enter_async_context(connected(app, subprotocol, user=alice)) for _ in range(3)]
            stream = await stack.enter_async_context(held(get(sse, "subscription { forever }", scope={"user": alice})))
            await stream.start()
            await stream.result()
            await adisconnect_user(alice)
            for socket in hers:
                await forbidden(socket)
            assert await stream.rest() == []
            await stays(his, 0)

    async def test_also_where_code_is_not_asynchronous(self, alice: User) -> None:
        async with connected(application(), user=alice) as socket:
            await sync_to_async(disconnect_user)(alice)
            await forbidden(socket)

    async def test_in_every_process(self, alice: User, feed: Database) -> None:
        layer = InMemoryChannelLayer()
        async with hub_of(layer, feed.conninfo) as one, hub_of(layer, feed.conninfo) as other:
            notebook, left = Notebook(), list[str]()

            def leave(name: str) -> Any:
                def noted() -> None:
                    left.append(name)
                    notebook.noted()

                return noted

            key = f"auth.user:{alice.pk}"
            with one.visitors.visiting(key, leave("one")), other.visitors.visiting(key, leave("other")):
                await layer.group_send(names.heartbeat_group(), dict(disconnect_message(alice)))
                await notebook.until(lambda: sorted(left) == ["one", "other"])
            assert one.visitors.count(key) == 0


class TestHowManyOfAUser:
    @BOTH
    async def test_no_more_than_the_limit_are_connected(self, alice: User, subprotocol: str) -> None:
        bob = await sync_to_async(User.objects.create_user)("bob")
        app = application()
        with settings(MAX_SOCKETS_PER_USER=2):
            async with (
                connected(app, subprotocol, user=alice),
                connected(app, subprotocol, user=alice) as second,
                connected(app, subprotocol, user=bob),
            ):
                async with open_socket(app, subprotocol, user=alice) as third:
                    third.send("connection_init")
                    closed = await third.closed()
                    assert (closed.code, closed.reason) == (4429, "Too many connections of this user")
                await second.disconnect()
                async with connected(app, subprotocol, user=alice) as again:
                    await stays(again, 0)

    async def test_a_stream_too_many_is_status_429(self, alice: User) -> None:
        app = GraphqlSseConsumer.as_asgi(schema=SCHEMA)
        with settings(MAX_SOCKETS_PER_USER=1):
            async with held(get(app, "subscription { forever }", scope={"user": alice})) as first:
                await first.start()
                await first.result()
                second = get(app, "subscription { forever }", scope={"user": alice})
                status, _, message = await second.refusal()
                assert (status, message) == (429, "Too many connections of this user")

    async def test_what_a_hook_raises_leaves_nobody_counted(self, alice: User) -> None:
        def depends_on(self: Any) -> Any:
            raise ConfigurationError("a mistake")

        with settings(MAX_SOCKETS_PER_USER=1):
            broken = application(depends_on=depends_on)
            async with open_socket(broken, user=alice) as socket:
                socket.send("connection_init")
                with pytest.raises(ClosedError) as closed:
                    await socket.receive()
                assert closed.value.code == 4500
            async with connected(application(), user=alice) as socket:
                await stays(socket, 0)
