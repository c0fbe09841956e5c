"""
What an image holds is what the ORM gives: for every type of field, whoever wrote the row, under whatever settings.

A table with a column of each type is written once per server, and its changes and the ORM's own values are kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any, TypeAlias
from uuid import UUID

import pytest
from django.apps.registry import Apps
from django.contrib.postgres.fields import (
    ArrayField,
    BigIntegerRangeField,
    DateRangeField,
    DateTimeRangeField,
    DecimalRangeField,
    HStoreField,
    IntegerRangeField,
)
from django.contrib.postgres.search import SearchVectorField
from django.contrib.postgres.signals import get_citext_oids, get_hstore_oids, register_type_handlers
from django.core.exceptions import ValidationError
from django.core.serializers.json import DjangoJSONEncoder
from django.core.signals import setting_changed
from django.db import DataError, connection, connections, models
from django.db.models import F
from django.test import override_settings
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import sql
from psycopg.types.json import Json
from psycopg.types.range import Range

from pgnotify_gql.capture import Kind, values
from pgnotify_gql.capture.render import render
from pgnotify_gql.capture.values import MISSING, decode, image_settings
from pgnotify_gql.capture.watch import Watch
from pgnotify_gql.journal import JournalRow
from tests.support.databases import Database, forget_connections, migrated_template, new_database, used_by_django
from tests.support.postgres import PostgresServer
from tests.support.watched import LINE_SQL, Item, Line, WatchedTable, make_model, micros, watched

AnyField: TypeAlias = "models.Field[Any, Any]"
MakeField = Callable[..., Any]

NOW = datetime(2024, 2, 29, tzinfo=UTC)

HOSTILE = """
    set datestyle = 'German'; set intervalstyle = 'iso_8601'; set timezone = 'Asia/Kathmandu';
    set bytea_output = 'escape'; set extra_float_digits = -15; set xmloption = 'document'; set lc_monetary = 'C';
"""


class Drink(models.TextChoices):
    TEA = "tea"
    MILK = "milk"


class Shouted(models.CharField):  # type: ignore[type-arg]
    """The ORM converts null too."""

    def from_db_value(self, value: str | None, expression: Any, connection: Any) -> str:
        return "NOTHING" if value is None else value.upper()


@dataclass(frozen=True)
class Celsius:
    degrees: Any


class Temperature(models.IntegerField):  # type: ignore[type-arg]
    def from_db_value(self, value: Any, expression: Any, connection: Any) -> Celsius:
        return Celsius(value)

    def get_prep_value(self, value: Any) -> Any:
        return value.degrees if isinstance(value, Celsius) else value


class Tagged(models.JSONField):
    def from_db_value(self, value: Any, expression: Any, connection: Any) -> Any:
        return {"tag": expression.output_field.name, "value": super().from_db_value(value, expression, connection)}

    def get_db_prep_value(self, value: Any, connection: Any, prepared: bool = False) -> Any:
        return super().get_db_prep_value(value["value"] if value else value, connection, prepared)


class Scribe(models.Field):  # type: ignore[type-arg]
    """A field of any type, which writes down what psycopg gave it."""

    def __init__(self, *args: Any, type_name: str = "text", **kwargs: Any) -> None:
        self.type_name = type_name
        super().__init__(*args, **kwargs)

    def deconstruct(self) -> Any:
        name, path, args, kwargs = super().deconstruct()
        return name, path, args, {**kwargs, "type_name": self.type_name}

    def db_type(self, connection: Any) -> str:
        return self.type_name

    def get_placeholder(self, value: Any, compiler: Any, connection: Any) -> str:
        return f"%s::text::{self.type_name}"

    def from_db_value(self, value: Any, expression: Any, connection: Any) -> Any:
        return ("psycopg gave", value)

    def get_prep_value(self, value: Any) -> Any:
        given = value[1] if isinstance(value, tuple) else value
        return Json(given) if isinstance(given, dict) else given


def retyped(base: type[AnyField], type_name: str) -> MakeField:
    """A field of Django's whose column has another type; the ORM writes what it is given."""
    return type(
        f"{base.__name__}On{type_name.title().replace(' ', '')}",
        (base,),
        {"db_type": lambda self, connection: type_name, "get_prep_value": lambda self, value: value},
    )


def generated(column: str, output_field: AnyField) -> MakeField:
    """A stored copy of another column."""
    expression: Any = F(column)
    return partial(models.GeneratedField, expression=expression, output_field=output_field, db_persist=True)


class DecimalDecoder(json.JSONDecoder):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "parse_float": Decimal, "parse_int": lambda digits: f"integer {digits}"})


TEXTS = ["'tea'", "''", r"""E'\\ "quoted" \n \t \x01 ü 😀 {} null -0,'"""]
INTEGERS = ["0", "-1", "32767"]
SOME_JSON = [
    "null", "{}", "[]", '"text"', "17", "1.0", "-0.0", "true", "1e-7", "1e400", "123456789012345678901234567890",
    '{"a": [1, 2.50, null, {"b": "ü \\" \\\\ \\n \\u0001"}], "": {"pgnotify_gql": [[]]}}', "[[1, 2], [3.5]]",
]  # fmt: skip

