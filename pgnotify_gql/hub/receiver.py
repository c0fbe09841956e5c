"""
A feed's end of the channel layer: one channel, the groups that it is in, and what has come and is not handled yet.

Messages are received at once, whatever is being handled: layers hold few of them and drop the rest, or else hold all of
them in the memory of this process.  What is held here is bounded as well, and what does not fit is dropped; the feed
notices by the numbers, as it notices what the layer lost.  Questions do not wait behind changes: who asks wants to know
what a feed does that hangs.

A listener in this very process hands over what it has for a group without the layer, and sends it through the layer for
all others; of changes, what then comes from there as well is passed over.

Groups are joined again now and then, since a layer may forget them without a word: a flushed Redis, an expired
membership.  A layer that fails is tried again, from the start on.  One that hangs holds nobody up for longer than
LAYER_TIMEOUT, and is left and asked anew when the feed says that it has been silent for too long.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from .. import metrics
from ..journal.change import ROWS
from ..relay.messages import CHANGES
from .roll_call import ASK

logger = logging.getLogger("pgnotify_gql.hub")

RENEW_INTERVAL = 5.0
"""Seconds after which the groups are joined again, at most: for so long a flushed Redis goes unnoticed. Joining one
costs it two commands."""

RENEWALS = 3
"""How often the groups are joined within the time after which the layer forgets members."""

LAYER_RETRY = 0.5
"""Seconds before a layer that failed is tried again."""

LAYER_TIMEOUT = 2.0
"""Seconds that the layer may take to join or leave a group: one that hangs must hold up neither a subscriber nor the
feed."""

MOST_WAITING = 8_000_000
"""Characters of messages that wait to be handled; a message of the relay has 500,000 at most, but for a large row."""

MESSAGE_SIZE = 1_000
"""Characters that a message counts for besides its rows."""

Message = dict[str, Any]


class Layer(Protocol):
    """What a hub needs of a channel layer."""

    async def new_channel(self, prefix: str = ...) -> str: ...

    async def receive(self, channel: str) -> Message: ...

    async def group_add(self, group: str, channel: str) -> None: ...

    async def group_discard(self, group: str, channel: str) -> None: ...


class Receiver:
    """
    Receives for one feed, that of `database`; used on one event loop only.

    `asked` is called with each question as it comes; must not wait.
    """

    def __init__(self, layer: Layer, database: str, asked: Callable[[Message], None]) -> None:
        self._layer = layer
        self._database = database
        self._asked = asked
        self._channel = ""
        self._groups: dict[str, None] = {}
        self._waiting: deque[Message] = deque()
        self._waiting_size = 0
        self._dropping = False
        # Of each model: era, epoch and number of the last message that was handed over.
        self._handed: dict[str, tuple[str, int, int]] = {}
        self._arrived = asyncio.Event()
        self._failed = False
        self._failing = False
        self._task: asyncio.Task[None] | None = None
        self._leftover: set[asyncio.Task[None]] = set()
        self.heard_at = 0.0
        """When something of the database came last, by the clock of the event loop; or when receiving began."""
        self.renew_interval = min(RENEW_INTERVAL, getattr(layer, "group_expiry", RENEW_INTERVAL) / RENEWALS)
        """Seconds after which `join_again` is to be called."""
        self._received = metrics.RECEIVED_MESSAGES.labels(database)
        self._dropped = metrics.DROPPED_MESSAGES.labels(database)
        metrics.show(metrics.WAITING_MESSAGES.labels(database), self, Receiver._count_waiting)
        metrics.show(metrics.SILENCE.labels(database), self, Receiver._silent_for)

    def start(self) -> None:
        """Begin to receive."""
        self.heard_at = self.heard_at or asyncio.get_running_loop().time()
        self._task = asyncio.create_task(self._receive(), name=f"pgnotify_gql receiver {self._database}")

    async def close(self) -> None:
        """Leave every group and end."""
        await self._end()
        with suppress(Exception):
            async with asyncio.timeout(LAYER_TIMEOUT):
                for group in list(self._groups):
                    await self._layer.group_discard(group, self._channel)

    async def next(self) -> Message | None:
        """Wait for the next message and return it, or None now and then while the layer fails."""
        while not self._waiting and not self._failed:
            self._arrived.clear()
            await self._arrived.wait()
        if not self._waiting:
            self._failed = False
            return None
        message = self._waiting.popleft()
        self._waiting_size -= _size(message)
        return message

    @property
    def channel(self) -> str:
        """Return its channel at the layer; empty until there is one."""
        return self._channel

    def hand(self, group: str, message: Message, *, alone: bool) -> None:
        """Take what a listener in this process has for a group, if it was joined; `alone`: nobody else is in it."""
        if group not in self._groups:
            return
        if alone:
            # Otherwise it comes through the layer too, or else the layer is silent.
            self._hear(message)
        if self._keep(message) and message["type"] == CHANGES:
            self._handed[message["label"]] = message["era"], message["epoch"], message["seq"]

    async def join(self, group: str) -> None:
        """Join a group; what a layer does not do now is done the next time."""
        self._groups[group] = None
        await self._join(group)

    async def leave(self, group: str) -> None:
        """Leave a group."""
        self._groups.pop(group, None)
        with suppress(Exception):
            async with asyncio.timeout(LAYER_TIMEOUT):
                await self._layer.group_discard(group, self._channel)

    async def join_again(self) -> None:
        """Join all groups once more, in case that the layer has forgotten some."""
        for group in list(self._groups):
            if not await self._join(group):
                return

    async def restart(self) -> None:
        """Ask the layer anew: it may be waiting on a connection that is dead."""
        await self._end()
        # That of Redis tidies up behind each message, and receives no other meanwhile; on a dead connection it would be
        # for ever. To end that doubles a message at most, which the numbers show.
        for cleaner in list(getattr(self._layer, "receive_cleaners", ())):
            cleaner.cancel()
        self.start()

    async def _end(self) -> None:
        if self._task is not None:
            self._leftover.add(self._task)
            self._task.add_done_callback(self._leftover.discard)
            self._task = None
        for task in self._leftover:
            task.cancel()
        if self._leftover:
            # A layer may want to tell a server that is away that nobody receives any more.
            await asyncio.wait(set(self._leftover), timeout=LAYER_TIMEOUT)

    async def _receive(self) -> None:
        while True:
            try:
                message = await self._receive_one()
            except Exception as error:
                self._note_failed(error)
                self._failed = True
                self._arrived.set()
                await asyncio.sleep(LAYER_RETRY)
                await self.join_again()
            else:
                self._note_works()
                self._hear(message)
                if not self._has_been_handed(message):
                    self._keep(message)

    async def _receive_one(self) -> Message:
        if not self._channel:
            raise ConnectionError("it has not given a channel yet")
        return await self._layer.receive(self._channel)

    def _hear(self, message: Message) -> None:
        if message.get("database") == self._database:
            self.heard_at = asyncio.get_running_loop().time()

    def _has_been_handed(self, message: Message) -> bool:
        # Of a message of the layer nothing is to be expected.
        label, seq = message.get("label"), message.get("seq")
        handed = self._handed.get(label) if isinstance(label, str) else None
        if handed is None or message.get("type") != CHANGES or message.get("database") != self._database:
            return False
        era, epoch, last = handed
        return (message.get("era"), message.get("epoch")) == (era, epoch) and isinstance(seq, int) and seq <= last

    def _keep(self, message: Message) -> bool:
        """Return whether there was room for it."""
        if message.get("type") == ASK:
            self._asked(message)
            return True
        self._received.inc()
        size = _size(message)
        # One alone always fits, however large.
        if self._waiting and self._waiting_size + size > MOST_WAITING:
            self._note_dropped()
            return False
        self._dropping = False
        self._waiting.append(message)
        self._waiting_size += size
        self._arrived.set()
        return True

    async def _join(self, group: str) -> bool:
        try:
            async with asyncio.timeout(LAYER_TIMEOUT):
                if not self._channel:
                    self._channel = await self._layer.new_channel()
                await self._layer.group_add(group, self._channel)
        except Exception as error:
            self._note_failed(error)
            return False
        return True

    def _note_dropped(self) -> None:
        self._dropped.inc()
        if not self._dropping:
            logger.info(
                "changes of database %s come faster than they are handled; the journal is read for them later",
                self._database,
            )
        self._dropping = True

    def _note_failed(self, error: Exception) -> None:
        # Once, however often it is tried.
        if not self._failing:
            logger.warning(
                "the channel layer failed (%r); it is tried again, and the journal of database %s read meanwhile",
                error,
                self._database,
            )
        self._failing = True

    def _note_works(self) -> None:
        if self._failing:
            logger.info("the channel layer brings changes of database %s again", self._database)
        self._failing = False

    def _count_waiting(self) -> float:
        return len(self._waiting) if self._task is not None else 0.0

    def _silent_for(self) -> float:
        # Asked in any thread, in which there is no event loop; its time is that of the monotonic clock.
        return max(0.0, time.monotonic() - self.heard_at) if self._task is not None else 0.0


def _size(message: Message) -> int:
    try:
        return MESSAGE_SIZE + sum(len(row[ROWS]) for row in message.get("rows", ()))
    except (LookupError, TypeError, AttributeError):
        return MESSAGE_SIZE  # not one of ours; the feed says so
