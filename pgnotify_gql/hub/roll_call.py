"""
The roll call: every hub is asked something through the channel layer, and answers whoever asked.

A question goes to the group that the feeds of every hub are in, and names the channel to which answers are to be sent.
A process answers once, however many databases it follows.  Answers have numbers, times, labels, names of users and the
conditions of their topics: no variables, no documents, no values of rows.  They are bounded in size, and made bit by
bit, by a task of the hub.

As with whatever goes through a layer, a question or an answer may be lost, and whoever can write to the layer can ask.
A hub answers one question at a time; what fails costs the answer, and never the feed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict, cast

from .. import names
from ..recent_errors import recent_errors
from .verdict import explained

if TYPE_CHECKING:
    from .hub import Hub
    from .operations import Operation

logger = logging.getLogger("pgnotify_gql.hub")

ASK: Literal["pgnotify_gql.ask"] = "pgnotify_gql.ask"
ANSWER: Literal["pgnotify_gql.answer"] = "pgnotify_gql.answer"

STARTED = time.time()
"""When this process began, about: when this module was loaded."""

MOST_OPERATIONS = 200
"""Operations that an answer names; it counts all.  200 of them are 50 kB."""

MOST_TOPICS = 5
"""Topics of an operation that an answer names."""

LONGEST = 200
"""Characters of a name or topic in an answer: topics may wait for a thousand values."""

PART = 10
"""Operations that are described in one turn of the event loop: a topic may have a thousand values."""

MOST_REFUSED = 10
"""Questions that are refused at the same time; more are not answered at all."""

ANSWER_TIMEOUT = 5.0
"""Seconds that the layer may take for an answer: nobody waits for it any more."""


class AskMessage(TypedDict):
    """A question to every hub.  `database` is none, so that the feeds of an earlier version pass it over."""

    type: Literal["pgnotify_gql.ask"]
    database: str
    reply: str
    question: Mapping[str, Any]


class AnswerMessage(TypedDict):
    """The answer of one hub."""

    type: Literal["pgnotify_gql.answer"]
    answer: Mapping[str, Any]


class AskerLayer(Protocol):
    """What whoever asks needs of a channel layer."""

    async def new_channel(self, prefix: str = ...) -> str: ...

    async def group_send(self, group: str, message: dict[str, Any]) -> None: ...

    async def receive(self, channel: str) -> dict[str, Any]: ...


class AnswererLayer(Protocol):
    """What a hub needs of it to answer."""

    async def send(self, channel: str, message: dict[str, Any]) -> None: ...


async def ask_hubs(layer: AskerLayer, question: Mapping[str, Any], *, timeout: float = 1.0) -> list[dict[str, Any]]:  # noqa: ASYNC109  (answers are waited for as long)
    """
    Ask every hub, and return the answers that come within so many seconds, which it takes in any case.

    ``{"ask": "state"}`` asks for what a hub has, ``{"ask": "explain", ...}`` what became of changes, see ``verdict``.
    A hub that answers somebody else at the moment says ``{"busy": True}`` and its ``process``.  Raises what the layer
    raises.
    """
    answers: list[dict[str, Any]] = []
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            reply = await layer.new_channel()
            message: AskMessage = {"type": ASK, "database": "", "reply": reply, "question": question}
            await layer.group_send(names.heartbeat_group(), dict(message))
            while True:
                received = await layer.receive(reply)
                if received["type"] == ANSWER:
                    answers.append(received["answer"])
    return answers


class RollCall:
    """Answers for one hub; used on its event loop only."""

    def __init__(self, layer: object, hub: Hub) -> None:
        # A hub's Protocol of the layer has what it takes to receive.
        self._layer = cast(AnswererLayer, layer)
        self._hub = hub
        self._answering: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def answer(self, message: Mapping[str, Any]) -> None:
        """Answer a question, soon."""
        if self._closed:
            return
        if self._answering is None or self._answering.done():
            self._answering = self._start(message)
        elif len(self._tasks) <= MOST_REFUSED:
            self._start(message, busy=True)

    async def close(self) -> None:
        """Answer nothing any more."""
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, message: Mapping[str, Any], *, busy: bool = False) -> asyncio.Task[None]:
        task = asyncio.create_task(self._answer(message, busy), name="pgnotify_gql roll call")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _answer(self, message: Mapping[str, Any], busy: bool) -> None:
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                told = {"busy": True} if busy else await self._answer_to(message["question"])
                answer: AnswerMessage = {"type": ANSWER, "answer": {"process": _process(), **told}}
                await self._layer.send(message["reply"], dict(answer))
        except Exception as error:
            # Anybody who can write to the layer may have asked anything.
            logger.warning("a question of the channel layer could not be answered (%r)", error)

    async def _answer_to(self, question: Mapping[str, Any]) -> dict[str, Any]:
        if question["ask"] == "state":
            return await _state(self._hub)
        if question["ask"] == "explain":
            return {"changes": await explained(self._hub, question)}
        raise ValueError(f"no hub knows {question['ask']!r:.50}")


def _process() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": STARTED}


async def _state(hub: Hub) -> dict[str, Any]:
    described = []
    for place, operation in enumerate(list(islice(hub.operations, MOST_OPERATIONS))):
        if place % PART == 0:
            await asyncio.sleep(0)
        described.append(_described(operation))
    return {
        "sockets": hub.sockets(),
        "operations_total": len(hub.operations),
        "operations": described,
        "pending": hub.executor.pending,
        "feeds": [
            {"database": feed.database, "epoch": feed.epoch, "silent_for": feed.silent_for, "models": feed.labels}
            for feed in hub.feeds
        ],
        "errors": recent_errors(),
    }


def _described(operation: Operation) -> dict[str, Any]:
    interest, description = operation.interest, operation.description
    return {
        "number": operation.number,
        "user": description.user[:LONGEST],
        "name": description.name and description.name[:LONGEST],
        "field": description.field[:LONGEST],
        "topics": [repr(topic)[:LONGEST] for topic in interest.topics[:MOST_TOPICS]],
        "audience": str(interest.audience),
        "since": operation.since,
        "behind": operation.behind.is_open,
    }