COLUMNS: dict[str, tuple[MakeField, list[str]]] = {
    "small_integer": (models.SmallIntegerField, INTEGERS),
    "integer": (models.IntegerField, [*INTEGERS, "-2147483648"]),
    "big_integer": (models.BigIntegerField, [*INTEGERS, "9223372036854775807"]),
    "positive_small_integer": (models.PositiveSmallIntegerField, ["0", "32767"]),
    "positive_integer": (models.PositiveIntegerField, ["0", "2147483647"]),
    "positive_big_integer": (models.PositiveBigIntegerField, ["0", "9223372036854775807"]),
    "boolean": (models.BooleanField, ["true", "false"]),
    "char": (partial(models.CharField, max_length=100), TEXTS),
    "unlimited_char": (models.CharField, TEXTS),
    "choice": (partial(models.CharField, max_length=10, choices=Drink.choices), ["'tea'", "'milk'", "'beer'"]),
    "text": (models.TextField, TEXTS),
    "slug": (models.SlugField, ["'a-b'"]),
    "email": (models.EmailField, ["'a@example.org'"]),
    "url": (models.URLField, ["'https://example.org/?a=b'"]),
    "file_path": (models.FilePathField, ["'/a/b'"]),
    "file": (models.FileField, ["'a/b.txt'", "''"]),
    "image": (models.ImageField, ["'a/b.png'", "''"]),
    "uuid": (models.UUIDField, ["'00000000-0000-0000-0000-000000000007'", "'ffffffff-ffff-ffff-ffff-ffffffffffff'"]),
    "decimal": (
        partial(models.DecimalField, max_digits=30, decimal_places=5),
        ["1", "1.50", "-0.00001", "'NaN'", "1234567890123456789012345.12345"],
    ),
    "unlimited_decimal": (
        retyped(models.DecimalField, "numeric"),
        ["1", "1.50", "1e-30", "1e30", "'NaN'", "'infinity'", "10::numeric ^ 5000"],
    ),
    "float": (
        models.FloatField,
        ["0.1", "1", "-1", "'-0'", "1e-300", "1e300", "5e-324", "'NaN'", "'infinity'", "0.1::float8 + 0.2"],
    ),
    "real": (retyped(models.FloatField, "real"), ["0.1", "1 / 3.0", "1", "'-0'", "1e-30", "'NaN'"]),
    "date": (models.DateField, ["'2024-02-29'", "'0001-01-01'", "'9999-12-31'"]),
    "datetime": (
        models.DateTimeField,
        [
            "'2024-02-29 12:00:00.123456+00'", "'0001-01-01 00:00+00'", "'9999-12-31 23:59:59.999999+00'",
            "'1900-01-01+00'",
        ],
    ),
    "timestamp": (retyped(models.DateTimeField, "timestamp"), ["'2024-02-29 12:00:00.5'", "'0001-01-01'"]),
    "datetime_that_is_a_date": (retyped(models.DateTimeField, "date"), ["'2024-02-29'"]),
    "date_that_is_a_datetime": (retyped(models.DateField, "timestamptz(3)"), ["'2024-02-29 12:00+00'"]),
    "time": (models.TimeField, ["'00:00'", "'12:00:00.5'", "'23:59:59.999999'"]),
    "time_with_zone": (retyped(models.TimeField, "timetz"), ["'12:00+05:45'", "'12:00:00.5-03'", "'12:00+00'"]),
    "duration": (
        models.DurationField,
        [
            "'1 day 02:03:04.5'", "'-1 day'", "'-00:00:00.000001'", "'1 year 2 mons 3 days 04:05:06'", "'838:59:59'",
            "'-1 mons +3 days -00:00:01.5'", "'0'", "'100000000 days'",
        ],
    ),
    "binary": (models.BinaryField, ["''", r"'\xdeadbeef'", r"'\x00'", r"'\x5c'"]),
    "address": (models.GenericIPAddressField, ["'192.168.0.1'", "'::1'", "'::ffff:1.2.3.4'"]),
    "json": (models.JSONField, [f"'{item}'" for item in SOME_JSON]),
    "decoded_json": (
        partial(models.JSONField, decoder=DecimalDecoder, encoder=DjangoJSONEncoder),
        [f"'{item}'" for item in SOME_JSON],
    ),
    "search_vector": (SearchVectorField, ["'tea:1 milk:2A'", "''"]),
    # Of applications.
    "shouted": (partial(Shouted, max_length=100), TEXTS),
    "temperature": (Temperature, INTEGERS),
    "tagged": (Tagged, [f"'{item}'" for item in SOME_JSON]),
    "citext_array_type": (partial(Scribe, type_name="text[]"), ["'{a,NULL,\"NULL\"}'", "'{}'"]),
    "scribe_integer": (partial(Scribe, type_name="integer"), INTEGERS),
    "scribe_serial_like": (partial(Scribe, type_name="decimal(7, 2)"), ["1", "'NaN'"]),
    "scribe_double": (partial(Scribe, type_name="double precision"), ["1", "0.30000000000000004"]),
    "scribe_varchar": (partial(Scribe, type_name="character varying(20)"), ["'tea'"]),
    "scribe_padded": (partial(Scribe, type_name="char(5)"), ["'tea'"]),
    "scribe_uuid": (partial(Scribe, type_name="uuid"), ["'00000000-0000-0000-0000-000000000007'"]),
    # A JSON null is not told from an SQL null.
    "scribe_jsonb": (partial(Scribe, type_name="jsonb"), [f"'{item}'" for item in SOME_JSON if item != "null"]),
    "scribe_json": (partial(Scribe, type_name="json"), ["""'{"b": 1, "a": [1.50, null]}'"""]),
    "scribe_interval": (partial(Scribe, type_name="interval"), ["'1 day 02:03:04.5'", "'-1 mons'"]),
    "scribe_bytea": (partial(Scribe, type_name="bytea"), [r"'\xdead'"]),
    "scribe_timestamp": (partial(Scribe, type_name="timestamp(0) with time zone"), ["'2024-02-29 12:00+00'"]),
    "scribe_dates": (partial(Scribe, type_name="date[]"), ["'{2024-02-29,NULL}'"]),
    "scribe_point": (partial(Scribe, type_name="point"), ["'(0.30000000000000004,-2)'"]),
    "scribe_enum": (partial(Scribe, type_name="mood"), ["'happy'"]),
    "scribe_network": (partial(Scribe, type_name="cidr"), ["'10.0.0.0/8'"]),
    "scribe_mac_address": (partial(Scribe, type_name="macaddr"), ["'08:00:2b:01:02:03'"]),
    "scribe_multirange": (partial(Scribe, type_name="datemultirange"), ["'{[2024-01-01,2024-01-05),[2024-02-01,)}'"]),
    "scribe_timestamp_range": (partial(Scribe, type_name="tsrange"), ["'[2024-01-01 12:00,2024-01-05)'"]),
    "enum": (retyped(models.CharField, "mood"), ["'happy'"]),
    "domain_over_numeric": (retyped(models.DecimalField, "percent"), ["5", "5.50"]),
    "domain_over_timestamp": (retyped(models.DateTimeField, "moment"), ["'2024-02-29 12:00+00'"]),
    # Generated, from columns above.
    "generated_integer": (generated("integer", models.IntegerField()), []),
    "generated_duration": (generated("duration", models.DurationField()), []),
    "generated_json": (generated("json", models.JSONField()), []),
    "generated_temperature": (generated("integer", Temperature()), []),
    "generated_dates": (generated("dates", ArrayField(models.DateField())), []),
    # Of django.contrib.postgres.
    "integers": (
        partial(ArrayField, models.IntegerField()),
        ["'{}'", "'{1,NULL,-3}'", "'[2:3]={1,2}'", "'{{1,2},{3,4}}'"],
    ),
    "two_by_two": (
        partial(ArrayField, ArrayField(models.IntegerField(), size=2), size=2),
        ["'{}'", "'{{1,2},{3,NULL}}'", "'{5,6}'"],
    ),
    "texts": (
        partial(ArrayField, models.TextField()),
        ["'{}'", r"""array['a"b', 'NULL', null, '', '{x}', E'\\', ' ', 'a,b', 'null']"""],
    ),
    "booleans": (partial(ArrayField, models.BooleanField()), ["'{t,f,NULL}'"]),
    "decimals": (
        partial(ArrayField, models.DecimalField(max_digits=9, decimal_places=2)),
        ["'{1,1.5,-0.01,NULL,NaN}'"],
    ),
    "array_of_floats": (
        partial(ArrayField, models.FloatField()),
        ["'{1,0.30000000000000004,NaN,-0,-infinity,1e-300}'"],
    ),
    "dates": (partial(ArrayField, models.DateField()), ["'{2024-02-29,NULL,0001-01-01}'"]),
    "datetimes": (
        partial(ArrayField, models.DateTimeField()),
        ["array['2024-02-29 12:00:00.5+00'::timestamptz, null]"],
    ),
    "times": (partial(ArrayField, models.TimeField()), ["'{12:00,23:59:59.5,NULL}'"]),
    "durations": (partial(ArrayField, models.DurationField()), ["array['1 day -00:00:01'::interval, null]"]),
    "uuids": (partial(ArrayField, models.UUIDField()), ["'{00000000-0000-0000-0000-000000000007,NULL}'"]),
    "binaries": (partial(ArrayField, models.BinaryField()), [r"array['\xde00'::bytea, '', null]"]),
    "addresses": (partial(ArrayField, models.GenericIPAddressField()), ["array['10.0.0.1'::inet, '::1', null]"]),
    "jsons": (
        partial(ArrayField, models.JSONField()),
        ["""array['[1, [2.5]]', 'null', null, '{"a": 1.50}', '"x"']::jsonb[]""", "'{}'"],
    ),
    "jsons_two_deep": (
        partial(ArrayField, ArrayField(models.JSONField())),
        ["""array[array['[1, [2.5]]', null], array['{"a": 1.50}', '[]']]::jsonb[]"""],
    ),
    "decoded_jsons": (
        partial(ArrayField, models.JSONField(decoder=DecimalDecoder, encoder=DjangoJSONEncoder)),
        ["""array['[1, [2.5]]', 'null', null, '{"a": 1.50}']::jsonb[]"""],
    ),
    "shouted_texts": (partial(ArrayField, Shouted(max_length=9)), ["'{tea,NULL}'"]),
    "integer_ranges": (partial(ArrayField, IntegerRangeField()), ["array['[1,5]', 'empty', null, '(,)']::int4range[]"]),
    "datetime_ranges": (
        partial(ArrayField, DateTimeRangeField()),
        ["array['[2024-02-29 12:00+00,2024-03-01 00:00:00.5+02)', null, '[,]']::tstzrange[]"],
    ),
    "integer_range": (IntegerRangeField, ["'[1,10]'", "'(1,10)'", "'empty'", "'(,5]'", "'[5,)'", "'(,)'", "'[7,7]'"]),
    "big_integer_range": (BigIntegerRangeField, ["'[1,9223372036854775806]'", "'empty'", "'(,)'"]),
    "decimal_range": (DecimalRangeField, ["'[1.50,2]'", "'(1,2.000]'", "'empty'", "'(,)'", "'(1,)'"]),
    "bounded_decimal_range": (partial(DecimalRangeField, default_bounds="(]"), ["'[1.50,2]'", "'(1,2]'"]),
    "date_range": (DateRangeField, ["'[2024-01-01,2024-02-29]'", "'empty'", "'(,2024-01-01)'", "'(,)'"]),
    "datetime_range": (
        DateTimeRangeField,
        ["'[2024-01-01 00:00:00.5+00,2024-02-29 12:00+02]'", "'(2024-01-01 00:00+00,)'", "'empty'", "'(,)'"],
    ),
}  # fmt: skip
"""Fields, and values as SQL that the ORM can read."""

