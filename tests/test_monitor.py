"""The monitor's views: who may look, what is told of which part, and what the button installs."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from django.apps import apps
from django.conf import settings
from django.contrib.auth.models import Permission, User
from django.db import connection, connections
from django.test import AsyncClient, Client, override_settings

from example.conversations.models import Message
from pgnotify_gql.capture.catalog import Status, installed_triggers
from pgnotify_gql.capture.registry import Registry, make_watch, registry
from pgnotify_gql.capture.watch import Watch
from pgnotify_gql.listener import Listener
from pgnotify_gql.listener.session import APPLICATION_NAME
from pgnotify_gql.management.installing import make_plan
from pgnotify_gql.monitor import installing, state
from pgnotify_gql.monitor.access import Viewer, may_install, may_look, may_view, viewable
from pgnotify_gql.monitor.disclosure import HIDDEN, shown_to
from tests.support.databases import Database
from tests.support.feed import EVENT_TIMEOUT, RARELY, Recorder, Room, leading, opener, running, transaction
from tests.support.layers import default_layer

pytestmark = pytest.mark.postgres("18")

MESSAGE = "conversations.message"
CONVERSATION = "conversations.conversation"


@pytest.fixture(autouse=True)
def site(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example's, on a layer that nobody answers on."""
    monkeypatch.setattr(state, "ROLL_CALL", 0.01)
    with default_layer(), override_settings(PGNOTIFY_GQL={}, ALLOWED_HOSTS=["testserver"]):
        yield


@pytest.fixture
def superuser(database: Database) -> User:
    return User.objects.create(username="root", is_staff=True, is_superuser=True)


@pytest.fixture
def staff(database: Database) -> User:
    """Of the staff, without any permission."""
    return User.objects.create(username="sam", is_staff=True)


