"""
Operations and cohorts: who shares an execution.

Operations with the same document, variables and audience form a cohort: it is executed once for a change, and every
member is sent the result.  A cohort keeps its changes in order; a member gets those that came after it joined.
"""

from __future__ import annotations

import json
import sys
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property, partial
from itertools import count
from typing import Any, ClassVar, NamedTuple, NoReturn, Protocol, TypeVar, runtime_checkable

from .. import metrics
from ..journal.change import Change
from .cursor import Cursor
from .gate import Gate
from .payloads import Payloads
from .topics import Topic

V = TypeVar("V")


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

    It counts as an asynchronous iterable for graphql-core, but only a hub can serve it.  `initial` returns, for the
    context that executions have, the values of the current state, if they are to be sent before anything else.
    `subject` tells one question from another, whoever asks.  `dependencies` are the topics of which a change may take
    away what makes this operation allowed.
    """

    topics: tuple[Topic, ...]
    audience: Audience = Audience.NOBODY
    initial: Callable[[Any], Iterable[Any]] | None = field(default=None, compare=False)
    subject: str = ""
    dependencies: tuple[Topic, ...] = field(default=(), compare=False)

    @cached_property
    def models(self) -> tuple[tuple[str, str], ...]:
        """Return database and label of the topics' models, each once."""
        return tuple(dict.fromkeys((topic.database, topic.label) for topic in self.topics))

    @cached_property
    def question(self) -> str:
        """Return what those have in common who may be given the same cursor."""
        # One object for all, and a string, which keeps its hash: it is looked up for every cohort and change.
        return sys.intern(repr((self.models, self.subject)))

    def __aiter__(self) -> NoReturn:
        raise TypeError(
            "this subscription is fed by a hub: serve it with GraphqlSubscriptionConsumer or GraphqlSseConsumer"
        )


class Batch:
    """
    The changes that a cohort is executed for, one after the other, in one hop to a thread.

    What is asked for all of them together is asked once: rows with one query, a dataloader with one batch.
    """

    __slots__ = ("_kept", "changes")

    def __init__(self, changes: Sequence[Change] = ()) -> None:
        self.changes = changes
        self._kept: dict[Hashable, Any] | None = None

    @property
    def has_kept(self) -> bool:
        """Return whether something was asked for all of them."""
        return self._kept is not None

    def once(self, key: Hashable, make: Callable[[], V]) -> V:
        """Return what was made under this key, and make it the first time."""
        if self._kept is None:
            self._kept = {}
        if key not in self._kept:
            self._kept[key] = make()
        kept: V = self._kept[key]
        return kept


@dataclass
class Event:
    """
    The root value of an execution: a change, and whether the subscriber is sent anything (``next`` decides).

    `cursor` is that of whoever has been sent the result.
    """

    change: Change
    cursor: Cursor
    skipped: bool = False


@dataclass
class Current:
    """The root value of an execution for a value of the current state."""

    value: Any


class Description(NamedTuple):
    """Whose operation it is (empty: nobody is logged in), by which field, and what the client calls it."""

    user: str
    field: str
    name: str | None


@runtime_checkable
class Describable(Protocol):
    """What may tell about an operation, asked only when somebody wants to know."""

    def description(self) -> Description: ...


class FailedResult(str):
    """The JSON of a result that has errors; `code` is that of the first of them that has one."""

    __slots__ = ("code",)
    code: str


Mark = tuple[str, int, int, int]
"""What tells one change from all others: label, transaction, id of the journal row, and place in it."""


class Execution(Protocol):
    """
    Turns a change into the JSON of an execution result that tells the cursor behind it, or None for nothing to send.

    Called in a worker thread; what it returns is awaited on the event loop if it can be.  Raises nothing: errors are
    part of the result.
    """

    def __call__(self, change: Change, cursor: Cursor, batch: Batch) -> str | Awaitable[str | None] | None: ...


@dataclass(frozen=True, slots=True)
class Due:
    """A change that a cohort is to be executed for, and the cursor of whoever has been sent its result."""

    change: Change
    cursor: Cursor

    def executed(self, execution: Execution, batch: Batch) -> str | Awaitable[str | None] | None:
        """Return what is to be sent."""
        return execution(self.change, self.cursor, batch)

    @property
    def mark(self) -> Mark:
        """Return which change it is."""
        change = self.change
        return change.model_label, change.xid, change.journal_id, change.index

    def __str__(self) -> str:
        return f"{self.change.kind} of {self.change.model_label}"


State = Callable[[], Iterable[str | Awaitable[str]]]
"""
Yields the JSON of an execution result for each value of the current state.  Called in a worker thread; what it yields
is awaited on the event loop if it can be.
"""


@dataclass(frozen=True)
class Marker(ABC):
    """Stands among the changes of a cohort, and tells its members something."""

    cursor: Cursor
    mark: ClassVar[None] = None

    @property
    @abstractmethod
    def message(self) -> dict[str, Any]:
        """What it says, and the cursor for whoever has been told."""

    def executed(self, execution: Execution, batch: Batch) -> str:
        """Return what is to be sent.  A result with extensions alone: clients hand it on, and take no data from it."""
        return json.dumps({"data": None, "extensions": self.message})


@dataclass(frozen=True)
class Resync(Marker):
    """Some changes are lost here; `anew` says that the state follows."""

    reason: str
    anew: bool = False

    @property
    def message(self) -> dict[str, Any]:
        resync = {"resync": {"reason": self.reason}}
        # Whoever came back with a cursor in the middle of the state would never see the rest of it.
        return resync if self.anew else {**resync, "cursor": self.cursor.token}


