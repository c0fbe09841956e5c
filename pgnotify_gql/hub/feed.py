"""
The feed: what a hub receives of one database.

Each database has a journal, leaders and epochs of its own, and a feed in every hub: a receiver at the channel layer, a
connection to the journal, and an intake for each of its models that some operation waits for.  Feeds share nothing, so
that a database that is away, or has no listener, keeps no other waiting.

A feed joins a model's group before it takes the cursor, so that no change falls between.  Messages are taken in order
by the model's intake; a gap is healed from the journal before anything later is dispatched.

On failure: what the layer lost shows as a gap.  While it fails, and when nothing at all comes through it (no listener,
a layer that hangs), the journal is read now and then instead.  While the database is away healing waits, and with it
the feed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractContextManager, aclosing, nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import psycopg
from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from .. import metrics, names
from ..errors import CursorTooOldError
from ..journal.change import JournalRow
from ..journal.position import Position
from ..journal.snapshot import Snapshot
from ..journal.state import Era, Joined
from ..relay.messages import CHANGES, HEARTBEAT, ChangesMessage, HeartbeatMessage
from .cursor import Journal
from .intake import Intake
from .reader import RETRY_FIRST, RETRY_MAX, Reader, Replayers
from .receiver import Layer, Receiver
from .stretch import Stretch
from .visitors import DISCONNECT

logger = logging.getLogger("pgnotify_gql.hub")

REMIND_INTERVAL = 60.0
"""Seconds after which a silence that lasts is logged again."""

NEW_ERA = 1.0
"""Seconds that a listener may take to begin an era where there is none, after a crash: it takes milliseconds."""

REPLAY_ROWS = 100
"""Journal rows in memory for an operation that catches up; a row of a bulk write has 100 kB."""

SILENCE = 15.0
"""Seconds without any message of a database after which the layer is no longer trusted: a sleeping listener's
heartbeat comes every 5, by default."""


class Dispatcher(Protocol):
    """
    Where rows go, in order and each once; `resync` tells that some of a model are lost, `dismiss` who must leave,
    `asked` what somebody wants to know.

    Where a model is depended on, its changes decide about those of other models; `foresee` tells of rows that are not
    dispatched yet, or (None) that there are some of which nothing is known.
    """

    async def dispatch(self, database: str, stretch: Stretch) -> None: ...

    def resync(self, database: str, label: str, reason: str) -> None: ...

    def is_depended_on(self, label: str) -> bool: ...

    def foresee(self, label: str, rows: Iterable[JournalRow] | None) -> None: ...

    def dismiss(self, user: str) -> None: ...

    def asked(self, database: str, message: Mapping[str, Any]) -> None: ...


class Feed:
    """Takes the changes of one database, that of the reader."""

    def __init__(self, layer: Layer, reader: Reader, dispatcher: Dispatcher, *, silence: float = SILENCE) -> None:
        self.database = reader.database
        self._receiver = Receiver(layer, reader.database, partial(dispatcher.asked, reader.database))
        self._reader = reader
        self._replayers = Replayers(reader)
        # Beside one that reads in the middle of what it is told before.
        self._foreseer = reader.another()
        self._dispatcher = dispatcher
        self._silence = silence
        self._waiting: Counter[str] = Counter()
        self._intakes: dict[str, Intake] = {}
        # Of models that are being joined: epoch and number of the last message that came before the cursor.
        self._early: dict[str, tuple[int, int] | None] = {}
        self._strays: set[str] = set()
        self._joining: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.taking = asyncio.Lock()
        """Held while changes are taken and dispatched: whoever has it finds every intake where it stands."""
        self.journal = Journal("")
        self._led = asyncio.Event()
        self._epoch = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._received_rows = metrics.ByModel(metrics.RECEIVED_ROWS, self.database)
        self._healed_gaps = metrics.ByModel(metrics.HEALED_GAPS, self.database)

    async def start(self) -> None:
        """Begin to receive; a layer that is away is waited for meanwhile."""
        await self._receiver.join(names.heartbeat_group())
        self._receiver.start()
        self._tasks = [
            asyncio.create_task(self._handle_messages(), name=f"pgnotify_gql hub {self.database}"),
            asyncio.create_task(self._watch(), name=f"pgnotify_gql hub watch {self.database}"),
            asyncio.create_task(self._renew(), name=f"pgnotify_gql hub renewal {self.database}"),
        ]

    async def close(self) -> None:
        """Leave every group, end the tasks and the connection."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._receiver.close()
        await self._reader.close()
        await self._replayers.close()
        await self._foreseer.close()

    async def join(self, label: str) -> None:
        """Dispatch every change of a model that commits after this has returned, until as many have left as joined."""
        self._waiting[label] += 1
        try:
            await self._join_model(label)
        except BaseException:
            await asyncio.shield(self.leave(label))
            raise

    async def leave(self, label: str) -> None:
        """Take back one join of a model."""
        self._waiting[label] -= 1
        if self._waiting[label]:
            return
        async with self._joining[label]:
            if self._waiting[label]:
                return
            del self._waiting[label]
            self._intakes.pop(label, None)
            await self._receiver.leave(names.model_group(label))

    def position(self, label: str) -> Position:
        """Return up to where a model that was joined has been taken."""
        return self._intakes[label].position

    async def standing(self, label: str) -> Position:
        """Return what `position` does, at a moment at which nothing is being healed."""
        async with self.taking:
            return self.position(label)

    async def reach(self, label: str, position: Position) -> None:
        """Take what is in the journal, if less than a position has been taken of a model."""
        async with self.taking:
            intake = self._intakes[label]
            if not position.within(intake.position.before):
                await self._catch_up(intake)

    async def require_complete(self, position: Position) -> None:
        """Raise CursorTooOldError when some of what comes after a position has left the journal already."""
        await self._reader.require_complete(position)

    @property
    def channel(self) -> str:
        """Return that of the feed at the channel layer; empty until there is one."""
        return self._receiver.channel

    def hand(self, group: str, message: dict[str, Any], *, alone: bool) -> None:
        """Take what a listener in this process has for a group, see ``Receiver.hand``."""
        self._receiver.hand(group, message, alone=alone)

    async def led(self) -> None:
        """Wait until a leader has begun an era, or for NEW_ERA seconds where none does."""
        with suppress(TimeoutError):
            async with asyncio.timeout(NEW_ERA):
                await self._led.wait()

    def snapshot(self) -> AbstractContextManager[Joined]:
        """Show the calling thread the database as it is now, see ``Reader.snapshot``."""
        return self._reader.snapshot()

    async def know(self, journal: Journal) -> None:
        """Ask the database in which era it is, if this is not what somebody else knows."""
        if journal != self.journal:
            joined = await self._reader.current()
            async with self.taking:
                await self._meet(joined.epoch, Journal.of(joined))

    async def replay(
        self, label: str, start: Position, end: Position, *, still: bool = False
    ) -> AsyncGenerator[Stretch, None]:
        """
        Yield what `end` includes of a model, and `start` does not; whoever has `taking` says that all is `still`.

        Raises psycopg.Error, and CursorTooOldError at the end when some of it has left the journal.
        """
        # While nothing is taken nothing is healed: with that connection the feed waits for nobody who replays.
        reading = nullcontext(self._reader) if still else self._replayers.one()
        async with reading as reader, aclosing(reader.missed(start, label, REPLAY_ROWS)) as batches:
            async for batch in batches:
                rows = [row for row in batch.rows if end.includes(row.xid, row.id)]
                if rows:
                    stretch = Stretch.up_to(label, rows, start, end)
                    yield stretch
                    start = stretch.end

    @property
    def is_waited_for(self) -> bool:
        """Return whether somebody waits for a connection to replay something."""
        return self._replayers.wanted

    @property
    def epoch(self) -> int:
        """Return that of the last leader that was heard of."""
        return self._epoch

    @property
    def labels(self) -> list[str]:
        """Return the models that are taken."""
        return list(self._intakes)

    @property
    def silent_for(self) -> float:
        """Return for how many seconds nothing of the database has come through the channel layer."""
        return max(0.0, _now() - self._receiver.heard_at)

    async def _join_model(self, label: str) -> None:
        if label in self._intakes:
            return
        async with self._joining[label]:
            if label in self._intakes:
                return
            self._early[label] = None
            try:
                await self._receiver.join(names.model_group(label))
                joined = await self._reader.current()
                await self._begin(Intake(label, joined), joined)
            finally:
                del self._early[label]
            if not await self._reader.is_captured(label):
                logger.error(
                    "somebody has subscribed to %s, which has no triggers in database %s, so nothing will arrive: "
                    "run `manage.py install_triggers --database %s`",
                    label,
                    self.database,
                    self.database,
                )

    async def _begin(self, intake: Intake, joined: Joined) -> None:
        async with self.taking:
            await self._meet(joined.epoch, Journal.of(joined))
            # A message of a later leader may have come since.
            if self._epoch > joined.epoch and intake.meet(self._epoch, Era(self.journal.era, self.journal.began)):
                await self._catch_up(intake)
            await self._foresee(intake, list(self._intakes), intake.position)
            self._intakes[intake.label] = intake
            if early := self._early[intake.label]:
                await self._heal(intake, *early)

    async def _handle_messages(self) -> None:
        while True:
            message = await self._receiver.next()
            try:
                if message is None:
                    await self._read_journal()
                else:
                    await self._handle(message)
            except Exception:
                logger.exception("a message of the channel layer could not be handled")

    async def _handle(self, message: dict[str, Any]) -> None:
        if message["type"] == DISCONNECT:
            self._dispatcher.dismiss(message["user"])
            return
        if message["database"] != self.database:
            self._refuse(message)
            return
        async with self.taking:
            if message["epoch"] < self._epoch:
                return  # of a leader that has been replaced
            if message["epoch"] > self._epoch or message["era"] != self.journal.era:
                journal = Journal(self.journal.id, message["era"], Snapshot.parse(message["began"]))
                await self._meet(message["epoch"], journal)
            if message["type"] == CHANGES:
                await self._take(message)  # type: ignore[arg-type]  # the relay's own message, by its type
            elif message["type"] == HEARTBEAT:
                await self._note(message)  # type: ignore[arg-type]

    def _refuse(self, message: dict[str, Any]) -> None:
        # Heartbeats of all databases have one group.
        if message["type"] != CHANGES or message["label"] in self._strays:
            return
        self._strays.add(message["label"])
        logger.warning(
            "%s is captured in database %s too, where the router does not write it: changes there reach nobody; "
            "`manage.py uninstall_triggers %s --database %s` ends it",
            message["label"],
            message["database"],
            message["label"],
            message["database"],
        )

    async def _take(self, message: ChangesMessage) -> None:
        intake = self._intakes.get(message["label"])
        if intake is None:
            if message["label"] in self._early:
                # Came between joining the group and having the cursor: remembered, and then read from the journal.
                self._early[message["label"]] = message["epoch"], message["seq"]
            return
        self._received_rows[intake.label].inc(len(message["rows"]))
        if not intake.follows(message):
            counts = intake.counts
            await self._heal(intake, message["epoch"], message["seq"])
            if counts:
                self._healed_gaps[intake.label].inc()
        await self._foresee(intake, message["labels"], Position(Snapshot.parse(message["after"])))
        await self._dispatcher.dispatch(self.database, intake.take(message))

    async def _foresee(self, intake: Intake, labels: Iterable[str], end: Position) -> None:
        """
        Before changes of a model are dispatched, tell up to the same end those who depend on changes of others.

        Models come in messages of their own, in no order; and what takes away the right to see the one may be in the
        other.  Read rather than waited for: the message may be lost.
        """
        for label in labels:
            deciding = self._intakes.get(label)
            if label == intake.label or deciding is None or not self._dispatcher.is_depended_on(label):
                continue
            if not end.within(deciding.position.before):
                await self._retrying(self._foresee_missed, deciding)

    async def _foresee_missed(self, deciding: Intake) -> None:
        try:
            async with aclosing(self._foreseer.missed(deciding.position, deciding.label)) as batches:
                async for batch in batches:
                    self._dispatcher.foresee(deciding.label, deciding.unseen(batch.rows))
        except CursorTooOldError:
            self._dispatcher.foresee(deciding.label, None)

    async def _note(self, heartbeat: HeartbeatMessage) -> None:
        for intake in list(self._intakes.values()):
            if not intake.agrees(heartbeat):
                await self._heal(intake, heartbeat["epoch"], heartbeat["seqs"].get(intake.label, 0))
                self._healed_gaps[intake.label].inc()
            intake.note(heartbeat)

    async def _meet(self, epoch: int, journal: Journal) -> None:
        """Begin a new epoch with all models; where an era has begun with it, what it has brought is read first."""
        if not self.journal.id:
            # What is known is from a message, which does not name it, and came before the first answer of the database.
            self.journal = replace(self.journal, id=journal.id)
        # Without an era the database has forgotten the last one, and no leader has begun another yet.
        if epoch < self._epoch or (self.journal.era and not journal.era):
            return
        self._epoch, self.journal = epoch, journal
        if journal.era:
            self._led.set()
        era = Era(journal.era, journal.began)
        for intake in [intake for intake in self._intakes.values() if intake.meet(epoch, era)]:
            await self._catch_up(intake)

    async def _heal(self, intake: Intake, epoch: int, seq: int) -> None:
        """Read what is missing up to this message from the journal, and count from it on."""
        await self._catch_up(intake)
        intake.healed(epoch, seq)

    async def _catch_up(self, intake: Intake) -> None:
        """Read what is missing, for as long as it takes."""
        logger.debug("healing %s from %s", intake.label, intake.position)
        await self._retrying(self._read_missed, intake)

    async def _retrying(self, read: Callable[[Intake], Awaitable[None]], intake: Intake) -> None:
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(psycopg.Error),
            wait=wait_random_exponential(multiplier=RETRY_FIRST, max=RETRY_MAX),
            before_sleep=lambda state: logger.warning(
                "healing %s waits for the database %s", intake.label, self.database
            ),
        )
        await retrying(read, intake)

    async def _read_missed(self, intake: Intake) -> None:
        try:
            async with aclosing(self._reader.missed(intake.position, intake.label)) as batches:
                async for batch in batches:
                    await self._foresee(intake, list(self._intakes), Position(batch.after))
                    await self._dispatcher.dispatch(self.database, intake.heal(batch))
        except CursorTooOldError as error:
            logger.error("%s: a gap could not be healed: %s", intake.label, error)
            self._dispatcher.resync(self.database, intake.label, str(error))

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._receiver.renew_interval)
            await self._receiver.join_again()

    async def _watch(self) -> None:
        interval = self._silence / 3
        told_at = -REMIND_INTERVAL
        while True:
            await asyncio.sleep(interval)
            silent = _now() - self._receiver.heard_at
            if silent <= self._silence:
                told_at = -REMIND_INTERVAL
                continue
            if _now() - told_at >= REMIND_INTERVAL:
                told_at = _now()
                logger.warning(
                    "nothing of database %s has come through the channel layer for %d s: is a listener running for it, "
                    "on the same layer? The journal is read meanwhile, every %g s",
                    self.database,
                    silent,
                    interval,
                )
            try:
                await self._receiver.restart()
                await self._read_journal()
            except Exception:
                logger.exception("the journal of database %s could not be read", self.database)

    async def _read_journal(self) -> None:
        async with self.taking:
            for intake in list(self._intakes.values()):
                await self._catch_up(intake)


def _now() -> float:
    return asyncio.get_running_loop().time()
