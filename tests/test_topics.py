"""Topics, and the index that finds who waits for a change."""

from collections import Counter
from collections.abc import Hashable
from datetime import UTC, datetime
from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.db import models
from django.db.models import F, Q

from example.conversations.models import Conversation, Message
from pgnotify_gql.capture.kinds import Kind
from pgnotify_gql.capture.registry import make_watch, registry
from pgnotify_gql.errors import TopicError, TopicValueError
from pgnotify_gql.hub.image_filter import ImageFilter
from pgnotify_gql.hub.topics import MOST_ALTERNATIVES, Topic, TopicIndex
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


class TestLists:
    def test_a_list_finds_whatever_has_one_of_its_values(self) -> None:
        index = index_of(waiter=Topic(Message, conversation__in=[1, 2]))
        assert index.find(inserted(1, conversation=1)) == ["waiter"]
        assert index.find(deleted(1, conversation=2)) == ["waiter"]
        assert index.find(inserted(1, conversation=3)) == []
        assert index.find(moved(1, old=3, new=2)) == ["waiter"]

    def test_a_row_that_goes_from_one_of_its_values_to_another_is_found_once(self) -> None:
        index = index_of(waiter=Topic(Message, conversation__in=[1, 2]))
        assert index.find(moved(1, old=1, new=2)) == ["waiter"]
        assert index.waiting_for(MESSAGE) == ["waiter"]

    def test_lists_for_several_columns_mean_all_of_their_combinations(self) -> None:
        topic = Topic(Message, conversation__in=[1, 2], author__in=[7, 8], text="hello")
        index = index_of(waiter=topic)
        for conversation in (1, 2, 3):
            for author in (7, 8, 9):
                wanted = conversation != 3 and author != 9
                assert index.find(inserted(1, conversation, author)) == (["waiter"] if wanted else [])
                assert topic.matches({"conversation": conversation, "author": author, "text": "hello"}) is wanted
        assert index.find(inserted(1, 1, 7, text="bye")) == []

    def test_values_of_different_images_do_not_make_a_combination(self) -> None:
        index = index_of(waiter=Topic(Message, conversation__in=[1], author__in=[8]))
        rows = f"[[[1], {image(1, author=7)}, {image(2, author=8)}]]"
        assert index.find(change(Kind.UPDATE, rows)) == []

    def test_the_order_and_the_form_of_a_list_do_not_matter(self) -> None:
        topics = {
            Topic(Message, author__in=[1, 2]),
            Topic(Message, author__in=("2", "1", 1)),
            Topic(Message, author_id__in={2, 1}),
            Topic(Message, author__in=(n for n in [1, 2])),
            Topic(Message, author__in=[User(pk=1), User(pk=2)]),
        }
        assert len(topics) == 1
        assert topics != {Topic(Message, author__in=[1, 3])}

    def test_a_list_of_one_is_a_value(self) -> None:
        assert Topic(Message, author__in=[1]) == Topic(Message, author=1) == Topic(Message, author__exact=1)

    def test_a_topic_shows_its_lists(self) -> None:
        topic = Topic(Message, conversation=4, author__in=[3, 2])
        assert repr(topic) == f"Topic({MESSAGE}, author__in=[2, 3], conversation=4)"

    def test_a_column_that_is_named_twice_has_to_fulfil_both(self) -> None:
        assert Topic(Message, author=1, author__in=[1, 2]) == Topic(Message, author=1)
        assert Topic(Message, author__in=[1, 2], author_id__in=[2, 3]) == Topic(Message, author=2)
        assert Topic(Message, pk__in=[1, 2], id=2) == Topic(Message, pk=2)

    def test_what_contradicts_itself_finds_nobody_and_leaves_nothing_behind(self) -> None:
        topic = Topic(Message, author=1, author__in=[2, 3], conversation=1)
        index = index_of(waiter=topic)
        assert index.find(inserted(1, conversation=1, author=1)) == []
        assert not topic.matches({"author": 1, "conversation": 1})
        index.remove(topic, "waiter")
        assert not index._waiting

    def test_a_list_leaves_nothing_behind_and_others_of_the_same_values_stay(self) -> None:
        both, one = Topic(Message, author__in=[1, 2]), Topic(Message, author=1)
        index = index_of(both=both, one=one)
        index.remove(both, "both")
        assert index.find(inserted(1, 1, author=1)) == ["one"]
        assert index.find(inserted(1, 1, author=2)) == []
        index.remove(one, "one")
        assert not index._waiting

    def test_the_values_of_a_topic_are_limited(self) -> None:
        full = Topic(Message, author__in=range(MOST_ALTERNATIVES))
        assert len(full.alternatives) == MOST_ALTERNATIVES
        with pytest.raises(TopicValueError, match=rf"a topic of {MESSAGE} waits for more than 1,000 values"):
            Topic(Message, author__in=range(MOST_ALTERNATIVES + 1))

    def test_the_combinations_of_a_topic_are_limited(self) -> None:
        assert len(Topic(Message, author__in=range(50), conversation__in=range(20)).alternatives) == MOST_ALTERNATIVES
        with pytest.raises(TopicValueError, match="waits for more than 1,000 values"):
            Topic(Message, author__in=range(50), conversation__in=range(21))

    def test_what_is_named_again_and_again_counts_once(self) -> None:
        assert Topic(Message, author__in=[1, 2] * MOST_ALTERNATIVES) == Topic(Message, author__in=[1, 2])

    @pytest.mark.parametrize(
        ("conditions", "advice"),
        [
            ({"author__in": []}, "author__in is empty, and would wait for nothing"),
            ({"author__in": "12"}, "author__in takes a list of values, not '12'"),
            ({"text__in": "hello"}, "text__in takes a list of values, not 'hello'"),
            ({"author__in": 5}, "author__in takes a list of values, not 5"),
            ({"author__in": None}, "author__in takes a list of values, not None"),
            ({"author__in": User(pk=5)}, "author__in takes a list of values, not <User"),
            ({"author__in": [1, "two"]}, r"author__in='two' is no value of conversations\.message\.author"),
            ({"author__in": [[1]]}, r"author__in=\[1\] is no value of"),
            ({"author": User()}, r"is no value of conversations\.message\.author"),
        ],
    )
    def test_a_list_that_is_none_is_an_error_of_the_value(self, conditions: dict[str, Any], advice: str) -> None:
        with pytest.raises(TopicValueError, match=advice):
            Topic(Message, **conditions)

    @pytest.mark.parametrize("lookup", ["gt", "isnull", "contains", "in__exact"])
    def test_another_lookup_is_refused_with_the_filter_to_write(self, lookup: str) -> None:
        with pytest.raises(
            TopicError, match=rf"author__in=\[\.\.\.\]; for others give filter=Q\(author__{lookup}="
        ) as it:
            Topic(Message, filter=None, **{f"author__{lookup}": 1})
        assert not isinstance(it.value, TopicValueError)


