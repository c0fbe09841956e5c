"""
Every interleaving of client, application, engine and clock that hypothesis can think of, beside the models.

After each step the socket has been sent exactly what the specification says, and was closed with exactly its code; the
time is the test's own.  Steps between two turns of the event loop happen at once, as frames do that arrive together.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from random import Random
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pgnotify_gql.transport.close_codes import CloseCode
from pgnotify_gql.transport.protocol import RefusedConnectionError, RequestError
from tests.support.lockstep import MOST, Lockstep, recorded
from tests.support.mutations import MUTATIONS, valid
from tests.support.sockets import Run
from tests.support.specification import Operation

EXAMPLES = int(os.environ.get("PROTOCOL_EXAMPLES", "150"))
"""Lives of a connection from each state; each takes some milliseconds."""

STEPS = 60

STATES = ["opened", "initialising", "acknowledged"]
"""In which a connection is found."""

IDS = [str(number) for number in range(MOST + 3)]

ids = st.sampled_from(IDS)
payloads = st.one_of(
    st.none(),
    st.dictionaries(st.text(max_size=3), st.one_of(st.none(), st.integers(), st.text(max_size=3)), max_size=2),
)
decisions: st.SearchStrategy[Any] = st.sampled_from([None, True, {}, {"user": "alice"}, False]) | st.builds(
    RefusedConnectionError, st.just(CloseCode.FORBIDDEN), st.just("You have too many sockets")
)
mistakes: st.SearchStrategy[Any] = st.sampled_from(["yes", 0, {"user": object()}, [], float("nan")]) | st.builds(
    ValueError
)


class Clock(asyncio.SelectorEventLoop):
    """An event loop whose time passes when it is told to."""

    now = 0.0

    def time(self) -> float:
        return self.now


class ProtocolMachine(RuleBasedStateMachine):
    """What both subprotocols have in common."""

    subprotocol: ClassVar[str]
    start: ClassVar[str]
    """The message that asks to run something."""

    def __init__(self, state: str) -> None:
        super().__init__()
        self.state = state
        self.loop = Clock()
        self.recording = recorded()
        self.log = self.recording.__enter__()
        self.numbers = count()
        self.settled = True
        self.left = False
        self.steps = self.peace = 0
        with self.in_the_loop():
            self.pair = Lockstep(self.subprotocol)

    def teardown(self) -> None:
        try:
            if not self.left:
                self.the_client_leaves()
            self.results_come_late()
            assert asyncio.all_tasks(self.loop) == set(), "what runs outlives its connection"
            self.pair.compare()
            self.mistakes_alone_are_logged()
        finally:
            self.recording.__exit__(None, None, None)
            self.loop.close()

    @contextmanager
    def in_the_loop(self) -> Iterator[None]:
        """Be a callback of the loop, without a turn of it."""
        asyncio._set_running_loop(self.loop)
        try:
            yield
        finally:
            asyncio._set_running_loop(None)

    def run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self.loop.run_until_complete(coroutine)
        self.settled = True

    def text(self, text: str) -> None:
        with self.in_the_loop():
            self.pair.text(text)
        self.settled = False

    def send(self, kind: str, **fields: Any) -> None:
        self.text(json.dumps({"type": kind, **fields}))

    def ask(self, operation_id: str, *, begins: bool = False) -> None:
        """Ask to run something that is told from everything else; it `begins` before anything else happens."""
        self.send(self.start, id=operation_id, payload={"query": f"{{ n{next(self.numbers)} }}"})
        if begins:
            self.turn()

    @initialize(
        peace=st.sampled_from([0, 5, STEPS // 3, STEPS]),
        early=st.lists(ids, max_size=MOST + 1),
    )
    def a_connection(self, peace: int, early: list[str]) -> None:
        """Open; for so many steps of `peace` it is not closed on purpose, so that something can happen."""
        self.peace = peace
        if self.state != "opened":
            self.send("connection_init")
            self.ask_early(early)
            self.turn()
        if self.state == "acknowledged":
            self.the_application_accepts_or_refuses(None)
            self.turn()

    def ask_early(self, ids: list[str]) -> None:
        """Ask right behind the initialisation, where that is no violation."""

    @property
    def listens(self) -> bool:
        return not self.left

    @property
    def at_peace(self) -> bool:
        return self.steps < self.peace and not self.pair.model.over

    # The loop, and time.

    @rule()
    def turn(self) -> None:
        self.run(self.pair.turn())

    @rule()
    def a_second_passes(self) -> None:
        self.turn()
        self.loop.now += 1
        self.pair.model.elapse(1)
        self.turn()

    # The application.

    @property
    def undecided(self) -> bool:
        return not self.pair.decided

    @precondition(lambda self: self.undecided)
    @rule(decision=decisions)
    def the_application_accepts_or_refuses(self, decision: Any) -> None:
        with self.in_the_loop():
            self.pair.decide(decision)
        self.settled = False

    @precondition(lambda self: self.undecided)
    @rule(mistake=mistakes)
    def the_application_makes_a_mistake(self, mistake: Any) -> None:
        self.the_application_accepts_or_refuses(mistake)

    # The engine.

    @property
    def has_runs(self) -> bool:
        return self.settled and self.pair.runs != []

    def drawn(self, data: st.DataObject) -> tuple[Run, Operation]:
        """Draw something that was ever run, the latest first."""
        return data.draw(st.sampled_from(self.pair.runs[::-1]))

    @precondition(lambda self: self.has_runs)
    @rule(data=st.data(), number=st.integers(0, 9))
    def an_operation_has_a_result(self, data: st.DataObject, number: int) -> None:
        self.pair.emit(*self.drawn(data), json.dumps({"data": number}))

    @precondition(lambda self: self.has_runs)
    @rule(data=st.data())
    def an_operation_ends(self, data: st.DataObject) -> None:
        self.pair.finish(*self.drawn(data))
        self.settled = False

    @precondition(lambda self: self.has_runs)
    @rule(data=st.data(), error=st.sampled_from(["errors", "exception", "refusal to be cancelled"]))
    def an_operation_fails(self, data: st.DataObject, error: str) -> None:
        run, operation = self.drawn(data)
        if error == "errors":
            self.pair.fail(run, operation, RequestError([{"message": "first"}, {"message": "second"}]))
        elif error == "exception":
            self.pair.fail(run, operation, RuntimeError("the password is hunter2"))
        else:
            self.pair.resist(run)
        self.settled = False

    # The end.

    @precondition(lambda self: self.listens and not self.at_peace)
    @rule()
    def the_client_leaves(self) -> None:
        # Running something until it is complete takes a turn in any case.
        self.turn()
        self.left = True
        self.run(self.pair.leave())

    @precondition(lambda self: not self.at_peace)
    @rule(code=st.sampled_from([1001, 1012, 1013]))
    def the_server_closes(self, code: int) -> None:
        with self.in_the_loop():
            self.pair.close(code, "This server restarts")
        self.settled = False

    def results_come_late(self) -> None:
        for run, operation in self.pair.runs:
            self.pair.emit(run, operation, '{"data": "late"}')

    # Whatever a client sends, in both.

    @property
    def may_be_misunderstood(self) -> bool:
        return self.listens and not self.at_peace

    @precondition(lambda self: self.may_be_misunderstood or (self.listens and not self.pair.model.initialised))
    @rule(payload=payloads)
    def connection_init(self, payload: Any) -> None:
        self.send("connection_init", payload=payload)

    @precondition(lambda self: self.may_be_misunderstood)
    @rule(seed=st.integers(0, 10_000))
    def a_frame_that_something_has_happened_to(self, seed: int) -> None:
        random = Random(seed)
        self.text(random.choice(MUTATIONS)(valid(random, self.subprotocol), random))

    @precondition(lambda self: self.may_be_misunderstood)
    @rule()
    def a_binary_frame(self) -> None:
        with self.in_the_loop():
            self.pair.binary()
        self.settled = False

    @invariant()
    def both_say_the_same(self) -> None:
        self.steps += 1
        self.pair.compare(settled=self.settled)

    @invariant()
    def mistakes_alone_are_logged(self) -> None:
        assert all(message.startswith(("on_connect failed", "operation ")) for message in self.log.messages)
        assert len(self.log.records) <= self.pair.failures


class GraphqlTransportWsMachine(ProtocolMachine):
    subprotocol = "graphql-transport-ws"
    start = "subscribe"

    @precondition(lambda self: self.listens)
    @rule(kind=st.sampled_from(["ping", "pong"]), payload=payloads)
    def ping_or_pong(self, kind: str, payload: Any) -> None:
        self.send(kind, payload=payload)

    @precondition(lambda self: self.listens and self.pair.model.acknowledged)
    @rule(data=st.data(), begins=st.sampled_from([True, True, False]))
    def subscribe(self, data: st.DataObject, begins: bool) -> None:
        unused = [name for name in IDS if name not in self.pair.model.operations]
        self.ask(data.draw(st.sampled_from(unused)), begins=begins)

    @property
    def can_be_early_or_twice(self) -> bool:
        if self.pair.model.acknowledged:
            return self.pair.model.operations != {} and not self.at_peace
        return not self.pair.model.over

    @precondition(lambda self: self.can_be_early_or_twice)
    @rule(data=st.data())
    def subscribe_too_early_or_with_an_id_in_use(self, data: st.DataObject) -> None:
        self.ask(data.draw(st.sampled_from(sorted(self.pair.model.operations) or IDS)))

    @precondition(lambda self: self.listens and not self.at_peace)
    @rule(operation_id=ids)
    def subscribe_with_any_id_at_any_time(self, operation_id: str) -> None:
        self.ask(operation_id)

    @precondition(lambda self: self.listens)
    @rule(operation_id=ids)
    def complete(self, operation_id: str) -> None:
        self.send("complete", id=operation_id)

    @precondition(lambda self: self.listens and self.pair.model.operations != {})
    @rule(data=st.data(), again=st.booleans())
    def complete_what_runs_and_use_its_id_again(self, data: st.DataObject, again: bool) -> None:
        operation_id = data.draw(st.sampled_from(sorted(self.pair.model.operations)))
        self.send("complete", id=operation_id)
        if again:
            self.ask(operation_id)


class GraphqlWsMachine(ProtocolMachine):
    subprotocol = "graphql-ws"
    start = "start"

    @property
    def may_be_misunderstood(self) -> bool:
        return self.listens  # the socket stays open

    def ask_early(self, ids: list[str]) -> None:
        for operation_id in ids:
            self.ask(operation_id)

    @precondition(lambda self: self.listens)
    @rule(data=st.data())
    def start_and_begin(self, data: st.DataObject) -> None:
        unused = [name for name in IDS if name not in self.pair.model.operations]
        self.ask(data.draw(st.sampled_from(unused)), begins=True)

    @precondition(lambda self: self.listens)
    @rule(operation_id=ids, begins=st.sampled_from([True, True, False]))
    def start_with_any_id_at_any_time(self, operation_id: str, begins: bool) -> None:
        self.ask(operation_id, begins=begins)

    @precondition(lambda self: self.listens)
    @rule(operation_id=ids)
    def stop(self, operation_id: str) -> None:
        self.send("stop", id=operation_id)

    @precondition(lambda self: self.listens and not self.at_peace)
    @rule()
    def connection_terminate(self) -> None:
        self.send("connection_terminate")


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("machine", [GraphqlTransportWsMachine, GraphqlWsMachine])
def test_whatever_happens_in_whatever_order_a_connection_says_what_its_specification_says(
    machine: type[ProtocolMachine], state: str
) -> None:
    # It takes whatever makes a machine, which is more than it is typed for.
    made: Any = partial(machine, state)
    run_state_machine_as_test(
        made,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
