"""
The suite with other Pythons, Djangos, PostgreSQLs and dependencies than those of `make test`.

    nox -l                                        lists every combination
    nox                                           runs three, from the oldest corner to the newest, on some of the tests
    nox -s "tests(3.12, Django 5.2, newest, PostgreSQL 18)" -- tests
                                                  runs one, on all tests

It needs nox and uv, and the Pythons that it is asked for; one that is not installed is skipped by name.
"""

from __future__ import annotations

import itertools
from typing import Any

import nox

nox.needs_version = ">= 2025.11.12"
nox.options.default_venv_backend = "uv"
nox.options.tags = ["diagonal"]
nox.options.error_on_missing_interpreters = False
nox.options.download_python = "never"
nox.options.reuse_venv = "yes"

PYTHONS = ("3.11", "3.12", "3.13")

DJANGOS = {"Django 5.2": "django ~= 5.2.0", "newest Django": "django"}
"""The oldest that is supported, and whatever the bounds of setup.cfg admit."""

DEPENDENCIES = {"oldest": "lowest-direct", "newest": "highest"}
"""How uv resolves: the oldest are the lower bounds of setup.cfg, of the package and of every extra."""

POSTGRES = ("15", "18")

DIAGONAL = {
    ("3.11", "Django 5.2", "oldest", "15"),
    ("3.12", "Django 5.2", "newest", "15"),
    ("3.13", "newest Django", "newest", "18"),
}
"""What continuous integration runs beside the whole suite, which has its own Python and the newest packages."""

TELLING = (
    "tests/test_doorbell.py",  # psycopg, LISTEN and NOTIFY
    "tests/test_install_triggers.py",  # Django's schemas and commands, SQL
    "tests/test_instance.py",  # values of psycopg as those of Django's fields
    "tests/test_listener.py",  # psycopg's connections, tenacity
    "tests/test_model_subscription.py",  # graphene-django
    "tests/test_relay.py",  # channels, both layers of channels_redis
    # daphne, uvicorn, websockets
    "tests/test_sockets_on_servers.py::test_queries_mutations_and_errors_travel_over_both_subprotocols",
    "tests/test_subscription.py",  # graphene, graphql-core
    "tests/test_tracing.py",  # opentelemetry
    "tests/test_verification_options.py",  # rich
)
"""Tests that touch every package that we depend on, for a minute in all."""


def combinations() -> list[Any]:
    """Return the parameters of each combination that there can be, with its name."""
    made = []
    for python, django, age, postgres in itertools.product(PYTHONS, DJANGOS, DEPENDENCIES, POSTGRES):
        # Django 6 needs Python 3.12; and the oldest packages are older than it.
        if django == "newest Django" and (python == "3.11" or age == "oldest"):
            continue
        combination = (python, django, age, postgres)
        name = f"{python}, {django}, {age}, PostgreSQL {postgres}"
        made.append(nox.param(*combination, id=name, tags=["diagonal"] if combination in DIAGONAL else []))
    return made


@nox.session
@nox.parametrize(["python", "django", "age", "postgres"], combinations())
def tests(session: nox.Session, django: str, age: str, postgres: str) -> None:
    """Run the telling tests, or those that are given, with these versions."""
    session.install("--resolution", DEPENDENCIES[age], "--editable", ".[test]", DJANGOS[django])
    chosen = session.posargs or ["-n", "2", *TELLING]
    plugin = ["-p", "tests.support.versions", "--postgres", postgres]
    session.run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", *plugin, *chosen)