EXTENSIONS: dict[str, tuple[MakeField, list[str]]] = {
    "hstore": (HStoreField, ['\'a=>1, b=>NULL, "quo\\"te"=>"x"\'', "''"]),
    "hstores": (partial(ArrayField, HStoreField()), ["array['a=>1', null, '']::hstore[]"]),
    "citext": (retyped(models.TextField, "citext"), TEXTS),
    "citexts": (partial(ArrayField, retyped(models.TextField, "citext")()), ["'{Tea,NULL,\"NULL\"}'"]),
}
"""Fields whose types come with PostgreSQL's contributed extensions."""

TYPES_SQL = """
    create type mood as enum ('happy', 'sad');
    create domain percent as numeric;
    create domain moment as timestamptz
"""


@dataclass(frozen=True)
class Pair:
    """The value of a column as an image holds it, and as the ORM gives it; and how the row was written."""

    written: str
    image: Any
    orm: Any

    @property
    def differs(self) -> bool:
        # By their text too, which shows scales, zones, signs of zero, and every NaN.
        return type(self.image) is not type(self.orm) or repr(self.image) != repr(self.orm)


@dataclass(frozen=True)
class Observed:
    """What came of writing rows: pairs of each column, and instances (built from the image, fetched) of each row."""

    pairs: Mapping[str, list[Pair]]
    instances: list[tuple[Any, Any]]
    other_values: list[tuple[Any, Any]]


