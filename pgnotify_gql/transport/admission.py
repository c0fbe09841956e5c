"""
Admission: whether an operation may run, decided when it starts and again whenever something changes that decides it.

``subscribe`` of a subscription decides; its ``depends_on`` says which rows have a part in the decision.  Their changes
come through the hub like all others, and before what is dispatched behind them.  From then on the operation's outlet
refuses results; so it stands still, at an exact cursor, until ``subscribe`` has been asked again.  If that still lets
it run, it catches up from there: nothing is missed, and nothing was sent that came behind the change and before the
answer.  If it does not, its error ends the operation.

On failure of the database the question cannot be answered, and the operation ends: when in doubt, deny.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from ..errors import ConfigurationError
from ..hub import Interest, Operation
from ..hub.cursor import Cursor
from ..hub.gate import Gate
from ..hub.hub import Hub
from ..hub.operations import Outlet
from ..hub.payloads import Payloads
from .tasks import running

MOST_ROUNDS = 10
"""How often ``depends_on`` may return other topics than just before, without anything having been sent in between."""


class Asked(Protocol):
    """A request of a subscription, which can be asked again."""

    async def ask_again(self) -> Interest:
        """Ask ``subscribe`` with the user as he is now.  Raises RequestError when the operation may not run."""

    def operation(self, interest: Interest, outlet: Outlet) -> Operation:
        """Return an operation of the hub."""

    def replace(self, operation: Operation) -> None:
        """Let whoever shares executions with an operation have them as its user is now."""


class GuardedOutlet:
    """An outlet that refuses results while it is not known whether they may be sent; see ``hub.operations.Outlet``."""

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet
        self._allowed = Gate()
        self._shut = Gate(is_open=True)

    @property
    def is_open(self) -> bool:
        return self._allowed.is_open

    def open(self) -> None:
        """Let results pass."""
        self._shut.close()
        self._allowed.open()

    def shut(self) -> None:
        """Refuse results."""
        self._allowed.close()
        self._shut.open()

    async def until_shut(self) -> None:
        """Wait until results are refused."""
        await self._shut.passed()

    def offer(self, payloads: Payloads) -> int:
        return self._outlet.offer(payloads) if self._allowed.is_open else 0

    async def room(self) -> None:
        while not self._allowed.is_open:
            await self._allowed.passed()
        await self._outlet.room()


class Admission:
    """Feeds one operation for as long as it is allowed."""

    def __init__(self, hub: Hub, asked: Asked, outlet: Outlet) -> None:
        self._hub = hub
        self._asked = asked
        self._outlet = GuardedOutlet(outlet)
        self._changes = 0
        self._operation: Operation | None = None
        # Where the operation stood when it was shut.
        self._stood: Cursor | None = None

    async def serve(self, interest: Interest, since: Cursor | None) -> None:
        """Feed the operation until cancelled.  Raises RequestError when it may run no longer, ConfigurationError."""
        rounds = 0
        while True:
            async with self._hub.depending(interest.dependencies, self._changed):
                # Something may have changed before it was followed.
                decided = await self._decided()
                if set(decided.dependencies) == set(interest.dependencies):
                    rounds = 0
                    decided, since = await self._serve(decided, since)
            interest, rounds = decided, rounds + 1
            if rounds > MOST_ROUNDS:
                raise ConfigurationError("depends_on() returns other topics each time it is asked")

    async def _serve(self, interest: Interest, since: Cursor | None) -> tuple[Interest, Cursor | None]:
        """Feed it for as long as it waits for the same; return what it waits for then, and from where on."""
        self._operation = operation = self._asked.operation(interest, self._outlet)
        # Where it stands if something changes before it is fed.
        operation.cursor = since
        async with running(self._hub.serve(operation, since, carried=True), "admitted operation") as feeding:
            while True:
                self._outlet.open()
                async with running(self._outlet.until_shut(), "dependencies") as shut:
                    await asyncio.wait({feeding, shut}, return_when=asyncio.FIRST_COMPLETED)
                if feeding.done():
                    feeding.result()
                decided = await self._decided()
                if _waits(decided) != _waits(interest):
                    # What it waits for now may have come since.
                    return decided, self._stood
                if self._hub.sent(operation) is None and operation.state is not None:
                    # A part of the state was read as the user as he was.
                    return decided, None
                self._asked.replace(operation)
                self._hub.renew(operation)

    def _changed(self) -> None:
        self._changes += 1
        if self._outlet.is_open and self._operation is not None:
            self._stood = self._hub.sent(self._operation)
        self._outlet.shut()

    async def _decided(self) -> Interest:
        while True:
            changes = self._changes
            async with self._hub.questions:
                decided = await self._asked.ask_again()
            if changes == self._changes:
                return decided


def _waits(interest: Interest) -> tuple[object, ...]:
    """Return what one that is asked again has in common if nothing has changed for it, in whatever order."""
    return set(interest.topics), interest.audience, set(interest.dependencies)
