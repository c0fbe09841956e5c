"""Admission, one step at a time: between a hub that feeds nothing and a question that the test answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from example.conversations.models import Message
from pgnotify_gql.hub import Interest, Operation, Topic
from pgnotify_gql.hub.cursor import Cursor
from pgnotify_gql.hub.hub import Hub
from pgnotify_gql.hub.operations import Outlet
from pgnotify_gql.transport.admission import Admission
from pgnotify_gql.transport.protocol import RequestError
from tests.support.operations import Subscriber
from tests.support.sockets import WAIT, quiet

CURSOR = Cursor({}, {})

INTEREST = Interest((Topic(Message, conversation=1),), dependencies=(Topic(Message, id=7),))


class FakeHub:
    """Feeds nothing: the test says when something changes, what has been sent, and how it ends."""

    def __init__(self) -> None:
        self.questions = asyncio.Semaphore(1)
        self.changed: list[Callable[[], None]] = []
        self.served: list[tuple[Operation, Cursor | None]] = []
        self.renewed: list[Operation] = []
        self.sent_up_to: Cursor | None = CURSOR
        self.end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @asynccontextmanager
    async def depending(self, topics: Any, changed: Callable[[], None]) -> AsyncIterator[None]:
        self.changed.append(changed)
        yield
        self.changed.remove(changed)

    async def serve(self, operation: Operation, since: Cursor | None = None, *, carried: bool = False) -> None:
        self.served.append((operation, since))
        await asyncio.shield(self.end)

    def sent(self, operation: Operation) -> Cursor | None:
        return self.sent_up_to

    def renew(self, operation: Operation) -> None:
        self.renewed.append(operation)


class Asked:
    """A request for which `answer` is the interest, with a state or without."""

    def __init__(self, *, has_state: bool = False) -> None:
        self.answer = INTEREST
        self._state = (list) if has_state else None

    async def ask_again(self) -> Interest:
        return self.answer

    def operation(self, interest: Interest, outlet: Outlet) -> Operation:
        return Operation(interest, lambda change, cursor, batch: None, outlet, state=self._state)

    def replace(self, operation: Operation) -> None:
        pass


@asynccontextmanager
async def admitted(hub: FakeHub, asked: Asked, since: Cursor | None = None) -> AsyncIterator[asyncio.Task[None]]:
    """An operation that is fed."""
    admission = Admission(cast(Hub, hub), asked, Subscriber(Message))
    serving = asyncio.create_task(admission.serve(INTEREST, since))
    await quiet()
    assert len(hub.served) == 1
    yield serving
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


async def test_what_ends_the_operation_ends_the_admission() -> None:
    hub = FakeHub()
    async with admitted(hub, Asked()) as serving:
        hub.end.set_exception(RequestError([{"message": "the state cannot be read"}]))
        async with asyncio.timeout(WAIT):
            with pytest.raises(RequestError):
                await serving


async def test_whoever_may_go_on_is_fed_on_from_where_he_is() -> None:
    hub = FakeHub()
    async with admitted(hub, Asked(has_state=True)):
        hub.changed[0]()
        await quiet()
        ((operation, _),) = hub.served
        assert hub.renewed == [operation]


async def test_a_state_of_which_a_part_was_read_before_something_changed_is_sent_anew() -> None:
    hub = FakeHub()
    hub.sent_up_to = None
    async with admitted(hub, Asked(has_state=True)):
        hub.changed[0]()
        await quiet()
        assert [since for _, since in hub.served] == [None, None]
        assert hub.renewed == []


async def test_without_a_state_nothing_begins_anew() -> None:
    hub = FakeHub()
    hub.sent_up_to = None
    async with admitted(hub, Asked()):
        hub.changed[0]()
        await quiet()
        assert len(hub.served) == len(hub.renewed) == 1


async def test_whoever_waits_for_something_else_now_goes_on_with_that_from_where_he_stood() -> None:
    hub, asked = FakeHub(), Asked()
    async with admitted(hub, asked):
        stood = hub.sent_up_to
        asked.answer = Interest((Topic(Message, conversation=2),), dependencies=INTEREST.dependencies)
        hub.changed[0]()
        hub.sent_up_to = Cursor({}, {}, "later")
        await quiet()
        operation, since = hub.served[-1]
        assert operation.interest is asked.answer
        assert since is stood