def observe(database: Database, columns: Mapping[str, tuple[MakeField, list[str]]]) -> Observed:
    """Write rows with every value, and one of nulls, in several ways."""
    # A generated column, for which there is nothing to write, is null by itself.
    fields = {name: (make(null=True) if literals else make()) for name, (make, literals) in columns.items()}
    # Clones, because fields inside others are made once for all tables.
    model = make_model("Sample", "sample", **{name: field.clone() for name, field in fields.items()})
    with connection.schema_editor() as editor:
        editor.create_model(model)
    table = watched(database, model, "", columns="__all__")
    written: dict[int, str] = {}

    def note(how: str) -> None:
        for (pk,) in table.run("select id from sample"):
            written.setdefault(pk, how)

    write_by_sql(table, columns)
    note("by SQL")
    write_by_orm(model)
    note("by the ORM")
    table.run(HOSTILE)
    write_by_sql(table, columns)
    table.run("reset all")
    note("under hostile settings")

    table.run("alter table sample add touched int")
    inserts = {change.pk: change for change in table.changes()}
    table.run("update sample set touched = 1")
    updates = {change.pk: change for change in table.changes()}
    rows = {row["id"]: row for row in model._default_manager.values()}
    assert inserts.keys() == updates.keys() == rows.keys() == written.keys()
    return Observed(
        pairs={
            name: [Pair(how, values_in(inserts[pk].new)[name], rows[pk][name]) for pk, how in written.items()]
            for name in ("id", *columns)
        },
        instances=[(inserts[instance.pk].instance, instance) for instance in model._default_manager.all()],
        other_values=[
            (values_in(image), values_in(inserts[pk].new))
            for pk in written
            for image in (updates[pk].old, updates[pk].new)
        ],
    )


def write_by_sql(table: WatchedTable, columns: Mapping[str, tuple[MakeField, list[str]]]) -> None:
    literals = {name: found for name, (_, found) in columns.items() if found}
    names = sql.SQL(", ").join(map(sql.Identifier, literals)).as_string(None)
    for number in range(max(map(len, literals.values()))):
        row = ", ".join(found[number] if number < len(found) else "null" for found in literals.values())
        table.run(f"insert into sample ({names}) values ({row})")
    table.run("insert into sample default values")


def write_by_orm(model: type[models.Model]) -> None:
    """Write again what the ORM reads."""
    for instance in model._default_manager.all():
        instance.pk = None
        for field in model._meta.concrete_fields:
            try:
                if not field.generated:
                    field.get_db_prep_save(getattr(instance, field.attname), connection)
            except (ValidationError, TypeError):
                # The ORM reads it but does not write it: a NaN, an array within an array.
                setattr(instance, field.attname, None)
        instance.save(force_insert=True)


def values_in(image: Mapping[str, Any] | None) -> Mapping[str, Any]:
    assert image is not None
    return image


