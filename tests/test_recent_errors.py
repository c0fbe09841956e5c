"""The last warnings and errors: remembered as texts, and seen by whoever sees them otherwise."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

import pgnotify_gql
from pgnotify_gql import recent_errors as module
from pgnotify_gql.recent_errors import LOGGERS, LONGEST, MOST_RECENT, install, recent_errors
from tests.support.processes import CHECKOUT

logger = logging.getLogger("pgnotify_gql.hub")

NAMED = re.compile(r'getLogger\("([^"]+)"\)')

PROGRAM = """
import logging
import django

django.setup()
from pgnotify_gql.recent_errors import recent_errors

logging.getLogger("pgnotify_gql.hub").warning("a %s is away", "layer")
print(recent_errors()[-1]["message"])
"""


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Nothing remembered of other tests, and nothing left for them."""
    module._remembering.records.clear()
    yield
    module._remembering.records.clear()


def messages() -> list[str]:
    return [error["message"] for error in recent_errors()]


def test_warnings_and_errors_are_remembered_with_time_level_and_logger() -> None:
    before = time.time()
    logger.warning("a %s is away", "layer")
    logger.error("an error")
    warning, error = recent_errors()
    assert before <= warning["at"] <= time.time()
    assert warning == {
        "at": warning["at"], "level": "WARNING", "logger": "pgnotify_gql.hub", "message": "a layer is away",
    }  # fmt: skip
    assert (error["level"], error["message"]) == ("ERROR", "an error")


def test_what_is_no_warning_is_not_remembered() -> None:
    logger.setLevel(logging.DEBUG)
    try:
        logger.info("all is well")
    finally:
        logger.setLevel(logging.NOTSET)
    assert messages() == []


def test_only_the_last_ones_are_remembered() -> None:
    for number in range(MOST_RECENT + 5):
        logger.warning("number %d", number)
    assert messages() == [f"number {number}" for number in range(5, MOST_RECENT + 5)]


def test_a_message_is_cut_off_and_has_no_traceback() -> None:
    try:
        int("a secret of the row")
    except ValueError:
        logger.exception("x" * 2 * LONGEST)
    assert messages() == ["x" * LONGEST]


def test_a_message_that_cannot_be_formatted_is_remembered_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logger, "callHandlers", lambda record: None)  # pytest's handlers raise
    logger.warning("%d rows", "several")
    assert messages() == ["%d rows"]


def test_installing_again_remembers_nothing_twice() -> None:
    install()
    logger.warning("once")
    assert messages() == ["once"]


def test_every_logger_of_the_package_is_listened_to() -> None:
    sources = (CHECKOUT / "pgnotify_gql").rglob("*.py")
    named = {name for source in sources for name in NAMED.findall(source.read_text())}
    assert pgnotify_gql.__name__ in LOGGERS
    assert named <= set(LOGGERS)


def test_no_logger_is_given_a_handler_which_would_keep_others_from_being_configured() -> None:
    assert all(not logging.getLogger(name).handlers for name in LOGGERS)


def test_applications_that_have_configured_no_handlers_see_what_python_prints_for_them() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1:] == ["a layer is away"]
    assert done.stdout.splitlines() == ["a layer is away"]
