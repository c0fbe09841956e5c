"""The settings: defaults, and a sentence for everything that is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
from django.db import connections
from django.test import override_settings
from psycopg.conninfo import conninfo_to_dict

from pgnotify_gql.conf import Settings, database_conninfo, find_mistakes, get_settings, read
from pgnotify_gql.errors import ConfigurationError


@pytest.fixture
def alias(request: pytest.FixtureRequest) -> Iterator[str]:
    """A database alias "other" with the parameters of the test."""
    connections.databases["other"] = connections.databases["default"] | request.param
    try:
        yield "other"
    finally:
        del connections["other"]
        del connections.databases["other"]


def test_everything_has_a_default() -> None:
    assert read({}) == Settings()


def test_settings_in_force_follow_overrides() -> None:
    with override_settings(PGNOTIFY_GQL={"WORKERS": 7}):
        assert get_settings().WORKERS == 7
    assert get_settings().WORKERS == Settings().WORKERS


@pytest.mark.parametrize(
    ("values", "mistake"),
    [
        ({"RETENTOIN": 5}, "PGNOTIFY_GQL has an unknown key 'RETENTOIN': did you mean RETENTION?"),
        ({"wake": "poll"}, "PGNOTIFY_GQL has an unknown key 'wake': did you mean WAKE?"),
        ({"WAKE": "sometimes"}, "PGNOTIFY_GQL['WAKE'] must be one of notify, poll, not 'sometimes'"),
        ({"WAKE": None}, "PGNOTIFY_GQL['WAKE'] must be a string, not None"),
        ({"WORKERS": "4"}, "PGNOTIFY_GQL['WORKERS'] must be a whole number above 0, not '4'"),
        ({"WORKERS": 4.5}, "PGNOTIFY_GQL['WORKERS'] must be a whole number above 0, not 4.5"),
        ({"WORKERS": True}, "PGNOTIFY_GQL['WORKERS'] must be a whole number above 0, not True"),
        ({"WORKERS": 0}, "PGNOTIFY_GQL['WORKERS'] must be a whole number above 0, not 0"),
        ({"RETENTION": -1}, "PGNOTIFY_GQL['RETENTION'] must be a number above 0, not -1"),
        ({"RETENTION": float("inf")}, "PGNOTIFY_GQL['RETENTION'] must be a number above 0, not inf"),
        ({"RETENTION": float("nan")}, "PGNOTIFY_GQL['RETENTION'] must be a number above 0, not nan"),
        ({"INLINE_LISTENER": "yes"}, "PGNOTIFY_GQL['INLINE_LISTENER'] must be True or False, not 'yes'"),
        ({"DATABASE": "default"}, "PGNOTIFY_GQL has an unknown key 'DATABASE': did you mean DATABASES?"),
        ({"DATABASES": "default"}, "PGNOTIFY_GQL['DATABASES'] must be a list of one or more aliases, not 'default'"),
        ({"DATABASES": []}, "PGNOTIFY_GQL['DATABASES'] must be a list of one or more aliases, not []"),
        ({"DATABASES": [1]}, "PGNOTIFY_GQL['DATABASES'] must be a list of one or more aliases, not [1]"),
        ({"DATABASES": ["a", "b", "a"]}, "PGNOTIFY_GQL['DATABASES'] names 'a' twice"),
        (
            {"LISTENER_CONNINFO": 1},
            "PGNOTIFY_GQL['LISTENER_CONNINFO'] must be a string, or a dictionary of strings by alias, not 1",
        ),
        (
            {"LISTENER_CONNINFO": {"default": None}},
            "PGNOTIFY_GQL['LISTENER_CONNINFO'] must be a string, or a dictionary of strings by alias, "
            "not {'default': None}",
        ),
        (
            {"LISTENER_CONNINFO": {"defualt": "host=direct"}},
            "PGNOTIFY_GQL['LISTENER_CONNINFO'] has an entry for 'defualt', "
            "which PGNOTIFY_GQL['DATABASES'] does not name",
        ),
        (
            {"DATABASES": ["default", "b"], "LISTENER_CONNINFO": "host=direct"},
            "PGNOTIFY_GQL['LISTENER_CONNINFO'] is one connection string for 2 databases: "
            "make it a dictionary, {'default': '...'}",
        ),
        (["WORKERS"], "PGNOTIFY_GQL must be a dictionary, not ['WORKERS']"),
        (None, "PGNOTIFY_GQL must be a dictionary, not None"),
    ],
)
def test_a_mistake_is_a_sentence_and_an_error(values: Any, mistake: str) -> None:
    assert find_mistakes(values) == [mistake]
    with pytest.raises(ConfigurationError) as caught:
        read(values)
    assert str(caught.value) == mistake


def test_an_unknown_key_that_resembles_nothing_lists_all_keys() -> None:
    (mistake,) = find_mistakes({"XQZ": 1})
    assert all(field.name in mistake for field in fields(Settings))


def test_a_key_that_is_no_text_is_unknown() -> None:
    (mistake,) = find_mistakes({5: 1})
    assert "unknown key '5'" in mistake


def test_every_mistake_is_found_at_once() -> None:
    assert len(find_mistakes({"WORKERS": 0, "WAKE": "", "NOTHING_LIKE_IT": 1})) == 3


def test_a_whole_number_is_a_number() -> None:
    assert read({"RETENTION": 60}).RETENTION == 60


@pytest.mark.parametrize("conninfo", ["", {}, {"default": "host=one"}, {"default": "host=one", "b": "host=two"}])
def test_several_databases_may_have_a_connection_string_each_or_none(conninfo: Any) -> None:
    values = {"DATABASES": ("default", "b"), "LISTENER_CONNINFO": conninfo}
    assert read(values) == Settings(**values)


class TestConninfo:
    def test_is_what_is_configured(self) -> None:
        assert database_conninfo(Settings(LISTENER_CONNINFO="host=direct"), "default") == "host=direct"

    @pytest.mark.parametrize("alias", [{"NAME": "shop", "OPTIONS": {}}], indirect=True)
    def test_is_what_is_configured_for_the_alias(self, alias: str) -> None:
        settings = Settings(DATABASES=("default", alias), LISTENER_CONNINFO={"default": "host=direct"})
        assert database_conninfo(settings, "default") == "host=direct"
        assert conninfo_to_dict(database_conninfo(settings, alias))["dbname"] == "shop"

    @pytest.mark.parametrize(
        "alias",
        [
            {
                "NAME": "shop",
                "USER": "ann",
                "PASSWORD": "it's \\secret",
                "HOST": "/run/postgres",
                "PORT": 5433,
                "OPTIONS": {
                    "sslmode": "require",
                    "pool": True,
                    "isolation_level": 1,
                    "assume_role": "bob",
                    "server_side_binding": True,
                },
            }
        ],
        indirect=True,
    )
    def test_is_made_of_what_libpq_knows_of_the_alias(self, alias: str) -> None:
        assert conninfo_to_dict(database_conninfo(Settings(), alias)) == {
            "dbname": "shop",
            "user": "ann",
            "password": "it's \\secret",
            "host": "/run/postgres",
            "port": "5433",
            "sslmode": "require",
        }

    @pytest.mark.parametrize(
        "alias", [{"NAME": "", "USER": "", "PASSWORD": "", "HOST": "", "PORT": "", "OPTIONS": {"service": "shop"}}],
        indirect=True,
    )  # fmt: skip
    def test_leaves_out_what_is_empty(self, alias: str) -> None:
        assert conninfo_to_dict(database_conninfo(Settings(), alias)) == {"service": "shop"}

    @pytest.mark.parametrize("alias", [{"ENGINE": "django.db.backends.sqlite3", "OPTIONS": {}}], indirect=True)
    def test_of_a_database_that_is_not_postgresql_is_refused(self, alias: str) -> None:
        with pytest.raises(ConfigurationError, match="database 'other' is sqlite: the feed needs PostgreSQL"):
            database_conninfo(Settings(), alias)

    def test_of_an_alias_that_does_not_exist_is_refused(self) -> None:
        with pytest.raises(
            ConfigurationError, match="names 'nowhere', which the project's DATABASES does not have: it has default"
        ):
            database_conninfo(Settings(), "nowhere")