@pytest.fixture(scope="module")
def observed(postgres: PostgresServer) -> Observed:
    with new_database(postgres, migrated_template(postgres)) as database, used_by_django(database):
        database.connect().execute(TYPES_SQL)
        return observe(database, COLUMNS)


@pytest.fixture(scope="module")
def observed_extensions(postgres: PostgresServer) -> Iterator[Observed]:
    with new_database(postgres, migrated_template(postgres)) as database, used_by_django(database):
        database.connect().execute("create extension hstore; create extension citext")
        # What django.contrib.postgres does at every connection, if it is installed; it remembers oids by alias.
        oids: list[Any] = [get_hstore_oids, get_citext_oids]
        for remembered in oids:
            remembered.cache_clear()
        connection.ensure_connection()
        register_type_handlers(connection)
        yield observe(database, EXTENSIONS)
        for remembered in oids:
            remembered.cache_clear()


class TestEveryField:
    @pytest.mark.parametrize("column", ["id", *COLUMNS])
    def test_an_image_holds_what_the_orm_gives(self, observed: Observed, column: str) -> None:
        assert [pair for pair in observed.pairs[column] if pair.differs and "hostile" not in pair.written] == []

    @pytest.mark.parametrize("column", ["id", *COLUMNS])
    def test_an_image_does_not_depend_on_the_settings_of_the_writer(self, observed: Observed, column: str) -> None:
        assert [pair for pair in observed.pairs[column] if pair.differs and "hostile" in pair.written] == []

    def test_an_old_image_and_that_of_an_update_are_decoded_alike(self, observed: Observed) -> None:
        assert [both for both in observed.other_values if repr(both[0]) != repr(both[1])] == []

    def test_an_instance_is_like_one_that_was_fetched(self, observed: Observed) -> None:
        for built, fetched in observed.instances:
            assert (type(built), built._state.db, built._state.adding) == (type(fetched), "default", False)
            assert {name: repr(value) for name, value in vars(built).items() if name != "_state"} == {
                name: repr(value) for name, value in vars(fetched).items() if name != "_state"
            }

    @pytest.mark.postgres("15")
    @pytest.mark.parametrize("column", EXTENSIONS)
    def test_types_of_extensions_are_no_exception(self, observed_extensions: Observed, column: str) -> None:
        assert [pair for pair in observed_extensions.pairs[column] if pair.differs] == []


class TestKeys:
    def test_a_foreign_key_holds_what_the_key_that_it_refers_to_holds(self, database: Database) -> None:
        """Of any type, through any number of them, with converters of its own; also of another unique column."""
        models_ = related_models()
        with connection.schema_editor() as editor:
            for model in models_:
                editor.create_model(model)
        *_, referring = models_
        table = watched(database, referring, "", columns="__all__")
        table.run("insert into code values ('00000000-0000-0000-0000-000000000007', 'ä', 1.50)")
        table.run("insert into weather values (21)")
        table.run("insert into forecast values (21)")
        table.run(
            "insert into referring values"
            " (1, '00000000-0000-0000-0000-000000000007', 'ä', 1.5, 21, 21), (2, null, null, null, 21, null)"
        )
        rows = {row.pop("id"): row for row in referring._default_manager.values()}
        assert rows[1] == {
            "code_id": UUID(int=7),
            "name_id": "ä",
            "price_id": Decimal("1.50"),
            "weather_id": Celsius(21),
            "forecast_id": Celsius(21),
        }
        for change in table.changes():
            image = dict(values_in(change.new))
            del image["id"]
            assert {f"{name}_id": repr(value) for name, value in image.items()} == {
                name: repr(value) for name, value in rows[change.pk].items()
            }

    @pytest.mark.parametrize(
        ("field", "literal", "value"),
        [
            (models.DurationField(primary_key=True), "'1 day 00:00:01'", timedelta(days=1, seconds=1)),
            (models.BinaryField(primary_key=True), r"'\x5c00'", b"\\\x00"),
            (models.FloatField(primary_key=True), "0.1", 0.1),
            (DateRangeField(primary_key=True), "'[2024-01-05,2024-02-06)'", Range(date(2024, 1, 5), date(2024, 2, 6))),
            (models.DateTimeField(primary_key=True), "'9999-12-31 23:00Z'", datetime(9999, 12, 31, 23, tzinfo=UTC)),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, models.Field) else "",
    )
    def test_a_key_does_not_depend_on_the_settings_of_the_writer(
        self, database: Database, field: AnyField, literal: str, value: Any
    ) -> None:
        model = make_model("Keyed", "keyed", key=field.clone())
        with connection.schema_editor() as editor:
            editor.create_model(model)
        table = watched(database, model, "")
        table.run(HOSTILE)
        table.run(f"insert into keyed values ({literal})")
        table.run("reset all")
        assert table.seen() == [("INSERT", value)]

    def test_every_part_of_a_composite_key_is_decoded(self, database: Database) -> None:
        table = watched(database, Line, LINE_SQL, columns="__all__")
        table.run("insert into line values (1, 'a', 5)")
        (change,) = table.changes()
        assert (change.pk, change.new) == ((1, "a"), {"order": 1, "position": "a", "amount": 5})


class AsItIs(Watch):
    """Hands out raw images."""

    def __init__(self) -> None:
        super().__init__(Item)

    def values(self, image: Mapping[str, Any]) -> Mapping[str, Any]:
        return image


