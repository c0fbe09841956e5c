"""The monitor's feed: who is let in, which changes he is sent, and that nothing of a row is among them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from django.contrib.auth.models import AnonymousUser, Permission, User
from django.core.management import call_command
from django.db import models
from django.test import AsyncClient, override_settings

from example.conversations.models import Conversation, Message
from pgnotify_gql.capture.registry import Registry, make_watch, registry
from pgnotify_gql.capture.watch import Watch
from pgnotify_gql.journal import JournalRow
from pgnotify_gql.management.row_keys import RowKey
from pgnotify_gql.monitor import MonitorConsumer
from pgnotify_gql.monitor.feed import ChangesSubscription, key_text
from tests.support.databases import Database
from tests.support.layers import default_layer
from tests.support.sockets import open_socket
from tests.support.subscribers import Chat, Subscriber
from tests.support.watched import Line, make_model

pytestmark = pytest.mark.postgres("18")

EVERYTHING = "subscription { changes { label pk kind changed at receivedAt delay xid journalId } }"
SHORT = "label pk kind changed"
QUERY = f"subscription {{ changes {{ {SHORT} }} }}"

SECRET = "nobody may read this"


def settings(**values: Any) -> Any:
    return override_settings(PGNOTIFY_GQL={"INLINE_LISTENER": True, **values}, ALLOWED_HOSTS=["testserver"])


@pytest.fixture
def chat(database_triggers: Database) -> Iterator[Chat]:
    with default_layer(), settings():
        yield Chat(database_triggers)


@pytest.fixture
def superuser(chat: Chat) -> User:
    return User.objects.create(username="root", is_staff=True, is_superuser=True)


@pytest.fixture
def viewer(chat: Chat) -> User:
    """Of the staff; may view messages."""
    user = User.objects.create(username="vera", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_message"))
    return user


@pytest.fixture
def staff(chat: Chat) -> User:
    """Of the staff, without any permission."""
    return User.objects.create(username="sam", is_staff=True)


@asynccontextmanager
async def looking(user: Any, **scope: Any) -> AsyncIterator[Subscriber]:
    """The page of a user, connected."""
    async with open_socket(MonitorConsumer.as_asgi(), user=user, **scope) as socket:
        await socket.init()
        yield Subscriber(socket)


class TestWhoIsLetIn:
    @pytest.mark.parametrize("who", ["anonymous", "a user", "inactive", "nobody at all"])
    async def test_nobody_but_active_members_of_the_staff(self, chat: Chat, who: str) -> None:
        users = {
            "anonymous": AnonymousUser(),
            "a user": chat.alice,
            "inactive": User(pk=77, is_staff=True, is_active=False),
            "nobody at all": None,
        }
        async with open_socket(MonitorConsumer.as_asgi(), user=users[who]) as socket:
            socket.send("connection_init")
            closed = await socket.closed()
        assert (closed.code, closed.reason) == (4403, "Forbidden")

    async def test_the_staff(self, staff: User) -> None:
        async with looking(staff) as page:
            assert await page.socket.run("{ models }") == {"data": {"models": []}}

    async def test_whoever_leaves_the_staff_is_closed(self, chat: Chat, viewer: User) -> None:
        with settings(AUTH_INTERVAL=0.05):
            async with looking(viewer) as page:
                await page.subscribe(QUERY)
                chat.execute("update auth_user set is_staff = false where id = %s", viewer.pk)
                assert (await page.socket.closed()).code == 4403

    async def test_whoever_may_view_other_models_than_before_is_closed_and_comes_back(
        self, chat: Chat, viewer: User
    ) -> None:
        with settings(AUTH_INTERVAL=0.05):
            async with looking(viewer) as page:
                await page.subscribe(QUERY)
                chat.execute("delete from auth_user_user_permissions where user_id = %s", viewer.pk)
                assert (await page.socket.closed()).code == 4403


class TestWhichChanges:
    async def test_a_superuser_is_sent_those_of_every_watched_model(self, chat: Chat, superuser: User) -> None:
        async with looking(superuser) as page:
            await page.subscribe(QUERY)
            chat.execute("update conversations_conversation set title = 'new' where id = %s", chat.both.pk)
            (pk,) = chat.insert("hello")
            assert [await page.change(), await page.change()] == [
                {"label": "conversations.conversation", "pk": str(chat.both.pk), "kind": "UPDATE", "changed": []},
                {"label": "conversations.message", "pk": str(pk), "kind": "INSERT", "changed": []},
            ]

    async def test_others_are_sent_those_of_models_that_they_may_view(self, chat: Chat, viewer: User) -> None:
        async with looking(viewer) as page:
            await page.subscribe(QUERY)
            chat.execute("update conversations_conversation set title = 'new' where id = %s", chat.both.pk)
            chat.insert("hello")
            assert (await page.change())["label"] == "conversations.message"

    async def test_a_right_that_was_taken_away_holds_for_the_next_change_already(
        self, chat: Chat, viewer: User, superuser: User
    ) -> None:
        entry = "[[1], null, {}]"
        (change,) = JournalRow(1, 1, "conversations.message", "INSERT", f"[{entry}]", 0).changes(Watch(Message))

        def shown(user: User) -> bool:
            info = SimpleNamespace(context=SimpleNamespace(user=User.objects.get(pk=user.pk)))
            return ChangesSubscription.next(change, info) is not None

        assert await asyncio.to_thread(shown, viewer)
        await asyncio.to_thread(viewer.user_permissions.clear)
        assert not await asyncio.to_thread(shown, viewer)
        assert await asyncio.to_thread(shown, superuser)

    async def test_nothing_to_view_is_said(self, staff: User) -> None:
        async with looking(staff) as page:
            (error,) = await page.refusal(QUERY)
        assert error["message"].startswith("there is nothing to show: no model is watched")

    async def test_models_are_chosen_by_their_labels(self, chat: Chat, superuser: User) -> None:
        query = f'subscription {{ changes(models: ["conversations.Message"]) {{ {SHORT} }} }}'
        async with looking(superuser) as page:
            await page.subscribe(query)
            chat.execute("update conversations_conversation set title = 'new' where id = %s", chat.both.pk)
            chat.insert("hello")
            assert (await page.change())["label"] == "conversations.message"

    @pytest.mark.parametrize("label", ["conversations.conversation", "auth.user", "no.such"])
    async def test_a_model_that_may_not_be_viewed_is_as_one_that_is_not_watched(self, viewer: User, label: str) -> None:
        async with looking(viewer) as page:
            (error,) = await page.refusal(f'subscription {{ changes(models: ["{label}"]) {{ pk }} }}')
        assert error["message"] == f"{label} is not watched, or its database is not followed, or you may not view it"

    async def test_every_kind_is_sent(self, chat: Chat, superuser: User) -> None:
        async with looking(superuser) as page:
            await page.subscribe(QUERY)
            (pk,) = chat.insert("hello")
            chat.execute("update conversations_message set text = 'bye' where id = %s", pk)
            chat.execute("delete from conversations_message where id = %s", pk)
            chat.execute("truncate conversations_message")
            seen = [await page.change() for _ in range(4)]
        assert [(change["kind"], change["pk"], change["changed"]) for change in seen] == [
            ("INSERT", str(pk), []),
            ("UPDATE", str(pk), ["text"]),
            ("DELETE", str(pk), []),
            ("TRUNCATE", None, []),
        ]


class TestWhatIsSent:
    async def test_values_of_rows_are_not(self, chat: Chat, superuser: User) -> None:
        async with looking(superuser) as page:
            await page.subscribe(EVERYTHING)
            (pk,) = chat.insert(SECRET)
            chat.execute("update conversations_message set text = %s where id = %s", f"{SECRET} either", pk)
            chat.execute("delete from conversations_message where id = %s", pk)
            results = [await page.result() for _ in range(3)]
        assert SECRET not in json.dumps(results)

    async def test_the_schema_has_no_field_for_them(self, superuser: User) -> None:
        async with looking(superuser) as page:
            found = await page.socket.run('{ __type(name: "SeenChange") { fields { name } } }')
        assert {field["name"] for field in found["data"]["__type"]["fields"]} == {
            "label", "pk", "kind", "changed", "at", "receivedAt", "delay", "xid", "journalId",
        }  # fmt: skip

    async def test_the_delay_is_that_from_the_statement_to_the_client(self, chat: Chat, superuser: User) -> None:
        async with looking(superuser) as page:
            await page.subscribe(EVERYTHING)
            chat.insert("hello")
            change = await page.change()
        assert 0 < change["delay"] < 10_000
        assert change["at"] < change["receivedAt"]
        assert int(change["xid"]) > 0
        assert int(change["journalId"]) > 0

    async def test_a_page_that_comes_back_is_sent_what_it_missed(self, chat: Chat, superuser: User) -> None:
        async with looking(superuser) as page:
            await page.subscribe(QUERY)
            chat.insert("one")
            cursor = (await page.result())["extensions"]["cursor"]
        missed = [str(chat.insert(text)[0]) for text in ("two", "three")]
        async with looking(superuser) as page:
            page.socket.subscribe(QUERY, extensions={"cursor": cursor})
            assert [(await page.change())["pk"] for _ in missed] == missed


class TestKeys:
    def test_they_are_texts_that_a_change_can_be_explained_by(self) -> None:
        by_uuid = Watch(make_model("ByUuid", "by_uuid", id=models.UUIDField(primary_key=True)))
        by_text = Watch(make_model("ByText", "by_text", id=models.TextField(primary_key=True)))
        for watch, key in [
            (Watch(Message), 5),
            (Watch(Line), (7, 'a, [b] "c" é')),
            (by_uuid, UUID(int=3)),
            (by_text, "[1, 2]"),
        ]:
            assert RowKey.read(watch, key_text(key)).value == key

    def test_a_change_without_a_key_has_none(self) -> None:
        assert key_text(None) is None


class TestTheSite:
    async def test_a_list_of_allowed_documents_is_for_its_own_clients(
        self, chat: Chat, superuser: User, tmp_path: Path
    ) -> None:
        documents = tmp_path / "documents.json"
        documents.write_text("{}")
        with settings(ALLOWED_DOCUMENTS=str(documents)):
            async with looking(superuser) as page:
                await page.subscribe(QUERY)
                chat.insert("hello")
                assert (await page.change())["kind"] == "INSERT"

    async def test_a_model_that_is_not_watched_any_more_is_not_shown(
        self, superuser: User, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fewer = Registry()
        fewer.add(make_watch(Conversation))
        monkeypatch.setattr("pgnotify_gql.monitor.access.registry", fewer)
        async with looking(superuser) as page:
            assert await page.socket.run("{ models }") == {"data": {"models": ["conversations.conversation"]}}

    async def test_the_page_is_among_the_operations_that_the_state_tells_of(self, superuser: User) -> None:
        client = AsyncClient()
        await client.aforce_login(superuser)
        async with looking(superuser) as page:
            await page.subscribe(QUERY)
            response = await client.get("/monitor/state.json?part=hubs")
        (answer,) = response.json()["hubs"]["answers"]
        assert (answer["sockets"], answer["operations_total"]) == (1, 1)
        (operation,) = answer["operations"]
        assert (operation["user"], operation["field"], operation["audience"]) == ("root", "changes", "user")

    async def test_a_change_is_explained_by_what_became_of_it_for_the_page(self, chat: Chat, superuser: User) -> None:
        client = AsyncClient()
        await client.aforce_login(superuser)
        async with looking(superuser) as page:
            await page.subscribe(EVERYTHING)
            (pk,) = chat.insert("hello")
            change = await page.change()
            response = await client.get(f"/monitor/explain.json?model=conversations.message&pk={pk}")
        (explained,) = response.json()["changes"]
        assert str(explained["id"]) == change["journalId"]
        (hub,) = explained["hubs"]
        (operation,) = hub["operations"]
        assert (operation["field"], operation["outcome"]) == ("changes", "sent")


class TestModelsThatNobodyMayBePermittedToView:
    @pytest.fixture(autouse=True)
    def watched_memberships(self, chat: Chat) -> Iterator[None]:
        """A model that is watched for this test alone; a permission to view it is nobody's but superusers'."""
        through = User.user_permissions.through
        registry.add(make_watch(through))
        try:
            call_command("install_triggers", stdout=StringIO())
            yield
        finally:
            registry.remove(through._meta.label_lower)

    async def test_models_without_a_permission_are_for_superusers(
        self, chat: Chat, superuser: User, viewer: User
    ) -> None:
        async with looking(superuser) as page:
            await page.subscribe(QUERY)
            chat.execute("delete from auth_user_user_permissions where user_id = %s", viewer.pk)
            assert (await page.change())["label"] == "auth.user_user_permissions"

    async def test_and_nobody_else_is_told_of_them(self, viewer: User) -> None:
        async with looking(viewer) as page:
            assert await page.socket.run("{ models }") == {"data": {"models": [Message._meta.label_lower]}}
