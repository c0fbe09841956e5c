"""
Everything that the code has is on its page of the reference, and nothing that it has not.

Metrics and the lines of the log are on ``operations``: see ``test_operations_page``.
"""

from __future__ import annotations

import argparse
import ast
import re
from dataclasses import fields as fields_of
from importlib import import_module
from typing import get_type_hints

import pytest
from django.core.management import BaseCommand, load_command_class

from pgnotify_gql import conf, errors
from pgnotify_gql.transport.close_codes import PRIVATE_CODES, CloseCode
from pgnotify_gql.verification.faults import FAULTS
from tests.docs.pages import PACKAGE, directives, fields, modules, page, sections, terms

SETTINGS = {name: text for name, text in sections(page("reference/settings")).items() if name.isupper()}

COMMANDS = sections(page("reference/commands"))

CHECKS = {name: text for name, text in sections(page("reference/checks")).items() if "." in name}

PUBLIC = ["capture", "monitor", "subscriptions", "testing", "transport"]


def test_every_setting_is_documented_and_every_documented_one_is_in_the_code() -> None:
    assert sorted(SETTINGS) == sorted(field.name for field in fields_of(conf.Settings))


@pytest.mark.parametrize("setting", fields_of(conf.Settings), ids=lambda field: field.name)
def test_a_setting_has_its_type_default_unit_meaning_and_when_to_change_it(setting: object) -> None:
    name, default = setting.name, setting.default  # type: ignore[attr-defined]
    text = SETTINGS[name]
    told = fields(text)
    kind = get_type_hints(conf.Settings)[name]
    assert told["Type"] == conf._wanted(kind)
    assert ast.literal_eval(told["Default"].strip("`")) == default
    assert ("Unit" in told) is (kind in {int, float})
    assert "\n*Change it* " in text
    assert f".. _setting-{name}:" in page("reference/settings")


def commands() -> list[str]:
    return [path.stem for path in (PACKAGE / "management" / "commands").glob("*.py") if path.stem != "__init__"]


def own_arguments(command: str) -> dict[str, argparse.Action]:
    """Return what a command takes besides what all of Django's take, as ``--option`` or by the name of its place."""

    def arguments(of: BaseCommand) -> dict[str, argparse.Action]:
        actions = of.create_parser("manage.py", command)._actions
        return {
            next((option for option in action.option_strings if option.startswith("--")), str(action.metavar)): action
            for action in actions
        }

    every = arguments(BaseCommand())
    return {
        name: action
        for name, action in arguments(load_command_class("pgnotify_gql", command)).items()
        if name not in every
    }


def documented_arguments(command: str) -> dict[str, str]:
    return directives(COMMANDS[command], "option")


def test_every_command_is_documented_and_every_documented_one_is_in_the_code() -> None:
    assert sorted(commands()) == sorted(title for title in COMMANDS if title != "Commands")
    assert [name for name in commands() if f"<command-{name}>" not in COMMANDS["Commands"]] == []


@pytest.mark.parametrize("command", sorted(commands()))
def test_every_option_of_a_command_is_documented_and_every_documented_one_is_in_the_code(command: str) -> None:
    documented = {argument.partition(" ")[0]: argument for argument in documented_arguments(command)}
    taken = own_arguments(command)
    assert sorted(documented) == sorted(taken)
    for name, action in taken.items():
        takes_value = bool(action.option_strings) and action.nargs != 0
        assert (" " in documented[name]) is takes_value, documented[name]


@pytest.mark.parametrize("command", sorted(commands()))
def test_the_default_of_an_option_is_told_where_it_is_a_number(command: str) -> None:
    documented = {name.partition(" ")[0]: text for name, text in documented_arguments(command).items()}
    for name, action in own_arguments(command).items():
        if isinstance(action.default, (int, float)) and not isinstance(action.default, bool):
            assert f"{action.default:g} by default" in documented[name], name


def test_every_fault_that_can_be_injected_is_named() -> None:
    text = documented_arguments("verify_delivery")["--fault NAME"]
    assert set(re.findall(r"``([a-z]+-[a-z-]+)``", text)) == set(FAULTS)


def check_ids() -> set[str]:
    """Return the ids of system checks, wherever in the package one is made."""
    return {
        node.value
        for _, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"pgnotify_gql\.[A-Z]\d+", node.value)
    }


def test_every_check_is_documented_and_every_documented_one_is_in_the_code() -> None:
    assert "pgnotify_gql.E001" in check_ids()
    assert sorted(CHECKS) == sorted(check_ids())


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_a_check_has_what_it_says_its_cause_and_its_remedy(name: str) -> None:
    assert list(fields(CHECKS[name])) == ["Says", "Cause", "Remedy"]
    assert f".. _check-{name.rpartition('.')[2]}:" in page("reference/checks")


def test_every_close_code_is_documented_with_what_daphne_sends() -> None:
    rows = re.findall(r"^(\d{4})  (\d{4})    (?:yes|no|\\-) +``(\w+)``$", page("reference/close-codes"), re.MULTILINE)
    assert rows == [(str(code), str(PRIVATE_CODES.get(code, int(code))), code.name) for code in CloseCode]


def test_every_close_code_says_when_it_is_sent() -> None:
    assert {str(int(code)) for code in CloseCode} <= terms(page("reference/close-codes"))


def test_every_error_is_documented_and_every_documented_one_is_in_the_code() -> None:
    classes = {
        f"pgnotify_gql.errors.{name}"
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.PgnotifyGqlError)
    }
    documented = directives(page("reference/errors"), "autoexception")
    assert sorted(documented) == sorted(classes)
    assert [name for name, text in documented.items() if not text] == []


def error_codes() -> set[str]:
    """Return what may be in ``extensions.code``: texts under that key, and constants whose value is their own name."""
    found = set()
    for path, tree in modules():
        if "transport" not in path.parts:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Dict):
                pairs = zip(node.keys, node.values, strict=True)
                found |= {_text(value) for key, value in pairs if key is not None and _text(key) == "code"}
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                found |= {_text(node.value)} & {node.targets[0].id}
    return found - {""}


def _text(node: ast.expr) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def test_every_code_of_an_error_is_documented_and_every_documented_one_is_in_the_code() -> None:
    assert {"INVALID_CURSOR", "INTERNAL_ERROR", "QUERY_TOO_DEEP"} <= error_codes()
    assert terms(sections(page("reference/errors"))["Codes that clients get"]) == error_codes()


def documented_names() -> set[str]:
    text = page("reference/api")
    made = [
        name for kind in ("autoclass", "autofunction", "autodata", "autodecorator") for name in directives(text, kind)
    ]
    return {name.partition("(")[0] for name in made}


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_on_the_page_of_the_api(name: str) -> None:
    public = import_module(f"pgnotify_gql.{name}").__all__
    assert [each for each in public if f"pgnotify_gql.{name}.{each}" not in documented_names()] == []
