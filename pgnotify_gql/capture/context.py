"""
Who and why: a small JSON object that travels with the changes of a transaction.

It is a transaction-local setting of PostgreSQL that the trigger functions read; unset, it costs nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connections, transaction

CONTEXT_SETTING = "pgnotify_gql.context"

SUPPRESSED = "suppressed"

Json = str | int | float | bool | None | list["Json"] | dict[str, "Json"]


@contextmanager
def change_context(*, using: str = "default", **context: Json) -> Iterator[None]:
    """
    Attach `context` to every change made inside, as ``change.context``.

    Opens a transaction (``transaction.atomic``), since the setting lives in one.  Inside another change_context the
    objects are merged, the inner one wins, and leaving restores the outer one.

    Raises TypeError when a value cannot be written as JSON.
    """
    with transaction.atomic(using=using):
        with connections[using].cursor() as cursor:
            cursor.execute("select current_setting(%s, true)", [CONTEXT_SETTING])
            outer = cursor.fetchone()[0] or ""
            merged = json.dumps({**_object(outer), **context})
            cursor.execute("select set_config(%s, %s, true)", [CONTEXT_SETTING, merged])
        yield
        with connections[using].cursor() as cursor:
            cursor.execute("select set_config(%s, %s, true)", [CONTEXT_SETTING, outer])


def _object(text: str) -> dict[str, Json]:
    # A setting anybody may set: what is no object cannot be merged with; leaving restores it.
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
