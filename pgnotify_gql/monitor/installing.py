"""
What the page's button does: install triggers that are missing, and replace those that are outdated.

Whatever has no watch any more is left to ``manage.py install_triggers``, which somebody runs who has seen the plan.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from django.db import connections

from ..capture.catalog import Status
from ..capture.installer import execute
from ..capture.registry import registry
from ..errors import InstallError
from ..management.installing import make_plan

logger = logging.getLogger("pgnotify_gql.monitor")

INSTALLABLE = frozenset({Status.MISSING, Status.OUTDATED})

ATTEMPTS = 3
"""Tries for a table that is locked: somebody is waiting for the answer."""


@dataclass
class Outcome:
    """A sentence for each table that was brought in step, and for each that was not."""

    done: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def install_missing(alias: str, user: Any) -> Outcome:
    """
    Install what is missing or outdated in a database; a table that cannot be had holds up no other.

    Raises JournalMissingError, ReadOnlyDatabaseError.
    """
    connection = connections[alias]
    plan = make_plan(connection, registry)
    logger.info("user %s has triggers installed in database %s", user.pk, alias)
    outcome = Outcome(failures=[str(error) for error in plan.errors])
    for step in plan.pending:
        if step.status not in INSTALLABLE:
            continue
        try:
            execute(connection, step, attempts=ATTEMPTS)
        except InstallError as error:
            outcome.failures.append(str(error))
        else:
            outcome.done.append(f"{step.label}: installed (was {step.status})")
    return outcome
