"""With INSTALL_ON_MIGRATE, ``migrate`` ends by bringing the triggers of its database in step."""

from __future__ import annotations

import sys
from typing import Any

from django.db import Error as DatabaseError
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from ..capture.catalog import require_primary
from ..capture.locking import LOCK_TIMEOUT
from ..capture.registry import registry
from ..conf import get_settings
from ..errors import JournalMissingError, PgnotifyGqlError, ReadOnlyDatabaseError, TableMissingError, one_line
from .installing import Say, install, make_plan, watches_of


def install_after_migrate(*, using: str, verbosity: int = 1, **kwargs: Any) -> None:
    """
    Receive ``post_migrate`` of this application, once a ``migrate``.

    Whatever fails is reported and leaves the migrations as they are; ``flush``, which sends the signal too but has no
    plan, changes nothing.
    """
    connection = connections[using]
    if "plan" not in kwargs or connection.vendor != "postgresql" or not get_settings().INSTALL_ON_MIGRATE:
        return
    stdout: Any = kwargs.get("stdout", sys.stdout)

    def say(sentence: str) -> None:
        if verbosity > 0:
            stdout.write(f"  {sentence}\n")

    try:
        _install(connection, say)
    except (PgnotifyGqlError, DatabaseError) as error:
        _complain(using, [one_line(error)])


def _install(connection: BaseDatabaseWrapper, say: Say) -> None:
    if not watches_of(connection, registry):
        return
    try:
        require_primary(connection)
        plan = make_plan(connection, registry)
    except ReadOnlyDatabaseError:
        return
    except JournalMissingError as error:
        say(f"No triggers were installed: {error}")
        return
    failures = install(plan, LOCK_TIMEOUT, say=say, warn=_warn)
    problems = [str(failure) for failure in failures]
    for mistake in plan.errors:
        if isinstance(mistake, TableMissingError):
            say(f"Not installed (yet): {mistake}")
        else:
            problems.append(str(mistake))
    if problems:
        _complain(plan.database, problems)


def _complain(database: str, problems: list[str]) -> None:
    listed = "\n".join(f"  {problem}" for problem in problems)
    _warn(
        f"The migrations of database '{database}' are done, but NOT ALL ITS TRIGGERS ARE IN STEP:\n{listed}\n"
        f"Changes of these models may be captured as before or not at all, until you run "
        f"`manage.py install_triggers --database {database}`."
    )


def _warn(sentence: str) -> None:
    sys.stderr.write(f"{sentence}\n")