def model_in(apps: Apps, name: str, /, **fields: AnyField) -> type[models.Model]:
    """Make a model that only models of the same `apps` know."""
    meta = type("Meta", (), {"app_label": "stock", "db_table": name.lower(), "apps": apps})
    return type(name, (models.Model,), {**fields, "__module__": __name__, "Meta": meta})


def reference(kind: type[Any], target: type[models.Model], **options: Any) -> Any:
    return kind(target, models.CASCADE, related_name="+", **options)


def related_models() -> list[type[models.Model]]:
    model = partial(model_in, Apps())
    code = model(
        "Code",
        id=models.UUIDField(primary_key=True),
        name=models.TextField(unique=True),
        price=models.DecimalField(max_digits=9, decimal_places=2, unique=True),
    )
    weather = model("Weather", degrees=Temperature(primary_key=True))
    forecast = model("Forecast", weather=reference(models.OneToOneField, weather, primary_key=True))
    referring = model(
        "Referring",
        code=reference(models.ForeignKey, code, null=True),
        name=reference(models.ForeignKey, code, to_field="name", null=True),
        price=reference(models.ForeignKey, code, to_field="price", null=True),
        weather=reference(models.ForeignKey, weather),
        forecast=reference(models.OneToOneField, forecast, null=True),
    )
    return [code, weather, forecast, referring]


MOMENTS = [
    "'2024-02-29 12:00:00.123456+00'", "'2024-10-27 00:30+00'", "'2024-10-27 01:30+00'", "'1900-01-01 00:00+00'",
]  # fmt: skip
"""Among them the hour that a time zone has twice, and an offset of odd seconds."""


class Refusing(models.TextField):  # type: ignore[type-arg]
    def from_db_value(self, value: Any, expression: Any, connection: Any) -> Any:
        raise RuntimeError(f"cannot read {value}")


class NextDay(models.DateField):  # type: ignore[type-arg]
    def from_db_value(self, value: date, expression: Any, connection: Any) -> date:
        return value + timedelta(days=1)


