"""Triggers for a test database."""

from __future__ import annotations

from django.db import connections

from ..capture.locking import LOCK_TIMEOUT
from ..capture.registry import registry
from ..conf import get_settings
from ..management.installing import install, make_plan


def install_triggers(database: str | None = None) -> None:
    """
    Bring the triggers of a database, or of all that are followed, in step with the watches.

    For ``setUpTestData()``, before it writes rows: then they are gone with its transaction.  What is in step is left
    as it is.  Raises JournalMissingError, and the first WatchError or InstallError.
    """
    for alias in [database] if database is not None else get_settings().DATABASES:
        plan = make_plan(connections[alias], registry)
        for error in [*plan.errors, *install(plan, LOCK_TIMEOUT, say=_silent, warn=_silent)]:
            raise error


def _silent(sentence: str) -> None:
    """Tell nobody."""
