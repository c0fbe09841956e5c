"""Topics, and the index that finds who waits for a change."""

from collections import Counter
from collections.abc import Hashable
from datetime import UTC, datetime
from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.db import models

from example.conversations.models import Conversation, Message
from pgnotify_gql.capture.kinds import Kind
from pgnotify_gql.capture.registry import make_watch, registry
from pgnotify_gql.errors import TopicError
from pgnotify_gql.hub.topics import Topic, TopicIndex
from pgnotify_gql.journal.change import Change, JournalRow
from tests.support.feed import CONVERSATION, MESSAGE
from tests.support.watched import make_model, micros

AT = datetime(2026, 1, 2, tzinfo=UTC)


def change(kind: Kind, rows: str, label: str = MESSAGE) -> Change:
    watch = registry.get(label)
    assert watch is not None
    (only,) = JournalRow(1, 1, label, kind, rows, micros(AT)).changes(watch)
    return only


def image(conversation: int, author: int = 1, text: str = "hello") -> str:
    return f'{{"conversation_id": {conversation}, "author_id": {author}, "text": "{text}"}}'


def inserted(pk: int, conversation: int, author: int = 1, text: str = "hello") -> Change:
    return change(Kind.INSERT, f"[[[{pk}], null, {image(conversation, author, text)}]]")


def moved(pk: int, old: int, new: int) -> Change:
    return change(Kind.UPDATE, f"[[[{pk}], {image(old)}, {image(new)}]]")


def deleted(pk: int, conversation: int) -> Change:
    return change(Kind.DELETE, f"[[[{pk}], {image(conversation)}, null]]")


TRUNCATED = change(Kind.TRUNCATE, "[[null]]")


def index_of(**topics: Topic) -> TopicIndex[str]:
    index: TopicIndex[str] = TopicIndex()
    for waiter, topic in topics.items():
        index.add(topic, waiter)
    return index


@pytest.fixture
def index() -> TopicIndex[str]:
    return index_of(
        all=Topic(Message),
        one=Topic(Message, conversation=1),
        two=Topic(Message, conversation=2),
        both=Topic(Message, conversation=1, author=7),
        key=Topic(Message, pk=5),
        other=Topic(Conversation),
    )


@pytest.mark.parametrize(
    ("found", "waiters"),
    [
        (inserted(1, conversation=3), {"all"}),
        (inserted(1, conversation=1), {"all", "one"}),
        (inserted(1, conversation=1, author=7), {"all", "one", "both"}),
        (inserted(1, conversation=2, author=7), {"all", "two"}),
        (inserted(5, conversation=3), {"all", "key"}),
        (moved(1, old=1, new=2), {"all", "one", "two"}),
        (moved(1, old=1, new=3), {"all", "one"}),
        (moved(1, old=3, new=2), {"all", "two"}),
        (moved(1, old=1, new=1), {"all", "one"}),
        (deleted(1, conversation=1), {"all", "one"}),
        (TRUNCATED, {"all", "one", "two", "both", "key"}),
        (change(Kind.INSERT, "[[[5]]]", CONVERSATION), {"other"}),
    ],
    ids=[
        "nobody's values",
        "one column",
        "two columns",
        "one of two columns",
        "key",
        "old and new image",
        "old image",
        "new image",
        "both images alike",
        "delete",
        "truncate",
        "another model",
    ],
)
def test_a_change_finds_everybody_who_waits_for_it_once(
    index: TopicIndex[str], found: Change, waiters: set[str]
) -> None:
    assert sorted(index.find(found)) == sorted(waiters)


def test_a_foreign_key_takes_an_instance_a_key_or_its_column(subtests: pytest.Subtests) -> None:
    topics = [
        Topic(Message, conversation=Conversation(pk=4)),
        Topic(Message, conversation=4),
        Topic(Message, conversation="4"),
        Topic(Message, conversation_id=4),
    ]
    assert len(set(topics)) == 1
    for topic in topics:
        with subtests.test(topic=topic):
            assert index_of(waiter=topic).find(inserted(1, conversation=4)) == ["waiter"]


def test_a_key_can_be_named_pk_or_by_its_field() -> None:
    assert Topic(Message, pk=5) == Topic(Message, id=5) == Topic(Message, id="5")
    assert index_of(waiter=Topic(Message, id=5)).find(deleted(5, conversation=1)) == ["waiter"]


def test_a_key_is_found_where_no_columns_are_captured() -> None:
    index = index_of(waiter=Topic(Conversation, pk=5))
    assert index.find(change(Kind.UPDATE, "[[[5]]]", CONVERSATION)) == ["waiter"]
    assert index.find(change(Kind.UPDATE, "[[[6]]]", CONVERSATION)) == []


def test_the_order_of_conditions_does_not_matter() -> None:
    assert Topic(Message, author=1, conversation=2) == Topic(Message, conversation=2, author=1)
    assert Topic(Message, author=1, conversation=2) != Topic(Message, author=2, conversation=1)
    assert Topic(Message) != Topic(Conversation)
    assert Topic(Message) != MESSAGE


def test_text_is_compared_as_text() -> None:
    index = index_of(waiter=Topic(Message, text="hello"))
    assert index.find(inserted(1, 1, text="hello")) == ["waiter"]
    assert index.find(inserted(1, 1, text="Hello")) == []


def test_a_topic_shows_what_it_waits_for() -> None:
    assert repr(Topic(Message, conversation=4, author=2)) == f"Topic({MESSAGE}, author=2, conversation=4)"


