"""
Who and why: a small JSON object that travels with the changes of a transaction, or a word that keeps them back.

Both are the same transaction-local setting, which the trigger functions read (see `setting`); unset, it costs nothing.
A block that fails needs no care here: PostgreSQL takes the setting back together with the transaction or the
savepoint that `atomic` made, and setting anything in a failed transaction would only raise another error.

Both are synchronous, as `transaction.atomic` is: call them inside `sync_to_async`, never around an ``await``, and as
decorators of plain functions only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from django.db import connections, transaction

from . import attribution, setting
from .setting import SUPPRESSED, Json

__all__ = ["SUPPRESSED", "change_context", "suppress_changes"]


@contextmanager
def change_context(*, using: str = "default", **context: Json) -> Iterator[None]:
    """
    Attach `context` to every change made inside, as ``change.context``.

    Opens a transaction (``transaction.atomic``), since the setting lives in one.  Inside another change_context, or a
    request that `ChangeContextMiddleware` sees, the objects are merged, the inner one wins, and leaving restores the
    outer one.  Inside suppress_changes it changes nothing.

    Raises, before anything is written, TypeError when a value is no JSON, and ValueError when it is NaN or the like,
    or when the whole is longer than `LONGEST_CONTEXT`.
    """
    setting.encode(context)
    with _set(using, lambda outer: _merge(outer, context)):
        yield


@contextmanager
def suppress_changes(using: str = "default") -> Iterator[None]:
    """
    Leave every change made inside out of the journal: subscribers will never hear of them.

    For imports, whose readers start afresh anyway.  Opens a transaction (``transaction.atomic``) on `using`; writes to
    other databases, and by other connections, are journaled as ever.  Leaving restores what was before.
    """
    with _set(using, lambda outer: SUPPRESSED):
        yield


@contextmanager
def _set(using: str, inner_value: Callable[[str], str]) -> Iterator[None]:
    connection = connections[using]
    outermost = connection.get_autocommit()
    with transaction.atomic(using=using):
        outer = attribution.settle(connection)
        setting.write(connection, inner_value(outer))
        yield
        # The end of the transaction takes the setting back; triggers that are deferred to it still find it.
        if not outermost and not setting.is_broken(connection):
            setting.write(connection, outer)
            attribution.forget(connection)


def _merge(outer: str, context: dict[str, Json]) -> str:
    # What is no object cannot be merged with; leaving restores it.
    return outer if outer == SUPPRESSED else setting.encode({**(setting.decode(outer) or {}), **context})
