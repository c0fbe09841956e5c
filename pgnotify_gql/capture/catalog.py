"""
What PostgreSQL has: the tables of watched models, and our triggers on them, read from its catalogs.

A trigger is ours when its function lies in our schema.  Its version is the digest in its comment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from django.db.backends.base.base import BaseDatabaseWrapper

from ..errors import JournalMissingError, ReadOnlyDatabaseError, TableMissingError, WatchError
from .function import named_columns
from .kinds import Kind
from .watch import Watch, column_of, table_of

REFUSED_RELATIONS = {
    "v": "a view: watch the tables behind it",
    "m": "a materialized view: watch the tables behind it",
    "f": "a foreign table, which other programs change without this database knowing",
}

PARTITIONED = "p"
FOREIGN = "f"
TABLES = frozenset({"r", PARTITIONED})

MIGRATE = "run `manage.py makemigrations` and `manage.py migrate` first"
MAKE_TABLE = "the model is unmanaged, so make the table first, or let the search_path of the connection lead to it"
MEND_MODEL = "the model is unmanaged, so change it, or the table"

INSTALLED_TRIGGERS = r"""
    with recursive ours as (
        select t.*, t.oid as trigger, p.proname, p.prosrc
        from pg_trigger t
        join pg_proc p on p.oid = t.tgfoid
        join pg_namespace pn on pn.oid = p.pronamespace and pn.nspname = 'pgnotify_gql'
        where not t.tgisinternal and t.tgparentid = 0
    ), clones (original, clone, carrier, enabled) as (
        select trigger, trigger, tgrelid, tgenabled from ours
        union all
        select clones.original, t.oid, t.tgrelid, t.tgenabled
        from pg_trigger t join clones on t.tgparentid = clones.clone
    )
    select c.oid, c.oid::regclass::text, t.tgname, t.tgenabled::text, t.proname,
           coalesce(obj_description(t.trigger, 'pg_trigger'), ''),
           substring(t.prosrc from $$'(\d+)'::pg_catalog\.regclass$$)::oid,
           array(select clones.carrier::int8 from clones
                 where clones.original = t.trigger and clones.clone <> t.trigger),
           array(select clones.carrier::regclass::text from clones
                 where clones.original = t.trigger and clones.enabled <> t.tgenabled order by 1)
    from ours t join pg_class c on c.oid = t.tgrelid
    order by 2, t.tgname
"""

FIRING = frozenset("OA")
"""``tgenabled`` of triggers that fire for ordinary sessions: not D (disabled) and not R (replicas only)."""

ALWAYS = "A"
"""``tgenabled`` of triggers that fire in whatever role a session is."""

RELATION = """
    select c.oid, c.relkind::text, exists (select from pg_inherits i where i.inhrelid = c.oid),
           array(select a.attname::text from pg_attribute a
                 where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped),
           array(select a.attname::text from pg_attribute a
                 where a.attrelid = c.oid and a.attgenerated = 'v')
    from pg_class c where c.oid = to_regclass(%s)
"""

DESCENDANTS = """
    with recursive descendants (oid) as (
        select inhrelid from pg_inherits where inhparent = %s
        union
        select i.inhrelid from pg_inherits i join descendants d on i.inhparent = d.oid
    )
    select c.oid, c.oid::regclass::text, c.relkind::text
    from descendants join pg_class c using (oid) order by 2
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
    """One of our triggers, as it stands in the database; its table is named so that it can stand in SQL."""

    table_oid: int
    table: str
    name: str
    enabled: str
    function: str
    comment: str
    bound_to: int | None
    """The table that a row-level function is bound to, see ``function.bind``."""
    clone_oids: Sequence[int]
    """The partitions to which PostgreSQL has cloned it."""
    stray_clones: Sequence[str]
    """The partitions whose clones somebody has enabled or disabled apart from it."""

    @property
    def fires(self) -> bool:
        """Return whether it fires for ordinary sessions."""
        return self.enabled in FIRING

    @property
    def label(self) -> str:
        """Return the label in its comment: which model it was made for."""
        words = self.comment.split()
        return words[2] if len(words) > 2 else self.table


