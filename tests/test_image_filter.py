"""A filter says of a row image what the ORM says of the row."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from itertools import pairwise
from random import Random
from typing import Any
from uuid import UUID

import pytest
from django.apps.registry import Apps
from django.db import connection, models
from django.db.models import Exists, F, Q, QuerySet, Value
from django.test import override_settings
from django.utils.timezone import override as override_time_zone
from hypothesis import given, settings
from hypothesis import strategies as st

from example.conversations.models import Conversation
from pgnotify_gql.capture.kinds import Kind
from pgnotify_gql.capture.watch import Watch
from pgnotify_gql.errors import TopicError, TopicValueError
from pgnotify_gql.hub.image_filter import ImageFilter
from pgnotify_gql.journal.change import JournalRow
from tests.support.databases import Database
from tests.support.watched import Line, watched

APPS = Apps()

NAN = float("nan")


class Shelf(models.Model):
    code: models.Field[Any, Any] = models.TextField(unique=True)

    class Meta:
        app_label = "stock"
        apps = APPS

    def __str__(self) -> str:
        return str(self.code)


class Parcel(models.Model):
    """A column of each type of which much can be asked, and all of them may be NULL."""

    number: models.Field[Any, Any] = models.IntegerField(null=True)
    price: models.Field[Any, Any] = models.DecimalField(max_digits=12, decimal_places=3, null=True)
    ratio: models.Field[Any, Any] = models.FloatField(null=True)
    text: models.Field[Any, Any] = models.TextField(null=True)  # noqa: DJ001  (null is what is tested)
    flag: models.Field[Any, Any] = models.BooleanField(null=True)
    day: models.Field[Any, Any] = models.DateField(null=True)
    at: models.Field[Any, Any] = models.DateTimeField(null=True)
    code: models.Field[Any, Any] = models.UUIDField(null=True)

    class Meta:
        app_label = "stock"
        db_table = "parcel"
        apps = APPS

    def __str__(self) -> str:
        return str(self.text)


class Crate(Parcel):
    """A table of its own, beside that of its parent."""

    weight: models.Field[Any, Any] = models.IntegerField(null=True)

    class Meta:
        app_label = "stock"
        apps = APPS


class Label(models.Model):
    parcel: models.ForeignKey[Any, Any] = models.ForeignKey(Parcel, models.CASCADE, null=True)
    shelf: models.ForeignKey[Any, Any] = models.ForeignKey(Shelf, models.CASCADE, to_field="code", null=True)
    takes: models.Field[Any, Any] = models.DurationField(null=True)
    opens: models.Field[Any, Any] = models.TimeField(null=True)
    data: models.Field[Any, Any] = models.JSONField(null=True)

    class Meta:
        app_label = "stock"
        apps = APPS

    def __str__(self) -> str:
        return str(self.pk)


PARCEL = Watch(Parcel, "__all__")
LABEL = Watch(Label, "__all__")


def matches(condition: Q, watch: Watch = PARCEL, **row: Any) -> bool:
    return ImageFilter(watch, condition).matches(row)


def error_of(condition: Q, watch: Watch = PARCEL) -> TopicError:
    with pytest.raises(TopicError) as refused:
        ImageFilter(watch, condition)
    return refused.value


def column_of(condition: Q) -> str:
    """Return the column of a condition that has one."""
    (comparison,) = condition.children
    assert isinstance(comparison, tuple)
    return str(comparison[0]).partition("__")[0]


NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("condition", "fulfilling", "others"),
    [
        (Q(number=5), [5], [4, None]),
        (Q(number__exact="5"), [5], [4, None]),
        (Q(number=None), [None], [0]),
        (Q(number__in=[1, "2", None]), [1, 2], [3, None]),
        (Q(number__in={1: "one", 2: "two"}.keys()), [1, 2], [3]),
        (Q(number__in=[]), [], [0, None]),
        (Q(number__isnull=True), [None], [0]),
        (Q(number__isnull=False), [0], [None]),
        (Q(number__gt=5), [6], [5, None]),
        (Q(number__gte=5), [5], [4, None]),
        (Q(number__lt=5), [4], [5, None]),
        (Q(number__lte=5), [5], [6, None]),
        (Q(number__range=(2, 4)), [2, 4], [1, 5, None]),
        # The ORM makes integers of floats.
        (Q(number__gt=5.5), [6], [5]),
        (Q(number__gte=5.5), [6], [5]),
        (Q(number__lt=5.5), [5], [6]),
        (Q(number__lte=5.5), [5], [6]),
        (Q(pk=5), [], []),
        (Q(price="1.50"), [Decimal("1.5")], [Decimal("1.51"), None]),
        (Q(price__gt=1), [Decimal("1.001"), Decimal("NaN")], [Decimal(1)]),
        (Q(price__lte=1), [Decimal(1)], [Decimal("NaN")]),
        (Q(ratio=NAN), [NAN], [1.0, None]),
        (Q(ratio__in=[NAN, 1]), [NAN, 1.0], [2.0]),
        (Q(ratio__gte=NAN), [NAN], [float("inf")]),
        (Q(ratio__range=(0, NAN)), [NAN, float("inf")], [-1.0]),
        (Q(text="tea"), ["tea"], ["Tea", "tea ", None]),
        (Q(text__iexact="TEA"), ["tea", "Tea"], ["teas", None]),
        (Q(text__iexact=None), [None], ["None", ""]),
        (Q(text__contains="%_\\"), ["a%_\\b"], ["abc", None]),
        (Q(text__icontains="EA"), ["tea"], ["te a", None]),
        (Q(text__startswith="te"), ["tea"], ["Tea", "ate", None]),
        (Q(text__istartswith="TE"), ["tea"], ["ate", None]),
        (Q(text__endswith="ea"), ["tea"], ["EA", "eat", None]),
        (Q(text__iendswith="EA"), ["tea"], ["eat", None]),
        (Q(text__icontains="straße"), ["STRAßE"], ["STRASSE"]),
        (Q(text__contains=7), ["007"], ["006"]),
        (Q(flag=True), [True], [False, None]),
        (Q(day__gt="2026-01-02"), [date(2026, 1, 3), "infinity", "10000-01-01"], ["0044-03-15 BC", "-infinity"]),
        (Q(day__lte=date(2026, 1, 2)), [date(2026, 1, 2), "0044-03-15 BC", "-infinity"], ["infinity", None]),
        (Q(at__gte=NOON), [NOON, NOON.astimezone(timezone(timedelta(hours=3)))], [NOON - timedelta(microseconds=1)]),
        (Q(code="00000000-0000-0000-0000-000000000007"), [UUID(int=7)], [UUID(int=8), None]),
    ],
    ids=lambda value: str(value) if isinstance(value, Q) else "",
)
def test_a_lookup_holds_for_values_as_in_the_orm(condition: Q, fulfilling: list[Any], others: list[Any]) -> None:
    column = column_of(condition)
    tested = ImageFilter(PARCEL, condition)
    assert [value for value in fulfilling + others if tested.matches({column: value})] == fulfilling


def test_a_time_and_a_duration_are_ordered() -> None:
    assert matches(Q(takes__gt=timedelta(hours=1)), LABEL, takes=timedelta(hours=2))
    assert matches(Q(takes__lt="01:00:00"), LABEL, takes="-2000000000 days")
    assert matches(Q(opens__gte="12:00"), LABEL, opens="24:00:00")


def test_a_key_can_be_named_pk_or_by_its_field() -> None:
    for condition in (Q(pk=5), Q(id=5), Q(pk__gte=5) & Q(id__lte="5")):
        assert matches(condition, id=5)
        assert not matches(condition, id=6)


@pytest.mark.parametrize("negated", [Q(number=5), Q(number__in=[5]), Q(number__lt=6), Q(number__range=(5, 5))])
def test_a_comparison_with_null_does_not_hold_and_its_negation_does(negated: Q) -> None:
    assert not matches(negated, number=None)
    assert matches(~negated, number=None)
    assert not matches(~negated, number=5)
    # ~~Q is Q again.
    assert not matches(~Q(~negated), number=None)


def test_conditions_are_connected_with_and_or_and_xor() -> None:
    one, two, three = Q(number=1), Q(text="x"), Q(flag=True)
    for number in (1, None):
        for text in ("x", None):
            for flag in (True, None):
                row: dict[str, Any] = {"number": number, "text": text, "flag": flag}
                truths = [value is not None for value in row.values()]
                assert matches(one & two & three, **row) is all(truths)
                assert matches(one | two | three, **row) is any(truths)
                assert matches(one ^ two ^ three, **row) is (sum(truths) % 2 == 1)
                assert matches(~(one | two) & three, **row) is (not (truths[0] or truths[1]) and truths[2])


def test_an_empty_condition_says_nothing_negated_or_not() -> None:
    empty = [Q(), ~Q(), Q(Q(), ~Q())]
    for nothing in empty:
        assert matches(nothing, number=1)
        for connector in (Q.AND, Q.OR, Q.XOR):
            condition = Q(nothing, Q(number=1), _connector=connector)
            assert matches(condition, number=1)
            assert not matches(condition, number=2)


def test_null_under_a_negated_xor_is_what_the_orm_makes_of_it() -> None:
    """There the ORM does not ask for IS NOT NULL, and counts an operand that is NULL as false."""
    assert matches(~(~Q(number=1) ^ Q(text="x")), number=None, text="y")
    assert not matches(~(~Q(number=1) ^ Q(text="x")), number=None, text="x")
    assert matches(~Q(number=1) ^ Q(text="x"), number=None, text="y")


@pytest.mark.parametrize(
    "condition",
    [
        Q(parcel=Parcel(pk=4)), Q(parcel=4), Q(parcel="4"), Q(parcel_id=4), Q(parcel__id=4), Q(parcel__pk=4),
        Q(parcel__in=[Parcel(pk=4), 9]), Q(parcel__id__in=[4]), Q(parcel__pk__gt=3), Q(parcel__isnull=False),
    ],
    ids=str,
)  # fmt: skip
def test_a_foreign_key_is_compared_by_instance_or_key(condition: Q) -> None:
    assert matches(condition, LABEL, parcel=4)
    assert not matches(condition, LABEL, parcel=None)


def test_a_foreign_key_to_another_column_is_compared_by_that() -> None:
    shelf = Shelf(pk=3, code="A1")
    for condition in (Q(shelf=shelf), Q(shelf="A1"), Q(shelf_id="A1"), Q(shelf__code="A1"), Q(shelf__in=[shelf])):
        assert matches(condition, LABEL, shelf="A1")
        assert not matches(condition, LABEL, shelf="3")
    assert "'shelf__pk', which is in another table" in str(error_of(Q(shelf__pk=3), LABEL))


@pytest.mark.parametrize("instance", [Parcel(), Shelf(pk=4), Shelf()])
def test_an_instance_that_is_not_saved_or_of_another_model_is_refused(instance: models.Model) -> None:
    for condition in (Q(parcel=instance), Q(parcel__in=[instance])):
        refused = error_of(condition, LABEL)
        assert isinstance(refused, TopicValueError)
        assert "is no value of stock.label.parcel" in str(refused)


def test_json_that_cannot_be_looked_up_is_like_no_value() -> None:
    assert not matches(Q(data__in=["x"]), LABEL, data={"a": 1})
    assert matches(~Q(data__in=["x"]), LABEL, data={"a": 1})
    assert matches(Q(data__in=["x"]), LABEL, data="x")


def test_what_a_field_of_an_application_gives_is_compared_where_it_can_be() -> None:
    """A from_db_value() may make anything; the row must not keep the changes of others from their subscribers."""
    for condition in (Q(number__gt=1), Q(number__range=(1, 2)), Q(text__contains="x"), Q(text__iexact="x")):
        assert not matches(condition, number=object(), text=object())


class TestTimeZones:
    def test_a_naive_time_is_in_the_zone_of_the_settings_whatever_is_activated(self) -> None:
        with override_settings(TIME_ZONE="Europe/Berlin"), override_time_zone("Asia/Kathmandu"):
            assert matches(Q(at="2026-01-02T13:00"), at=NOON)

    def test_without_time_zones_an_aware_time_is_compared_as_local_time(self) -> None:
        with override_settings(USE_TZ=False, TIME_ZONE="Europe/Berlin"):
            assert matches(Q(at__gte=NOON), at=datetime(2026, 1, 2, 13))
            assert not matches(Q(at__gt=NOON), at=datetime(2026, 1, 2, 13))


class TestRefusals:
    def test_a_column_that_is_not_captured_is_to_be_added_to_the_watch(self) -> None:
        refused = str(error_of(Q(price__gt=1), Watch(Parcel, ("number",))))
        assert refused == (
            "Topic(Parcel, filter=...) needs 'price', which the watch of stock.parcel does not capture; "
            "add it to its columns= (captured: id, number, pk)"
        )

    def test_a_name_that_the_model_does_not_have(self) -> None:
        assert "names 'size__gt', which stock.parcel does not have (captured: at, code, " in str(
            error_of(Q(size__gt=1))
        )

    @pytest.mark.parametrize("name", ["parcel__number", "parcel__number__gt", "shelf__pk", "parcel__id__number"])
    def test_a_column_of_another_table(self, name: str) -> None:
        assert f"needs '{name}', which is in another table" in str(error_of(Q(**{name: 1}), LABEL))

    @pytest.mark.parametrize(
        ("model", "name"),
        [
            (Conversation, "messages__text"),
            (Conversation, "members"),
            (Crate, "number__gt"),
            (Line, "pk"),
        ],
        ids=["relation of another", "relation of both", "of the parent's table", "key of two columns"],
    )
    def test_what_is_not_in_the_table_is_not_said_to_be_a_column_to_add(
        self, model: type[models.Model], name: str
    ) -> None:
        refused = str(error_of(Q(**{name: 1}), Watch(model, "__all__")))
        assert f"needs '{name}', which is not in its own table: images have the row's own columns only" in refused

    @pytest.mark.parametrize(
        ("condition", "named"),
        [
            (Q(number__gt=F("price")), "F(price)"),
            (Q(text=Value("x")), "Value('x')"),
            (Q(text__in=["x", F("code")]), "F(code)"),
            (Q(number__range=(1, F("price"))), "F(price)"),
        ],
    )
    def test_an_expression_as_a_value(self, condition: Q, named: str) -> None:
        assert str(error_of(condition)) == (
            f"Topic(Parcel, filter=...) cannot evaluate {named} on row images: "
            f"compare '{column_of(condition)}' with a value"
        )

    def test_a_queryset_which_is_not_evaluated_for_the_message(self) -> None:
        queryset: QuerySet[Any] = Parcel._default_manager.all()
        for condition in (Q(number=queryset), Q(number__in=queryset)):
            assert "cannot evaluate QuerySet on row images" in str(error_of(condition))

    def test_an_expression_as_a_condition(self) -> None:
        expression = Exists(Parcel._default_manager.all())
        for condition in (Q(expression), Q(number=1) | Q(expression)):
            assert "cannot evaluate <" in str(error_of(condition))
            assert "use lookups of captured columns" in str(error_of(condition))

    @pytest.mark.parametrize(
        "name", ["text__regex", "day__year", "day__year__gt", "text__nonsense", "number__exact__in"]
    )
    def test_a_lookup_that_is_not_known(self, name: str) -> None:
        assert f"cannot evaluate '{name}' on row images: of a column there are exact, in, isnull, gt, " in str(
            error_of(Q(**{name: 1}))
        )

    @pytest.mark.parametrize("name", ["text__gt", "text__range", "code__lte", "flag__lt"])
    def test_the_order_of_what_python_orders_otherwise(self, name: str) -> None:
        assert f"'{name}' on row images: " in str(error_of(Q(**{name: "x"})))
        assert "has not an order that is the same in PostgreSQL and in Python" in str(error_of(Q(**{name: "x"})))

    @pytest.mark.parametrize("name", ["number__contains", "day__startswith", "code__iexact"])
    def test_searching_in_what_is_not_text(self, name: str) -> None:
        assert "has not text" in str(error_of(Q(**{name: "x"})))

    @pytest.mark.parametrize("name", ["number__gt", "number__in", "number__range", "text__contains", "text__iendswith"])
    def test_comparing_with_none(self, name: str) -> None:
        column = name.partition("__")[0]
        assert f"compares '{name}' with None: use {column}__isnull" in str(error_of(Q(**{name: None})))

    def test_a_range_that_ends_nowhere(self) -> None:
        assert "compares 'number__range' with None" in str(error_of(Q(number__range=(1, None))))

    @pytest.mark.parametrize(
        ("condition", "advice"),
        [
            (Q(number="many"), "number='many' is no value of stock.parcel.number"),
            (Q(number__gt=float("inf")), "number__gt=inf is no value of stock.parcel.number"),
            (Q(number__gte=float("inf")), "number__gte=inf is no value of stock.parcel.number"),
            (Q(number__in=[1, "many"]), "number__in='many' is no value"),
            (Q(number__in=5), "number__in takes a list of values, not 5"),
            (Q(text__in="tea"), "text__in takes a list of values, not 'tea'"),
            (Q(number__range=5), "number__range takes a list of values, not 5"),
            (Q(number__range=(1, 2, 3)), "number__range takes two values"),
            (Q(number__isnull="False"), "number__isnull takes True or False, not 'False'"),
            (Q(day__lt="yesterday"), "day__lt='yesterday' is no value"),
        ],
        ids=str,
    )
    def test_a_value_that_is_none_of_the_column_is_an_error_of_the_value(self, condition: Q, advice: str) -> None:
        refused = error_of(condition)
        assert isinstance(refused, TopicValueError)
        assert advice in str(refused)


def test_filters_of_equal_conditions_are_equal() -> None:
    one, same = (ImageFilter(PARCEL, Q(number__in=[1, 2]) & ~Q(text="x")) for _ in range(2))
    assert one == same
    assert hash(one) == hash(same)
    assert one != ImageFilter(PARCEL, Q(number__in=[1, 2]) & Q(text="x"))
    assert one != one.condition


class TestChanges:
    @pytest.mark.parametrize(
        ("kind", "rows", "concerned"),
        [
            (Kind.INSERT, '[[[1], null, {"number": 5}]]', True),
            (Kind.INSERT, '[[[1], null, {"number": 4}]]', False),
            (Kind.UPDATE, '[[[1], {"number": 5}, {"number": 4}]]', True),
            (Kind.UPDATE, '[[[1], {"number": 4}, {"number": 5}]]', True),
            (Kind.UPDATE, '[[[1], {"number": 4}, {"number": 4}]]', False),
            (Kind.DELETE, '[[[1], {"number": 5}, null]]', True),
            (Kind.DELETE, '[[[2], {"number": 5}, null]]', False),
        ],
    )
    def test_a_change_concerns_whom_the_row_fulfils_before_or_after(
        self, kind: Kind, rows: str, concerned: bool
    ) -> None:
        (change,) = JournalRow(1, 1, PARCEL.label, kind, rows, 0).changes(PARCEL)
        assert ImageFilter(PARCEL, Q(number=5, pk=1)).concerns(change) is concerned

    def test_a_key_is_known_where_no_columns_are_captured(self) -> None:
        (change,) = JournalRow(1, 1, PARCEL.label, Kind.UPDATE, "[[[5]]]", 0).changes(PARCEL)
        assert ImageFilter(PARCEL, Q(pk__gt=4)).concerns(change)
        assert not ImageFilter(PARCEL, Q(pk__gt=5)).concerns(change)

    def test_a_change_without_the_column_may_concern_everybody(self) -> None:
        (change,) = JournalRow(1, 1, PARCEL.label, Kind.INSERT, '[[[1], null, {"text": "x"}]]', 0).changes(PARCEL)
        condition = ImageFilter(PARCEL, Q(number=5))
        assert condition.concerns(change)
        with pytest.raises(KeyError):
            condition.matches({"text": "x"})


# --- As in the ORM ------------------------------------------------------------------------------------------------

POOLS: Mapping[str, list[Any]] = {
    "number": [-7, -1, 0, 1, 2, 2_147_483_647],
    "price": [Decimal("-1.5"), Decimal(0), Decimal("0.001"), Decimal("1.500"), Decimal(2)],
    "ratio": [-0.5, 0.0, 0.1, 1.5, 1e300, float("inf"), NAN],
    "text": ["", "tea", "Tea", "TEAPOT", "a%b", "a_b", "a\\b", "straße", "é", "NULL", " tea"],
    "flag": [True, False],
    "day": [date(1, 1, 1), date(2024, 2, 29), date(2026, 1, 2), date(9999, 12, 31)],
    "at": [
        NOON,
        NOON + timedelta(microseconds=1),
        NOON.astimezone(timezone(timedelta(hours=-9))),
        NOON.replace(year=1),
    ],
    "code": [UUID(int=0), UUID(int=7), UUID(int=2**128 - 1)],
}
"""Few values, so that rows and conditions meet."""

UNWRITABLE = [
    "price = 'NaN'", "day = 'infinity'", "day = '-infinity'", "day = '0044-03-15 BC'", "day = '10000-01-01'",
    "at = 'infinity'", "at = '-infinity'", "at = '0044-03-15 00:00Z BC'",
]  # fmt: skip
"""What the ORM cannot write, of a row each."""

ROWS = 48

WRITTEN_OTHERWISE: Mapping[str, list[Any]] = {
    "number": ["1", 1.5, -0.5, True],
    "price": ["1.5", 1, 0.001],
    "ratio": ["0.1", 1, Decimal("1.5")],
    "text": ["ea", "T", "%", "_", "\\", "é", "ß"],
    "flag": ["True", 0],
    "day": ["2024-02-29", NOON],
    "at": ["2026-01-02T12:00:00Z"],
    "code": [str(UUID(int=7))],
}

ORDERED = ("gt", "gte", "lt", "lte")

SEARCHES = ("contains", "icontains", "startswith", "istartswith", "endswith", "iendswith", "iexact")


def values_of(column: str) -> list[Any]:
    """Return values that rows have, and others that are near them or of another type."""
    return [*POOLS[column], *WRITTEN_OTHERWISE[column]]


def lookups_of(column: str) -> Sequence[str]:
    """Return the lookups of a column that take one value."""
    if column == "text":
        return ("exact", *SEARCHES)
    return ("exact",) if column in {"flag", "code"} else ("exact", *ORDERED)


def comparison(column: str, lookup: str, value: Any) -> Q:
    return Q(**{f"{column}__{lookup}": value})


def comparisons(column: str) -> st.SearchStrategy[Q]:
    """Return every supported lookup of a column with some values."""
    values = st.sampled_from(values_of(column))
    asked: list[st.SearchStrategy[tuple[str, Any]]] = [
        st.tuples(st.sampled_from(lookups_of(column)), values),
        st.tuples(st.just("in"), st.lists(st.none() | values, max_size=3)),
        st.tuples(st.just("isnull"), st.booleans()),
        st.tuples(st.just("exact"), st.none()),
    ]
    if "gt" in lookups_of(column):
        asked.append(st.tuples(st.just("range"), st.tuples(values, values)))
    return st.one_of(asked).map(lambda given: comparison(column, *given))


def every_comparison() -> Iterator[Q]:
    """Yield every supported lookup of every column with every value."""
    for column in POOLS:
        for value in values_of(column):
            for lookup in lookups_of(column):
                yield comparison(column, lookup, value)
            yield comparison(column, "in", [value, None])
        if "gt" in lookups_of(column):
            for limits in pairwise(values_of(column)):
                yield comparison(column, "range", limits)
        for value in (True, False):
            yield comparison(column, "isnull", value)
        yield comparison(column, "exact", None)
        yield comparison(column, "in", [])


def connected(inner: st.SearchStrategy[Q]) -> st.SearchStrategy[Q]:
    """Return conditions as applications write them, and as only the constructor makes them: of one, or of none."""
    operators = st.sampled_from([operator.and_, operator.or_, operator.xor])
    return (
        inner.map(operator.invert)
        | st.builds(lambda connect, one, two: connect(one, two), operators, inner, inner)
        | st.builds(
            lambda children, connector, negated: Q(*children, _connector=connector, _negated=negated),
            st.lists(inner, max_size=4),
            st.sampled_from([Q.AND, Q.OR, Q.XOR]),
            st.booleans(),
        )
    )


CURIOUS = [
    ~(~Q(number=1) ^ Q(text="tea")),
    ~(~Q(number__in=[]) ^ Q(text="tea")),
    ~Q(Q(~Q(number=1), _connector=Q.XOR), Q(text__isnull=False)),
    ~Q(Q(~(Q(number=1) | ~Q(flag=True)), _connector=Q.XOR, _negated=True), Q(text__isnull=False)),
    Q(Q(), ~Q(), Q(number=1), _connector=Q.OR),
    Q(Q(number=1), ~Q(Q(), ~Q()), _connector=Q.AND),
    Q(number=1) ^ Q(flag=True) ^ ~Q(ratio__gt=0),
]
"""Where NULL, NOT and XOR, or what is empty, come to something else than it seems."""

CONDITIONS = st.recursive(st.one_of([comparisons(column) for column in POOLS]), connected, max_leaves=8)


def written_rows(database: Database) -> dict[int, Mapping[str, Any]]:
    """Write rows, and return their images by key."""
    with connection.schema_editor() as editor:
        editor.create_model(Parcel)
    table = watched(database, Parcel, "", columns="__all__")
    random = Random(7)
    Parcel._default_manager.bulk_create(
        Parcel(**{column: random.choice([None, *pool]) for column, pool in POOLS.items()}) for _ in range(ROWS)
    )
    for key, assignment in enumerate(UNWRITABLE, start=1):
        table.run(f"update parcel set {assignment} where id = {key}")
    return {change.pk: {**(change.new or {}), **change.keys} for change in table.changes()}


def require_the_same(condition: Q, rows: Mapping[int, Mapping[str, Any]]) -> None:
    image_filter = ImageFilter(PARCEL, condition)
    found = Parcel._default_manager.filter(condition).values_list("pk", flat=True)
    assert {key for key, row in rows.items() if image_filter.matches(row)} == set(found), condition


def test_every_comparison_finds_the_rows_that_the_orm_finds(database: Database) -> None:
    rows = written_rows(database)
    for condition in every_comparison():
        require_the_same(condition, rows)
        require_the_same(~condition, rows)


def test_a_filter_matches_an_image_exactly_when_the_orm_finds_the_row(database: Database) -> None:
    rows = written_rows(database)
    assert len(rows) == ROWS
    for condition in CURIOUS:
        require_the_same(condition, rows)

    @settings(max_examples=150, database=None)
    @given(CONDITIONS)
    def compare(condition: Q) -> None:
        require_the_same(condition, rows)

    compare()
