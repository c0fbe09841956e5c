"""
Random and mutated frames, against both protocols, beside the model of each.

Whatever comes in: no traceback, what is sent and the code of the close are exactly those of the specification, nothing
is sent after a close, and nothing runs after it.  A failing seed shows its frames.
"""

import asyncio
import json
from collections import Counter
from random import Random
from typing import Any

import pytest

from pgnotify_gql.transport.close_codes import CloseCode
from pgnotify_gql.transport.protocol import RefusedConnectionError, RequestError
from tests.support.lockstep import SIDES, Lockstep, Records, recorded
from tests.support.mutations import FIRST, frame

FRAMES = 100_000
"""For each subprotocol: frames that an open socket receives."""

FRAMES_OF_A_SOCKET = 40

FRAMES_AFTER_THE_CLOSE = 2

SEEDS = 10

LATE = json.dumps({"data": "late"})

CODES = {
    "graphql-transport-ws": {None, 1012, 4400, 4401, 4403, 4409, 4429, 4500},
    "graphql-ws": {None, 1000, 1012, 4403, 4500},
}

FORESEEN = ("on_connect failed", "operation ")
"""How messages begin that tell of a mistake of the application."""


class Conversation:
    """One socket's life."""

    def __init__(self, subprotocol: str, random: Random) -> None:
        self.pair = Lockstep(subprotocol)
        self.frames: list[str] = []
        self._subprotocol = subprotocol
        self._random = random
        self._oddity = random.choice([0.01, 0.1, 0.5])
        decisions: list[Any] = [None, None, None, None, True, {"user": "alice"}, False, ValueError("no"), "yes"]
        decisions.append(RefusedConnectionError(CloseCode.FORBIDDEN, "You have too many sockets"))
        self._decision = random.choice(decisions)

    async def go_on(self) -> None:
        """Receive frames until the socket is closed, or for long enough."""
        if self._random.random() < 0.5:
            self.pair.decide(self._decision)
        after_the_close = 0
        while len(self.frames) < FRAMES_OF_A_SOCKET and after_the_close < FRAMES_AFTER_THE_CLOSE:
            after_the_close += self.pair.model.over
            self._receive()
            if self._random.random() < 0.25:
                await self.pair.turn()
                self._play()
            if self._random.random() < 0.001:
                self.pair.close(1012, "This server restarts")
        if not self.pair.decided:
            self.pair.decide(self._decision)
        await self.pair.turn()
        self.pair.compare()

    async def end(self) -> None:
        await self.pair.leave()
        for run, operation in self.pair.runs:
            self.pair.emit(run, operation, LATE)
        self.pair.compare()

    @property
    def received(self) -> int:
        """How many frames came while the socket was open."""
        return len(self.frames) - FRAMES_AFTER_THE_CLOSE * (self.pair.model.closed is not None)

    def _receive(self) -> None:
        if self._random.random() < 0.002:
            self.frames.append("(a binary frame)")
            self.pair.binary()
            return
        text = frame(self._random, self._subprotocol, self._oddity)
        if not self.frames and self._random.random() < 0.9:
            text = FIRST
        self.frames.append(text)
        self.pair.text(text)

    def _play(self) -> None:
        """Let something come of requests, sometimes after their end, and of the initialisation."""
        if not self.pair.decided and self._random.random() < 0.5:
            self.pair.decide(self._decision)
        for run, operation in self.pair.runs:
            choice = self._random.random()
            if choice < 0.2:
                self.pair.emit(run, operation, LATE if run.over else '{"data": 1}')
            elif choice < 0.3:
                self.pair.finish(run, operation)
            elif choice < 0.35:
                self.pair.fail(run, operation, RequestError([{"message": "no"}, {"message": "never"}]))
            elif choice < 0.36:
                self.pair.fail(run, operation, RuntimeError("the password is hunter2"))


def check_log(log: Records, failures: int) -> None:
    assert [message for message in log.messages if not message.startswith(FORESEEN)] == []
    assert len(log.records) <= failures
    log.records.clear()


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("subprotocol", SIDES)
async def test_random_and_mutated_frames_are_answered_to_the_letter(subprotocol: str, seed: int) -> None:
    random = Random(seed)
    closed: Counter[int | None] = Counter()
    sent: Counter[str] = Counter()
    received = 0
    before = asyncio.all_tasks()
    with recorded() as log:
        while received < FRAMES // SEEDS:
            conversation = Conversation(subprotocol, random)
            try:
                await conversation.go_on()
                check_log(log, conversation.pair.failures)
                await conversation.end()
                check_log(log, conversation.pair.failures)
                assert asyncio.all_tasks() == before
            except BaseException as error:
                error.add_note("\n".join(text[:1_000] for text in conversation.frames)[:20_000])
                raise
            received += conversation.received
            closed[conversation.pair.wire.socket.code] += 1
            sent.update(message["type"] for message in conversation.pair.wire.frames)
    # The frames reach what they are meant to reach.
    assert closed.keys() == CODES[subprotocol]
    results = {"graphql-transport-ws": {"next", "pong"}, "graphql-ws": {"data", "ka", "connection_error"}}
    assert sent.keys() == {"connection_ack", "error", "complete"} | results[subprotocol]
