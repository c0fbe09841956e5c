"""A connection between fakes and the model of its subprotocol, told the same and compared."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pgnotify_gql.transport.close_codes import REASON_BYTES, CloseCode, reason
from pgnotify_gql.transport.graphql_transport_ws import GraphqlTransportWs
from pgnotify_gql.transport.graphql_ws import GraphqlWs
from pgnotify_gql.transport.protocol import Connection, Limits, RefusedConnectionError, RequestError
from tests.support.sockets import Run, Wire, quiet
from tests.support.specification import (
    INTERNAL,
    REQUEST,
    GraphqlTransportWsSpecification,
    GraphqlWsSpecification,
    Operation,
    Refusal,
    Specification,
)

OURS = logging.getLogger("pgnotify_gql")

MOST = 3
"""Operations at once."""

INIT_TIMEOUT, KEEPALIVE = 3.0, 2.0

TURNS = 8
"""Turns of the event loop; nothing takes more than five between fakes, and there are a great many frames."""

SIDES: dict[str, tuple[type[Connection], type[Specification]]] = {
    "graphql-transport-ws": (GraphqlTransportWs, GraphqlTransportWsSpecification),
    "graphql-ws": (GraphqlWs, GraphqlWsSpecification),
}


class Lockstep:
    """One connection, and its model."""

    def __init__(self, subprotocol: str) -> None:
        protocol, specification = SIDES[subprotocol]
        self.wire = Wire(protocol, Limits(init_timeout=INIT_TIMEOUT, keepalive=KEEPALIVE, operations=MOST))
        self.model = specification(MOST, INIT_TIMEOUT, KEEPALIVE)
        self.wire.hooks.gate = asyncio.Event()
        self._failures = 0

    def text(self, text: str) -> None:
        self.wire.text(text)
        self.model.receive(text)

    def binary(self) -> None:
        self.wire.connection.received_bytes()
        self.model.receive_bytes()

    @property
    def decided(self) -> bool:
        assert self.wire.hooks.gate is not None
        return self.wire.hooks.gate.is_set()

    def decide(self, decision: Any) -> None:
        """Have the application decide; its hook returns, or raises, the decision."""
        assert self.wire.hooks.gate is not None
        self.wire.hooks.answer = decision
        self.wire.hooks.gate.set()
        if isinstance(decision, RefusedConnectionError):
            self.model.decide(Refusal(decision.code, str(decision)))
        else:
            self.model.decide(decision)
            self._failures += not (decision is None or isinstance(decision, bool))

    @property
    def failures(self) -> int:
        """How much was made to fail, and may be logged."""
        return self._failures + sum(run.request.query in self.wire.engine.resists for run in self.wire.engine.runs)

    @property
    def runs(self) -> list[tuple[Run, Operation]]:
        """Whatever the engine was given, over or not."""
        return list(zip(self.wire.engine.runs, self.model.begun, strict=True))

    def emit(self, run: Run, operation: Operation, payload: str) -> None:
        run.emit(payload)
        self.model.emit(operation, payload)

    def finish(self, run: Run, operation: Operation) -> None:
        if not run.end.done():
            run.finish()
            self.model.end(operation)

    def fail(self, run: Run, operation: Operation, error: Exception) -> None:
        """Have an operation raise; what is no RequestError is our own mistake, of which the client is told little."""
        if run.end.done():
            return
        run.fail(error)
        if isinstance(error, RequestError):
            self.model.end(operation, error.errors)
        else:
            self._failures += 1
            self.model.end(operation, [{"message": INTERNAL}])

    def resist(self, run: Run) -> None:
        """Have an operation, and all that ask the same, raise when it is cancelled."""
        self.wire.engine.resists.add(run.request.query)

    def close(self, code: int, text: str) -> None:
        """Have the server close, as it does when it drains."""
        self.wire.connection.close(CloseCode(code), text)
        self.model.close(code, text)

    async def leave(self) -> None:
        """Have the client leave."""
        self.model.leave()
        await self.wire.close()
        await self.turn()

    async def turn(self) -> None:
        """Let everything happen that waits for nothing."""
        await quiet(TURNS)
        self.model.turn()

    def compare(self, *, settled: bool = True) -> None:
        """Compare all that a client and the engine see; `settled`: nothing has happened since the last turn."""
        socket, model = self.wire.socket, self.model
        assert socket.frames == model.sent
        assert socket.sent_after_close == []
        assert len(socket.closes) <= 1
        closed = [(code, text) for code, text in socket.closes]
        assert closed == ([] if model.closed is None else [model.closed])
        assert all(len(reason(text).encode()) <= REASON_BYTES for _, text in closed)
        assert socket.answers == model.pongs
        if settled:
            self._compare_what_runs()

    def _compare_what_runs(self) -> None:
        model, engine, hooks = self.model, self.wire.engine, self.wire.hooks
        # What the application is asked when the socket is closed in the same turn does not matter.
        assert hooks.payloads == model.asked or (hooks.payloads == [] and model.over)
        asked = [
            {
                "query": run.request.query,
                "operationName": run.request.operation_name,
                "variables": run.request.variables,
                "extensions": run.request.extensions,
            }
            for run in engine.runs
        ]
        assert asked == [{name: operation.payload.get(name) for name in REQUEST} for operation in model.begun]
        running = [operation for run, operation in self.runs if not run.over]
        assert set(running) == set(model.operations.values()), "what runs, and whose ids are in use"


class Records(logging.Handler):
    """What is logged above INFO."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def messages(self) -> list[str]:
        return [record.getMessage() for record in self.records]


@contextmanager
def recorded() -> Iterator[Records]:
    """Record what we, and asyncio, log, and tell nobody else: the mistakes of the application are thousands."""
    records = Records()
    loggers = [OURS, logging.getLogger("asyncio")]
    for logger in loggers:
        logger.addHandler(records)
        logger.propagate = False
    try:
        yield records
    finally:
        for logger in loggers:
            logger.removeHandler(records)
            logger.propagate = True
