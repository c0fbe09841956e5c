"""Operations of a hub without a socket, and a layer with faults between the relay and the hub."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from typing import Any

from pgnotify_gql.hub import Interest, Operation, Topic
from pgnotify_gql.hub.cursor import Cursor
from pgnotify_gql.hub.payloads import Payloads
from pgnotify_gql.journal import Change
from pgnotify_gql.relay.messages import CHANGES, HEARTBEAT
from tests.support.feed import Notebook, told

Fate = Callable[[dict[str, Any]], Iterable[dict[str, Any]]]
"""What becomes of a message of changes on its way."""


class Subscriber(Notebook):
    """One operation; its result is the text of a message, or the key where there is none."""

    def __init__(self, *topics: Any, share: Hashable | None = None) -> None:
        super().__init__()
        self.executed = 0
        self.received: list[Any] = []
        self.resyncs: list[str] = []
        interest = Interest(tuple(map(Topic.of, topics)))
        self.operation = Operation(interest, self.execute, self, share)

    def __str__(self) -> str:
        return f"{self.received}, {len(self.resyncs)} resyncs"

    def execute(self, change: Change, cursor: Cursor | None = None, batch: object = None) -> str:
        self.executed += 1
        pk, _, text = told(change)
        return json.dumps(pk if text is None else text)

    def offer(self, payloads: Payloads) -> int:
        for payload in payloads:
            self.deliver(payload)
        return len(payloads)

    async def room(self) -> None:
        pass

    def deliver(self, payload: str) -> None:
        result = json.loads(payload)
        if isinstance(result, dict):
            self.resyncs.append(result["extensions"]["resync"]["reason"])
        else:
            self.received.append(result)
        self.noted()

    async def has(self, *results: Any) -> None:
        await self.until(lambda: set(results) <= set(self.received))


class Faulty:
    """
    The relay's side of a layer: `fate` tells what becomes of a message of changes, `beat_fate` of a heartbeat.

    `sent` and `beats` count what the relay has sent of either.
    """

    def __init__(self, layer: Any, fate: Fate = lambda message: [message]) -> None:
        self._layer = layer
        self.fate = fate
        self.beat_fate: Fate = lambda message: [message]
        self.sent = self.spoilt = self.beats = 0
        self.heartbeats = True

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        if message["type"] != CHANGES:
            self.beats += 1
            survivors = list(self.beat_fate(message)) if self.heartbeats else []
        else:
            self.sent += 1
            survivors = list(self.fate(message))
            self.spoilt += survivors != [message]
        for survivor in survivors:
            await self._layer.group_send(group, survivor)


class Chaos:
    """
    The relay's side of a layer that loses, doubles, delays and reorders whatever it is sent, heartbeats too.

    What it delays it sends later and in any order, some of it when another leader has begun.
    """

    FATES = {"arrives": 4, "lost": 2, "doubled": 2, "held": 4}
    """What becomes of a message, and how often."""

    def __init__(self, layer: Any, seed: int) -> None:
        self._layer = layer
        self._chance = random.Random(seed)
        self._held: list[tuple[str, dict[str, Any]]] = []
        self.epoch = 0
        self.met: Counter[tuple[str, str]] = Counter()
        self.calm = False
        self.hoards = False
        """Whether what is held is kept until it is released."""

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        self.epoch = max(self.epoch, message["epoch"])
        if self.calm:
            await self._layer.group_send(group, message)
            return
        (fate,) = self._chance.choices(list(self.FATES), list(self.FATES.values()))
        self.met[message["type"], fate] += 1
        if fate == "held":
            self._held.append((group, message))
        for _ in range({"arrives": 1, "doubled": 2}.get(fate, 0)):
            await self._layer.group_send(group, message)
        if self._chance.random() < 0.1 and not self.hoards:
            await self.release(len(self._held) // 2)

    async def release(self, count: int | None = None) -> None:
        """Send what was held back, or so many of it, in any order."""
        self._chance.shuffle(self._held)
        released, self._held = self._held[:count], self._held[len(self._held[:count]) :]
        for group, message in released:
            if message["epoch"] < self.epoch:
                self.met[message["type"], "of a former leader"] += 1
            await self._layer.group_send(group, message)

    def has_met(self, count: int) -> Callable[[], bool]:
        """Whether each fate has met so many more messages of either type than now, and some of either are held."""
        goal = {(kind, fate): self.met[kind, fate] + count for kind in (CHANGES, HEARTBEAT) for fate in self.FATES}
        return lambda: (
            all(self.met[kind] >= least for kind, least in goal.items())
            and {message["type"] for _, message in self._held if message["epoch"] == self.epoch} == {CHANGES, HEARTBEAT}
        )


class Ear:
    """
    The hub's side of a layer: counts what the hub takes.

    Where `renews` is False no group is joined a second time.  While `hears` is cleared nothing is taken, as by a
    process that stands still.
    """

    def __init__(self, layer: Any, *, renews: bool = True) -> None:
        self._layer = layer
        self._renews = renews
        self._joined: set[str] = set()
        self.changes = self.beats = 0
        self.hears = asyncio.Event()
        self.hears.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    async def group_add(self, group: str, channel: str) -> None:
        if self._renews or group not in self._joined:
            await self._layer.group_add(group, channel)
            self._joined.add(group)

    async def receive(self, channel: str) -> dict[str, Any]:
        await self.hears.wait()
        message: dict[str, Any] = await self._layer.receive(channel)
        if message["type"] == CHANGES:
            self.changes += 1
        else:
            self.beats += 1
        return message
