"""
Bring the triggers of a database in step with the watches.

A plan compares digests first and touches only what differs.  Each watch is one transaction, in which new triggers
replace old ones, so no write passes uncaptured; on failure its table is as it was.  How a busy table is locked without
anybody having to wait for it is a concern of its own, see ``locking``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from django.db import ProgrammingError, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg import errors, sql

from .. import names
from ..errors import InstallError, PgnotifyGqlError, WatchError
from . import catalog
from .catalog import ALWAYS, InstalledTrigger, Relation, Status
from .condition import condition_sql, require_evaluable
from .function import bind, triggered_kinds
from .locking import ATTEMPTS, LOCK_TIMEOUT, LockMode, lock_tables, try_again
from .render import Capture, Trigger, render
from .watch import Watch

logger = logging.getLogger("pgnotify_gql.capture")

Key = tuple[int, str]
"""A trigger's table, by oid, and its name."""


@dataclass(frozen=True)
class Step:
    """What one watch needs: its status, and the statements that make it INSTALLED (none when it is)."""

    label: str
    table: str
    status: Status
    statements: Sequence[str]
    detail: str = ""
    table_oids: Sequence[int] = ()

    @property
    def lock_mode(self) -> LockMode:
        """Return the strongest lock that the statements need: taken at once, it is waited for only once."""
        drops = any(statement.startswith("drop trigger") for statement in self.statements)
        return LockMode.ACCESS_EXCLUSIVE if drops else LockMode.SHARE_ROW_EXCLUSIVE


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


@dataclass(frozen=True)
class _Target:
    """What a watch wants to have in the database."""

    capture: Capture
    relation: Relation
    triggers: Mapping[Key, Trigger]


def plan_install(connection: BaseDatabaseWrapper, watches: Iterable[Watch], *, rings: bool = True) -> Plan:
    """
    Return what installing would do: a step for each watch, and steps for the triggers that no watch wants.

    Watches that cannot be captured are listed in ``errors``.  Raises JournalMissingError, ReadOnlyDatabaseError.
    """
    catalog.require_primary(connection)
    catalog.require_journal(connection)
    installed = catalog.installed_triggers(connection)
    plan = Plan(connection.alias)
    targets: dict[int, _Target] = {}
    failed: set[str] = set()
    for watch in watches:
        try:
            target = _target(connection, watch, rings)
            if target.relation.oid in targets:
                raise _watched_twice(target, targets[target.relation.oid])
        except PgnotifyGqlError as error:
            plan.errors.append(error)
            failed.add(watch.label)
            continue
        targets[target.relation.oid] = target
    wanted = {key for target in targets.values() for key in target.triggers}
    functions = {target.capture.function for target in targets.values()}
    claimed: set[Key] = set()
    for target in targets.values():
        own = [
            t for t in installed if _key(t) in target.triggers or (_key(t) not in wanted and _is_left_over(t, target))
        ]
        claimed.update(map(_key, own))
        kept = functions | {t.function for t in installed if t not in own}
        plan.steps.append(_install_step(target, own, kept))
    orphans = [t for t in installed if _key(t) not in claimed and t.label not in failed]
    kept = functions | {t.function for t in installed if t not in orphans}
    plan.steps += _removal_steps(orphans, Status.ORPHANED, kept)
    return plan


