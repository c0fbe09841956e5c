"""
Operations and cohorts: who shares an execution.

Operations with the same document, variables and audience form a cohort: it is executed once for a change, and every
member is sent the result.  A cohort keeps its changes in order; a member gets those that came after it joined.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import NoReturn, Protocol

from ..journal.change import Change
from .topics import Topic


class Audience(StrEnum):
    """Who may share an execution, and so sees the same result."""

    NOBODY = "nobody"
    """Every operation is executed by itself, as its subscriber."""

    USER = "user"
    """Operations of the same user; executed as the user, without a session."""

    EVERYBODY = "everybody"
    """All operations; executed as the anonymous user."""


@dataclass(frozen=True)
class Interest:
    """
    What the subscribe resolver of a field returns in place of a stream: topics, and who may share.

    It counts as an asynchronous iterable for graphql-core, but only a hub can serve it.
    """

    topics: tuple[Topic, ...]
    audience: Audience = Audience.NOBODY

    @cached_property
    def models(self) -> tuple[tuple[str, str], ...]:
        """Return database and label of the topics' models, each once."""
        return tuple(dict.fromkeys((topic.database, topic.label) for topic in self.topics))

    def __aiter__(self) -> NoReturn:
        raise TypeError("this subscription is fed by a hub: serve it with GraphqlSubscriptionConsumer")


@dataclass
class Event:
    """The root value of an execution: a change, and whether the subscriber is sent anything (``next`` decides)."""

    change: Change
    skipped: bool = False


class Execution(Protocol):
    """
    Turns a change into the JSON of an execution result, or None for nothing to send.

    Called in a worker thread; what it returns is awaited on the event loop if it can be.  Raises nothing: errors are
    part of the result.
    """

    def __call__(self, change: Change) -> str | Awaitable[str | None] | None: ...


@dataclass(frozen=True)
class Resync:
    """Stands among the changes of a cohort where some are lost."""

    reason: str

    @property
    def payload(self) -> str:
        """Return the JSON of the result that tells it."""
        return json.dumps({"data": None, "extensions": {"resync": {"reason": self.reason}}})


@dataclass(eq=False)
class Operation:
    """
    One subscription of one socket.

    `share` tells who may be in the same cohort (None: nobody); `deliver` takes the JSON of an execution result, at
    once and without waiting.
    """

    interest: Interest
    execution: Execution
    deliver: Callable[[str], None]
    share: Hashable | None = None
    joined_at: int = field(default=0, init=False)


@dataclass(eq=False)
class Cohort:
    """Operations that share executions; `pending` has the numbered changes still to be executed."""

    execution: Execution
    topics: tuple[Topic, ...]
    members: dict[Operation, None] = field(default_factory=dict)
    pending: deque[tuple[int, Change | Resync]] = field(default_factory=deque)
    number: int = 0
    scheduled: bool = False

    def add(self, operation: Operation) -> None:
        """Let an operation share what is executed for changes from now on."""
        operation.joined_at = self.number
        self.members[operation] = None

    def queue(self, change: Change | Resync) -> None:
        """Queue a change, behind the ones before it."""
        self.number += 1
        self.pending.append((self.number, change))

    def take(self, most: int) -> list[tuple[int, Change | Resync]]:
        """Take the next changes to execute."""
        return [self.pending.popleft() for _ in range(min(most, len(self.pending)))]

    def put_back(self, changes: Sequence[tuple[int, Change | Resync]]) -> None:
        """Put back changes that were taken and not executed, to where they were."""
        self.pending.extendleft(reversed(changes))

    def execute(self, change: Change | Resync) -> str | Awaitable[str | None] | None:
        """Return what the members are to be sent; called in a worker thread."""
        return change.payload if isinstance(change, Resync) else self.execution(change)

    def deliver(self, number: int, payload: str) -> None:
        """Send a result to every member that had joined before its change."""
        for operation in list(self.members):
            if operation.joined_at < number:
                operation.deliver(payload)


def cohort_key(operation: Operation) -> Hashable:
    """Return what operations of the same cohort have in common; itself for an operation that shares with nobody."""
    if operation.share is None:
        return operation
    return operation.share, operation.interest
