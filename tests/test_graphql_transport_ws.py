"""The subprotocol graphql-transport-ws, to the letter."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from pgnotify_gql.transport.close_codes import REASON_BYTES, CloseCode, reason
from pgnotify_gql.transport.frames import Request
from pgnotify_gql.transport.graphql_transport_ws import GraphqlTransportWs
from pgnotify_gql.transport.protocol import Limits, RequestError
from tests.support.sockets import FakeSocket, Wire, quiet

QUERY = {"query": "{ a }"}


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    wire = Wire(GraphqlTransportWs)
    yield wire
    await wire.close()


@pytest.fixture
async def ready(wire: Wire) -> Wire:
    """A connection that is acknowledged."""
    await wire.init()
    return wire


class TestInitialisation:
    async def test_an_init_is_acknowledged_without_a_payload(self, wire: Wire) -> None:
        wire.send("connection_init")
        await quiet()
        assert wire.frames == [{"type": "connection_ack"}]

    @pytest.mark.parametrize("fields", [{}, {"payload": None}, {"payload": {}}])
    async def test_the_hook_sees_an_absent_payload_as_an_empty_one(self, wire: Wire, fields: dict[str, Any]) -> None:
        await wire.init(**fields)
        assert wire.hooks.payloads == [{}]

    async def test_the_hook_sees_the_payload(self, wire: Wire) -> None:
        await wire.init(payload={"token": "secret"})
        assert wire.hooks.payloads == [{"token": "secret"}]

    @pytest.mark.parametrize("payload", [1, "text", [], True])
    async def test_a_payload_that_is_no_object_is_a_bad_request(self, wire: Wire, payload: Any) -> None:
        wire.send("connection_init", payload=payload)
        assert wire.socket.code == 4400
        assert wire.hooks.payloads == []

    async def test_what_the_hook_returns_is_the_payload_of_the_acknowledgement(self, wire: Wire) -> None:
        wire.hooks.answer = {"user": "alice"}
        wire.send("connection_init")
        await quiet()
        assert wire.frames == [{"type": "connection_ack", "payload": {"user": "alice"}}]

    @pytest.mark.parametrize("answer", [None, True])
    async def test_a_hook_may_accept_without_a_payload(self, wire: Wire, answer: Any) -> None:
        wire.hooks.answer = answer
        wire.send("connection_init")
        await quiet()
        assert wire.frames == [{"type": "connection_ack"}]

    async def test_an_empty_payload_of_the_acknowledgement_is_sent(self, wire: Wire) -> None:
        wire.hooks.answer = {}
        wire.send("connection_init")
        await quiet()
        assert wire.frames == [{"type": "connection_ack", "payload": {}}]

    async def test_a_refused_init_is_forbidden(self, wire: Wire) -> None:
        wire.hooks.answer = False
        wire.send("connection_init")
        await quiet()
        assert wire.socket.closes == [(4403, "Forbidden")]
        assert wire.frames == []

    async def test_a_hook_that_raises_closes_as_an_internal_error_and_says_nothing_more(
        self, wire: Wire, caplog: pytest.LogCaptureFixture
    ) -> None:
        wire.hooks.answer = ValueError("the password is hunter2")
        wire.send("connection_init")
        await quiet()
        assert wire.socket.closes == [(4500, "Internal server error")]
        assert "on_connect failed" in caplog.text

    @pytest.mark.parametrize(
        "answer", [{"user": object()}, {"when": {1, 2}}, {"deep": float("nan")}, "yes", 0, "", 1, [], object()]
    )
    async def test_a_hook_that_returns_what_cannot_be_sent_does_not_open_the_connection(
        self, wire: Wire, answer: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        wire.hooks.answer = answer
        wire.send("connection_init")
        await quiet()
        assert wire.socket.closes == [(4500, "Internal server error")]
        wire.send("subscribe", id="1", payload=QUERY)
        await quiet()
        assert wire.frames == []
        assert wire.engine.runs == []
        assert "on_connect" in caplog.text

    async def test_a_second_init_is_one_too_many(self, ready: Wire) -> None:
        ready.send("connection_init")
        assert ready.socket.closes == [(4429, "Too many initialisation requests")]

    async def test_a_second_init_while_the_first_is_pending_is_one_too_many(self, wire: Wire) -> None:
        wire.hooks.gate = asyncio.Event()
        wire.send("connection_init")
        await quiet()
        wire.send("connection_init")
        assert wire.socket.closes == [(4429, "Too many initialisation requests")]

    async def test_two_inits_in_one_turn_ask_the_application_once(self, wire: Wire) -> None:
        wire.send("connection_init")
        wire.send("connection_init")
        await quiet()
        assert wire.socket.code == 4429
        assert len(wire.hooks.payloads) <= 1

    async def test_an_init_that_ends_after_the_socket_was_closed_sends_nothing(self, wire: Wire) -> None:
        wire.hooks.gate = asyncio.Event()
        wire.send("connection_init")
        await quiet()
        wire.send("connection_init")
        wire.hooks.gate.set()
        await quiet()
        assert wire.frames == []
        assert wire.socket.sent_after_close == []
        assert len(wire.socket.closes) == 1

    async def test_an_init_that_ends_in_a_refusal_after_the_close_does_not_close_again(self, wire: Wire) -> None:
        wire.hooks.gate, wire.hooks.answer = asyncio.Event(), False
        wire.send("connection_init")
        await quiet()
        wire.send("connection_init")
        wire.hooks.gate.set()
        await quiet()
        assert [code for code, _ in wire.socket.closes] == [4429]

    async def test_without_an_init_in_time_the_socket_is_closed(self) -> None:
        wire = Wire(GraphqlTransportWs, Limits(init_timeout=0.01))
        assert await wire.socket.until_closed() == 4408
        assert wire.socket.closes == [(4408, "Connection initialisation timeout")]
        await wire.close()

    async def test_a_ping_is_no_init_and_does_not_stop_the_clock(self) -> None:
        wire = Wire(GraphqlTransportWs, Limits(init_timeout=0.01))
        wire.send("ping")
        assert await wire.socket.until_closed() == 4408
        await wire.close()

    async def test_an_init_that_came_in_time_may_take_longer_to_be_answered(self) -> None:
        wire = Wire(GraphqlTransportWs, Limits(init_timeout=0.01))
        wire.hooks.gate = asyncio.Event()
        wire.send("connection_init")
        # The time-out was set before this one, and so comes before it.
        await asyncio.sleep(0.02)
        assert wire.socket.closes == []
        wire.hooks.gate.set()
        await wire.socket.until_sent("connection_ack")
        await wire.close()

    async def test_a_time_out_does_not_close_what_is_closed(self) -> None:
        wire = Wire(GraphqlTransportWs, Limits(init_timeout=0.01))
        wire.text("nonsense")
        await asyncio.sleep(0.02)
        assert [code for code, _ in wire.socket.closes] == [4400]
        await wire.close()

    async def test_a_socket_that_is_closed_by_the_acknowledgement_is_not_pinged(self) -> None:
        class Full(FakeSocket):
            def send(self, frame: str) -> None:
                super().send(frame)
                full.connection.close(CloseCode.TRY_AGAIN_LATER, "Too many messages are waiting for this client")

        full = Wire(GraphqlTransportWs, Limits(), Full())
        full.send("connection_init")
        assert await full.socket.until_closed() == 1013
        await quiet()
        assert full.connection not in full.connection._keep_alive_alarms
        await full.close()

    async def test_a_client_may_subscribe_as_soon_as_it_has_the_acknowledgement(self, wire: Wire) -> None:
        def subscribe_at_once(frame: str) -> None:
            send(frame)
            if json.loads(frame)["type"] == "connection_ack":
                wire.send("subscribe", id="1", payload=QUERY)

        send = wire.socket.send
        wire.socket.send = subscribe_at_once  # type: ignore[method-assign]
        await wire.init()
        assert wire.engine.queries == ["{ a }"]
        assert wire.socket.closes == []


class TestPingAndPong:
    async def test_a_ping_is_answered_at_once(self, ready: Wire) -> None:
        ready.send("ping")
        assert ready.frames == [{"type": "pong"}]

    async def test_a_ping_is_answered_before_the_init_with_its_payload(self, wire: Wire) -> None:
        wire.send("ping", payload={"n": [1, "ä", None]})
        assert wire.frames == [{"type": "pong", "payload": {"n": [1, "ä", None]}}]

    async def test_a_ping_is_answered_while_the_init_is_pending(self, wire: Wire) -> None:
        wire.hooks.gate = asyncio.Event()
        wire.send("connection_init")
        await quiet()
        wire.send("ping")
        assert wire.frames == [{"type": "pong"}]

    async def test_an_empty_payload_is_echoed_and_null_is_left_out(self, wire: Wire) -> None:
        wire.send("ping", payload={})
        wire.send("ping", payload=None)
        assert wire.frames == [{"type": "pong", "payload": {}}, {"type": "pong"}]

    async def test_a_pong_is_taken_unasked(self, wire: Wire) -> None:
        wire.send("pong")
        wire.send("pong", payload={"n": 1})
        assert wire.frames == []
        assert wire.socket.closes == []

    @pytest.mark.parametrize("kind", ["ping", "pong"])
    async def test_a_payload_that_is_no_object_is_a_bad_request(self, wire: Wire, kind: str) -> None:
        wire.send(kind, payload="text")
        assert wire.socket.code == 4400

    async def test_a_silent_connection_is_pinged_at_the_interval(self) -> None:
        wire = Wire(GraphqlTransportWs, Limits(keepalive=0.01))
        await wire.init()
        await wire.socket.until_sent("ping", times=2)
        assert wire.frames == [{"type": "ping"}] * len(wire.frames)
        await wire.close()

    async def test_nobody_is_pinged_before_the_acknowledgement(self) -> None:
        wire = Wire(GraphqlTransportWs, Limits(keepalive=0.001, init_timeout=0.02))
        await wire.socket.until_closed()
        assert wire.frames == []
        await wire.close()


class TestSubscribe:
    async def test_before_an_init_it_is_unauthorized_and_nothing_runs(self, wire: Wire) -> None:
        wire.send("subscribe", id="1", payload=QUERY)
        await quiet()
        assert wire.socket.closes == [(4401, "Unauthorized")]
        assert wire.engine.runs == []

    async def test_before_the_acknowledgement_it_is_unauthorized_and_nothing_runs(self, wire: Wire) -> None:
        wire.hooks.gate = asyncio.Event()
        wire.send("connection_init")
        await quiet()
        wire.send("subscribe", id="1", payload=QUERY)
        wire.hooks.gate.set()
        await quiet()
        assert wire.socket.code == 4401
        assert wire.engine.runs == []
        assert wire.frames == []

    async def test_in_the_same_turn_as_the_init_it_is_unauthorized(self, wire: Wire) -> None:
        wire.send("connection_init")
        wire.send("subscribe", id="1", payload=QUERY)
        await quiet()
        assert wire.socket.code == 4401
        assert wire.engine.runs == []

    async def test_after_a_refused_init_nothing_runs(self, wire: Wire) -> None:
        wire.hooks.answer = False
        wire.send("connection_init")
        await quiet()
        wire.send("subscribe", id="1", payload=QUERY)
        await quiet()
        assert wire.engine.runs == []
        assert [code for code, _ in wire.socket.closes] == [4403]

    @pytest.mark.parametrize(
        "fields",
        [
            {"payload": QUERY},
            {"id": "", "payload": QUERY},
            {"id": None, "payload": QUERY},
            {"id": 1, "payload": QUERY},
            {"id": "1"},
            {"id": "1", "payload": None},
            {"id": "1", "payload": []},
            {"id": "1", "payload": {}},
            {"id": "1", "payload": {"query": None}},
            {"id": "1", "payload": {"query": 1}},
            {"id": "1", "payload": {**QUERY, "operationName": 1}},
            {"id": "1", "payload": {**QUERY, "variables": []}},
            {"id": "1", "payload": {**QUERY, "variables": "{}"}},
            {"id": "1", "payload": {**QUERY, "extensions": "text"}},
        ],
    )
    async def test_with_a_wrong_field_it_is_a_bad_request(self, ready: Wire, fields: dict[str, Any]) -> None:
        ready.send("subscribe", **fields)
        await quiet()
        assert ready.socket.code == 4400
        assert ready.engine.runs == []

    async def test_a_bad_request_is_told_before_a_missing_init(self, wire: Wire) -> None:
        wire.send("subscribe", id="", payload=QUERY)
        assert wire.socket.code == 4400

    async def test_a_missing_init_is_told_before_an_id_in_use(self, wire: Wire) -> None:
        wire.send("subscribe", id="1", payload=QUERY)
        wire.send("subscribe", id="1", payload=QUERY)
        assert [code for code, _ in wire.socket.closes] == [4401]

    async def test_the_engine_is_given_all_of_the_request(self, ready: Wire) -> None:
        payload = {"query": "query A { a }", "operationName": "A", "variables": {"v": 1}, "extensions": {"e": 2}}
        ready.send("subscribe", id="1", payload=payload)
        await quiet()
        [run] = ready.engine.runs
        assert (run.request.query, run.request.operation_name) == ("query A { a }", "A")
        assert (run.request.variables, run.request.extensions) == ({"v": 1}, {"e": 2})

    @pytest.mark.parametrize(
        "payload", [QUERY, {**QUERY, "operationName": None, "variables": None, "extensions": None}]
    )
    async def test_all_but_the_query_may_be_absent_or_null(self, ready: Wire, payload: dict[str, Any]) -> None:
        ready.send("subscribe", id="1", payload=payload)
        await quiet()
        [run] = ready.engine.runs
        assert run.request == Request("{ a }")

    async def test_results_are_sent_in_order_and_then_the_end(self, ready: Wire) -> None:
        ready.send("subscribe", id="1", payload=QUERY)
        await quiet()
        [run] = ready.engine.runs
        for number in range(3):
            run.emit(f'{{"data": {number}}}')
        run.finish()
        await quiet()
        results = [{"id": "1", "type": "next", "payload": {"data": number}} for number in range(3)]
        assert ready.frames == [*results, {"id": "1", "type": "complete"}]

    async def test_an_id_in_use_closes_the_socket(self, ready: Wire) -> None:
        ready.send("subscribe", id="one", payload=QUERY)
        await quiet()
        ready.send("subscribe", id="one", payload=QUERY)
        assert ready.socket.closes == [(4409, "Subscriber for one already exists")]

    async def test_an_id_is_in_use_while_its_operation_is_still_being_prepared(self, ready: Wire) -> None:
        ready.send("subscribe", id="1", payload={"query": "first"})
        ready.send("subscribe", id="1", payload={"query": "second"})
        await quiet()
        assert ready.socket.code == 4409
        assert "second" not in ready.engine.queries

    @pytest.mark.parametrize("first", ["query { a }", "mutation { a }", "subscription { a }"])
    async def test_an_id_is_in_use_whatever_the_operation_type(self, ready: Wire, first: str) -> None:
        ready.send("subscribe", id="1", payload={"query": first})
        await quiet()
        ready.send("subscribe", id="1", payload=QUERY)
        assert ready.socket.code == 4409

    async def test_ids_of_other_operations_do_not_matter(self, ready: Wire) -> None:
        for name in ("1", "2", " ", "ä" * 10_000, "\ud800", "__proto__"):
            ready.send("subscribe", id=name, payload=QUERY)
        await quiet()
        assert len(ready.engine.runs) == 6
        ready.engine.runs[4].emit('{"data": 1}')
        assert ready.frames == [{"id": "\ud800", "type": "next", "payload": {"data": 1}}]

    async def test_errors_end_an_operation_and_nothing_follows_them(self, ready: Wire) -> None:
        ready.send("subscribe", id="1", payload=QUERY)
        await quiet()
        [run] = ready.engine.runs
        run.fail(RequestError([{"message": "first"}, {"message": "second"}]))
        await quiet()
        run.emit('{"data": "late"}')
        await quiet()
        errors = [{"message": "first"}, {"message": "second"}]
        assert ready.frames == [{"id": "1", "type": "error", "payload": errors}]
        assert ready.socket.closes == []

    async def test_no_complete_follows_an_error_not_even_when_the_client_completes_what_failed(
        self, ready: Wire
    ) -> None:
        ready.send("subscribe", id="1", payload=QUERY)
        await quiet()
        ready.engine.runs[0].fail(RequestError([{"message": "no"}]))
        await quiet()
        # It crossed the error on the wire.
        ready.send("complete", id="1")
        await quiet()
        assert [frame["type"] for frame in ready.frames] == ["error"]
        assert ready.socket.closes == []

    async def test_an_exception_in_a_stream_is_an_error_and_the_socket_stays(
        self, ready: Wire, caplog: pytest.LogCaptureFixture
    ) -> None:
        ready.send("subscribe", id="1", payload=QUERY)
        ready.send("subscribe", id="2", payload=QUERY)
        await quiet()
        ready.engine.runs[0].emit('{"data": 1}')
        ready.engine.runs[0].fail(RuntimeError("the password is hunter2"))
        await quiet()
        ready.engine.runs[1].emit('{"data": 2}')
        assert ready.frames == [
            {"id": "1", "type": "next", "payload": {"data": 1}},
            {"id": "1", "type": "error", "payload": [{"message": "Internal server error"}]},
            {"id": "2", "type": "next", "payload": {"data": 2}},
        ]
        assert "hunter2" in caplog.text

    async def test_an_id_in_the_log_is_short_and_keeps_to_its_line(
        self, ready: Wire, caplog: pytest.LogCaptureFixture
    ) -> None:
        ready.send("subscribe", id="1\nERROR all is lost \ud800" + "x" * 10_000, payload=QUERY)
        await quiet()
        ready.engine.runs[0].fail(RuntimeError())
        await quiet()
        [record] = caplog.records
        assert "\n" not in record.getMessage()
        assert len(record.getMessage()) < 200
        record.getMessage().encode()

    async def test_an_id_can_be_used_again_as_soon_as_its_operation_has_ended(self, ready: Wire) -> None:
        for end in (None, RequestError([{"message": "no"}])):
            ready.send("subscribe", id="1", payload=QUERY)
            await quiet()
            ready.engine.runs[-1].finish() if end is None else ready.engine.runs[-1].fail(end)
            await quiet()
        ready.send("subscribe", id="1", payload=QUERY)
        await quiet()
        assert len(ready.engine.runs) == 3
        assert ready.socket.closes == []

    async def test_an_id_can_be_used_again_within_the_turn_in_which_its_end_is_sent(self, ready: Wire) -> None:
        def subscribe_again(frame: str) -> None:
            send(frame)
            if json.loads(frame)["type"] == "complete" and len(ready.engine.runs) < 2:
                ready.send("subscribe", id="1", payload=QUERY)

        send = ready.socket.send
        ready.socket.send = subscribe_again  # type: ignore[method-assign]
        ready.send("subscribe", id="1", payload=QUERY)
        await quiet()
        ready.engine.runs[0].finish()
        await quiet()
        assert len(ready.engine.runs) == 2
        assert ready.socket.closes == []

    async def test_one_operation_above_the_limit_is_an_error_and_the_others_go_on(self) -> None:
        wire = Wire(GraphqlTransportWs, Limits(operations=2))
        await wire.init()
        for name in ("1", "2", "3"):
            wire.send("subscribe", id=name, payload=QUERY)
        await quiet()
        assert wire.frames == [
            {"id": "3", "type": "error", "payload": [{"message": "this socket has 2 operations, the most allowed"}]}
        ]
        wire.engine.runs[0].finish()
        await quiet()
        wire.send("subscribe", id="3", payload=QUERY)
        await quiet()
        assert len(wire.engine.runs) == 3
        await wire.close()

    async def test_an_id_in_use_is_told_before_the_limit(self) -> None:
        wire = Wire(GraphqlTransportWs, Limits(operations=1))
        await wire.init()
        wire.send("subscribe", id="1", payload=QUERY)
        wire.send("subscribe", id="1", payload=QUERY)
        assert wire.socket.code == 4409
        await wire.close()


class TestComplete:
    async def test_a_completed_operation_is_ended_and_its_completion_not_echoed(self, ready: Wire) -> None:
        ready.send("subscribe", id="1", payload=QUERY)
        await quiet()
        ready.send("complete", id="1")
        await quiet()
        assert ready.engine.runs[0].cancelled.is_set()
        assert ready.frames == []

    async def test_a_late_result_of_a_completed_operation_is_not_sent(self, ready: Wire) -> None:
        ready.send("subscribe", id="1", payload=QUERY)
        await quiet()
        ready.send("complete", id="1")
        ready.engine.runs[0].emit('{"data": "late"}')
        await quiet()
        ready.engine.runs[0].emit('{"data": "later"}')
        assert ready.frames == []

    async def test_a_late_end_of_a_completed_operation_is_not_sent(self, ready: Wire) -> None:
        ready.engine.resists.add("{ a }")
        ready.send("subscribe", id="1", payload=QUERY)
        await quiet()
        ready.send("complete", id="1")
        await quiet()
        assert ready.engine.runs[0].cancelled.is_set()
        assert ready.frames == []

    async def test_an_operation_completed_while_it_is_prepared_never_sends(self, ready: Wire) -> None:
        ready.send("subscribe", id="1", payload=QUERY)
        ready.send("complete", id="1")
        await quiet()
        assert ready.engine.runs == []
        assert ready.frames == []

    async def test_a_completed_id_can_be_used_at_once_and_results_are_not_mixed(self, ready: Wire) -> None:
        ready.send("subscribe", id="1", payload={"query": "old"})
        await quiet()
        ready.send("complete", id="1")
        ready.send("subscribe", id="1", payload={"query": "new"})
        ready.engine.runs[0].emit('{"data": "old"}')
        await quiet()
        ready.engine.runs[0].emit('{"data": "old"}')
        ready.engine.runs[1].emit('{"data": "new"}')
        assert ready.frames == [{"id": "1", "type": "next", "payload": {"data": "new"}}]
        assert ready.socket.closes == []

    @pytest.mark.parametrize("initialised", [False, True])
    async def test_an_unknown_id_is_ignored(self, wire: Wire, initialised: bool) -> None:
        if initialised:
            await wire.init()
        wire.send("complete", id="unknown")
        await quiet()
        assert wire.frames == []
        assert wire.socket.closes == []

    async def test_one_that_crosses_ours_on_the_wire_is_ignored(self, ready: Wire) -> None:
        ready.send("subscribe", id="1", payload=QUERY)
        await quiet()
        ready.engine.runs[0].finish()
        await quiet()
        ready.send("complete", id="1")
        await quiet()
        assert ready.frames == [{"id": "1", "type": "complete"}]
        assert ready.socket.closes == []

    async def test_one_that_comes_before_an_end_is_sent_takes_its_place(self, ready: Wire) -> None:
        ready.send("subscribe", id="1", payload=QUERY)
        await quiet()
        ready.engine.runs[0].finish()
        ready.send("complete", id="1")
        await quiet()
        assert ready.frames == []

    async def test_a_second_complete_is_ignored(self, ready: Wire) -> None:
        ready.send("subscribe", id="1", payload=QUERY)
        await quiet()
        ready.send("complete", id="1")
        ready.send("complete", id="1")
        await quiet()
        assert ready.socket.closes == []

    @pytest.mark.parametrize("fields", [{}, {"id": ""}, {"id": 1}, {"id": None}])
    async def test_an_id_that_is_none_is_a_bad_request(self, ready: Wire, fields: dict[str, Any]) -> None:
        ready.send("complete", **fields)
        assert ready.socket.code == 4400


class TestBadRequests:
    @pytest.mark.parametrize("text", ["", "nonsense", "1", "null", "[]", '"ping"', "{}", "[" * 100_000])
    async def test_what_is_no_message_is_a_bad_request(self, wire: Wire, text: str) -> None:
        wire.text(text)
        assert wire.socket.code == 4400

    @pytest.mark.parametrize(
        "kind",
        # server-only, of the legacy protocol, and of none
        ["connection_ack", "next", "error", "start", "stop", "connection_terminate", "ka", "", "PING", "\ud800"],
    )
    async def test_a_type_that_no_client_sends_is_a_bad_request(self, ready: Wire, kind: str) -> None:
        ready.send(kind, id="1", payload={})
        assert ready.socket.code == 4400

    @pytest.mark.parametrize(
        ("text", "complaint"),
        [
            ("nonsense", "the message is not JSON"),
            ('["ping"]', "the message is not a JSON object"),
            ('{"id": "1"}', "the message has no 'type' that is a string"),
            ('{"type": "start"}', "'start' is no message that a client sends"),
            ('{"type": "connection_ack"}', "'connection_ack' is no message that a client sends"),
            ('{"type": "ping", "payload": []}', "the payload of 'ping' must be an object"),
            ('{"type": "complete", "id": ""}', "'complete' needs an 'id' that is a non-empty string"),
            ('{"type": "subscribe", "id": "1"}', "'subscribe' needs a payload"),
            ('{"type": "subscribe", "id": "1", "payload": {}}', "the payload needs a 'query' that is a string"),
        ],
    )
    async def test_the_reason_says_in_a_few_words_what_is_wrong(self, ready: Wire, text: str, complaint: str) -> None:
        ready.text(text)
        assert ready.socket.closes == [(4400, complaint)]

    async def test_a_binary_frame_is_a_bad_request(self, ready: Wire) -> None:
        ready.connection.received_bytes()
        assert ready.socket.closes == [(4400, "binary frames are not part of the protocol")]

    @pytest.mark.parametrize("character", ["x", "ä", "🦜", "\ud800", "\n"])
    async def test_a_reason_fits_a_close_frame_whatever_the_client_sent(self, ready: Wire, character: str) -> None:
        ready.send(character * 10_000)
        [(code, text)] = ready.socket.closes
        assert code == 4400
        assert len(reason(text).encode()) <= REASON_BYTES

    async def test_the_reason_of_an_id_in_use_fits_a_close_frame(self, ready: Wire) -> None:
        ready.send("subscribe", id="🦜" * 10_000, payload=QUERY)
        ready.send("subscribe", id="🦜" * 10_000, payload=QUERY)
        [(code, text)] = ready.socket.closes
        assert code == 4409
        assert len(reason(text).encode()) <= REASON_BYTES

    async def test_a_payload_at_any_depth_is_echoed_or_refused(self, wire: Wire) -> None:
        # Where Python gives up differs between its versions; all do so before the last.
        for depth in (*range(1, 1_100), 100_000):
            if wire.socket.closes:
                break
            wire.text('{"type": "ping", "payload": ' + '{"a": ' * depth + "1" + "}" * depth + "}")
        assert wire.socket.code == 4400
        assert wire.socket.texts

    async def test_after_a_close_every_frame_is_ignored(self, ready: Wire) -> None:
        ready.text("nonsense")
        ready.send("ping")
        ready.send("connection_init")
        ready.send("subscribe", id="1", payload=QUERY)
        ready.connection.received_bytes()
        await quiet()
        assert [code for code, _ in ready.socket.closes] == [4400]
        assert ready.frames == []
        assert ready.socket.sent_after_close == []
        assert ready.engine.runs == []

    async def test_an_error_of_ours_while_reading_is_logged_and_closes_as_an_internal_error(
        self, ready: Wire, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(ready.connection, "start", None)
        ready.send("subscribe", id="1", payload=QUERY)
        assert ready.socket.closes == [(4500, "Internal server error")]
        assert "could not be handled" in caplog.text


class TestTheEndOfTheConnection:
    async def test_ends_every_operation(self, ready: Wire) -> None:
        for name in ("1", "2", "3"):
            ready.send("subscribe", id=name, payload=QUERY)
        await quiet()
        await ready.close()
        assert all(run.cancelled.is_set() for run in ready.engine.runs)
        assert ready.frames == []

    async def test_ends_every_operation_even_when_one_resists(self, ready: Wire) -> None:
        ready.engine.resists.add("resists")
        for query in ("a", "resists", "b"):
            ready.send("subscribe", id=query, payload={"query": query})
        await quiet()
        await ready.close()
        assert all(run.cancelled.is_set() for run in ready.engine.runs)

    async def test_sends_nothing_of_what_comes_late(self, ready: Wire) -> None:
        ready.send("subscribe", id="1", payload=QUERY)
        await quiet()
        await ready.close()
        ready.engine.runs[0].emit('{"data": "late"}')
        assert ready.frames == []

    async def test_ends_a_pending_init(self, wire: Wire) -> None:
        wire.hooks.gate = asyncio.Event()
        wire.send("connection_init")
        await quiet()
        await wire.close()
        assert wire.frames == []
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("pgnotify_gql")]

    async def test_only_the_first_close_counts(self, ready: Wire) -> None:
        ready.text("nonsense")
        ready.connection.close(CloseCode.SERVICE_RESTART, "This server restarts")
        assert [code for code, _ in ready.socket.closes] == [4400]

    async def test_leaves_no_task_behind(self, caplog: pytest.LogCaptureFixture) -> None:
        before = asyncio.all_tasks()
        wire = Wire(GraphqlTransportWs, Limits(keepalive=0.001))
        await wire.init()
        for name in ("1", "2", "3"):
            wire.send("subscribe", id=name, payload=QUERY)
        wire.send("complete", id="2")
        await wire.socket.until_sent("ping")
        await wire.close()
        assert asyncio.all_tasks() == before
        assert [record for record in caplog.records if record.levelno > logging.INFO] == []

    @pytest.mark.parametrize("code", [1000, 1001, 1012])
    async def test_an_orderly_close_of_ours_is_the_last_thing_that_is_sent(self, ready: Wire, code: int) -> None:
        ready.send("subscribe", id="1", payload=QUERY)
        await quiet()
        ready.engine.runs[0].emit('{"data": 1}')
        ready.connection.close(CloseCode(code), "This server restarts")
        ready.engine.runs[0].emit('{"data": "late"}')
        ready.send("ping")
        await quiet()
        assert ready.frames == [{"id": "1", "type": "next", "payload": {"data": 1}}]
        assert ready.socket.closes == [(code, "This server restarts")]
        assert ready.socket.sent_after_close == []
        assert ready.engine.runs[0].cancelled.is_set()

    async def test_a_close_of_ours_ends_every_operation_without_waiting_for_the_client(self, ready: Wire) -> None:
        ready.send("subscribe", id="1", payload=QUERY)
        await quiet()
        ready.text("nonsense")
        await quiet()
        assert ready.engine.runs[0].cancelled.is_set()