class TestConverters:
    def test_what_a_converter_fails_on_stays_text_and_is_told_once_without_it(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(values, "_warned", set())
        model = make_model("Odd", "odd", first=Refusing(), second=Refusing())
        watch = Watch(model, "__all__")
        for _ in range(3):
            image = watch.values({"id": 1, "first": "secret", "second": "secret"})
            assert image == {"id": 1, "first": "secret", "second": "secret"}
        told = [record.getMessage() for record in caplog.records]
        assert [message.split(" could not")[0] for message in told] == ["stock.Odd.first", "stock.Odd.second"]
        assert all("RuntimeError" in message and "secret" not in message for message in told)

    @pytest.mark.parametrize("raw", ["infinity", "0044-03-15 BC"])
    def test_what_cannot_be_loaded_does_not_reach_one(self, raw: str) -> None:
        watch = Watch(make_model("Odd", "odd", day=NextDay()), "__all__")
        assert watch.values({"id": 1, "day": "2024-02-29"}) == {"id": 1, "day": date(2024, 3, 1)}
        assert watch.values({"id": 1, "day": raw}) == {"id": 1, "day": raw}


class TestMissing:
    """A trigger function outlives the renaming of a column, and tells that it does not find it."""

    @pytest.fixture(autouse=True)
    def warnings(self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
        monkeypatch.setattr(values, "_warned", set())
        return lambda: [record.getMessage() for record in caplog.records if record.name == "pgnotify_gql.capture"]

    def test_columns_are_left_out_and_the_operator_is_told_once(
        self, database: Database, warnings: Callable[[], list[str]]
    ) -> None:
        table = watched(database, columns="__all__")
        table.run("insert into item (id, name) values (1, 'tea')")
        table.run("alter table item rename name to title")
        table.run("update item set note = 'hot'")
        table.run("update item set note = 'cold'")
        insert, *updates = table.changes()
        assert values_in(insert.new)["name"] == "tea"
        assert [update.new for update in updates] == [
            {"id": 1, "version": 0, "note": "hot"},
            {"id": 1, "version": 0, "note": "cold"},
        ]
        assert [update.changed for update in updates] == [{"note"}, {"note"}]
        (told,) = warnings()
        assert told.startswith("the triggers of stock.item capture a column 'name' that")
        assert told.endswith("run `manage.py install_triggers`")

    def test_a_column_that_only_one_image_lacks_changed(self) -> None:
        watch = Watch(Item, ("name", "version"))
        images = '{"name": {"pgnotify_gql_missing": "old"}, "version": 1}, {"name": "tea", "version": 1}'
        (change,) = JournalRow(1, 1, "x", Kind.UPDATE, f"[[[1], {images}]]", micros(NOW)).changes(watch)
        assert change.changed == {"name"}
        assert change.old == {"version": 1}

    @pytest.mark.parametrize("key", [[None], [], [1, 2]])
    def test_a_key_that_is_not_known_is_none(self, key: list[Any], warnings: Callable[[], list[str]]) -> None:
        watch = Watch(Item, "__all__")
        row = JournalRow(1, 1, "x", Kind.INSERT, json.dumps([[key, None, {"id": None, "name": "tea"}]]), micros(NOW))
        (change,) = row.changes(watch)
        assert (change.pk, change.keys, change.new, change.instance) == (None, {}, {"name": "tea"}, None)
        assert len(warnings()) == 1

    @pytest.mark.parametrize("key", [[1, None], [None, "a"], [None, None], [1]])
    def test_a_composite_key_of_which_a_part_is_not_known_is_none(self, key: list[Any]) -> None:
        assert Watch(Line).pk(key) is None

    @pytest.mark.parametrize("raw", [{MISSING: "old", "a": 1}, {"a": {MISSING: "old"}}, [{MISSING: "old"}], {}])
    def test_json_that_looks_similar_is_a_value(self, raw: Any) -> None:
        model = make_model("Document", "document", data=models.JSONField())
        assert Watch(model, ("data",)).values({"data": raw}) == {"data": raw}


ALL = {
    "bytea_output": "hex", "intervalstyle": "postgres", "timezone": "UTC", "datestyle": "ISO", "extra_float_digits": "1"
}  # fmt: skip


class TestImageSettings:
    @pytest.mark.parametrize(
        ("column", "settings"),
        [
            *[(name, set()) for name in (
                "integer", "text", "choice", "boolean", "uuid", "decimal", "unlimited_decimal", "date", "time",
                "time_with_zone", "timestamp", "address", "json", "decoded_json", "tagged", "search_vector", "file",
                "shouted", "temperature", "generated_integer", "generated_json", "generated_dates", "integers",
                "two_by_two", "dates", "times", "jsons", "shouted_texts", "integer_range", "big_integer_range",
                "decimal_range", "integer_ranges", "scribe_varchar", "scribe_serial_like", "scribe_padded",
            )],
            *[(name, {"timezone"}) for name in (
                "datetime", "datetimes", "scribe_timestamp", "date_that_is_a_datetime",
            )],
            *[(name, {"intervalstyle"}) for name in ("duration", "durations", "generated_duration", "scribe_interval")],
            *[(name, {"bytea_output"}) for name in ("binary", "binaries", "scribe_bytea")],
            *[(name, {"extra_float_digits"}) for name in ("float", "real", "array_of_floats", "scribe_double")],
            *[(name, {"datestyle"}) for name in ("date_range", "scribe_multirange", "scribe_timestamp_range")],
            *[(name, {"datestyle", "timezone"}) for name in ("datetime_range", "datetime_ranges")],
            *[(name, set(ALL)) for name in ("scribe_point", "scribe_enum", "enum", "domain_over_timestamp")],
        ],
    )  # fmt: skip
    def test_are_those_that_the_text_of_a_field_depends_on(self, column: str, settings: set[str]) -> None:
        make, _ = COLUMNS[column]
        model = make_model("Sample", "sample", id=models.IntegerField(primary_key=True), value=make().clone())
        assert image_settings(model._meta.local_concrete_fields) == {name: ALL[name] for name in settings}

    def test_of_an_array_of_a_type_that_is_not_known_are_all(self) -> None:
        assert image_settings([ArrayField(Scribe(type_name="point"))]) == ALL

    @pytest.mark.parametrize("column", EXTENSIONS)
    def test_types_of_extensions_that_django_has_fields_for_need_none(self, column: str) -> None:
        make, _ = EXTENSIONS[column]
        assert image_settings([make()]) == {}

    def test_a_foreign_key_needs_those_of_the_key_that_it_refers_to(self) -> None:
        apps = Apps()
        span = model_in(apps, "Span", length=models.DurationField(primary_key=True))
        use = model_in(apps, "Use", span=reference(models.OneToOneField, span, primary_key=True))
        assert image_settings(use._meta.local_concrete_fields) == {"intervalstyle": "postgres"}

    def test_come_in_the_same_order_whatever_the_fields(self) -> None:
        fields: list[AnyField] = [
            models.FloatField(),
            models.DateTimeField(),
            models.BinaryField(),
            models.DurationField(),
        ]
        assert list(image_settings(fields)) == list(image_settings(reversed(fields)))

    def test_a_watch_of_integers_and_text_sets_nothing(self) -> None:
        statement = render(Watch(Item, "__all__")).create_function
        assert [line for line in statement.splitlines() if line.startswith("set ")] == [
            "set search_path = pg_catalog, pg_temp "
        ]


def shown(values: Mapping[str, Any] | None) -> dict[str, str]:
    """What tells values apart that are equal, such as 1 and 1.0."""
    return {name: repr(value) for name, value in (values or {}).items()}


class TestTimeZones:
    @pytest.fixture
    def model(self) -> type[models.Model]:
        fields: dict[str, Any] = {
            "at": models.DateTimeField(),
            "spans": DateTimeRangeField(),
            "all": ArrayField(models.DateTimeField()),
        }
        return make_model("Event", "event", **fields)

    @pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "Asia/Kathmandu"])
    def test_without_time_zones_an_image_holds_local_time(
        self, database: Database, model: type[models.Model], zone: str
    ) -> None:
        with override_settings(USE_TZ=False, TIME_ZONE=zone):
            self.compare(database, model)
            assert model._default_manager.values_list("at", flat=True)[0].tzinfo is None

    @pytest.mark.parametrize("zone", ["Europe/Berlin", "Asia/Kathmandu"])
    def test_an_image_holds_the_time_zone_of_the_database(
        self, database: Database, model: type[models.Model], zone: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(connections.databases["default"], "TIME_ZONE", zone)
        forget_connections()
        self.zones_have_changed()
        try:
            self.compare(database, model)
            assert str(model._default_manager.values_list("at", flat=True)[0].tzinfo) == zone
        finally:
            monkeypatch.undo()
            forget_connections()
            self.zones_have_changed()

    def compare(self, database: Database, model: type[models.Model]) -> None:
        with connection.schema_editor() as editor:
            editor.create_model(model)
        table = watched(database, model, "", columns="__all__")
        for moment in MOMENTS:
            table.run(
                'insert into event (at, spans, "all")'
                f" values ({moment}, tstzrange({moment}, null, '[)'), array[{moment}, null]::timestamptz[])"
            )
        # Text, because what shows are zones and folds.
        orm = [shown(row) for row in model._default_manager.order_by("id").values()]
        assert [shown(change.new) for change in table.changes()] == orm

    def zones_have_changed(self) -> None:
        setting_changed.send(sender=None, setting="TIME_ZONE", value=None, enter=True)


class TestWhatPythonCannotHold:
    @pytest.mark.parametrize(
        ("field", "literal", "text"),
        [
            (models.DateField(), "'infinity'", "infinity"),
            (models.DateField(), "'0044-03-15 BC'", "0044-03-15 BC"),
            (models.DateField(), "'10000-01-01'", "10000-01-01"),
            (models.DateTimeField(), "'-infinity'", "-infinity"),
            (models.DateTimeField(), "'10000-01-01 00:00Z'", "10000-01-01T00:00:00+00:00"),
            (models.DateTimeField(), "'202411-01-01 00:00Z'", "202411-01-01T00:00:00+00:00"),
            (models.DateTimeField(), "'0044-03-15 00:00Z BC'", "0044-03-15T00:00:00+00:00 BC"),
            (models.TimeField(), "'24:00'", "24:00:00"),
            (models.DurationField(), "'2000000000 days'", "2000000000 days"),
            (DateRangeField(), "'[0044-03-15 BC,infinity)'", '["0044-03-15 BC",infinity)'),
            (ArrayField(models.DateField()), "'{2024-02-29,infinity}'", [date(2024, 2, 29), "infinity"]),
        ],
        ids=lambda value: value if isinstance(value, str) else type(value).__name__,
    )
    def test_stays_text_and_what_follows_arrives(
        self, database: Database, field: AnyField, literal: str, text: Any
    ) -> None:
        model = make_model("Odd", "odd", value=field.clone(), note=models.TextField(null=True))
        with connection.schema_editor() as editor:
            editor.create_model(model)
        table = watched(database, model, "", columns="__all__")
        table.run(f"insert into odd (value, note) values ({literal}, 'first')")
        table.run("update odd set note = 'second'")
        first, second = table.changes()
        assert values_in(first.new)["value"] == text
        assert values_in(second.new)["note"] == "second"
        assert second.changed == {"note"}
        with pytest.raises(DataError):
            list(model._default_manager.values())
        assert second.instance.value == text

    def test_nor_an_integer_of_too_many_digits_inside_json(self) -> None:
        (raw,) = JournalRow(1, 1, "x", Kind.INSERT, f'[[[1], null, {{"a": 1{"0" * 5000}}}]]', 0).changes(AsItIs())
        assert decode(models.JSONField(), values_in(raw.new)) == f'{{"a": 1{"0" * 5000}}}'

    def test_json_as_deep_as_python_reads_is_read(self) -> None:
        deep = 900
        raw = json.loads("[" * deep + "1.5" + "]" * deep, parse_float=Decimal)
        for _ in range(deep):
            raw = decode(models.JSONField(), raw)[0]
        assert (type(raw), raw) == (float, 1.5)


TEXT = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])), inner, max_size=3
        )
    ),
    max_leaves=8,
)
DECIMALS = st.decimals(-(10**20), 10**20, places=5)
MOMENTS_OF_PYTHON = st.datetimes(timezones=st.just(UTC))


