"""
A PostgreSQL server to measure, and a table to write: with our triggers, with none, or with others.

Settings are those of a small production server, the same for all variants, and named in the conditions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

from benchmarks.benchmark import Plan
from pgnotify_gql.capture.watch import Watch
from tests.support.databases import Database, migrated_template, new_database, used_by_django
from tests.support.postgres import PostgresServer, find_bin_path
from tests.support.watched import Connection, install, make_model

SETTINGS: Mapping[str, str | int] = {
    # Commits wait for the disk, as in production. NOTIFY holds its lock meanwhile.
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "wal_level": "replica",
    "shared_buffers": "512MB",
    # No checkpoint in the middle of a run: each begins behind one.
    "max_wal_size": "8GB",
    "checkpoint_timeout": "1h",
    # Tables are vacuumed between runs, not during some of them.
    "autovacuum": "off",
    "max_prepared_transactions": 0,
}

SHOWN = (*SETTINGS, "wal_sync_method", "max_connections", "work_mem", "jit")

ROWS = 100_000
"""Rows of a table of single-row updates: so many that 64 clients rarely meet on one."""


@contextmanager
def server(plan: Plan, **settings: str | int) -> Iterator[PostgresServer]:
    """A server of the plan's version.  Raises LookupError when it is not installed."""
    plan.tell(f"starting PostgreSQL {plan.postgres}")
    if (bin_path := find_bin_path(plan.postgres)) is None:
        raise LookupError(f"PostgreSQL {plan.postgres} is not installed: choose another with --postgres")
    on_disk = True
    with closing(PostgresServer.create(plan.postgres, bin_path, on_disk, **{**SETTINGS, **settings})) as started:
        yield started


@contextmanager
def database(postgres: PostgresServer) -> Iterator[Database]:
    """A database with the journal, which Django's alias "default" leads to."""
    with new_database(postgres, migrated_template(postgres)) as made, used_by_django(made):
        yield made


def conditions(postgres: PostgresServer) -> dict[str, str]:
    """Return the version and the settings that matter."""
    with postgres.connect() as session:
        shown = [f"{name}={_only(session, f'show {name}')}" for name in SHOWN]
        return {"PostgreSQL": f"{_only(session, 'show server_version')}, {', '.join(shown)}"}


def make_table(session: Connection, name: str, rows: int = ROWS) -> None:
    """Make a table like an application's: a key, a text and a number; half of each page is left for updates."""
    session.execute(
        f"create table {name} (id bigint primary key, name text not null, version int not null) with (fillfactor = 50)"
    )
    fill(session, name, rows)


def make_django_table(session: Connection, name: str) -> None:
    """Make an empty table as Django makes it for a model with two foreign keys: three indexes, full pages."""
    session.execute("create table if not exists other (id bigint primary key)")
    session.execute("insert into other select generate_series(1, 1000) on conflict do nothing")
    session.execute(
        f"create table {name} (id bigint primary key, name text not null, version int not null,"
        " one_id bigint not null default 1 references other deferrable initially deferred,"
        " two_id bigint not null default 2 references other deferrable initially deferred)"
    )
    for column in ("one_id", "two_id"):
        session.execute(f"create index on {name} ({column})")


def fill(session: Connection, name: str, rows: int = ROWS) -> None:
    """Put that many rows into a table, and nothing else."""
    session.execute(f"truncate {name}")
    session.execute(
        f"insert into {name} (id, name, version) select i, 'item ' || i, 0 from generate_series(1, {rows}) as i"
    )
    session.execute(f"vacuum analyze {name}")


def watch_table(name: str, *columns: str) -> str:
    """Install the triggers of a watch of such a table, keys only unless columns are given; return its label."""
    from django.db import models

    fields: dict[str, models.Field[Any, Any]] = {
        "name": models.TextField(),
        "version": models.IntegerField(),
        "id": models.BigIntegerField(primary_key=True),
    }
    watch = Watch(make_model(name.capitalize(), name, **fields), tuple(columns))
    install(watch)
    return watch.label


def settle(session: Connection, *tables: str) -> None:
    """Leave nothing to be done during a run that belongs to what was before it."""
    for table in tables:
        session.execute(f"vacuum {table}")
    session.execute("checkpoint")


def empty_journal(session: Connection) -> None:
    """Empty the journal, so that every run meets the same one; whoever reads it is waited for."""
    session.execute("truncate pgnotify_gql.journal")


def _only(session: Connection, statement: str) -> str:
    found = session.execute(statement).fetchone()
    assert found is not None
    return str(found[0])