def plan_uninstall(connection: BaseDatabaseWrapper, labels: Sequence[str] = ()) -> Plan:
    """
    Return what removing would do: of every trigger of ours, or of those made for `labels` only.

    Raises ReadOnlyDatabaseError.
    """
    catalog.require_primary(connection)
    installed = catalog.installed_triggers(connection)
    wanted = {label.lower() for label in labels}
    removed = [t for t in installed if not labels or t.label.lower() in wanted]
    plan = Plan(connection.alias)
    plan.steps = _removal_steps(removed, Status.INSTALLED, {t.function for t in installed if t not in removed})
    plan.errors = [
        WatchError(f"{label} has no triggers in database '{connection.alias}'")
        for label in labels
        if label.lower() not in {t.label.lower() for t in removed}
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

    `waiting` is called with the number of the try that failed.  Raises InstallError after the last try, and when the
    role may not make triggers on the table.
    """
    try:
        try_again(
            lambda: _run(connection, step, lock_timeout),
            table=step.table, lock_timeout=lock_timeout, attempts=attempts, waiting=waiting,
        )  # fmt: skip
    except ProgrammingError as error:
        if not isinstance(error.__cause__, errors.InsufficientPrivilege):
            raise
        raise InstallError(
            f"the triggers of {step.label} on {step.table} are as they were: {' '.join(str(error).split())}; "
            "connect as the owner of the table, who may also create functions in the schema pgnotify_gql"
        ) from error
    logger.info("triggers of %s on %s brought in step", step.label, step.table)


def drop_unused_functions(connection: BaseDatabaseWrapper) -> list[str]:
    """Drop trigger functions that no trigger uses any more; return their names."""
    used = {t.function for t in catalog.installed_triggers(connection)}
    unused = [name for name in catalog.installed_functions(connection) if name not in used]
    with connection.cursor() as cursor:
        for name in unused:
            cursor.execute(_drop_function(name))
    return unused


def _run(connection: BaseDatabaseWrapper, step: Step, lock_timeout: float) -> None:
    with transaction.atomic(using=connection.alias):
        lock_tables(connection, step.table_oids, step.lock_mode, lock_timeout)
        with connection.cursor() as cursor:
            for statement in step.statements:
                cursor.execute(statement)


def _target(connection: BaseDatabaseWrapper, watch: Watch, rings: bool) -> _Target:
    relation = catalog.find_relation(connection, watch)
    condition = None if watch.condition is None else condition_sql(watch, connection)
    if condition is not None:
        require_evaluable(watch, connection, relation.oid, condition)
    capture = render(watch, condition=condition, rings=rings, by_row=relation.has_relatives or watch.replicated)
    triggers = {
        (oid, trigger.name): trigger
        for kind in triggered_kinds(watch)
        for oid, table in relation.carriers(kind)
        for trigger in [capture.trigger(kind, table)]
    }
    return _Target(capture, relation, triggers)


def _key(trigger: InstalledTrigger) -> Key:
    return trigger.table_oid, trigger.name


def _is_left_over(trigger: InstalledTrigger, target: _Target) -> bool:
    """Return whether it was made for an earlier version of a watch, or of its table's family."""
    return trigger.label == target.capture.watch.label and trigger.table_oid in dict(target.relation.family)


def _watched_twice(target: _Target, other: _Target) -> WatchError:
    return WatchError(
        f"{target.capture.watch.label} and {other.capture.watch.label} are both watched and share the table "
        f"{target.relation.table}: keep one watch a table"
    )


def _install_step(target: _Target, present: Sequence[InstalledTrigger], kept: Collection[str]) -> Step:
    capture, watch = target.capture, target.capture.watch
    current = {_key(t) for t in present if _is_current(t, target)}
    differing = {key: trigger for key, trigger in target.triggers.items() if key not in current}
    surplus = [t for t in present if _key(t) not in target.triggers and not _becomes_clone(t, target)]
    if not differing and not surplus:
        return Step(watch.label, target.relation.table, Status.INSTALLED, ())
    statements = []
    if not current:
        statements.append(bind(capture.create_function, target.relation.oid))
    for trigger in differing.values():
        statements += trigger.statements
    statements += [_drop_trigger(t) for t in surplus]
    statements += [_drop_function(name) for name in sorted({t.function for t in present}.difference(kept))]
    status = Status.OUTDATED if present else Status.MISSING
    oids = [oid for oid, _ in target.relation.family]
    return Step(watch.label, target.relation.table, status, statements, _difference(target, present), oids)


def _becomes_clone(trigger: InstalledTrigger, target: _Target) -> bool:
    """
    Return whether PostgreSQL makes it a clone when the partitioned table gets its trigger.

    Tables that inherited before they were partitions have triggers of their own with the names of clones.
    """
    relation = target.relation
    return (
        relation.partitioned and trigger.table_oid != relation.oid and (relation.oid, trigger.name) in target.triggers
    )


def _removal_steps(triggers: Iterable[InstalledTrigger], status: Status, kept: Collection[str]) -> list[Step]:
    # All that call a function go at once, whatever tables they are on, and the function with them.
    groups: dict[str, list[InstalledTrigger]] = {}
    for trigger in triggers:
        groups.setdefault(trigger.function, []).append(trigger)
    return [_removal_step(own, status, [] if function in kept else [function]) for function, own in groups.items()]


def _removal_step(own: Sequence[InstalledTrigger], status: Status, functions: Sequence[str]) -> Step:
    # The watched table comes first, its partitions and children after it.
    tables = {t.table_oid: t.table for t in sorted(own, key=lambda t: t.table_oid != t.bound_to)}
    table, *others = tables.values()
    oids = [*tables, *(oid for t in own for oid in t.clone_oids)]
    statements = [_drop_trigger(t) for t in own] + [_drop_function(name) for name in functions]
    also = f", also on {', '.join(others)}" if others else ""
    detail = f"no watch{also}" if status is Status.ORPHANED else ""
    return Step(own[0].label, table, status, statements, detail, list(dict.fromkeys(oids)))


def _is_current(trigger: InstalledTrigger, target: _Target) -> bool:
    capture = target.capture
    enabled = trigger.enabled == ALWAYS if capture.watch.replicated else trigger.fires
    bound_to = target.relation.oid if capture.by_row else None
    return enabled and not trigger.stray_clones and (trigger.function, trigger.comment, trigger.bound_to) == (
        capture.function, capture.comment, bound_to
    )  # fmt: skip


def _difference(target: _Target, present: Sequence[InstalledTrigger]) -> str:
    if not present:
        return "no triggers"
    disabled = [f"{t.name} on {t.table}" for t in present if not t.fires]
    disabled += [f"{t.name} on {table}" for t in present for table in t.stray_clones]
    if disabled:
        return f"disabled, or enabled otherwise: {', '.join(disabled)}"
    there = {_key(t): f"{t.name} on {t.table}" for t in present}
    wanted = {key: f"{trigger.name} on {trigger.table}" for key, trigger in target.triggers.items()}
    lacking = [name for key, name in wanted.items() if key not in there]
    surplus = [name for key, name in there.items() if key not in wanted]
    parts = [f"{what} {', '.join(found)}" for what, found in (("lacks", lacking), ("has no use for", surplus)) if found]
    if parts:
        return "; ".join(parts)
    return "made by another version of the watch or of this package"


def _drop_trigger(trigger: InstalledTrigger) -> str:
    return _sql("drop trigger {} on {}", sql.Identifier(trigger.name), sql.SQL(trigger.table))


def _drop_function(name: str) -> str:
    return _sql("drop function if exists {}()", sql.Identifier(names.SCHEMA, name))


def _sql(text: str, *parts: sql.Composable) -> str:
    return sql.SQL(text).format(*parts).as_string(None)
