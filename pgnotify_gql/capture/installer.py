"""
Bring the triggers of a database in step with the watches.

A plan compares digests first and touches only what differs.  Each table is one transaction with a short lock
timeout: creating a trigger needs a lock that waits behind every open write transaction and makes every later one
wait behind it, so it gives up quickly and tries again.  New triggers replace old ones in one statement, so no write
passes uncaptured.  On failure the table is as it was.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

from django.db import OperationalError, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg import errors, sql
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from .. import names
from ..errors import InstallError, PgnotifyGqlError, WatchError
from . import catalog
from .catalog import Status, Table
from .render import Capture, render
from .watch import Watch

logger = logging.getLogger("pgnotify_gql.capture")

LOCK_TIMEOUT = 0.5
"""Seconds that installing may queue for a table, and so the longest it can make writers of that table wait."""

ATTEMPTS = 10
"""Tries a table before giving up; the pauses between them add up to about 20 s."""

LONGEST_PAUSE = 4.0
"""Seconds between two tries, at most."""


@dataclass(frozen=True)
class Step:
    """What one table needs: its status, and the statements that make it INSTALLED (none when it is)."""

    label: str
    table: str
    status: Status
    statements: Sequence[str]
    detail: str = ""


@dataclass
class Plan:
    """The steps for one database, and what cannot be captured at all."""

    database: str
    steps: list[Step] = field(default_factory=list)
    errors: list[PgnotifyGqlError] = field(default_factory=list)

    @property
    def pending(self) -> list[Step]:
        """Return the steps that would change something."""
        return [step for step in self.steps if step.statements]


def plan_install(connection: BaseDatabaseWrapper, watches: Iterable[Watch], *, rings: bool = True) -> Plan:
    """
    Return what installing would do: a step for each watch, and one for each orphaned table.

    Watches that cannot be captured are listed in ``errors``.  Raises JournalMissingError.
    """
    catalog.require_journal(connection)
    tables = catalog.installed_tables(connection)
    plan = Plan(connection.alias)
    watched: dict[int, Capture] = {}
    failed: set[str] = set()
    for watch in watches:
        try:
            capture = render(watch, rings=rings)
            oid = catalog.table_oid(connection, capture)
            if oid in watched:
                raise _watched_twice(capture, watched[oid])
        except PgnotifyGqlError as error:
            plan.errors.append(error)
            failed.add(watch.label)
            continue
        watched[oid] = capture
        plan.steps.append(_install_step(capture, tables.get(oid)))
    # A table that was renamed and replaced by a new one keeps its triggers, and they the function of the new table's.
    used = {capture.function for capture in watched.values()}
    plan.steps += [
        _removal_step(table, Status.ORPHANED, used)
        for table in catalog.orphans(tables.values(), watched)
        # A mistake in a watch must not end the capture that is in place.
        if table.label not in failed
    ]
    return plan


def plan_uninstall(connection: BaseDatabaseWrapper, labels: Sequence[str] = ()) -> Plan:
    """Return what removing would do: every table with triggers of ours, or those of `labels` only."""
    tables = catalog.installed_tables(connection).values()
    plan = Plan(connection.alias)
    plan.steps = [_removal_step(table, Status.INSTALLED) for table in tables if not labels or table.label in labels]
    plan.errors = [
        WatchError(f"{label} has no triggers in database '{connection.alias}'")
        for label in labels
        if label not in {table.label for table in tables}
    ]
    return plan


def execute(
    connection: BaseDatabaseWrapper,
    step: Step,
    *,
    lock_timeout: float = LOCK_TIMEOUT,
    attempts: int = ATTEMPTS,
    waiting: Callable[[int], None] = lambda attempt: None,
) -> None:
    """
    Run a step's statements in one transaction, again when a lock was not to be had.

    `waiting` is called with the number of the try that failed.  Raises InstallError after the last try.
    """
    retrying = Retrying(
        stop=stop_after_attempt(attempts),
        wait=wait_random_exponential(multiplier=lock_timeout, max=LONGEST_PAUSE),
        retry=retry_if_exception(_lock_not_to_be_had),
        before_sleep=lambda state: waiting(state.attempt_number),
        reraise=True,
    )
    try:
        for attempt in retrying:
            with attempt:
                _run(connection, step, lock_timeout)
    except OperationalError as error:
        if not _lock_not_to_be_had(error):
            raise
        raise InstallError(
            f"{step.table} was locked by other transactions in each of {attempts} tries of {lock_timeout:g} s: "
            "nothing was changed; try again when it is less busy, or with a larger --lock-timeout"
        ) from error
    logger.info("triggers of %s on %s brought in step", step.label, step.table)


def drop_unused_functions(connection: BaseDatabaseWrapper) -> list[str]:
    """Drop trigger functions that no trigger uses any more; return their names."""
    used = {t.function for table in catalog.installed_tables(connection).values() for t in table.triggers}
    unused = [name for name in catalog.installed_functions(connection) if name not in used]
    with connection.cursor() as cursor:
        for name in unused:
            cursor.execute(_sql("drop function {}()", sql.Identifier(names.SCHEMA, name)))
    return unused


def _run(connection: BaseDatabaseWrapper, step: Step, lock_timeout: float) -> None:
    with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
        cursor.execute("select set_config('lock_timeout', %s, true)", [f"{int(lock_timeout * 1000)}ms"])
        cursor.execute("select pg_advisory_xact_lock(%s, %s)", [names.LOCK_CLASS, names.INSTALL_LOCK])
        for statement in step.statements:
            cursor.execute(statement)


def _lock_not_to_be_had(error: BaseException) -> bool:
    return isinstance(error, OperationalError) and isinstance(
        error.__cause__, errors.LockNotAvailable | errors.DeadlockDetected
    )


def _watched_twice(capture: Capture, other: Capture) -> WatchError:
    return WatchError(
        f"{capture.watch.label} and {other.watch.label} are both watched and share the table {capture.table}: "
        "keep one watch a table"
    )


def _install_step(capture: Capture, table: Table | None) -> Step:
    status = catalog.status(capture, table)
    if status is Status.INSTALLED:
        return Step(capture.watch.label, capture.table, status, ())
    present = {trigger.name for trigger in table.triggers} if table else set()
    functions = {trigger.function for trigger in table.triggers} if table else set()
    wanted = {trigger.name for trigger in capture.triggers}
    statements = []
    if capture.function not in functions:
        statements.append(capture.create_function)
    for trigger in capture.triggers:
        statements += [trigger.create, _comment(trigger.name, capture)]
    statements += [_drop_trigger(name, capture.table) for name in sorted(present - wanted)]
    statements += [
        _enable(trigger.name, capture.table) for trigger in capture.triggers if _disabled(trigger.name, table)
    ]
    statements += [_drop_function(name) for name in sorted(functions - {capture.function})]
    return Step(capture.watch.label, capture.table, status, statements, _difference(capture, table))


def _removal_step(table: Table, status: Status, used: Collection[str] = ()) -> Step:
    qualified = sql.Identifier(table.schema, table.name).as_string(None)
    statements = [_drop_trigger(trigger.name, qualified) for trigger in table.triggers]
    functions = {trigger.function for trigger in table.triggers}
    statements += [_drop_function(name) for name in sorted(functions.difference(used))]
    return Step(table.label, qualified, status, statements, "no watch" if status is Status.ORPHANED else "")


def _difference(capture: Capture, table: Table | None) -> str:
    if table is None:
        return "no triggers"
    disabled = [trigger.name for trigger in table.triggers if not trigger.enabled]
    if disabled:
        return f"disabled: {', '.join(disabled)}"
    present, wanted = {t.name for t in table.triggers}, {t.name for t in capture.triggers}
    if present != wanted:
        return f"has {', '.join(sorted(present))}; needs {', '.join(sorted(wanted))}"
    return "made by another version of the watch or of this package"


def _disabled(name: str, table: Table | None) -> bool:
    return table is not None and any(t.name == name and not t.enabled for t in table.triggers)


def _comment(trigger: str, capture: Capture) -> str:
    return _sql(
        "comment on trigger {} on {} is {}", sql.Identifier(trigger), _raw(capture.table), sql.Literal(capture.comment)
    )


def _enable(trigger: str, table: str) -> str:
    return _sql("alter table {} enable trigger {}", _raw(table), sql.Identifier(trigger))


def _drop_trigger(trigger: str, table: str) -> str:
    return _sql("drop trigger {} on {}", sql.Identifier(trigger), _raw(table))


def _drop_function(name: str) -> str:
    return _sql("drop function if exists {}()", sql.Identifier(names.SCHEMA, name))


def _raw(quoted: str) -> sql.SQL:
    return sql.SQL(quoted)  # a table name that sql.Identifier has quoted before


def _sql(text: str, *parts: sql.Composable) -> str:
    return sql.SQL(text).format(*parts).as_string(None)