def test_what_subscribe_returns_becomes_a_topic() -> None:
    topic = Topic(Message, author=1)
    assert Topic.of(topic) is topic
    assert Topic.of(Message) == Topic(Message)


@pytest.mark.parametrize("item", ["message", Message(), 5, str])
def test_what_is_neither_a_model_nor_a_topic_is_told_so(item: Any) -> None:
    with pytest.raises(TopicError, match=r"returns models and Topic\(Model, column=value\)"):
        Topic.of(item)


@pytest.mark.parametrize(
    ("model", "conditions", "advice"),
    [
        (Group, {}, r"auth\.group is not watched: call notify_on_model_changes\(Group\) and run .*install_triggers"),
        (Message, {"created_at": AT}, r"does not capture 'created_at'; add it to its columns= \(captured: author, "),
        (Message, {"nonsense": 1}, r"does not capture 'nonsense'"),
        (Conversation, {"title": "x"}, r"does not capture 'title'; .*\(captured: id, pk\)"),
        (Message, {"conversation": "four"}, r"conversation='four' is no value of conversations\.message\.conversation"),
        (Message, {"conversation": [4]}, r"is no value of conversations\.message\.conversation"),
        (Message, {"pk": {}}, r"pk=\{\} is no value of conversations\.message\.id"),
    ],
)
def test_a_topic_that_cannot_be_found_is_refused_with_advice(
    model: Any, conditions: dict[str, Any], advice: str
) -> None:
    with pytest.raises(TopicError, match=advice):
        Topic(model, **conditions)


def test_an_instance_of_another_model_is_refused() -> None:
    with pytest.raises(TopicError, match="is no value of"):
        Topic(Message, conversation=User(pk=4))


def test_a_null_condition_finds_null() -> None:
    index = index_of(waiter=Topic(Message, author=None))
    found = change(Kind.INSERT, '[[[1], null, {"conversation_id": 1, "author_id": null, "text": "x"}]]')
    assert index.find(found) == ["waiter"]
    assert index.find(inserted(1, 1)) == []


def test_a_change_journaled_before_the_column_was_captured_reaches_everybody_who_might_wait_for_it() -> None:
    index = index_of(one=Topic(Message, conversation=1), two=Topic(Message, conversation=2))
    assert sorted(index.find(change(Kind.UPDATE, "[[[1]]]"))) == ["one", "two"]
    assert sorted(index.find(change(Kind.INSERT, '[[[1], null, {"text": "x"}]]'))) == ["one", "two"]


def test_json_that_cannot_be_looked_up_reaches_nobody_who_waits_for_something_else() -> None:
    """An object in a JSON column is unhashable; it must not keep the change from those who wait for all."""
    model = make_model("Parcel", "parcel", data=models.JSONField())
    watch = make_watch(model, columns=["data"])
    registry.add(watch)
    try:
        index = index_of(all=Topic(model), text=Topic(model, data="x"))
        for rows, found in (
            ('[[[1], null, {"data": {"a": [1]}}]]', ["all"]),
            ('[[[1], null, {"data": "x"}]]', ["all", "text"]),
        ):
            (only,) = JournalRow(1, 1, watch.label, Kind.INSERT, rows, micros(AT)).changes(watch)
            assert sorted(index.find(only)) == found
    finally:
        registry.remove(watch.label)


def test_a_waiter_with_several_matching_topics_is_found_once() -> None:
    index: TopicIndex[str] = TopicIndex()
    for topic in (Topic(Message), Topic(Message, conversation=1), Topic(Message, author=1)):
        index.add(topic, "waiter")
    assert index.find(inserted(1, 1)) == ["waiter"]
    assert index.waiting_for(MESSAGE) == ["waiter"]


def test_who_is_removed_is_found_no_more_and_leaves_nothing_behind(index: TopicIndex[str]) -> None:
    index.remove(Topic(Message, conversation=1), "one")
    assert index.find(inserted(1, conversation=1)) == ["all"]
    index.remove(Topic(Message, conversation=1), "one")
    for waiter, topic in {
        "all": Topic(Message),
        "two": Topic(Message, conversation=2),
        "both": Topic(Message, conversation=1, author=7),
        "key": Topic(Message, pk=5),
        "other": Topic(Conversation),
    }.items():
        index.remove(topic, waiter)
    assert index.find(inserted(1, conversation=1)) == []
    assert not index._waiting


def test_removing_whoever_never_waited_is_harmless() -> None:
    index: TopicIndex[str] = TopicIndex()
    index.remove(Topic(Message, conversation=1), "nobody")
    assert index.waiting_for(MESSAGE) == []


def test_the_cost_of_a_change_does_not_grow_with_those_who_wait_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    index: TopicIndex[int] = TopicIndex()
    for conversation in range(10_000):
        index.add(Topic(Message, conversation=conversation), conversation)
    looked_at: Counter[Hashable] = Counter()

    class Counting(dict[Any, Any]):
        def get(self, key: Any, default: Any = None) -> Any:
            looked_at[key] += 1
            return super().get(key, default)

        def __iter__(self) -> Any:
            raise AssertionError("it goes through all of them")

        items = values = keys = __iter__

    (by_columns,) = index._waiting.values()
    ((columns, by_values),) = list(by_columns.items())
    by_columns[columns] = Counting(by_values)
    assert index.find(inserted(1, conversation=5)) == [5]
    assert sorted(index.find(moved(1, old=5, new=6))) == [5, 6]
    assert sum(looked_at.values()) <= 3
