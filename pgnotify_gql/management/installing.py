"""Bring the triggers of a database in step: what ``install_triggers`` does, and ``migrate`` where it is told to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from django.db import connections, router
from django.db.backends.base.base import BaseDatabaseWrapper

from ..capture.catalog import Status
from ..capture.installer import Plan, Step, drop_unused_functions, execute, plan_install
from ..capture.registry import Registry
from ..capture.watch import Watch
from ..conf import get_settings
from ..errors import InstallError

Say = Callable[[str], Any]


def watches_of(connection: BaseDatabaseWrapper, registry: Registry) -> list[Watch]:
    """Return the watches whose tables the router has in a database."""
    return [watch for watch in registry if router.allow_migrate_model(connection.alias, watch.model)]


def make_plan(connection: BaseDatabaseWrapper, registry: Registry) -> Plan:
    """Return what a database needs.  Raises JournalMissingError, ReadOnlyDatabaseError."""
    return plan_install(connection, watches_of(connection, registry), rings=get_settings().WAKE == "notify")


def install(plan: Plan, lock_timeout: float, *, say: Say, warn: Say) -> list[InstallError]:
    """Execute a plan and tell what was done.  Returns why tables are as they were: a locked one holds up no other."""
    connection = connections[plan.database]
    failures: list[InstallError] = []
    done: Counter[str] = Counter()
    for step in plan.pending:
        try:
            execute(connection, step, lock_timeout=lock_timeout, waiting=_waiting(warn, step))
        except InstallError as error:
            failures.append(error)
            continue
        change = "removed" if step.status is Status.ORPHANED else "installed"
        done[change] += 1
        say(f"{step.label}: {change} (was {step.status})")
    drop_unused_functions(connection)
    if len(plan.pending) > 1:
        done["unchanged"] = len(plan.steps) - len(plan.pending)
        done["failed"] = len(failures)
        counts = [f"{count} {what}" for what, count in done.items() if count]
        say(f"{len(plan.steps)} tables: {', '.join(counts)}.")
    return failures


def _waiting(warn: Say, step: Step) -> Callable[[int], None]:
    return lambda attempt: warn(f"{step.table} is locked (try {attempt}); trying again")
