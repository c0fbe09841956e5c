"""``runserver`` comes back when a mistake has been corrected: Django's autoreloader is told which file to watch."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.test import override_settings
from django.utils import autoreload

from pgnotify_gql.errors import ConfigurationError, PgnotifyGqlError
from pgnotify_gql.management.reloading import watch_schema

WRONG = """
import graphene
from example.conversations.models import Message
from example.conversations.types import MessageType
from pgnotify_gql.subscriptions import ModelSubscription

class Wrong(ModelSubscription):
    class Meta:
        output = MessageType
        optional = ["nothing_of_this_name"]
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A schema with a mistake, in a file that may be imported as `mistaken_schema`."""
    path = tmp_path / "mistaken_schema.py"
    path.write_text(WRONG)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield path
    sys.modules.pop("mistaken_schema", None)


def test_the_file_in_which_an_import_has_failed_is_watched_and_not_ours(module: Path) -> None:
    def load() -> None:
        importlib.import_module("mistaken_schema")

    before = autoreload._error_files.copy()  # type: ignore[attr-defined]
    try:
        with pytest.raises(ConfigurationError, match="nothing_of_this_name"):
            autoreload.check_errors(load)()
        assert autoreload._error_files[-1] == str(module)  # type: ignore[attr-defined]
    finally:
        autoreload._error_files[:] = before  # type: ignore[attr-defined]
        autoreload._exception = None  # type: ignore[attr-defined]


def test_an_error_that_no_import_has_raised_is_of_no_file() -> None:
    def fails() -> None:
        raise PgnotifyGqlError("it went wrong")

    with pytest.raises(PgnotifyGqlError) as caught:
        fails()
    assert caught.value.filename is None


def test_the_schema_of_the_settings_is_watched_though_it_cannot_be_imported(module: Path) -> None:
    reloader = autoreload.StatReloader()
    with override_settings(GRAPHENE={"SCHEMA": "mistaken_schema.schema"}):
        watch_schema(reloader)
    assert module in set(reloader.watched_files(include_globs=True))
    assert "mistaken_schema" not in sys.modules


@pytest.mark.parametrize("schema", [None, "schema", "no_such_module.schema", "no.such.module.schema", object()])
def test_what_names_no_module_is_left_to_whoever_needs_it(schema: object) -> None:
    reloader = autoreload.StatReloader()
    with override_settings(GRAPHENE={"SCHEMA": schema}):
        watch_schema(reloader)
    assert reloader.directory_globs == {}


def test_the_application_is_told_when_the_autoreloader_starts() -> None:
    assert watch_schema in [receiver() for _, receiver, *_ in autoreload.autoreload_started.receivers]
