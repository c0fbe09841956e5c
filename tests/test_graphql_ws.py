"""The legacy subprotocol graphql-ws, as subscriptions-transport-ws speaks it."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from pgnotify_gql.transport.close_codes import CloseCode
from pgnotify_gql.transport.frames import Request
from pgnotify_gql.transport.graphql_ws import GraphqlWs
from pgnotify_gql.transport.protocol import Limits, RequestError
from tests.support.sockets import Wire, quiet

QUERY = {"query": "{ a }"}


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    wire = Wire(GraphqlWs)
    yield wire
    await wire.close()


@pytest.fixture
async def ready(wire: Wire) -> Wire:
    """A connection that is acknowledged."""
    await wire.init()
    return wire


@pytest.fixture
async def pending(wire: Wire) -> Wire:
    """A connection whose initialisation is under way."""
    wire.hooks.gate = asyncio.Event()
    wire.send("connection_init")
    await quiet()
    return wire


def open_gate(wire: Wire) -> None:
    assert wire.hooks.gate is not None
    wire.hooks.gate.set()


class TestInitialisation:
    async def test_an_init_is_acknowledged_and_a_keep_alive_follows(self, wire: Wire) -> None:
        wire.send("connection_init")
        await quiet()
        assert wire.frames == [{"type": "connection_ack"}, {"type": "ka"}]

    async def test_what_the_hook_returns_is_the_payload_of_the_acknowledgement(self, wire: Wire) -> None:
        wire.hooks.answer = {"user": "alice"}
        wire.send("connection_init", payload={"token": "secret"})
        await quiet()
        assert wire.hooks.payloads == [{"token": "secret"}]
        assert wire.frames == [{"type": "connection_ack", "payload": {"user": "alice"}}, {"type": "ka"}]

    @pytest.mark.parametrize("fields", [{}, {"payload": None}, {"payload": {}}])
    async def test_the_hook_sees_an_absent_payload_as_an_empty_one(self, wire: Wire, fields: dict[str, Any]) -> None:
        await wire.init(**fields)
        assert wire.hooks.payloads == [{}]

    async def test_an_init_that_cannot_be_read_is_told_and_another_one_may_follow(self, wire: Wire) -> None:
        wire.send("connection_init", payload="secret")
        wire.send("connection_init", payload={"token": "secret"})
        await quiet()
        assert [frame["type"] for frame in wire.frames] == ["connection_error", "connection_ack", "ka"]
        assert wire.hooks.payloads == [{"token": "secret"}]

    async def test_a_keep_alive_is_sent_at_the_interval(self) -> None:
        wire = Wire(GraphqlWs, Limits(keepalive=0.01))
        wire.send("connection_init")
        await wire.socket.until_sent("ka", times=3)
        await wire.close()

    async def test_no_keep_alive_is_sent_before_the_acknowledgement(self) -> None:
        wire = Wire(GraphqlWs, Limits(keepalive=0.001, init_timeout=0.02))
        await wire.socket.until_closed()
        assert wire.frames == []
        await wire.close()

    async def test_a_refused_init_is_told_and_then_the_socket_is_closed(self, wire: Wire) -> None:
        wire.hooks.answer = False
        wire.send("connection_init")
        await quiet()
        assert wire.frames == [{"type": "connection_error", "payload": {"message": "Forbidden"}}]
        assert wire.socket.closes == [(4403, "Forbidden")]

    @pytest.mark.parametrize("answer", [ValueError("the password is hunter2"), {"user": object()}, "yes", ""])
    async def test_a_hook_that_fails_is_told_as_an_internal_error_and_then_the_socket_is_closed(
        self, wire: Wire, answer: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        wire.hooks.answer = answer
        wire.send("connection_init")
        wire.send("start", id="1", payload=QUERY)
        await quiet()
        assert wire.frames == [{"type": "connection_error", "payload": {"message": "Internal server error"}}]
        assert wire.socket.closes == [(4500, "Internal server error")]
        assert wire.engine.runs == []
        assert "on_connect" in caplog.text

    async def test_without_an_init_in_time_the_socket_is_closed(self) -> None:
        wire = Wire(GraphqlWs, Limits(init_timeout=0.01))
        assert await wire.socket.until_closed() == 4408
        await wire.close()

    @pytest.mark.parametrize("state", ["ready", "pending"])
    async def test_a_second_init_is_an_error_and_the_first_one_counts(self, wire: Wire, state: str) -> None:
        wire.hooks.gate = asyncio.Event()
        wire.send("connection_init", payload={"n": 1})
        await quiet()
        if state == "ready":
            open_gate(wire)
            await quiet()
        wire.frames.clear()
        wire.send("connection_init", payload={"n": 2})
        await quiet()
        [frame] = wire.frames
        assert frame["type"] == "connection_error"
        assert wire.hooks.payloads == [{"n": 1}]
        assert wire.socket.closes == []


class TestStartBeforeTheAcknowledgement:
    async def test_without_an_init_it_never_runs(self, wire: Wire) -> None:
        wire.send("start", id="1", payload=QUERY)
        await quiet()
        assert wire.frames == [{"id": "1", "type": "error", "payload": {"message": "send connection_init first"}}]
        wire.send("connection_init")
        await quiet()
        assert wire.engine.runs == []

    async def test_with_a_pending_init_it_waits(self, pending: Wire) -> None:
        pending.send("start", id="1", payload=QUERY)
        await quiet()
        assert pending.engine.runs == []
        open_gate(pending)
        await quiet()
        assert pending.frames == [{"type": "connection_ack"}, {"type": "ka"}]
        assert pending.engine.queries == ["{ a }"]

    async def test_in_the_same_turn_as_the_init_it_runs_after_the_acknowledgement(self, wire: Wire) -> None:
        wire.send("connection_init")
        wire.send("start", id="1", payload=QUERY)
        assert wire.engine.runs == []
        await quiet()
        wire.engine.runs[0].emit('{"data": 1}')
        assert [frame["type"] for frame in wire.frames] == ["connection_ack", "ka", "data"]

    async def test_several_run_in_their_order(self, pending: Wire) -> None:
        for query in "abc":
            pending.send("start", id=query, payload={"query": query})
        open_gate(pending)
        await quiet()
        assert pending.engine.queries == ["a", "b", "c"]

    @pytest.mark.parametrize("answer", [False, ValueError(), "yes"])
    async def test_after_an_init_that_failed_it_never_runs(self, pending: Wire, answer: Any) -> None:
        pending.hooks.answer = answer
        pending.send("start", id="1", payload=QUERY)
        open_gate(pending)
        await quiet()
        pending.send("start", id="2", payload=QUERY)
        await quiet()
        assert pending.engine.runs == []
        assert [frame["type"] for frame in pending.frames] == ["connection_error"]

    async def test_after_the_client_has_terminated_it_never_runs(self, pending: Wire) -> None:
        pending.send("start", id="1", payload={"query": "mutation { a }"})
        pending.send("connection_terminate")
        open_gate(pending)
        await quiet()
        assert pending.engine.runs == []
        assert pending.frames == []
        assert pending.socket.sent_after_close == []

    async def test_a_stop_takes_it_back(self, pending: Wire) -> None:
        pending.send("start", id="1", payload=QUERY)
        pending.send("stop", id="1")
        open_gate(pending)
        await quiet()
        assert pending.engine.runs == []
        assert pending.frames[0] == {"id": "1", "type": "complete"}

    async def test_a_duplicate_id_replaces_the_older_one(self, pending: Wire) -> None:
        pending.send("start", id="1", payload={"query": "old"})
        pending.send("start", id="1", payload={"query": "new"})
        open_gate(pending)
        await quiet()
        assert pending.engine.queries == ["new"]

    async def test_only_as_many_wait_as_may_run(self) -> None:
        wire = Wire(GraphqlWs, Limits(operations=2))
        wire.hooks.gate = asyncio.Event()
        wire.send("connection_init")
        for name in ("1", "2", "3"):
            wire.send("start", id=name, payload=QUERY)
        wire.send("start", id="2", payload={"query": "again"})
        open_gate(wire)
        await quiet()
        assert wire.engine.queries == ["{ a }", "again"]
        [error] = [frame for frame in wire.frames if frame["type"] == "error"]
        assert error["id"] == "3"
        assert "2 operations" in error["payload"]["message"]
        await wire.close()


class TestOperations:
    async def test_results_are_sent_in_order_and_then_the_end(self, ready: Wire) -> None:
        ready.send("start", id="1", payload={**QUERY, "operationName": "A", "variables": {"v": 1}})
        await quiet()
        [run] = ready.engine.runs
        assert (run.request.operation_name, run.request.variables) == ("A", {"v": 1})
        for number in range(3):
            run.emit(f'{{"data": {number}}}')
        run.finish()
        await quiet()
        results = [{"id": "1", "type": "data", "payload": {"data": number}} for number in range(3)]
        assert ready.frames == [*results, {"id": "1", "type": "complete"}]

    @pytest.mark.parametrize("payload", [QUERY, {**QUERY, "operationName": None, "variables": None}])
    async def test_all_but_the_query_may_be_absent_or_null(self, ready: Wire, payload: dict[str, Any]) -> None:
        ready.send("start", id="1", payload=payload)
        await quiet()
        [run] = ready.engine.runs
        assert run.request == Request("{ a }")

    async def test_an_error_carries_one_error_and_nothing_follows_it(self, ready: Wire) -> None:
        ready.send("start", id="1", payload=QUERY)
        await quiet()
        ready.engine.runs[0].fail(RequestError([{"message": "first"}, {"message": "second"}]))
        await quiet()
        assert ready.frames == [{"id": "1", "type": "error", "payload": {"message": "first"}}]

    async def test_an_exception_in_a_stream_is_an_error_and_the_socket_stays(
        self, ready: Wire, caplog: pytest.LogCaptureFixture
    ) -> None:
        ready.send("start", id="1", payload=QUERY)
        await quiet()
        ready.engine.runs[0].fail(RuntimeError("the password is hunter2"))
        await quiet()
        assert ready.frames == [{"id": "1", "type": "error", "payload": {"message": "Internal server error"}}]
        assert ready.socket.closes == []
        assert "hunter2" in caplog.text

    async def test_a_stop_is_answered_with_complete_and_nothing_follows_it(self, ready: Wire) -> None:
        ready.send("start", id="1", payload=QUERY)
        await quiet()
        ready.send("stop", id="1")
        ready.engine.runs[0].emit('{"data": "late"}')
        await quiet()
        assert ready.frames == [{"id": "1", "type": "complete"}]
        assert ready.engine.runs[0].cancelled.is_set()

    async def test_a_stop_that_crosses_the_end_is_not_answered_with_a_second_complete(self, ready: Wire) -> None:
        for name in ("sent", "about to be sent"):
            ready.send("start", id=name, payload=QUERY)
        await quiet()
        sent, about_to_be_sent = ready.engine.runs
        sent.finish()
        await quiet()
        about_to_be_sent.finish()
        for name in ("sent", "about to be sent"):
            ready.send("stop", id=name)
        await quiet()
        assert ready.frames == [{"id": name, "type": "complete"} for name in ("sent", "about to be sent")]

    async def test_a_second_stop_is_ignored(self, ready: Wire) -> None:
        ready.send("start", id="1", payload=QUERY)
        await quiet()
        ready.send("stop", id="1")
        ready.send("stop", id="1")
        await quiet()
        assert ready.frames == [{"id": "1", "type": "complete"}]

    async def test_a_stop_of_an_unknown_id_is_ignored(self, ready: Wire) -> None:
        ready.send("stop", id="unknown")
        await quiet()
        assert ready.frames == []
        assert ready.socket.closes == []

    async def test_a_duplicate_start_replaces_the_older_operation(self, ready: Wire) -> None:
        ready.send("start", id="1", payload={"query": "old"})
        await quiet()
        ready.send("start", id="1", payload={"query": "new"})
        await quiet()
        old, new = ready.engine.runs
        assert old.cancelled.is_set()
        old.emit('{"data": "old"}')
        new.emit('{"data": "new"}')
        assert ready.frames == [{"id": "1", "type": "data", "payload": {"data": "new"}}]

    async def test_a_duplicate_start_replaces_an_operation_that_is_still_being_prepared(self, ready: Wire) -> None:
        ready.send("start", id="1", payload={"query": "old"})
        ready.send("start", id="1", payload={"query": "new"})
        await quiet()
        assert ready.engine.queries == ["new"]

    async def test_an_id_can_be_used_again_after_its_operation_has_ended(self, ready: Wire) -> None:
        for _ in range(2):
            ready.send("start", id="1", payload=QUERY)
            await quiet()
            ready.engine.runs[-1].finish()
            await quiet()
        assert [frame["type"] for frame in ready.frames] == ["complete", "complete"]

    async def test_a_duplicate_start_at_the_limit_replaces_and_another_id_is_an_error(self) -> None:
        wire = Wire(GraphqlWs, Limits(operations=1))
        await wire.init()
        wire.send("start", id="1", payload={"query": "old"})
        wire.send("start", id="1", payload={"query": "new"})
        wire.send("start", id="2", payload=QUERY)
        await quiet()
        assert wire.engine.queries == ["new"]
        message = "this socket has 1 operations, the most allowed"
        assert wire.frames == [{"id": "2", "type": "error", "payload": {"message": message}}]
        await wire.close()


class TestUnreadableFrames:
    @pytest.mark.parametrize("text", ["", "nonsense", "1", "null", "[]", '"start"', "{}", "[" * 100_000])
    async def test_what_is_no_message_is_told_and_the_socket_stays_open(self, wire: Wire, text: str) -> None:
        wire.text(text)
        [frame] = wire.frames
        assert frame["type"] == "connection_error"
        assert frame["payload"]["message"]
        assert wire.socket.closes == []
        wire.frames.clear()
        wire.send("connection_init")
        await quiet()
        assert wire.frames[0] == {"type": "connection_ack"}

    @pytest.mark.parametrize(
        "kind", ["connection_ack", "data", "error", "complete", "ka", "subscribe", "ping", "", "\ud800", "🦜" * 10_000]
    )
    async def test_a_type_that_no_client_sends_is_told_and_disturbs_no_operation(self, ready: Wire, kind: str) -> None:
        ready.send("start", id="1", payload=QUERY)
        await quiet()
        ready.send(kind, id="1", payload=QUERY)
        ready.engine.runs[0].emit('{"data": 1}')
        assert [frame["type"] for frame in ready.frames] == ["connection_error", "data"]
        assert len(json.dumps(ready.frames[0], ensure_ascii=False)) < 200

    @pytest.mark.parametrize(
        "fields",
        [
            {"payload": QUERY},
            {"id": "", "payload": QUERY},
            {"id": 1, "payload": QUERY},
            {"id": "1"},
            {"id": "1", "payload": None},
            {"id": "1", "payload": {"query": None}},
            {"id": "1", "payload": {**QUERY, "variables": "{}"}},
        ],
    )
    async def test_a_start_with_a_wrong_field_is_told_and_does_not_run(
        self, ready: Wire, fields: dict[str, Any]
    ) -> None:
        ready.send("start", **fields)
        await quiet()
        assert [frame["type"] for frame in ready.frames] == ["connection_error"]
        assert ready.engine.runs == []

    @pytest.mark.parametrize("fields", [{}, {"id": ""}, {"id": 1}, {"id": None}])
    async def test_a_stop_without_an_id_is_told_and_stops_nothing(self, ready: Wire, fields: dict[str, Any]) -> None:
        ready.send("start", id="1", payload=QUERY)
        await quiet()
        ready.send("stop", **fields)
        await quiet()
        assert [frame["type"] for frame in ready.frames] == ["connection_error"]
        assert not ready.engine.runs[0].cancelled.is_set()

    async def test_a_start_that_cannot_be_read_does_not_replace_the_operation_of_its_id(self, ready: Wire) -> None:
        ready.send("start", id="1", payload=QUERY)
        await quiet()
        ready.send("start", id="1", payload={})
        assert not ready.engine.runs[0].cancelled.is_set()
        ready.engine.runs[0].emit('{"data": 1}')
        assert ready.frames[-1]["type"] == "data"

    async def test_a_binary_frame_is_told_and_the_socket_stays_open(self, ready: Wire) -> None:
        ready.connection.received_bytes()
        assert [frame["type"] for frame in ready.frames] == ["connection_error"]
        assert ready.socket.closes == []


class TestTheEndOfTheConnection:
    async def test_a_restart_acknowledges_first_whoever_was_not_so_that_he_comes_back_with_his_starts(
        self, pending: Wire
    ) -> None:
        pending.send("start", id="1", payload={"query": "{ a }"})
        pending.connection.close(CloseCode.SERVICE_RESTART, "This server restarts")
        await quiet()
        assert pending.frames == [{"type": "connection_ack"}]
        assert pending.socket.code == 1012
        assert pending.engine.queries == []

    async def test_any_other_close_acknowledges_nobody(self, pending: Wire) -> None:
        pending.connection.close(CloseCode.FORBIDDEN, "Forbidden")
        await quiet()
        assert pending.frames == []

    async def test_a_client_that_terminates_is_closed_orderly_and_its_operations_end(self, ready: Wire) -> None:
        ready.send("start", id="1", payload=QUERY)
        await quiet()
        ready.send("connection_terminate")
        await quiet()
        assert ready.socket.closes == [(1000, "")]
        assert ready.engine.runs[0].cancelled.is_set()
        assert ready.frames == []

    async def test_after_a_close_every_frame_is_ignored(self, ready: Wire) -> None:
        ready.send("connection_terminate")
        ready.text("nonsense")
        ready.connection.received_bytes()
        ready.send("connection_init")
        ready.send("start", id="1", payload=QUERY)
        ready.send("connection_terminate")
        await quiet()
        assert ready.socket.closes == [(1000, "")]
        assert ready.frames == []
        assert ready.socket.sent_after_close == []
        assert ready.engine.runs == []

    async def test_a_client_may_terminate_before_it_has_initialised(self, wire: Wire) -> None:
        wire.send("connection_terminate")
        assert wire.socket.closes == [(1000, "")]

    async def test_ends_every_operation_even_when_one_resists(self, ready: Wire) -> None:
        ready.engine.resists.add("resists")
        for query in ("a", "resists", "b"):
            ready.send("start", id=query, payload={"query": query})
        await quiet()
        await ready.close()
        assert all(run.cancelled.is_set() for run in ready.engine.runs)

    async def test_leaves_no_task_behind(self, caplog: pytest.LogCaptureFixture) -> None:
        before = asyncio.all_tasks()
        wire = Wire(GraphqlWs, Limits(keepalive=0.001))
        wire.send("connection_init")
        for name in ("1", "2", "2", "3"):
            wire.send("start", id=name, payload=QUERY)
        await wire.socket.until_sent("ka", times=2)
        wire.send("stop", id="3")
        await wire.close()
        assert asyncio.all_tasks() == before
        assert [record for record in caplog.records if record.levelno > logging.INFO] == []