def ranges(bounds: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    ends = st.sampled_from(["[)", "(]", "[]", "()"])
    return st.builds(lambda both, kind: Range(min(both), max(both), kind), st.tuples(bounds, bounds), ends)


def test_whatever_the_orm_writes_arrives_as_the_orm_reads_it(database: Database) -> None:
    fields: dict[str, Any] = {
        "text": models.TextField(),
        "data": models.JSONField(null=True),
        "price": models.DecimalField(max_digits=30, decimal_places=5),
        "ratio": models.FloatField(),
        "lasts": models.DurationField(),
        "tags": ArrayField(models.TextField(null=True)),
        "documents": ArrayField(models.JSONField(null=True)),
        "prices": DecimalRangeField(),
        "times": DateTimeRangeField(),
    }
    model = make_model("Sample", "sample", **fields)
    with connection.schema_editor() as editor:
        editor.create_model(model)
    table = watched(database, model, "", columns="__all__")

    @settings(max_examples=100, database=None)
    @given(
        text=TEXT,
        data=JSON,
        price=DECIMALS,
        ratio=st.floats(),
        lasts=st.timedeltas(timedelta(days=-1_000_000), timedelta(days=1_000_000)),
        tags=st.lists(TEXT | st.none(), max_size=4),
        documents=st.lists(JSON, max_size=3),
        prices=ranges(DECIMALS),
        times=ranges(MOMENTS_OF_PYTHON),
    )
    def write(**row: Any) -> None:
        written = model._default_manager.create(**row)
        (change,) = table.changes()
        (read,) = model._default_manager.filter(pk=written.pk).values()
        assert shown(change.new) == shown(read)

    write()
