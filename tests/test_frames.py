"""Frames: what a client sent is read in full or refused with a short reason; what we send is JSON."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgnotify_gql.transport.close_codes import REASON_BYTES, CloseCode, reason
from pgnotify_gql.transport.frames import SHOWN, Frame, FrameError, ResultEnvelope, message, shown

DEEP = 100_000


def request_of(**payload: Any) -> Any:
    return Frame("subscribe", {"id": "1", "payload": payload}).request()


@pytest.mark.parametrize(
    "text",
    ["", " ", "{", "nonsense", "{'type': 'ping'}", '{"type": "ping"} {}', "\0", "\ufeff{}", "1" * 5_000],
)
def test_what_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(FrameError, match="is not JSON"):
        Frame.parse(text)


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_constants_that_python_reads_and_json_does_not_have_are_refused(constant: str) -> None:
    with pytest.raises(FrameError, match="is not JSON"):
        Frame.parse(f'{{"type": "ping", "payload": {{"n": {constant}}}}}')


def test_a_number_too_large_for_a_float_is_refused_because_it_could_not_be_echoed() -> None:
    with pytest.raises(FrameError, match="is not JSON"):
        Frame.parse('{"type": "ping", "payload": {"n": 1e999}}')


@pytest.mark.parametrize("opening", ["[", '{"type":'])
def test_json_nested_too_deeply_is_refused_like_no_json(opening: str) -> None:
    with pytest.raises(FrameError, match="is not JSON"):
        Frame.parse(opening * DEEP)


@pytest.mark.parametrize("text", ["1", "1.5", "true", "null", '"ping"', "[]", '[{"type": "ping"}]'])
def test_json_that_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(FrameError, match="is not a JSON object"):
        Frame.parse(text)


@pytest.mark.parametrize("kind", [None, 1, True, [], {}, ["ping"]])
def test_a_type_that_is_no_string_is_refused(kind: Any) -> None:
    with pytest.raises(FrameError, match="'type'"):
        Frame.parse(json.dumps({"type": kind}))


def test_a_message_without_a_type_is_refused() -> None:
    with pytest.raises(FrameError, match="'type'"):
        Frame.parse("{}")


@pytest.mark.parametrize("value", [None, "", 0, 1, 1.0, True, [], {}, ["1"]])
def test_an_id_that_is_no_non_empty_string_is_refused(value: Any) -> None:
    with pytest.raises(FrameError, match="'id' that is a non-empty string"):
        Frame("complete", {"id": value}).id()


@pytest.mark.parametrize("value", ["1", " ", "ä" * 10_000, "\ud800", "\0", "__proto__"])
def test_every_non_empty_string_is_an_id(value: str) -> None:
    assert Frame.parse(json.dumps({"type": "complete", "id": value})).id() == value


@pytest.mark.parametrize("value", [0, 1, "", "text", [], [1], True, False])
def test_a_payload_that_is_neither_object_nor_null_is_refused(value: Any) -> None:
    with pytest.raises(FrameError, match="payload of 'ping' must be an object"):
        Frame("ping", {"payload": value}).payload()


@pytest.mark.parametrize("fields", [{}, {"payload": None}])
def test_an_absent_payload_and_null_are_the_same(fields: dict[str, Any]) -> None:
    assert Frame("ping", fields).payload() is None


@pytest.mark.parametrize("fields", [{}, {"payload": None}])
def test_a_request_needs_a_payload(fields: dict[str, Any]) -> None:
    with pytest.raises(FrameError, match="'subscribe' needs a payload"):
        Frame("subscribe", fields).request()


@pytest.mark.parametrize("query", [None, 1, {}, []])
def test_a_query_that_is_no_string_is_refused(query: Any) -> None:
    with pytest.raises(FrameError, match="'query'"):
        request_of(query=query)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("operationName", 1),
        ("operationName", {}),
        ("variables", []),
        ("variables", "{}"),
        ("variables", 1),
        ("extensions", []),
        ("extensions", "text"),
    ],
)
def test_a_part_of_a_request_that_has_the_wrong_type_is_refused_by_its_name(name: str, value: Any) -> None:
    with pytest.raises(FrameError, match=f"'{name}' must be"):
        request_of(query="{a}", **{name: value})


def test_the_optional_parts_of_a_request_may_be_null() -> None:
    request = request_of(query="{a}", operationName=None, variables=None, extensions=None)
    assert (request.operation_name, request.variables, request.extensions) == (None, None, None)


def test_a_request_carries_all_its_parts() -> None:
    request = request_of(query="{a}", operationName="A", variables={"v": 1}, extensions={"e": 2})
    assert (request.query, request.operation_name) == ("{a}", "A")
    assert (request.variables, request.extensions) == ({"v": 1}, {"e": 2})


def test_what_is_none_is_left_out_of_a_message() -> None:
    assert message("ping") == '{"type": "ping"}'
    assert json.loads(message("error", id="1", payload=[])) == {"type": "error", "id": "1", "payload": []}


@given(st.text(min_size=1))
def test_a_result_is_put_around_its_payload_whatever_the_id(operation_id: str) -> None:
    frame = json.loads(ResultEnvelope.of("next", operation_id)('{"data":null}'))
    assert frame == {"id": operation_id, "type": "next", "payload": {"data": None}}


def test_a_clients_own_text_is_shown_up_to_a_length() -> None:
    assert shown("ä" * SHOWN) == "ä" * SHOWN
    assert shown("ä" * (SHOWN + 1)) == "ä" * SHOWN + "..."


@given(st.text(alphabet=st.characters(codec=None)))
def test_a_reason_is_the_beginning_of_its_text_and_fits_a_close_frame(text: str) -> None:
    cut = reason(text).encode()
    assert len(cut) <= REASON_BYTES
    assert text.encode(errors="replace").startswith(cut)


@pytest.mark.parametrize("character", ["a", "ä", "€", "🦜"])
def test_a_long_reason_is_cut_between_characters(character: str) -> None:
    width = len(character.encode())
    assert reason(character * 200) == character * (REASON_BYTES // width)


def test_a_reason_with_half_a_surrogate_pair_can_be_sent() -> None:
    assert reason("id \ud800") == "id ?"


def test_close_codes_are_those_of_the_specifications() -> None:
    assert {code.name: int(code) for code in CloseCode} == {
        "NORMAL": 1000,
        "GOING_AWAY": 1001,
        "MESSAGE_TOO_BIG": 1009,
        "SERVICE_RESTART": 1012,
        "TRY_AGAIN_LATER": 1013,
        "BAD_REQUEST": 4400,
        "UNAUTHORIZED": 4401,
        "FORBIDDEN": 4403,
        "SUBPROTOCOL_NOT_ACCEPTABLE": 4406,
        "INITIALISATION_TIMEOUT": 4408,
        "SUBSCRIBER_EXISTS": 4409,
        "TOO_MANY_REQUESTS": 4429,
        "INTERNAL_SERVER_ERROR": 4500,
    }
