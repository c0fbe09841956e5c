"""What clients are told of errors: what was raised for them, and of anything else an id."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import graphene
import pytest
from django.core.exceptions import PermissionDenied
from django.test import override_settings
from graphql import GraphQLError, graphql_sync

from example.conversations.models import Message
from pgnotify_gql.conf import shows_errors
from pgnotify_gql.errors import ConfigurationError, TopicError, TopicValueError
from pgnotify_gql.subscriptions import Topic
from pgnotify_gql.transport.masking import Masking
from tests.support.databases import Database
from tests.support.subscribers import Chat, declare, inline_feed, subscribers


@pytest.fixture
def chat(database_triggers: Database) -> Iterator[Chat]:
    with inline_feed(), override_settings(DEBUG=False):
        yield Chat(database_triggers)


SECRET = "relation 'salaries' does not exist"


class Picky(graphene.Scalar):  # type: ignore[misc]
    """Takes nothing."""

    @staticmethod
    def parse_value(value: Any) -> Any:
        raise ValueError("not picky enough")


class Query(graphene.ObjectType):  # type: ignore[misc]
    fails = graphene.Int(picky=Picky())

    @staticmethod
    def resolve_fails(root: Any, info: Any, picky: Any = None) -> Any:
        raise info.context


SCHEMA = graphene.Schema(query=Query).graphql_schema


def told(error: Exception, *, show: bool = False) -> dict[str, Any]:
    """Return what a client is told of an error that a resolver raises."""
    result = graphql_sync(SCHEMA, "{ fails }", context_value=error)
    [found] = Masking(show).told(result.errors or [])
    return found


def test_of_an_exception_a_client_is_told_an_id_under_which_the_log_has_the_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = told(ValueError(SECRET))
    assert found["message"] == "internal error"
    assert found["path"] == ["fails"]
    assert found["extensions"] == {"code": "INTERNAL_ERROR", "id": found["extensions"]["id"]}
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert found["extensions"]["id"] in record.message
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ValueError)


def test_every_error_has_an_id_of_its_own() -> None:
    assert told(ValueError("1"))["extensions"]["id"] != told(ValueError("1"))["extensions"]["id"]


def test_developers_are_told_the_message_as_well() -> None:
    found = told(ValueError(SECRET), show=True)
    assert found["message"] == SECRET
    assert found["extensions"]["code"] == "INTERNAL_ERROR"


def test_what_is_raised_for_clients_is_told_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    found = told(GraphQLError("not before noon", extensions={"code": "EARLY"}))
    assert (found["message"], found["extensions"]) == ("not before noon", {"code": "EARLY"})
    assert not caplog.records


def test_a_denied_permission_is_told_without_its_reason_and_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    found = told(PermissionDenied("because bob is in arrears"))
    assert (found["message"], found["extensions"]) == ("permission denied", {"code": "FORBIDDEN"})
    assert not caplog.records


def test_a_value_that_a_topic_cannot_have_is_told_and_a_mistake_of_the_application_is_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert told(TopicValueError("conversation='x' is no value"))["message"] == "conversation='x' is no value"
    assert not caplog.records
    for mistake in (TopicError(SECRET), ConfigurationError(SECRET)):
        assert told(mistake)["message"] == "internal error"
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.WARNING]


def test_what_is_wrong_with_variables_is_told_whatever_a_scalar_raises(caplog: pytest.LogCaptureFixture) -> None:
    query = "query ($picky: Picky) { fails(picky: $picky) }"
    result = graphql_sync(SCHEMA, query, variable_values={"picky": 1})
    [found] = Masking().told(result.errors or [])
    assert "not picky enough" in found["message"]
    assert not caplog.records


@pytest.mark.parametrize(("debug", "show"), [(False, False), (True, False), (False, True)])
def test_messages_are_shown_with_debug_or_by_a_setting(debug: bool, show: bool) -> None:
    with override_settings(DEBUG=debug, PGNOTIFY_GQL={"SHOW_ERRORS": show}):
        assert shows_errors() is (debug or show)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_an_exception_costs_one_subscriber_one_result_and_tells_nobody_what_it_says(
    chat: Chat, asynchronous: bool
) -> None:
    def fail(change: Any, info: Any) -> Any:
        if change.new["text"] == "two" and info.context.user.username == "alice":
            raise ValueError(SECRET)
        return {"text": change.new["text"]}

    def next_(cls: Any, change: Any, info: Any) -> Any:
        return fail(change, info)

    async def later(cls: Any, change: Any, info: Any) -> Any:
        return fail(change, info)

    schema = declare(lambda cls, info: Topic(Message), later if asynchronous else next_)
    async with subscribers(schema, chat.alice, chat.bob) as [alice, bob]:
        for subscriber in (alice, bob):
            await subscriber.subscribe("subscription { changes { text } }")
        chat.insert("one", "two", "three")
        assert [(await bob.change())["text"] for _ in range(3)] == ["one", "two", "three"]
        assert (await alice.change())["text"] == "one"
        failed = await alice.result()
        assert failed["data"] == {"changes": None}
        assert [error["message"] for error in failed["errors"]] == ["internal error"]
        assert failed["extensions"]["cursor"]
        assert SECRET not in str(failed)
        assert "Traceback" not in str(failed)
        assert (await alice.change())["text"] == "three"


async def test_what_fails_when_somebody_subscribes_is_masked_as_well(chat: Chat) -> None:
    def subscribe(cls: Any, info: Any) -> Any:
        raise ValueError(SECRET)

    async with subscribers(declare(subscribe), chat.alice) as [alice]:
        [error] = await alice.refusal("subscription { changes { text } }")
    assert error["message"] == "internal error"
    assert error["extensions"]["code"] == "INTERNAL_ERROR"