@pytest.fixture
def viewer(database: Database) -> User:
    """Of the staff; may view messages."""
    user = User.objects.create(username="vera", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_message"))
    return user


@pytest.fixture
def visitor(database: Database) -> User:
    """Not of the staff, with the permission to view messages."""
    user = User.objects.create(username="victor")
    user.user_permissions.add(Permission.objects.get(codename="view_message"))
    return user


def client_of(user: User | None, *, enforce_csrf_checks: bool = False) -> Client:
    client = Client(enforce_csrf_checks=enforce_csrf_checks)
    if user is not None:
        client.force_login(user)
    return client


def told(user: User | None, path: str = "state.json", status: int = 200) -> dict[str, Any]:
    """What a user is answered, as JSON."""
    response = client_of(user).get(f"/monitor/{path}")
    assert response.status_code == status, response.content
    answer: dict[str, Any] = response.json()
    return answer


def statuses(part: Mapping[str, Any]) -> dict[str, str]:
    return {table["label"]: table["status"] for table in part["tables"]}


class TestWhoMaySeeWhat:
    def test_only_active_members_of_the_staff_may_look(self, superuser: User, staff: User, visitor: User) -> None:
        assert [may_look(user) for user in (superuser, staff, visitor, None)] == [True, True, False, False]
        staff.is_active = False
        assert not may_look(staff)

    def test_only_superusers_of_the_staff_may_install(self, superuser: User, viewer: User) -> None:
        assert [may_install(user) for user in (superuser, viewer)] == [True, False]
        superuser.is_staff = False
        assert not may_install(superuser)

    def test_models_are_viewed_by_djangos_permission(
        self, superuser: User, staff: User, viewer: User, visitor: User
    ) -> None:
        assert [list(viewable(user)) for user in (superuser, viewer, staff, visitor)] == [
            [CONVERSATION, MESSAGE],
            [MESSAGE],
            [],
            [],
        ]

    def test_whoever_cannot_be_asked_is_refused(self) -> None:
        class Bare:
            is_active = is_staff = True

        assert not may_view(Bare(), Message)

    def test_models_of_databases_that_nobody_follows_are_not_shown(self, superuser: User) -> None:
        connections.databases["other"] = connections.databases["default"]
        try:
            with override_settings(PGNOTIFY_GQL={"DATABASES": ["other"]}):
                assert viewable(superuser) == {}
        finally:
            del connections.databases["other"]


class TestThePage:
    def test_whoever_is_not_logged_in_is_sent_to_the_login(self) -> None:
        response = client_of(None).get("/monitor/")
        assert (response.status_code, response["Location"]) == (302, "/login/?next=/monitor/")

    def test_the_login_is_that_of_the_settings_where_the_admin_is_installed_and_has_no_address(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(apps, "is_installed", lambda name: True)
        assert client_of(None).get("/monitor/")["Location"] == "/login/?next=/monitor/"

    def test_whoever_is_not_of_the_staff_is_refused(self, visitor: User) -> None:
        assert client_of(visitor).get("/monitor/").status_code == 403

    def test_a_member_of_the_staff_who_is_not_active_any_more_is_sent_to_the_login(self, staff: User) -> None:
        client = client_of(staff)
        User.objects.update(is_active=False)
        assert client.get("/monitor/").status_code == 302

    @pytest.mark.parametrize(("user", "models"), [("superuser", [CONVERSATION, MESSAGE]), ("viewer", [MESSAGE])])
    def test_it_says_what_its_viewer_may_do(self, request: pytest.FixtureRequest, user: str, models: list[str]) -> None:
        response = client_of(request.getfixturevalue(user)).get("/monitor/")
        assert response.status_code == 200
        found = re.search(r'<script id="monitor-data" type="application/json">(.*?)</script>', response.text)
        assert found is not None
        assert json.loads(found[1]) == {
            "databases": ["default"],
            "models": models,
            "mayInstall": user == "superuser",
        }

    def test_it_keeps_to_a_strict_content_security_policy(self, superuser: User) -> None:
        text = client_of(superuser).get("/monitor/").text
        scripts = re.findall(r"<script[^>]*>", text)
        assert scripts
        assert all(' src="/static/' in tag or 'type="application/json"' in tag for tag in scripts)
        assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:|https?://", text)

    def test_it_is_not_kept_by_caches(self, superuser: User) -> None:
        assert "no-store" in client_of(superuser).get("/monitor/")["Cache-Control"]


@pytest.mark.parametrize("path", ["state.json", "explain.json"])
class TestWhatIsAskedAsJson:
    def test_whoever_is_not_logged_in_is_told_so(self, path: str) -> None:
        assert "not logged in" in told(None, path, 401)["error"]

    def test_whoever_is_not_of_the_staff_is_told_so(self, path: str, visitor: User) -> None:
        assert told(visitor, path, 403) == {"error": "the monitor is for members of the staff"}

    def test_it_is_only_read(self, path: str, superuser: User) -> None:
        assert client_of(superuser).post(f"/monitor/{path}").status_code == 405

    def test_it_is_not_kept_by_caches(self, path: str, superuser: User) -> None:
        assert "no-store" in client_of(superuser).get(f"/monitor/{path}")["Cache-Control"]


class TestTheState:
    def test_it_has_triggers_journals_and_hubs(self, staff: User) -> None:
        found = told(staff)
        assert set(found) == {"at", "triggers", "journals", "hubs"}
        assert found["hubs"] == {"waited": 0.01, "answers": []}

    def test_triggers_are_told_with_their_status(self, staff: User) -> None:
        missing = told(staff)["triggers"]["default"]
        assert missing["errors"] == []
        assert {table["detail"] for table in missing["tables"]} == {"no triggers"}
        assert statuses(missing) == {CONVERSATION: "MISSING", MESSAGE: "MISSING"}
        installing.install_missing("default", staff)
        assert statuses(told(staff)["triggers"]["default"]) == {CONVERSATION: "INSTALLED", MESSAGE: "INSTALLED"}

    def test_the_journal_is_told_also_while_nobody_leads(self, staff: User) -> None:
        journal = told(staff)["journals"]["default"]
        assert (journal["leader"], journal["leased"], journal["standbys"]) == (None, False, [])
        assert [slot["number"] for slot in journal["slots"]] == [0, 1, 2]
        assert (journal["retention"], journal["lag"]) == (3600.0, 0.0)

    async def test_leader_and_standbys_are_told(self, database_triggers: Database, staff: User) -> None:
        standby = Listener(
            opener(database_triggers.conninfo, 0, APPLICATION_NAME), Recorder(), database="default", timing=RARELY
        )
        client = AsyncClient()
        await client.aforce_login(staff)
        async with leading(database_triggers, Recorder()), running(standby):
            async with asyncio.timeout(EVENT_TIMEOUT):
                journal: dict[str, Any] = {"standbys": []}
                # While it begins it has a second session for a moment, from which it rings itself.
                while len(journal["standbys"]) != 1:
                    response = await client.get("/monitor/state.json?part=journals")
                    journal = response.json()["journals"]["default"]
        assert isinstance(journal["leader"]["pid"], int)
        assert [other["pid"] == journal["leader"]["pid"] for other in journal["standbys"]] == [False]

    def test_only_the_parts_that_are_named_are_asked_for(self, staff: User) -> None:
        assert set(told(staff, "state.json?part=journals&part=hubs")) == {"at", "journals", "hubs"}
        assert set(told(staff, "state.json?part=nonsense")) == {"at"}

    def test_a_database_that_cannot_be_asked_leaves_the_others_as_they_are(self, staff: User) -> None:
        with override_settings(PGNOTIFY_GQL={"DATABASES": ["default", "nowhere"]}):
            found = told(staff)
        assert "'nowhere', which the project's DATABASES does not have" in found["triggers"]["nowhere"]["error"]
        assert "'nowhere', which the project's DATABASES does not have" in found["journals"]["nowhere"]["error"]
        assert statuses(found["triggers"]["default"])[MESSAGE] == "MISSING"
        assert found["journals"]["default"]["bytes"] > 0

    def test_a_database_without_a_journal_says_so(self, database: Database, staff: User) -> None:
        database.connect().execute("drop schema pgnotify_gql cascade")
        found = told(staff)
        for part in (found["triggers"], found["journals"]):
            assert "has no journal: run `manage.py migrate pgnotify_gql" in part["default"]["error"]

    def test_an_unexpected_error_is_logged_and_not_shown(
        self, staff: User, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def fail(*args: Any, **options: Any) -> Any:
            raise RuntimeError("redis://:password@host")

        monkeypatch.setattr(state, "ask_hubs", fail)
        with caplog.at_level(logging.WARNING, "pgnotify_gql.monitor"):
            found = told(staff)
        assert found["hubs"] == {"error": "what the hubs do cannot be told (RuntimeError): the log says why"}
        assert "redis://:password@host" in caplog.text
        assert "error" not in found["journals"]["default"]

    def test_a_layer_that_hangs_is_given_up(self, staff: User, monkeypatch: pytest.MonkeyPatch) -> None:
        async def hang(*args: Any, **options: Any) -> Any:
            await asyncio.Event().wait()

        monkeypatch.setattr(state, "ask_hubs", hang)
        monkeypatch.setattr(state, "PART_TIMEOUT", 0.05)
        assert told(staff, "state.json?part=hubs")["hubs"] == {
            "error": "what the hubs do cannot be told: there was no answer within 0.05 s"
        }

    def test_it_is_told_with_atomic_requests_too(self, staff: User) -> None:
        with atomic_requests():
            assert "error" not in told(staff)["journals"]["default"]


class TestWhatAHubAnswers:
    ANSWER: Mapping[str, Any] = {
        "process": {"host": "h", "pid": 1, "since": 0.0},
        "operations": [
            {"number": 1, "topics": [f"Topic({MESSAGE}, author='ann@example.org')", f"Topic({CONVERSATION})"]},
            {"number": 2, "topics": ["something else"]},
        ],
        "errors": [{"at": 1.0, "level": "ERROR", "logger": "l", "message": "Key (email)=(ann@example.org) exists"}],
    }

    def test_conditions_of_topics_are_told_to_who_may_view_the_model(self) -> None:
        shown = shown_to(Viewer({MESSAGE: Watch(Message)}, is_superuser=False), self.ANSWER)
        assert [operation["topics"] for operation in shown["operations"]] == [
            [f"Topic({MESSAGE}, author='ann@example.org')", CONVERSATION],
            [HIDDEN],
        ]

    def test_who_may_view_nothing_is_told_the_labels(self) -> None:
        shown = shown_to(Viewer({}, is_superuser=False), self.ANSWER)
        assert "ann@example.org" not in json.dumps(shown)
        assert shown["operations"][0]["topics"] == [MESSAGE, CONVERSATION]

    def test_messages_of_errors_are_told_to_superusers(self) -> None:
        assert shown_to(Viewer({}, is_superuser=True), self.ANSWER) == self.ANSWER
        (error,) = shown_to(Viewer({}, is_superuser=False), self.ANSWER)["errors"]
        assert (error["level"], error["message"]) == ("ERROR", None)

    def test_one_that_is_busy_has_nothing_to_hide(self) -> None:
        busy = {"process": self.ANSWER["process"], "busy": True}
        assert shown_to(Viewer({}, is_superuser=False), busy) == busy


class TestInstalling:
    @staticmethod
    def install(user: User | None, status: int = 200, database: str = "default") -> dict[str, Any]:
        response = client_of(user).post("/monitor/install/", {"database": database})
        assert response.status_code == status, response.content
        answer: dict[str, Any] = response.json()
        return answer

    def test_a_superuser_installs_what_is_missing(self, superuser: User) -> None:
        assert self.install(superuser) == {
            "done": [f"{label}: installed (was MISSING)" for label in (CONVERSATION, MESSAGE)],
            "failures": [],
        }
        assert all(step.status is Status.INSTALLED for step in make_plan(connection, registry).steps)
        assert self.install(superuser) == {"done": [], "failures": []}

    def test_nobody_else_does(self, viewer: User, visitor: User) -> None:
        assert "only superusers" in self.install(viewer, 403)["error"]
        assert "members of the staff" in self.install(visitor, 403)["error"]
        assert "not logged in" in self.install(None, 401)["error"]
        assert installed_triggers(connection) == []

    def test_it_is_not_done_with_get(self, superuser: User) -> None:
        assert client_of(superuser).get("/monitor/install/").status_code == 405

    @pytest.mark.parametrize("middleware", [True, False], ids=["with the middleware", "without it"])
    def test_it_needs_the_token_of_the_page(self, superuser: User, middleware: bool) -> None:
        with middleware_without_csrf(switched_on=not middleware):
            client = client_of(superuser, enforce_csrf_checks=True)
            assert client.post("/monitor/install/", {"database": "default"}).status_code == 403
            assert installed_triggers(connection) == []
            found = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', client.get("/monitor/").text)
            assert found is not None
            form = {"database": "default", "csrfmiddlewaretoken": found[1]}
            assert client.post("/monitor/install/", form).status_code == 200
        assert installed_triggers(connection) != []

    def test_a_database_that_is_not_followed_is_refused(self, superuser: User) -> None:
        assert "'elsewhere' is not one of the databases" in self.install(superuser, 400, "elsewhere")["error"]

    def test_a_database_without_a_journal_says_so(self, database: Database, superuser: User) -> None:
        database.connect().execute("drop schema pgnotify_gql cascade")
        assert "has no journal" in self.install(superuser, 503)["error"]

    def test_what_is_outdated_is_replaced_and_what_is_orphaned_left(
        self, superuser: User, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.install(superuser)
        narrower = Registry()
        narrower.add(make_watch(Message, columns=["text"]))
        monkeypatch.setattr(installing, "registry", narrower)
        assert self.install(superuser)["done"] == [f"{MESSAGE}: installed (was OUTDATED)"]
        assert {step.label: step.status for step in make_plan(connection, narrower).steps} == {
            MESSAGE: Status.INSTALLED,
            CONVERSATION: Status.ORPHANED,
        }

    def test_a_table_that_is_locked_holds_up_no_other(
        self, database: Database, superuser: User, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(installing, "ATTEMPTS", 1)
        with transaction(database) as other:
            other.execute("lock table conversations_conversation in row exclusive mode")
            answer = self.install(superuser)
        assert answer["done"] == [f"{MESSAGE}: installed (was MISSING)"]
        (failure,) = answer["failures"]
        assert "was locked by other transactions" in failure

    def test_it_works_with_atomic_requests_too(self, superuser: User) -> None:
        with atomic_requests():
            assert len(self.install(superuser)["done"]) == 2


class TestExplaining:
    def test_it_is_for_who_may_view_the_model(self, viewer: User) -> None:
        for label in (CONVERSATION, "auth.user", ""):
            error = told(viewer, f"explain.json?model={label}&pk=1", 404)["error"]
            assert error == f"'{label}' is not watched, or you may not view it"

    @pytest.mark.parametrize("query", ["pk=one", "pk=", ""])
    def test_a_key_that_is_none_is_refused(self, viewer: User, query: str) -> None:
        assert f"is no key of {MESSAGE}" in told(viewer, f"explain.json?model={MESSAGE}&{query}", 400)["error"]

    @pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf", "many", "1441"])
    def test_minutes_that_are_none_are_refused(self, viewer: User, minutes: str) -> None:
        error = told(viewer, f"explain.json?model={MESSAGE}&pk=1&minutes={minutes}", 400)["error"]
        assert error == "minutes is a number above 0, 1440 at most"

    def test_the_changes_of_a_row_are_explained(self, database_triggers: Database, viewer: User) -> None:
        room = Room(database_triggers)
        (key,) = room.say("a secret")
        room.edit(key, "another secret")
        answer = told(viewer, f"explain.json?model={MESSAGE.upper()}&pk={key}&minutes=5")
        assert (answer["label"], answer["pk"], answer["minutes"]) == (MESSAGE, str(key), 5.0)
        assert [change["kind"] for change in answer["changes"]] == ["INSERT", "UPDATE"]
        for change in answer["changes"]:
            assert ("captured", True) in [(stage["stage"], stage["ok"]) for stage in change["stages"]]
        assert "secret" not in json.dumps(answer)

    def test_a_database_that_cannot_be_asked_is_told(self, database: Database, viewer: User) -> None:
        database.connect().execute("drop schema pgnotify_gql cascade")
        assert "it cannot be explained: " in told(viewer, f"explain.json?model={MESSAGE}&pk=1", 503)["error"]

    def test_it_is_explained_with_atomic_requests_too(self, database_triggers: Database, viewer: User) -> None:
        with atomic_requests():
            assert told(viewer, f"explain.json?model={MESSAGE}&pk=1")["changes"] == []


@contextmanager
def atomic_requests() -> Iterator[None]:
    connections["default"].settings_dict["ATOMIC_REQUESTS"] = True
    try:
        yield
    finally:
        connections["default"].settings_dict["ATOMIC_REQUESTS"] = False


@contextmanager
def middleware_without_csrf(*, switched_on: bool) -> Iterator[None]:
    kept = [name for name in settings.MIDDLEWARE if not (switched_on and name.endswith(".CsrfViewMiddleware"))]
    with override_settings(MIDDLEWARE=kept):
        yield
