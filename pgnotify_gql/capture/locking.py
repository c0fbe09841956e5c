"""
Lock a table without making its users wait.

Creating a trigger needs a lock that conflicts with every writer.  Who queues for such a lock makes all later writers
queue behind it, for as long as the transaction it waits for stays open: that is how a harmless migration becomes an
outage.  So the lock is asked for with NOWAIT, again and again.

On a table that is written all the time there may never be an instant without a writer.  Then queueing is right, and
short, provided that no writer stays long: when nobody who was in the way at one look is still in the way at the next,
the lock is waited for, for QUEUE_TIMEOUT at most.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from enum import StrEnum

from django.db import OperationalError, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg import errors
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from .. import names
from ..errors import InstallError

LOCK_TIMEOUT = 0.5
"""Seconds of a try: for so long a table is asked for, and for so long two installations wait for each other."""

ATTEMPTS = 10
"""Tries before giving up; the pauses between them add up to about 20 s."""

LONGEST_PAUSE = 4.0
"""Seconds between two tries, at most."""

LOOK_INTERVAL = 0.05
"""Seconds between two looks at who is in the way; a writer that is in the way at both is not waited for."""

QUEUE_TIMEOUT = 0.05
"""Seconds that installing may stand in the queue for a table, and so the longest it can make a writer wait."""

OTHERS = """
    select virtualtransaction from pg_locks
    where locktype = 'relation' and relation = any (%s) and granted and pid <> pg_backend_pid()
      and database = (select oid from pg_database where datname = current_database())
      and (%s or mode not in ('AccessShareLock', 'RowShareLock'))
"""


class LockMode(StrEnum):
    """What PostgreSQL calls them: writers conflict with both, readers with the second."""

    SHARE_ROW_EXCLUSIVE = "share row exclusive"
    ACCESS_EXCLUSIVE = "access exclusive"


def lock_tables(connection: BaseDatabaseWrapper, oids: Sequence[int], mode: LockMode, timeout: float) -> None:
    """
    Lock tables for the rest of the transaction.

    Two installations lock in turn.  Raises OperationalError when the tables were not to be had in `timeout` seconds.
    """
    with connection.cursor() as cursor:
        cursor.execute("select set_config('lock_timeout', %s, true)", [_milliseconds(timeout)])
        cursor.execute("select pg_advisory_xact_lock(%s, %s)", [names.LOCK_CLASS, names.INSTALL_LOCK])
        cursor.execute("select 'only ' || oid::regclass from pg_class where oid = any (%s)", [list(oids)])
        tables = ", ".join(table for (table,) in cursor.fetchall())
        if not tables:
            return  # dropped since the plan was made: the statements will say so
        statement = f"lock table {tables} in {mode} mode"
        cursor.execute("select set_config('lock_timeout', %s, true)", [_milliseconds(min(timeout, QUEUE_TIMEOUT))])
    deadline = time.monotonic() + timeout
    stayed: set[str] | None = None
    while True:
        # At the first look nobody knows yet who stays.
        queues = stayed is not None and not stayed
        try:
            with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
                cursor.execute(statement if queues else f"{statement} nowait")
                return
        except OperationalError as error:
            if not lock_not_to_be_had(error) or time.monotonic() >= deadline:
                raise
        before = _others(connection, oids, mode)
        time.sleep(LOOK_INTERVAL)
        stayed = before & _others(connection, oids, mode)


def try_again(
    run: Callable[[], None], *, table: str, lock_timeout: float, attempts: int, waiting: Callable[[int], None]
) -> None:
    """
    Call `run` until it does not fail for want of a lock, with pauses.

    `waiting` is called with the number of the try that failed.  Raises InstallError after the last try.
    """
    retrying = Retrying(
        stop=stop_after_attempt(attempts),
        wait=wait_random_exponential(multiplier=lock_timeout, max=LONGEST_PAUSE),
        retry=retry_if_exception(lock_not_to_be_had),
        before_sleep=lambda state: waiting(state.attempt_number),
        reraise=True,
    )
    try:
        retrying(run)
    except OperationalError as error:
        if not lock_not_to_be_had(error):
            raise
        raise InstallError(
            f"{table} was locked by other transactions in each of {attempts} tries of {lock_timeout:g} s: "
            "nothing was changed; try again when it is less busy, or with a larger --lock-timeout"
        ) from error


def lock_not_to_be_had(error: BaseException) -> bool:
    """Return whether Django's error stands for a lock that somebody else has."""
    return isinstance(error, OperationalError) and isinstance(
        error.__cause__, errors.LockNotAvailable | errors.DeadlockDetected
    )


def _others(connection: BaseDatabaseWrapper, oids: Sequence[int], mode: LockMode) -> set[str]:
    with connection.cursor() as cursor:
        cursor.execute(OTHERS, [list(oids), mode is LockMode.ACCESS_EXCLUSIVE])
        return {transaction_id for (transaction_id,) in cursor.fetchall()}


def _milliseconds(seconds: float) -> str:
    return f"{max(1, int(seconds * 1000))}ms"
