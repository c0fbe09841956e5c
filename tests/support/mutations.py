"""
Frames that a client might send, and what becomes of them when something goes wrong: bytes, tokens and fields.

None is nested so deeply that it depends on the stack whether Python can read it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from copy import deepcopy
from random import Random
from typing import Any

FIRST = '{"type": "connection_init"}'

QUERY = "{ a }"

VALID = {
    "graphql-transport-ws": ("ping", "pong", "subscribe", "subscribe", "subscribe", "complete"),
    "graphql-ws": ("start", "start", "start", "stop"),
}

SELDOM = {
    "graphql-transport-ws": ("connection_init",),
    "graphql-ws": ("connection_init", "connection_terminate"),
}

TYPES = [
    *("connection_init", "ping", "pong", "subscribe", "complete"),
    *("start", "stop", "connection_terminate"),
    *("connection_ack", "next", "error", "data", "ka", "connection_error"),
]

NAMES = ["id", "type", "payload", "query", "operationName", "variables", "extensions"]

IDS: list[Any] = ["1", "2", "", " ", "\ud800", "\udc00\ud800", "ä" * 5_000, "🦜" * 1_000, "\0", "__proto__", 1, 1.0]

VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1.5, 1e308, 2**63, 10**400, "", "text", "\ud800", "\0", "x" * 20_000),
    *([], [[]], [None], {}, {"": None}, {"a": {"b": [1]}}, {"query": QUERY}, [{"query": QUERY}]),
]

TOKENS = [
    *("{", "}", "[", "]", ",", ":", '"', "\\", "\0", " ", "null", "true", "nul", "NaN", "-Infinity", "-", "0", "01"),
    *("1e308", "1e999", "-1E+999", "9" * 400, "9" * 5_000, "0." + "1" * 400, '"\\ud800"', '"\\uD83D\\uDE00"', '"\\u"'),
    *("\ud800", "\ufeff", "'", "//", "[" * 5_000, '{"a":' * 5_000, "[" * 50 + "]" * 50, '"id":"1"', '"type":"ping"'),
]

NUMBERS = ["NaN", "-Infinity", "1e999", "-1E+999", "1e-999", "1e308", "9" * 400, "9" * 5_000, "-0", "01", "0x1", "1."]

TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+|\s+|.', re.DOTALL)

RAW = ["", " ", "\0", "{", "nul", "null", "1", '"ping"', "[]", "{}", "[{}]", "\ufeff{}", "9" * 5_000, "[" * 100_000]


def valid(random: Random, subprotocol: str, query: str = QUERY) -> dict[str, Any]:
    """Return a message as clients send them."""
    kind = random.choice((VALID if random.random() < 0.995 else SELDOM)[subprotocol])
    message: dict[str, Any] = {"type": kind}
    if kind in {"ping", "pong", *SELDOM[subprotocol]}:
        return message | random.choice([{}, {"payload": None}, {"payload": {"n": [1, "ä", None]}}])
    message["id"] = str(random.randrange(20))
    if kind in {"subscribe", "start"}:
        extra = {"operationName": None, "variables": {"v": random.randrange(10)}, "extensions": {}}
        message["payload"] = {"query": query} | ({} if random.random() < 0.5 else extra)
    return message


def frame(random: Random, subprotocol: str, oddity: float, query: str = QUERY) -> str:
    """Return a frame, with this probability one that something has happened to."""
    message = valid(random, subprotocol, query)
    if random.random() >= oddity:
        return json.dumps(message)
    return random.choice(MUTATIONS)(message, random)


def of_bytes(message: dict[str, Any], random: Random) -> str:
    data = bytearray(_written(message, random).encode(errors="surrogatepass"))
    for _ in range(random.choice([1, 1, 2, 8])):
        place = random.randrange(len(data) + 1)
        data[place : place + random.choice([0, 1, 4])] = random.randbytes(random.choice([0, 1, 1, 2]))
    # As a server reads it that replaces what is not UTF-8, and as one that hands on what it cannot read.
    return data.decode(errors=random.choice(["replace", "surrogateescape"]))


def of_tokens(message: dict[str, Any], random: Random) -> str:
    tokens = TOKEN.findall(_written(message, random))
    for _ in range(random.choice([1, 1, 2, 4])):
        place, other = random.randrange(len(tokens)), random.randrange(len(tokens))
        random.choice(TOKEN_MUTATIONS)(tokens, place, other, random)
        tokens = tokens or [""]
    return "".join(tokens)


def of_fields(message: dict[str, Any], random: Random) -> str:
    for _ in range(random.choice([1, 1, 2, 3])):
        payload = message.get("payload")
        fields = payload if isinstance(payload, dict) and random.random() < 0.5 else message
        name = random.choice(NAMES)
        random.choice(FIELD_MUTATIONS)(fields, name, random)
    return _written(message, random)


def with_duplicate_keys(message: dict[str, Any], random: Random) -> str:
    name = random.choice(NAMES[:3])
    again = f"{json.dumps(name)}: {json.dumps(_odd(name, random))}"
    text = json.dumps(message)
    return f"{{{again}, {text[1:]}" if random.random() < 0.5 else f"{text[:-1]}, {again}}}"


def cut_or_joined(message: dict[str, Any], random: Random) -> str:
    text = _written(message, random)
    place = random.randrange(len(text))
    return random.choice([text[:place], text[place:], text[place:] + text[:place], text * 2, text + "\n", text[::-1]])


def nested(message: dict[str, Any], random: Random) -> str:
    depth = random.choice([2, 50, 5_000, 20_000])
    opening, closing = random.choice([('{"a":', "}"), ("[", "]")])
    inner = opening * depth + "1" + closing * depth
    return json.dumps(message | {"payload": "deep"}).replace('"deep"', f'{{"query":"{QUERY}","variables":{inner}}}')


def with_an_odd_number(message: dict[str, Any], random: Random) -> str:
    payload = message.get("payload") or {}
    inside = {"payload": {**payload, "n": "odd"}} if random.random() < 0.7 else {random.choice(NAMES): "odd"}
    return json.dumps(message | inside).replace('"odd"', random.choice(NUMBERS))


def raw(message: dict[str, Any], random: Random) -> str:
    return random.choice(RAW)


MUTATIONS: list[Callable[[dict[str, Any], Random], str]] = [
    *(of_bytes, of_bytes, of_tokens, of_tokens, of_fields, of_fields, of_fields),
    *(with_duplicate_keys, with_an_odd_number, cut_or_joined, nested, raw),
]


def _put(tokens: list[str], place: int, other: int, random: Random) -> None:
    tokens.insert(place, random.choice(TOKENS))


def _replace(tokens: list[str], place: int, other: int, random: Random) -> None:
    tokens[place] = random.choice(TOKENS)


def _remove(tokens: list[str], place: int, other: int, random: Random) -> None:
    del tokens[place]


def _repeat(tokens: list[str], place: int, other: int, random: Random) -> None:
    tokens[place:place] = [tokens[other]] * random.choice([1, 2, 100])


def _swap(tokens: list[str], place: int, other: int, random: Random) -> None:
    tokens[place], tokens[other] = tokens[other], tokens[place]


TOKEN_MUTATIONS = [_put, _replace, _replace, _remove, _repeat, _swap]


def _drop(fields: dict[str, Any], name: str, random: Random) -> None:
    fields.pop(name, None)


def _change(fields: dict[str, Any], name: str, random: Random) -> None:
    fields[name] = _odd(name, random)


def _rename(fields: dict[str, Any], name: str, random: Random) -> None:
    if name in fields:
        fields[random.choice([name.upper(), f" {name}", f"{name}s", ""])] = fields.pop(name)


FIELD_MUTATIONS = [_drop, _change, _change, _change, _rename]


def _odd(name: str, random: Random) -> Any:
    usual = {"id": IDS, "type": TYPES}.get(name)
    value = random.choice(usual if usual is not None and random.random() < 0.7 else VALUES)
    # A copy: something may happen to the value, too.
    return deepcopy(value) if isinstance(value, (list, dict)) else value


def _written(message: dict[str, Any], random: Random) -> str:
    return json.dumps(message, ensure_ascii=random.random() < 0.5)