LOUD = Q(text__endswith="!")


class TestFilters:
    @pytest.fixture
    def evaluated(self, monkeypatch: pytest.MonkeyPatch) -> list[ImageFilter]:
        """Every filter that is evaluated on a change, as often as it is."""
        evaluated: list[ImageFilter] = []
        concerns = ImageFilter.concerns

        def noting(self: ImageFilter, change: Change) -> bool:
            evaluated.append(self)
            return concerns(self, change)

        monkeypatch.setattr(ImageFilter, "concerns", noting)
        return evaluated

    def test_a_filter_finds_the_rows_that_fulfil_it_before_or_after(self) -> None:
        index = index_of(all=Topic(Message), loud=Topic(Message, filter=LOUD))
        before, after = image(1, text="hello"), image(1, text="hello!")
        for kind, rows, found in (
            (Kind.INSERT, f"[[[1], null, {before}]]", ["all"]),
            (Kind.INSERT, f"[[[1], null, {after}]]", ["all", "loud"]),
            (Kind.UPDATE, f"[[[1], {before}, {after}]]", ["all", "loud"]),
            (Kind.UPDATE, f"[[[1], {after}, {before}]]", ["all", "loud"]),
            (Kind.UPDATE, f"[[[1], {before}, {before}]]", ["all"]),
            (Kind.DELETE, f"[[[1], {after}, null]]", ["all", "loud"]),
            (Kind.DELETE, f"[[[1], {before}, null]]", ["all"]),
        ):
            assert sorted(index.find(change(kind, rows))) == found

    def test_conditions_and_the_filter_have_to_be_fulfilled(self) -> None:
        index = index_of(waiter=Topic(Message, conversation__in=[1, 2], filter=LOUD))
        assert index.find(inserted(1, 1, text="hello!")) == ["waiter"]
        assert index.find(inserted(1, 2, text="hello!")) == ["waiter"]
        assert index.find(inserted(1, 3, text="hello!")) == []
        assert index.find(inserted(1, 1, text="hello")) == []

    def test_a_filter_on_the_key_is_evaluated_where_no_columns_are_captured(self) -> None:
        index = index_of(waiter=Topic(Conversation, filter=Q(pk__gt=5)))
        assert index.find(change(Kind.UPDATE, "[[[6]]]", CONVERSATION)) == ["waiter"]
        assert index.find(change(Kind.UPDATE, "[[[5]]]", CONVERSATION)) == []

    def test_truncate_finds_everybody_whatever_the_filter(self) -> None:
        index = index_of(
            all=Topic(Message), loud=Topic(Message, filter=LOUD), one=Topic(Message, author=1, filter=LOUD)
        )
        assert sorted(index.find(TRUNCATED)) == ["all", "loud", "one"]

    def test_a_change_journaled_before_the_column_was_captured_reaches_everybody_with_a_filter_on_it(self) -> None:
        index = index_of(text=Topic(Message, filter=LOUD), key=Topic(Message, filter=Q(pk=2)))
        assert index.find(change(Kind.UPDATE, "[[[1]]]")) == ["text"]
        assert index.find(change(Kind.INSERT, '[[[1], null, {"author_id": 1}]]')) == ["text"]

    def test_each_filter_is_evaluated_once_for_a_change(self, evaluated: list[ImageFilter]) -> None:
        index: TopicIndex[str] = TopicIndex()
        for waiter in ("a", "b"):
            index.add(Topic(Message, filter=Q(text="x")), waiter)
            index.add(Topic(Message, conversation__in=[1, 2], filter=Q(text="x")), waiter)
            index.add(Topic(Message, author=1, filter=Q(text="x")), waiter)
            index.add(Topic(Message, author=1, filter=Q(text="hello")), waiter)
        assert index.find(moved(1, old=1, new=2)) == ["a", "b"]
        assert Counter(each.condition for each in evaluated) == {Q(text="x"): 1, Q(text="hello"): 1}

    def test_no_filter_is_evaluated_for_those_who_wait_for_other_values(self, evaluated: list[ImageFilter]) -> None:
        index: TopicIndex[int] = TopicIndex()
        for conversation in range(100):
            index.add(Topic(Message, conversation=conversation, filter=Q(author__gt=conversation)), conversation)
        assert index.find(inserted(1, conversation=5, author=6)) == [5]
        assert len(evaluated) == 1

    def test_a_waiter_with_several_filters_is_found_once(self) -> None:
        index: TopicIndex[str] = TopicIndex()
        for topic in (Topic(Message), Topic(Message, filter=LOUD), Topic(Message, filter=Q(text="hello!"))):
            index.add(topic, "waiter")
        assert index.find(inserted(1, 1, text="hello!")) == ["waiter"]
        assert index.waiting_for(MESSAGE) == ["waiter"]

    def test_the_filter_is_part_of_a_topic(self) -> None:
        topic = Topic(Message, author=1, filter=LOUD)
        assert topic == Topic(Message, author=1, filter=Q(text__endswith="!"))
        assert hash(topic) == hash(Topic(Message, author=1, filter=Q(text__endswith="!")))
        assert topic != Topic(Message, author=1)
        assert topic != Topic(Message, author=1, filter=~LOUD)
        # A list cannot be hashed; its Q can.
        assert hash(Topic(Message, filter=Q(text__in=["a"]))) == hash(Topic(Message, filter=Q(text__in=["a"])))

    def test_an_empty_filter_is_none(self) -> None:
        assert Topic(Message, filter=Q()) == Topic(Message, filter=None) == Topic(Message)

    def test_a_topic_shows_its_filter(self) -> None:
        topic = Topic(Message, author=1, filter=LOUD)
        assert repr(topic) == f"Topic({MESSAGE}, author=1, filter=(AND: ('text__endswith', '!')))"

    def test_who_is_removed_is_found_no_more_and_others_of_the_same_filter_stay(self) -> None:
        topic = Topic(Message, filter=LOUD)
        index = index_of(one=topic, other=topic, all=Topic(Message))
        index.remove(Topic(Message, filter=Q(text__endswith="!")), "one")
        assert sorted(index.find(inserted(1, 1, text="hello!"))) == ["all", "other"]
        # "all" does not wait for this topic, and "one" no longer.
        index.remove(topic, "one")
        index.remove(topic, "all")
        assert sorted(index.find(inserted(1, 1, text="hello!"))) == ["all", "other"]
        index.remove(Topic(Message), "all")
        assert index.find(inserted(1, 1, text="hello!")) == ["other"]

    def test_topics_with_filters_leave_nothing_behind(self) -> None:
        topics = {
            "loud": Topic(Message, filter=LOUD),
            "quiet": Topic(Message, filter=~LOUD),
            "one": Topic(Message, conversation__in=[1, 2], filter=LOUD),
            "all": Topic(Message, conversation=1),
        }
        index = index_of(**topics)
        index.remove(Topic(Message, conversation=1, filter=Q(text="x")), "nobody")
        for waiter, topic in topics.items():
            assert index._waiting
            index.remove(topic, waiter)
        assert not index._waiting

    def test_a_topic_matches_a_row_that_fulfils_its_conditions_and_its_filter(self) -> None:
        topic = Topic(Message, conversation__in=[1, 2], author=None, filter=LOUD)
        row = {"conversation": 1, "author": None, "text": "hello!"}
        assert topic.matches(row)
        assert not topic.matches({**row, "conversation": 3})
        assert not topic.matches({**row, "author": 1})
        assert not topic.matches({**row, "text": "hello"})
        assert Topic(Message).matches({})

    @pytest.mark.parametrize("missing", ["conversation", "text"])
    def test_whether_a_row_matches_without_a_column_is_not_known(self, missing: str) -> None:
        row = {"conversation": 1, "text": "hello!"}
        del row[missing]
        with pytest.raises(KeyError, match=missing):
            Topic(Message, conversation=1, filter=LOUD).matches(row)

    def test_json_that_cannot_be_looked_up_does_not_match(self) -> None:
        watch = make_watch(make_model("Parcel", "parcel", data=models.JSONField()), columns=["data"])
        registry.add(watch)
        try:
            topic = Topic(watch.model, data="x")
            assert topic.matches({"data": "x"})
            assert not topic.matches({"data": {"a": [1]}})
        finally:
            registry.remove(watch.label)

    @pytest.mark.parametrize(
        ("condition", "advice"),
        [
            (
                Q(created_at__gt=AT),
                "needs 'created_at', which the watch of .* does not capture; add it to its columns=",
            ),
            (Q(conversation__title="x"), "needs 'conversation__title', which is in another table"),
            (Q(author__gt=F("conversation")), r"cannot evaluate F\(conversation\) on row images"),
            (Q(text__gt="x"), "cannot evaluate 'text__gt' on row images"),
            (Q(author="two"), "author='two' is no value of"),
        ],
    )
    def test_a_filter_that_cannot_be_evaluated_is_refused_with_advice(self, condition: Q, advice: str) -> None:
        with pytest.raises(TopicError, match=advice):
            Topic(Message, filter=condition)
