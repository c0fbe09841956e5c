"""
A process of a run: the site's settings, with what the run needs to know its sessions by, and an end with its parent.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from dataclasses import asdict, dataclass
from typing import Any

import django
from django.conf import settings as django_settings
from django.db import router
from psycopg.conninfo import make_conninfo

from .. import conf
from ..capture.registry import registry

VARIABLE = "PGNOTIFY_GQL_VERIFICATION"
"""The environment variable with the task of a process."""


@dataclass(frozen=True)
class Task:
    """Which database to serve, by which application name, and whether with a listener inside."""

    database: str
    session_name: str
    inline: bool = False

    def environment(self) -> dict[str, str]:
        """Return the variables to start a process with."""
        return {VARIABLE: json.dumps(asdict(self)), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def prepare() -> Task:
    """Set Django up for the task of this process, which ends when its parent does."""
    task = Task(**json.loads(os.environ[VARIABLE]))
    threading.Thread(target=_end_with_parent, name="pgnotify_gql end with parent", daemon=True).start()
    values = dict(getattr(django_settings, conf.NAME, {}))
    conninfo = conf.database_conninfo(conf.read(values), task.database)
    django_settings.PGNOTIFY_GQL = values | {
        # The site's other databases are none of a run's business, and would have another leader.
        "DATABASES": [task.database],
        "LISTENER_CONNINFO": {task.database: make_conninfo(conninfo, application_name=task.session_name)},
        "INLINE_LISTENER": task.inline,
    }
    django.setup()
    from .row import watch

    registry.add(watch)
    router.routers.insert(0, _Router(task.database))
    return task


class _Router:
    """Leads to the database of the run, whatever the site's routers say of an application's models."""

    def __init__(self, database: str) -> None:
        self._database = database

    def db_for_read(self, model: Any, **hints: Any) -> str | None:
        from .row import VerificationRow

        return self._database if model is VerificationRow else None

    db_for_write = db_for_read


def _end_with_parent() -> None:
    # Standard input is a pipe of the parent's, which closes it only by its own end, however that comes.
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGKILL)
