"""``docs/operations.rst`` has every metric, every event of the log and every option, and none that is not there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from pgnotify_gql import metrics
from tests.support.processes import CHECKOUT

PAGE = (CHECKOUT / "docs" / "operations.rst").read_text()

LEVELS = {"info": "INFO", "warning": "WARNING", "error": "ERROR", "exception": "ERROR", "log": "WARNING"}
"""By the logger's method; what is logged at a level that is computed is at DEBUG otherwise."""

OF_A_RUN = "verification"
"""Logs for whoever watches ``verify_delivery``, and is not part of what is operated."""


class Event(NamedTuple):
    """Something that is logged at INFO or above."""

    logger: str
    level: str
    message: str


def rows(section: str) -> list[list[str]]:
    """The cells of the rows of a list-table, below its header."""
    table = re.split(r"\n   \* - ", section)[1:]
    cells = [re.split(r"\n     -(?: |(?=\n))", row) for row in table]
    return [[" ".join(cell.split()) for cell in row] for row in cells[1:]]


def sections(title: str, mark: str) -> Iterator[tuple[str, str]]:
    """The subsections below a title, with their texts."""
    (found,) = re.findall(rf"\n{title}\n-+\n(.*?)(?=\n\S[^\n]*\n-{{4,}}\n|\Z)", PAGE, re.DOTALL)
    parts = re.split(rf"\n(\S[^\n]*)\n{re.escape(mark)}{{4,}}\n", found)
    yield "", parts[0]
    yield from zip(parts[1::2], parts[2::2], strict=True)


def documented_events() -> list[Event]:
    return [
        Event(name.strip("`"), cells[0], cells[1].removeprefix("``").removesuffix("``"))
        for name, text in sections("Logs", ".")
        if name
        for cells in rows(text)
    ]


def logged_events() -> list[Event]:
    """What is in the code, found in its syntax."""
    found: list[Event] = []
    for path in sorted((CHECKOUT / "pgnotify_gql").rglob("*.py")):
        if OF_A_RUN not in path.parts:
            found += _events_of(path)
    return found


def _events_of(path: Path) -> Iterator[Event]:
    tree = ast.parse(path.read_text())
    names = [
        node.args[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "getLogger"
        and node.args
        and isinstance(node.args[0], ast.Constant)
    ]
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS):
            continue
        if not (isinstance(node.func.value, ast.Name) and node.func.value.id == "logger"):
            continue
        message = node.args[1 if node.func.attr == "log" else 0]
        assert isinstance(message, ast.Constant), f"{path}:{node.lineno}: a message is constant, values are arguments"
        yield Event(str(names[0]), LEVELS[node.func.attr], " ".join(str(message.value).split()))


def test_events_are_found_in_the_code() -> None:
    assert Event("pgnotify_gql.listener", "INFO", "leading database %s in epoch %d") in logged_events()
    assert len(logged_events()) > 50


def test_every_event_of_the_log_is_documented_with_its_logger_and_level() -> None:
    documented = set(documented_events())
    assert [event for event in logged_events() if event not in documented] == []


def test_every_documented_event_of_the_log_is_in_the_code() -> None:
    logged = set(logged_events())
    assert [event for event in documented_events() if event not in logged] == []


def test_every_event_says_what_it_means_and_what_to_do() -> None:
    for name, text in sections("Logs", "."):
        for cells in rows(text) if name else ():
            assert len(cells) == 4, cells
            assert all(cells), cells


def documented_metrics() -> dict[str, list[str]]:
    (overview,) = [text for name, text in sections("Metrics", ".") if not name]
    return {cells[0].strip("`"): cells for cells in rows(overview)}


def test_every_metric_is_documented_and_every_documented_one_is_in_the_code() -> None:
    assert documented_metrics().keys() == metrics.DEFINED.keys()


@pytest.mark.parametrize("name", metrics.DEFINED)
def test_a_metric_is_documented_with_its_type_labels_and_meaning(name: str) -> None:
    _, kind, labels, process, meaning = documented_metrics()[name]
    assert (kind, labels) == (metrics.DEFINED[name].kind, ", ".join(metrics.DEFINED[name].labels))
    assert process in {"listener", "server"}
    assert meaning


def test_alerts_ask_for_metrics_that_there_are() -> None:
    asked = set(re.findall(r"pgnotify_gql_\w+", PAGE))
    samples = {f"{name}{suffix}" for name in metrics.DEFINED for suffix in ("", "_bucket", "_sum", "_count")}
    assert asked <= samples, asked - samples


@pytest.mark.parametrize("mention", ["LISTENER_HTTP", "METRICS_TOKEN", "--http", "/healthz", "/readyz", "/metrics"])
def test_what_is_served_and_its_settings_are_documented(mention: str) -> None:
    assert mention in PAGE


def test_the_readme_leads_here() -> None:
    assert "docs/operations.rst" in (CHECKOUT / "README.rst").read_text()
