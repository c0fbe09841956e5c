"""
The tables of a run: made at its beginning, gone at its end.

An advisory lock keeps two runs apart, so whoever has it may remove what an earlier run that was killed has left.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from .. import names
from ..capture import catalog
from ..capture.installer import execute, plan_install, plan_uninstall
from ..journal.locks import HELD
from .errors import VerificationError
from .ledger import Entry
from .options import SESSION_PREFIX
from .row import watch

logger = logging.getLogger("pgnotify_gql.verification")

LOCK = 101
"""Second key of the advisory lock of a run; the first is ``names.LOCK_CLASS``, whose smaller keys the feed has."""

LOCK_TIMEOUT = "10s"
"""How long the removal of a table waits for whoever reads it."""

CREATE = """
    create sequence pgnotify_gql.verification_version as bigint cache 1;
    create table pgnotify_gql.verification (key bigint primary key, version bigint not null, bucket integer not null);
    create table pgnotify_gql.verification_ledger (
        id bigint primary key generated always as identity (cache 1),
        xid bigint not null default pg_current_xact_id()::text::bigint,
        key bigint not null,
        version bigint not null,
        deleted boolean not null,
        old_bucket integer not null,
        new_bucket integer not null
    );
"""

DROP = """
    drop table if exists pgnotify_gql.verification;
    drop table if exists pgnotify_gql.verification_ledger;
    drop sequence if exists pgnotify_gql.verification_version;
"""

END_SESSIONS = """
    select pg_terminate_backend(pid) from pg_stat_activity
    where datname = current_database() and pid <> pg_backend_pid() and starts_with(application_name, %s)
"""

READ_LEDGER = """
    select id, xid, key, version, deleted, old_bucket, new_bucket from pgnotify_gql.verification_ledger where key > 0
"""


@contextmanager
def tables(alias: str, conninfo: str, *, rings: bool) -> Iterator[None]:
    """
    Hold the tables of a run, with triggers on the one that is written.

    `conninfo` is for a session past any pooler, which holds the lock.  Raises VerificationError when another run is
    under way, and what the installer raises.
    """
    connection = connections[alias]
    catalog.require_primary(connection)
    catalog.require_journal(connection)
    with _lock(alias, conninfo):
        _remove(connection)
        try:
            _make(connection, rings)
            yield
        finally:
            _remove(connection)


def read_ledger(connection: psycopg.Connection) -> list[Entry]:
    """Return what was committed."""
    return [Entry(*columns) for columns in connection.execute(READ_LEDGER).fetchall()]


@contextmanager
def _lock(alias: str, conninfo: str) -> Iterator[None]:
    # Its application name is not one of those that an earlier run's sessions are ended by.
    with psycopg.connect(conninfo, autocommit=True, application_name="pgnotify_gql verification") as session:
        held = session.execute("select pg_try_advisory_lock(%s, %s)", [names.LOCK_CLASS, LOCK]).fetchone()
        if held != (True,):
            holders = session.execute(
                psycopg.sql.SQL("select pid from ({}) as held where classid = %s and objid = %s").format(HELD),
                [names.LOCK_CLASS, LOCK],
            ).fetchall()
            whose = f" (backend {holders[0][0]})" if holders else ""
            raise VerificationError(f"another verification runs in database '{alias}'{whose}: wait for its end")
        yield


def _make(connection: BaseDatabaseWrapper, rings: bool) -> None:
    with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
        cursor.execute(CREATE)
    # The plan has a step for every trigger of the site's as well, since this is the only watch it is told of.
    plan = plan_install(connection, [watch], rings=rings)
    if plan.errors:
        raise plan.errors[0]
    for step in plan.steps:
        if step.label == watch.label:
            execute(connection, step)


def _remove(connection: BaseDatabaseWrapper) -> None:
    # A session that was lost meanwhile, with its server, is no reason to leave the tables behind.
    connection.close()
    with connection.cursor() as cursor:
        cursor.execute(END_SESSIONS, [SESSION_PREFIX + " "])
    plan = plan_uninstall(connection, [watch.label])
    for step in plan.steps:
        execute(connection, step)
    with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
        cursor.execute("select set_config('lock_timeout', %s, true)", [LOCK_TIMEOUT])
        cursor.execute(DROP)
