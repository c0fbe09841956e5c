"""
Random and mutated frames, against both protocols.

Whatever comes in: no traceback, no result before the acknowledgement, nothing after the end of an operation, and if
the socket is closed, then with a code of the specification. A failing seed shows its frames.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

from pgnotify_gql.transport.graphql_transport_ws import GraphqlTransportWs
from pgnotify_gql.transport.graphql_ws import GraphqlWs
from pgnotify_gql.transport.protocol import Connection, Limits, RequestError
from tests.support.sockets import Run, Wire, quiet

FRAMES = 5_000
"""For each protocol."""

FRAMES_OF_A_SOCKET = 25

SEEDS = 10

QUERY = {"query": "{ a }"}

LATE = {"data": "late"}

TRANSPORT_CODES = {4400, 4401, 4403, 4409, 4429}
LEGACY_CODES = {1000, 4403}

TYPES = [
    *("connection_init", "ping", "pong", "subscribe", "complete"),
    *("start", "stop", "connection_terminate"),
    *("connection_ack", "next", "error", "data", "ka", "connection_error"),
]
IDS: list[Any] = ["1", "2", "3", "", " ", "\ud800", "ä" * 1_000, "\0", 1, None, [], {}, True]
VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    1e308,
    10**400,
    "",
    "text",
    "\ud800",
    [],
    [[]],
    {},
    {"a": {"b": [1]}},
    {"": None},
]
RAW = [
    "",
    "{",
    "nul",
    "[" * 5_000,
    '{"type":NaN}',
    '{"type":"ping","payload":{"n":1e999}}',
    "\ufeff{}",
    "\0",
    "9" * 5_000,
]


def odd_payload(random: Random) -> Any:
    if random.random() < 0.5:
        return random.choice(VALUES)
    names = ["query", "operationName", "variables", "extensions"]
    return QUERY | {random.choice(names): random.choice(VALUES)}


def odd_frame(random: Random) -> str:
    if random.random() < 0.2:
        return random.choice(RAW)
    message: dict[str, Any] = {"type": random.choice(TYPES), "id": random.choice(IDS), "payload": odd_payload(random)}
    for name in list(message):
        if random.random() < 0.1:
            del message[name]
        elif random.random() < 0.1:
            message[name] = random.choice(VALUES)
    text = json.dumps(message, ensure_ascii=random.random() < 0.5)
    return mutated(text, random) if random.random() < 0.3 else text


def good_frame(random: Random, types: list[str]) -> str:
    message: dict[str, Any] = {"type": random.choice(types), "id": str(random.randrange(30))}
    if message["type"] in {"subscribe", "start"}:
        message["payload"] = QUERY
    return json.dumps(message)


def mutated(text: str, random: Random) -> str:
    place = random.randrange(len(text))
    return random.choice(
        [
            text[:place],
            text[:place] + random.choice('{}[]",:0\\\x00') + text[place:],
            text[:place] + text[place + 1 :],
            text[place:] + text[:place],
            text * 2,
        ]
    )


def check(frames: list[dict[str, Any]], result: str) -> None:
    kinds = [frame["type"] for frame in frames]
    assert set(kinds) <= {"connection_ack", "connection_error", "ka", "pong", result, "error", "complete"}
    assert kinds.count("connection_ack") <= 1
    if result in kinds:
        assert kinds.index("connection_ack") < kinds.index(result), "a result before the acknowledgement"
    for frame in frames:
        assert set(frame) <= {"id", "type", "payload"}
        assert None not in frame.values(), "an absent payload is left out"
        assert frame.get("payload") != LATE, "a result after the end"


def play(run: Run, random: Random) -> None:
    """Let something come of a request, sometimes after its end."""
    if run.over:
        run.emit(json.dumps(LATE))
        return
    if run.end.done():
        return
    choice = random.random()
    if choice < 0.5:
        run.emit('{"data": 1}')
    elif choice < 0.7:
        run.finish()
    elif choice < 0.8:
        run.fail(RequestError([{"message": "no"}]))


def conversations(random: Random, types: list[str]) -> Iterator[list[str]]:
    for _ in range(FRAMES // FRAMES_OF_A_SOCKET // SEEDS):
        oddity = random.choice([0.01, 0.1, 0.5])
        frames = [
            odd_frame(random) if random.random() < oddity else good_frame(random, types)
            for _ in range(FRAMES_OF_A_SOCKET)
        ]
        if random.random() < 0.8:
            frames[0] = '{"type": "connection_init"}'
        yield frames


async def converse(wire: Wire, frames: list[str], random: Random) -> None:
    for text in frames:
        wire.text(text)
        if random.random() < 0.8:
            await quiet()
        for run in wire.engine.runs:
            if random.random() < 0.5:
                play(run, random)
    await quiet()


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize(
    ("protocol", "result", "codes", "types"),
    [
        (GraphqlTransportWs, "next", TRANSPORT_CODES, ["ping", "pong", "subscribe", "subscribe", "complete"]),
        (GraphqlWs, "data", LEGACY_CODES, ["start", "start", "stop"]),
    ],
)
async def test_random_frames_meet_the_specification(
    protocol: type[Connection],
    result: str,
    codes: set[int],
    types: list[str],
    seed: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    random = Random(seed)
    closed: Counter[int | None] = Counter()
    results = 0
    for frames in conversations(random, types):
        wire = Wire(protocol, Limits(operations=3))
        wire.hooks.answer = random.choice([None, None, None, {"user": "alice"}, False])
        try:
            await converse(wire, frames, random)
            check(wire.frames, result)
            assert wire.socket.code is None or wire.socket.code in codes
            assert len(wire.socket.closes) <= 1
            assert wire.socket.sent_after_close == []
            assert wire.hooks.answer is not False or wire.engine.runs == []
        except BaseException as error:
            error.add_note("\n".join(frames)[:10_000])
            raise
        finally:
            await wire.close()
        closed[wire.socket.code] += 1
        results += sum(sent["type"] == result for sent in wire.frames)
    assert [entry for entry in caplog.records if entry.levelno > logging.INFO] == []
    # The frames reach what they are meant to reach.
    assert results > 0
    assert len(closed) > 1
