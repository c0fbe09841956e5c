"""The connections of a test, which what runs in its thread must not close."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connections


@contextmanager
def open_transactions_kept() -> Iterator[None]:
    """
    Leave connections open meanwhile that are in a transaction.

    What belongs to a worker thread closes what it finds there, as Channels' ``database_sync_to_async`` does; here it
    would find the test's own, and that would be the end of the test's transaction.
    """
    kept = [connection for connection in connections.all(initialized_only=True) if connection.in_atomic_block]
    for connection in kept:
        connection.close_if_unusable_or_obsolete = _nothing  # type: ignore[method-assign]
    try:
        yield
    finally:
        for connection in kept:
            vars(connection).pop("close_if_unusable_or_obsolete", None)


def _nothing() -> None:
    """Close nothing."""