@dataclass(frozen=True)
class Relation:
    """A watched model's table, and the tables that inherit from it or are partitions of it."""

    oid: int
    table: str
    partitioned: bool
    has_parent: bool
    descendants: tuple[tuple[int, str], ...]

    @property
    def has_relatives(self) -> bool:
        """Return whether statements that are aimed at another table may change its rows."""
        return self.partitioned or self.has_parent or bool(self.descendants)

    @property
    def family(self) -> tuple[tuple[int, str], ...]:
        """Return oid and name of the table and of all that descend from it."""
        return ((self.oid, self.table), *self.descendants)

    def carriers(self, kind: Kind) -> tuple[tuple[int, str], ...]:
        """Return the tables that need a trigger for a kind."""
        # PostgreSQL clones row-level triggers to partitions, also to those attached later, but a TRUNCATE trigger
        # is never one, and nothing is cloned to tables that inherit.
        cloned = self.partitioned and kind is not Kind.TRUNCATE
        return self.family[:1] if cloned else self.family


def require_journal(connection: BaseDatabaseWrapper) -> None:
    """Raise JournalMissingError unless the journal's tables are there."""
    with connection.cursor() as cursor:
        cursor.execute("select to_regclass('pgnotify_gql.journal')")
        if cursor.fetchone()[0] is None:
            raise JournalMissingError(connection.alias)


def require_primary(connection: BaseDatabaseWrapper) -> None:
    """Raise ReadOnlyDatabaseError for a replica: what is installed on its primary comes to it by itself."""
    with connection.cursor() as cursor:
        cursor.execute("select pg_is_in_recovery()")
        if cursor.fetchone()[0]:
            raise ReadOnlyDatabaseError(connection.alias)


def installed_triggers(connection: BaseDatabaseWrapper) -> list[InstalledTrigger]:
    """Return every trigger of ours, ordered by table and name."""
    with connection.cursor() as cursor:
        cursor.execute(INSTALLED_TRIGGERS)
        return [InstalledTrigger(*columns) for columns in cursor.fetchall()]


def installed_functions(connection: BaseDatabaseWrapper) -> list[str]:
    """Return the names of all trigger functions of ours."""
    with connection.cursor() as cursor:
        cursor.execute(FUNCTIONS)
        return [name for (name,) in cursor.fetchall()]


def find_relation(connection: BaseDatabaseWrapper, watch: Watch) -> Relation:
    """Return a watch's table.  Raises WatchError when there is none, or none that can be captured."""
    _require_own_table(watch)
    table = table_of(watch.model, connection)
    named = [*named_columns(watch), *(column_of(field) for field in watch.condition_fields)]
    with connection.cursor() as cursor:
        cursor.execute(RELATION, [table])
        found = cursor.fetchone()
        if found is None:
            raise TableMissingError(
                f"the table {table} of {watch.label} does not exist in database '{connection.alias}': "
                f"{MIGRATE if watch.model._meta.managed else MAKE_TABLE}"
            )
        oid, relkind, has_parent, columns, virtual = found
        cursor.execute(DESCENDANTS, [oid])
        descendants = cursor.fetchall()
    if relkind not in TABLES:
        raise WatchError(f"{watch.label} cannot be watched: {table} is {REFUSED_RELATIONS.get(relkind, 'no table')}")
    for _, name, kind in descendants:
        if kind == FOREIGN:
            raise WatchError(
                f"{watch.label} cannot be watched: {name}, which belongs to {table}, is {REFUSED_RELATIONS[FOREIGN]}"
            )
    _require_columns(watch, named, table, connection.alias, columns, virtual)
    return Relation(
        oid, table, relkind == PARTITIONED, has_parent, tuple((child, name) for child, name, _ in descendants)
    )


def _require_own_table(watch: Watch) -> None:
    options = watch.model._meta
    if options.swapped:
        raise WatchError(
            f"{watch.label} cannot be watched: {options.swappable} puts {options.swapped} in its place, watch that"
        )


def _require_columns(
    watch: Watch, named: list[str], table: str, database: str, columns: list[str], virtual: list[str]
) -> None:
    missing = [column for column in dict.fromkeys(named) if column not in columns]
    if missing:
        raise TableMissingError(
            f"the table {table} of {watch.label} has no column {', '.join(missing)} in database "
            f"'{database}': {MIGRATE if watch.model._meta.managed else MEND_MODEL}"
        )
    uncomputed = [column for column in dict.fromkeys(named) if column in virtual]
    if uncomputed:
        raise WatchError(
            f"{watch.label} cannot be watched with column {', '.join(uncomputed)} of {table}: PostgreSQL does not "
            "compute virtual generated columns in triggers; leave it out of the watch, or make it a stored one"
        )
