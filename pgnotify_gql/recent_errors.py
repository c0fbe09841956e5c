"""
The last warnings and errors of this process, for whoever asks it how it is.

They are taken by filters that let everything pass: a handler would count as one, and so take away what Python prints
for applications that have configured none.  Kept are texts, and nothing of what they were made from.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TypedDict

LOGGERS = ("pgnotify_gql", *(f"pgnotify_gql.{layer}" for layer in (
    "capture", "journal", "listener", "relay", "hub", "transport", "monitor", "tracing", "verification",
)))  # fmt: skip
"""Each by name: a logger's filters are not asked about what is logged to those below it."""

MOST_RECENT = 20
"""Records that are remembered."""

LONGEST = 500
"""Characters of a message that are remembered."""


class RecentError(TypedDict):
    """One record; `at` is in seconds since 1970."""

    at: float
    level: str
    logger: str
    message: str


class _Remembering(logging.Filter):
    """Remembers what is a warning or worse, and lets everything pass."""

    def __init__(self) -> None:
        super().__init__()
        self.records: deque[RecentError] = deque(maxlen=MOST_RECENT)

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            self.records.append(
                {
                    "at": record.created,
                    "level": record.levelname,
                    "logger": record.name,
                    "message": _message(record)[:LONGEST],
                }
            )
        return True


_remembering = _Remembering()


def install() -> None:
    """Remember from now on; harmless when it is done already."""
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_remembering)


def recent_errors() -> list[RecentError]:
    """Return what is remembered, the last one at the end."""
    return list(_remembering.records)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # whoever has configured handlers is told by them
        return str(record.msg)