@dataclass(frozen=True)
class Live(Marker):
    """Whatever commits from here on is sent when it happens."""

    @property
    def message(self) -> dict[str, Any]:
        return {"live": True, "cursor": self.cursor.token}


class Taken(NamedTuple):
    """What is next to be executed in a cohort, in order, and the number of the first."""

    first: int
    dues: Sequence[Due | Marker]


class Outlet(Protocol):
    """Where the results of an operation go."""

    def offer(self, payloads: Payloads) -> int:
        """Take results at once, as many of the first as there is room for; return how many."""

    async def room(self) -> None:
        """Wait until there is plenty of room; whoever is stuck has the operation ended meanwhile."""


AHEAD = 100
"""Changes that are executed for an operation that catches up before it is seen whether there is room for more."""


@dataclass(eq=False, slots=True, weakref_slot=True)
class Operation:
    """
    One subscription of one socket.

    `share` tells who may be in the same cohort (None: nobody).  With a `state`, that is sent first, and again after a
    resync.  `behind` is opened when it is fed no more, because its outlet had no room for a result: `cursor` then says
    where to go on (None: from the beginning, which is the state).  A hub counts its operations: this is `number`, fed
    `since` then, in seconds since 1970.
    """

    interest: Interest
    execution: Execution
    outlet: Outlet
    share: Hashable | None = None
    state: State | None = None
    cursor: Cursor | None = field(default=None, init=False)
    behind: Gate = field(default_factory=Gate, init=False)
    cohort: Cohort | None = field(default=None, init=False)
    joined_at: int = field(default=0, init=False)
    ahead: int = field(default=AHEAD, init=False)
    number: int = field(default=0, init=False)
    since: float = field(default=0.0, init=False)

    @property
    def description(self) -> Description:
        """Return whose it is, and what it asks for."""
        return self.execution.description() if isinstance(self.execution, Describable) else Description("", "", None)

    def fall_behind(self, cursor: Cursor | None) -> None:
        """Stand still at a cursor, or at the beginning."""
        self.cursor = cursor
        self.behind.open()


@dataclass(eq=False, slots=True, weakref_slot=True)
class Cohort:
    """
    Operations that share executions.

    `pending` has what is still to be executed; `number` counts what was ever queued, and `delivered` what of it has
    been executed and sent; `cursor` is that of whoever has been sent all before it; `settled` is open while there is
    nothing pending, and nothing under way; `asks_together` tells whether executions of the last batch had something in
    common that was asked once.
    `alone` is set for one that has, and will have, no other member; one that `replays` is of who catches up.
    """

    interest: Interest
    execution: Execution
    cursor: Cursor
    members: dict[Operation, None] = field(default_factory=dict)
    pending: list[Due | Marker] = field(default_factory=list)
    number: int = 0
    delivered: int = 0
    scheduled: bool = False
    asks_together: bool = False
    settled: Gate = field(default_factory=partial(Gate, is_open=True))
    alone: Operation | None = None
    replays: bool = False

    def add(self, operation: Operation) -> None:
        """Let an operation share what is executed for changes from now on."""
        operation.joined_at = self.number
        operation.cohort = self
        self.members[operation] = None

    def queue(self, due: Due | Marker) -> None:
        """Queue what is due, behind what was before it."""
        self.number += 1
        self.pending.append(due)
        self.settled.close()

    def take(self, most: int) -> Taken:
        """Take what is next to be executed."""
        taken = Taken(self.number - len(self.pending) + 1, self.pending[:most])
        del self.pending[:most]
        return taken

    def put_back(self, dues: Sequence[Due | Marker]) -> None:
        """Put back the last of what was taken, and not executed, to where it was."""
        self.pending[:0] = dues

    def deliver(self, taken: Taken, results: Sequence[str | None]) -> int:
        """
        Send the first of what was taken, whose results are given, to every member that had joined before.

        Return how many results that were, of all members together.
        """
        # Behind a resync with which the state begins anew, nothing is sent to those who were told.
        ends = [
            place for place, due in enumerate(taken.dues[: len(results)], 1) if isinstance(due, Resync) and due.anew
        ]
        begin = sent = 0
        for end in [*ends, len(results)]:
            part = Taken(taken.first + begin, taken.dues[begin:end])
            sent += self._deliver(part, results[begin:end], anew=end in ends)
            begin = end
        return sent

    def _deliver(self, taken: Taken, results: Sequence[str | None], *, anew: bool) -> int:
        offered = overflows = 0
        numbers, payloads, stands = list[int](), list[str](), [self.cursor]
        for number, due, payload in zip(count(taken.first), taken.dues, results, strict=False):
            if payload is None:
                stands[-1] = due.cursor
            else:
                numbers.append(number)
                payloads.append(payload)
                stands.append(due.cursor)
        if payloads:
            made = Payloads(*payloads)
            for operation in list(self.members):
                missed = 0 if operation.joined_at < numbers[0] else bisect_right(numbers, operation.joined_at)
                fitted = operation.outlet.offer(made.after(missed))
                offered += fitted
                sent = missed + fitted
                if sent < len(made):
                    overflows += 1
                    self._let_go(operation, stands[sent])
                elif anew and missed < len(made):
                    self._let_go(operation, None)
        self.cursor = stands[-1]
        self.delivered = taken.first + len(results) - 1
        if overflows:
            metrics.OVERFLOWS.inc(overflows)
        return offered

    def _let_go(self, operation: Operation, cursor: Cursor | None) -> None:
        del self.members[operation]
        operation.fall_behind(cursor)


def cohort_key(operation: Operation) -> Hashable:
    """Return what operations of the same cohort have in common; itself for an operation that shares with nobody."""
    if operation.share is None:
        return operation
    return operation.share, operation.interest
