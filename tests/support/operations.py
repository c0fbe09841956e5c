"""Operations of a hub without a socket, and a layer with faults between the relay and the hub."""

import json
from collections.abc import Callable, Hashable, Iterable
from typing import Any

from pgnotify_gql.hub import Interest, Operation, Topic
from pgnotify_gql.journal import Change
from pgnotify_gql.relay.messages import CHANGES
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
        self.operation = Operation(interest, self.execute, self.deliver, share)

    def __str__(self) -> str:
        return f"{self.received}, {len(self.resyncs)} resyncs"

    def execute(self, change: Change) -> str:
        self.executed += 1
        pk, _, text = told(change)
        return json.dumps(pk if text is None else text)

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
    """The relay's side of a layer: `fate` tells what becomes of a message of changes."""

    def __init__(self, layer: Any, fate: Fate = lambda message: [message]) -> None:
        self._layer = layer
        self.fate = fate
        self.sent = self.spoilt = 0
        self.heartbeats = True

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        if message["type"] != CHANGES:
            if self.heartbeats:
                await self._layer.group_send(group, message)
            return
        self.sent += 1
        survivors = list(self.fate(message))
        self.spoilt += survivors != [message]
        for survivor in survivors:
            await self._layer.group_send(group, survivor)
