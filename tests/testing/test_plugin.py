"""The fixtures for pytest, in a project of a user's with pytest-django; and what they do to projects without it."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.databases import Database
from tests.support.processes import project_environment

ROOT = Path(__file__).parents[2]

PLUGIN = ("-p", "pgnotify_gql.testing.plugin")

SETTINGS = """
from example.settings import *

ROOT_URLCONF = "example.urls"
"""


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other plugins that happen to be installed are no part of their project."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("DJANGO_SETTINGS_MODULE", raising=False)


TESTS = """
import pytest
from django.contrib.auth.models import User

from example.conversations.models import Conversation, Membership, Message
from example.schema import schema
from pgnotify_gql.testing import insert

pytestmark = pytest.mark.usefixtures("subscription_triggers")


def test_a_query_needs_no_database(graphql_communicator):
    assert graphql_communicator(schema).execute("{ me { username } }") == {"me": None}


@pytest.fixture
def alice(db):
    return User.objects.create(username="alice")


@pytest.fixture
def kitchen(alice):
    kitchen = Conversation.objects.create(title="kitchen")
    Membership.objects.create(user=alice, conversation=kitchen)
    return kitchen


def test_a_subscriber_is_told(graphql_communicator, pump, alice, kitchen):
    conversations = graphql_communicator(schema, alice).subscribe("subscription { conversations { title } }")
    Message.objects.create(conversation=kitchen, author=alice, text="tea")
    pump()
    assert conversations.next() == {"conversations": {"title": "kitchen"}}


def test_others_are_not(graphql_communicator, pump, alice, kitchen):
    bob = User.objects.create(username="bob")
    query = "subscription { conversations { title } }"
    told, untold = (graphql_communicator(schema, user).subscribe(query) for user in (alice, bob))
    Message.objects.create(conversation=kitchen, author=alice, text="tea")
    pump()
    assert told.next()
    untold.nothing()


def test_nothing_is_left_of_other_tests(db):
    assert not User.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_a_test_that_commits_works_as_well(graphql_communicator, pump):
    alice = User.objects.create(username="alice")
    kitchen = Conversation.objects.create(title="kitchen")
    Membership.objects.create(user=alice, conversation=kitchen)
    conversations = graphql_communicator(schema, alice).subscribe("subscription { conversations { title } }")
    Conversation.objects.update(title="cellar")
    pump()
    assert conversations.next() == {"conversations": {"title": "cellar"}}


def test_without_a_database(graphql_communicator, memory_journal, pump):
    conversations = graphql_communicator(schema).subscribe("subscription { conversations { title } }")
    memory_journal.add(insert(Message, text="tea"))
    assert [change.new["text"] for change in pump()] == ["tea"]
    conversations.nothing()


def test_a_subscription_needs_one(graphql_communicator):
    with pytest.raises(RuntimeError, match="django_db"):
        graphql_communicator(schema).subscribe("subscription { conversations { title } }")
"""


@pytest.mark.timeout(180)
@pytest.mark.skipif(find_spec("pytest_django") is None, reason="pytest-django is not installed")
def test_a_project_with_pytest_django_tests_in_its_transactions(
    database: Database, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile(their_settings=SETTINGS, test_theirs=TESTS)
    environment = project_environment(database.url, None, inline=False, environment=None)
    for name, value in {**environment, "DJANGO_SETTINGS_MODULE": "their_settings"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{pytester.path}")
    run = pytester.runpytest_subprocess(*PLUGIN, "-p", "pytest_django.plugin", "-Werror")
    run.assert_outcomes(passed=7)


def test_a_project_without_django_is_left_alone(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_django_was_not_imported():
            assert "pgnotify_gql.testing.plugin" in sys.modules
            assert not {"django", "graphene", "channels", "asgiref"} & sys.modules.keys()
        """
    )
    run = pytester.runpytest_subprocess(*PLUGIN, "-Werror")
    run.assert_outcomes(passed=1)


def test_a_fixture_that_needs_pytest_django_says_so(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(subscription_triggers): pass")
    run = pytester.runpytest_subprocess(*PLUGIN)
    run.assert_outcomes(errors=1)
    run.stdout.fnmatch_lines(["*fixture 'django_db_setup' not found*"])


def test_every_public_name_is_there_and_loaded_when_it_is_asked_for() -> None:
    script = """
import sys
import pgnotify_gql.testing as testing
assert "django" not in sys.modules
import django
django.setup()
assert all(getattr(testing, name) is not None for name in testing.__all__)
assert set(testing.__all__) == set(testing._HOMES)
try:
    testing.nonsense
except AttributeError:
    print("ok")
"""
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "example.settings"}
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert (run.stdout, run.stderr) == ("ok\n", "")


def test_pytest_finds_it_by_itself() -> None:
    found = {point.name: point.value for point in entry_points(group="pytest11")}
    assert found["pgnotify_gql"] == "pgnotify_gql.testing.plugin"
