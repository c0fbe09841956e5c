"""
What a leader tells the metrics of its database: what it reads, how far behind it is, and what the instance does to it.

The last needs a question to the database, which is asked rarely, and not at all where nobody can be told the answer.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence

import psycopg

from .. import metrics
from ..journal.change import MICROS, Columns
from ..journal.pressure import measure_pressure
from ..journal.reader import Connection

logger = logging.getLogger("pgnotify_gql.listener")

PRESSURE_INTERVAL = 15.0
"""Seconds between two questions that only metrics need."""


class Measures:
    """Of one term of leadership."""

    def __init__(self, database: str) -> None:
        self._database = database
        self._captured = metrics.CAPTURED_ROWS.labels(database)
        self._queue_usage = metrics.QUEUE_USAGE.labels(database)
        self._oldest_writer = metrics.OLDEST_WRITER.labels(database)
        self._waiting_since: int | None = None
        self._asks = metrics.ENABLED
        self._asked_at = asyncio.get_running_loop().time()
        metrics.show(metrics.LAG.labels(database), self, Measures.lag)

    def note_read(self, rows: Sequence[Columns]) -> None:
        """Note rows that are to be relayed now."""
        self._captured.inc(len(rows))
        self._waiting_since = rows[0][MICROS]

    def note_relayed(self) -> None:
        """Note that all that was read is relayed."""
        self._waiting_since = None

    def lag(self) -> float:
        """Return the age, in seconds, of the oldest row that was read and is not relayed; 0 where there is none."""
        since = self._waiting_since
        return 0.0 if since is None else max(0.0, time.time() - since / 1_000_000)

    def are_due(self, now: float) -> bool:
        """Return whether it is time to `ask`, by the clock of the event loop."""
        return self._asks and now - self._asked_at >= PRESSURE_INTERVAL

    async def ask(self, connection: Connection) -> None:
        """Ask about the instance; a role that may not see it is not asked again.  Raises psycopg.Error."""
        self._asked_at = asyncio.get_running_loop().time()
        try:
            pressure = await measure_pressure(connection)
        except psycopg.errors.InsufficientPrivilege as error:
            logger.debug("the instance of database %s may not be looked at for metrics: %s", self._database, error)
            self._asks = False
        else:
            self._queue_usage.set(pressure.queue_usage)
            self._oldest_writer.set(pressure.oldest_writer)

    def end(self) -> None:
        """Tell nothing more: the next leader asks, maybe in another process."""
        self.note_relayed()
        self._queue_usage.set(math.nan)
        self._oldest_writer.set(math.nan)
