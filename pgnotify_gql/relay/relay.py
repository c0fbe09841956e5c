"""
The relay: from a batch of the journal to messages for groups, one group a model.

Messages of a model are numbered within an epoch, so that a hub notices that one is missing.  A layer that fails, or
takes too long, costs messages and never the feed: the relay logs it and goes on, and the hubs read the journal.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from .. import metrics, names
from ..journal.change import LABEL, MICROS, Columns
from ..journal.reader import Batch
from ..journal.snapshot import Snapshot
from ..journal.state import Era
from ..tracing import RELAY, tracing
from .messages import Message, changes_message, heartbeat_message, split

logger = logging.getLogger("pgnotify_gql.relay")

SEND_TIMEOUT = 2.0
"""Seconds that the layer may take for all messages of a batch, so that one that hangs, or is slow for each of many,
does not stop the feed."""

REST_AFTER_HANG = 1.0
"""Seconds for which nothing is sent after a batch took too long."""

REMIND_INTERVAL = 30.0
"""Seconds after which a layer that still fails is logged again."""


class Layer(Protocol):
    """What the relay needs of a channel layer."""

    async def group_send(self, group: str, message: dict[str, Any]) -> None: ...


class Relay:
    """Sends the batches of one listener, of one database; implements ``listener.Sink``."""

    def __init__(
        self,
        layer: Layer,
        *,
        database: str = "default",
        send_timeout: float = SEND_TIMEOUT,
        rest_after_hang: float = REST_AFTER_HANG,
    ) -> None:
        self._layer = layer
        self._database = database
        self._send_timeout = send_timeout
        self._rest_after_hang = rest_after_hang
        self._epoch = 0
        self._era = Era("", Snapshot(0, 0))
        self._seqs: dict[str, int] = {}
        self._resting_until = 0.0
        self._failed = 0
        self._failing = ""
        self._hung = 0
        self._told_at = 0.0
        self._relayed_rows = metrics.ByModel(metrics.RELAYED_ROWS, database)
        self._relayed_messages = metrics.ByModel(metrics.RELAYED_MESSAGES, database)
        self._lost = metrics.LOST_MESSAGES.labels(database)
        self._delay = metrics.RELAY_DELAY.labels(database)

    def begin(self, epoch: int, era: Era) -> None:
        """Begin a term of leadership: numbers start again."""
        self._era = era
        self._epoch = epoch
        self._seqs = {}

    async def relay(self, batch: Batch) -> None:
        """
        Send to the group of every model, in journal order.

        A message whose send fails is logged and skipped: hubs notice the missing number and read the journal.
        """
        messages: list[tuple[str, Message]] = []
        by_label = _by_label(batch.columns)
        labels = list(by_label)
        for label, rows in by_label.items():
            for part in split(rows):
                seq = self._seqs[label] = self._seqs.get(label, 0) + 1
                message = changes_message(
                    self._database, label, self._epoch, self._era, seq, batch.before, batch.after, part, labels
                )
                messages.append((names.model_group(label), message))
                self._relayed_messages[label].inc()
            self._relayed_rows[label].inc(len(rows))
        with tracing.span(RELAY, database=self._database, rows=len(batch.columns), models=labels):
            await self._send(messages)
        if batch.columns:
            self._delay.observe(max(0.0, time.time() - batch.columns[-1][MICROS] / 1_000_000))

    async def heartbeat(self, cursor: Snapshot) -> None:
        """Tell every hub the cursor, and the last number of each model, so that a lost last message shows too."""
        message = heartbeat_message(self._database, self._epoch, self._era, cursor, self._seqs)
        await self._send([(names.heartbeat_group(), message)])

    async def _send(self, messages: Sequence[tuple[str, Message]]) -> None:
        if _now() < self._resting_until:
            self._lost.inc(len(messages))
            return
        tried = 0
        try:
            async with asyncio.timeout(self._send_timeout):
                for group, message in messages:
                    await self._send_one(group, message)
                    tried += 1
        except TimeoutError:
            self._lost.inc(len(messages) - tried)
            self._resting_until = _now() + self._rest_after_hang
            self._hung += 1
            if self._hung == 1 or _now() - self._told_at >= REMIND_INTERVAL:
                self._told_at = _now()
                logger.warning(
                    "the channel layer took longer than %g s for %d messages of database %s; "
                    "it rests for %g s, hubs heal",
                    self._send_timeout,
                    len(messages),
                    self._database,
                    self._rest_after_hang,
                )
        else:
            self._hung = 0

    async def _send_one(self, group: str, message: Message) -> None:
        try:
            await self._layer.group_send(group, dict(message))
        except Exception as error:
            self._note_failed(group, error)
        else:
            self._note_sent(group)

    def _note_failed(self, group: str, error: Exception) -> None:
        self._lost.inc()
        self._failed += 1
        self._failing = group
        if self._failed == 1 or _now() - self._told_at >= REMIND_INTERVAL:
            self._told_at = _now()
            logger.warning(
                "the channel layer did not take a message of database %s for %s: %r; hubs will heal",
                self._database,
                group,
                error,
            )

    def _note_sent(self, group: str) -> None:
        if self._failed and group == self._failing:
            logger.info(
                "the channel layer takes messages of database %s again; it did not take %d",
                self._database,
                self._failed,
            )
            self._failed = 0


def _by_label(rows: Sequence[Columns]) -> Mapping[str, Sequence[Columns]]:
    if len({row[LABEL] for row in rows}) == 1:
        return {rows[0][LABEL]: rows}
    by_label: defaultdict[str, list[Columns]] = defaultdict(list)
    for row in rows:
        by_label[row[LABEL]].append(row)
    return by_label


def _now() -> float:
    return asyncio.get_running_loop().time()
