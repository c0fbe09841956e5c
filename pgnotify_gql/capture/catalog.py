"""
What PostgreSQL has installed: our triggers, read from its catalogs, and their status against the watches.

A trigger is ours when its function lies in our schema.  Its version is the digest in its comment.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from django.db.backends.base.base import BaseDatabaseWrapper

from ..errors import JournalMissingError, TableMissingError, WatchError
from .render import Capture

REFUSED_RELATIONS = {
    "v": "a view: watch the tables behind it",
    "m": "a materialized view: watch the tables behind it",
    "f": "a foreign table, which other programs change without this database knowing",
    "p": "a partitioned table, which is not supported yet",
}

INSTALLED_TRIGGERS = """
    select c.oid, n.nspname, c.relname, t.tgname, t.tgenabled, p.proname,
           coalesce(obj_description(t.oid, 'pg_trigger'), '')
    from pg_trigger t
    join pg_proc p on p.oid = t.tgfoid
    join pg_namespace pn on pn.oid = p.pronamespace and pn.nspname = 'pgnotify_gql'
    join pg_class c on c.oid = t.tgrelid
    join pg_namespace n on n.oid = c.relnamespace
    where not t.tgisinternal
    order by n.nspname, c.relname, t.tgname
"""

FIRING = frozenset("OA")
"""``tgenabled`` of triggers that fire for ordinary sessions: not D (disabled) and not R (replicas only)."""

RELATION = """
    select c.oid, c.relkind::text,
           (select string_agg(i.inhrelid::regclass::text || ' inherits from ' || i.inhparent::regclass::text, ', ')
            from pg_inherits i where c.oid in (i.inhrelid, i.inhparent)),
           array(select a.attname::text from pg_attribute a
                 where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped),
           array(select a.attname::text from pg_attribute a
                 where a.attrelid = c.oid and a.attgenerated = 'v')
    from pg_class c where c.oid = to_regclass(%s)
"""

FUNCTIONS = """
    select p.proname from pg_proc p join pg_namespace n on n.oid = p.pronamespace
    where n.nspname = 'pgnotify_gql' and p.proname like 'capture\\_%%' order by p.proname
"""


class Status(StrEnum):
    """How a table's triggers compare with its watch."""

    INSTALLED = "INSTALLED"
    OUTDATED = "OUTDATED"
    MISSING = "MISSING"
    ORPHANED = "ORPHANED"


@dataclass(frozen=True)
class InstalledTrigger:
    """One of our triggers, as it stands in the database."""

    name: str
    enabled: bool
    function: str
    comment: str


@dataclass(frozen=True)
class Table:
    """A table that carries our triggers."""

    oid: int
    schema: str
    name: str
    triggers: tuple[InstalledTrigger, ...]

    @property
    def label(self) -> str:
        """Return the label in the comment of its triggers: which model they were made for."""
        return next((t.comment.split()[2] for t in self.triggers if len(t.comment.split()) > 2), self.name)


def require_journal(connection: BaseDatabaseWrapper) -> None:
    """Raise JournalMissingError unless the journal's tables are there."""
    with connection.cursor() as cursor:
        cursor.execute("select to_regclass('pgnotify_gql.journal')")
        if cursor.fetchone()[0] is None:
            raise JournalMissingError(connection.alias)


def installed_tables(connection: BaseDatabaseWrapper) -> dict[int, Table]:
    """Return every table with triggers of ours, by oid."""
    found: defaultdict[tuple[int, str, str], list[InstalledTrigger]] = defaultdict(list)
    with connection.cursor() as cursor:
        cursor.execute(INSTALLED_TRIGGERS)
        for oid, schema, table, name, enabled, function, comment in cursor.fetchall():
            found[oid, schema, table].append(InstalledTrigger(name, enabled in FIRING, function, comment))
    return {oid: Table(oid, schema, name, tuple(triggers)) for (oid, schema, name), triggers in found.items()}


def installed_functions(connection: BaseDatabaseWrapper) -> list[str]:
    """Return the names of all trigger functions of ours."""
    with connection.cursor() as cursor:
        cursor.execute(FUNCTIONS)
        return [name for (name,) in cursor.fetchall()]


def table_oid(connection: BaseDatabaseWrapper, capture: Capture) -> int:
    """Return the oid of a watch's table.  Raises WatchError when there is none, or none that can be captured."""
    with connection.cursor() as cursor:
        cursor.execute(RELATION, [capture.table])
        found = cursor.fetchone()
    label = capture.watch.label
    if found is None:
        raise TableMissingError(
            f"the table {capture.table} of {label} does not exist in database '{connection.alias}': "
            "run `manage.py makemigrations` and `manage.py migrate` first"
        )
    oid, relation, inheritance, columns, virtual = found
    if relation in REFUSED_RELATIONS:
        raise WatchError(f"{label} cannot be watched: {capture.table} is {REFUSED_RELATIONS[relation]}")
    if inheritance:
        # A statement aimed at a parent fires no statement trigger of the child whose rows it changes.
        raise WatchError(f"{label} cannot be watched: {inheritance}, and inheritance is not supported yet")
    missing = [column for column in capture.columns if column not in columns]
    if missing:
        # The trigger function would fail every write.
        raise TableMissingError(
            f"the table {capture.table} of {label} has no column {', '.join(missing)} in database "
            f"'{connection.alias}': run `manage.py makemigrations` and `manage.py migrate` first"
        )
    uncomputed = [column for column in capture.columns if column in virtual]
    if uncomputed:
        raise WatchError(
            f"{label} cannot be watched with column {', '.join(uncomputed)} of {capture.table}: PostgreSQL does not "
            "compute virtual generated columns in triggers; leave it out of columns=, or make it a stored one"
        )
    return int(oid)


def status(capture: Capture, table: Table | None) -> Status:
    """Return how the triggers on a watch's table compare with what the watch renders to."""
    if table is None:
        return Status.MISSING
    expected = {(trigger.name, capture.function, capture.comment, True) for trigger in capture.triggers}
    present = {(t.name, t.function, t.comment, t.enabled) for t in table.triggers}
    return Status.INSTALLED if present == expected else Status.OUTDATED


def orphans(tables: Iterable[Table], watched_oids: Iterable[int]) -> list[Table]:
    """Return the tables that have triggers of ours but no watch."""
    watched = set(watched_oids)
    return [table for table in tables if table.oid not in watched]
