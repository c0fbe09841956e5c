"""
A prepared request answers what graphql-core answers.

It resolves simple fields by itself, so everything that may not be simple is compared: values, errors, and their order.
"""

from __future__ import annotations

import asyncio
import enum
import gc
import weakref
from collections.abc import Generator
from inspect import isawaitable
from types import SimpleNamespace
from typing import Any

import graphene
import pytest
from graphql import ExecutionResult, execute, parse

from pgnotify_gql.transport.prepared import PreparedRequest


class Colour(graphene.Enum):  # type: ignore[misc]
    RED = "r"
    BLUE = "b"


class Thing(graphene.Interface):  # type: ignore[misc]
    name = graphene.String()

    @classmethod
    def resolve_type(cls, instance: Any, info: Any) -> Any:
        return Node


class Node(graphene.ObjectType):  # type: ignore[misc]
    class Meta:
        interfaces = (Thing,)

    number = graphene.Int(required=True)
    real = graphene.Float()
    flag = graphene.Boolean()
    pk = graphene.ID()
    colour = graphene.Field(Colour)
    words = graphene.List(graphene.String)
    child = graphene.Field(lambda: Node)
    children = graphene.List(graphene.NonNull(lambda: Node))
    thing = graphene.Field(Thing)
    shouted = graphene.String(times=graphene.Int(default_value=1))
    later = graphene.String()
    own = graphene.String()

    @staticmethod
    def resolve_shouted(root: Any, info: Any, times: int) -> str:
        return "!" * times

    @staticmethod
    async def resolve_later(root: Any, info: Any) -> str:
        await asyncio.sleep(0)
        return "later"

    @staticmethod
    def resolve_own(root: Any, info: Any) -> str:
        return "/".join(map(str, info.path.as_list()))


class Query(graphene.ObjectType):  # type: ignore[misc]
    node = graphene.Field(Node)
    must = graphene.Field(Node, required=True)

    @staticmethod
    def resolve_node(root: Any, info: Any) -> Any:
        return root

    @staticmethod
    def resolve_must(root: Any, info: Any) -> Any:
        return root


SCHEMA = graphene.Schema(query=Query, types=[Node]).graphql_schema


class Fragile:
    """An object whose attributes raise, are errors, or can be awaited."""

    number = 1
    pk = ValueError("an error that is returned")

    @property
    def name(self) -> str:
        raise ValueError("an error that is raised")

    @property
    def real(self) -> Any:
        async def real() -> float:
            return 1.5

        return real()


class Later:
    """Can be awaited, again and again, and is no coroutine."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __await__(self) -> Generator[Any, None, Any]:
        yield from asyncio.sleep(0).__await__()
        return self._value


class Postponed:
    """Makes another one of what can be awaited each time."""

    name = "ann"
    number = 1

    @property
    def real(self) -> Later:
        return Later(1.5)


class Shade(enum.Enum):
    RED = "r"


PLAIN = {"name": "ann", "number": 1, "real": 0.5, "flag": True, "pk": 7, "colour": "r", "words": ["a", "b"]}

OBJECTS: dict[str, Any] = {
    "a dictionary": {**PLAIN, "child": {**PLAIN, "number": 2}, "children": [PLAIN, PLAIN], "thing": PLAIN},
    "an object": SimpleNamespace(
        **PLAIN, child=SimpleNamespace(number=3), children=[], thing=SimpleNamespace(name="x")
    ),
    "nulls": dict.fromkeys([*PLAIN, "child", "children", "thing"]),
    "what is missing": {"number": 1},
    "a null that must not be, deeper": {**PLAIN, "child": {}, "children": [PLAIN, {}]},
    "wrong types": {**PLAIN, "number": "x", "real": "y", "flag": "z", "colour": "green", "words": 5},
    "a number that is too large": {**PLAIN, "number": 2**40},
    "not a number": {**PLAIN, "real": float("nan")},
    "an enum": {**PLAIN, "colour": Shade.RED},
    "what is fragile": Fragile(),
    "what can be awaited": {**PLAIN, "real": Later(0.5), "number": Later(None)},
    "what makes what can be awaited": Postponed(),
}

QUERIES = [
    "{ node { name number real flag pk colour words } }",
    "{ node { own name shouted(times: 2) number again: name } }",
    "{ node { child { number name } children { number pk } thing { name ... on Node { number } } } }",
    "{ node { ...parts ...parts number } } fragment parts on Node { name pk }",
    "{ node { name later number } }",
    "{ node { name @skip(if: true) number @include(if: true) __typename pk } }",
    "{ must { number real } }",
    "query ($yes: Boolean!) { node { name @include(if: $yes) number } }",
]


async def test_a_coroutine_that_a_property_makes_is_not_left_unawaited() -> None:
    prepared = PreparedRequest(SCHEMA, parse("{ node { number real } }"), None, {})
    for _ in range(2):
        found = await settled(prepared.execute(Fragile(), None))
        assert found.data == {"node": {"number": 1, "real": 1.5}}


async def test_a_coroutine_that_an_object_holds_is_awaited() -> None:
    async def real() -> float:
        return 1.5

    prepared = PreparedRequest(SCHEMA, parse("{ node { number real } }"), None, {})
    for _ in range(2):
        found = await settled(prepared.execute(SimpleNamespace(number=1, real=real()), None))
        assert found.data == {"node": {"number": 1, "real": 1.5}}


class Kept(SimpleNamespace):
    """May be referred to weakly."""


@pytest.mark.parametrize("times", [1, 2])
async def test_nothing_of_an_execution_stays_when_it_is_over(times: int) -> None:
    """Each operation has a request; the changes of a batch, a hundred for each, would stay as long as it does."""
    prepared = PreparedRequest(SCHEMA, parse("{ node { number later } }"), None, {})
    for _ in range(times):
        root, context = Kept(**PLAIN), Kept()
        await settled(prepared.execute(root, context))
        kept = weakref.ref(root), weakref.ref(context)
        del root, context
        gc.collect()
        assert [reference() for reference in kept] == [None, None]


async def settled(result: Any) -> ExecutionResult:
    found: ExecutionResult = await result if isawaitable(result) else result
    return found


# graphql-core itself leaves a coroutine beside a null that must not be.
@pytest.mark.filterwarnings("ignore:.*was never awaited:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize("query", QUERIES)
async def test_it_answers_as_graphql_core_does_also_the_second_time(query: str, name: str) -> None:
    document, root, variables = parse(query), OBJECTS[name], {"yes": True}
    expected = (await settled(execute(SCHEMA, document, root, variable_values=variables))).formatted
    prepared = PreparedRequest(SCHEMA, document, None, variables)
    for _ in range(2):
        found = (await settled(prepared.execute(root, None))).formatted
        # As text: NaN differs from itself, and the order counts.
        assert str(found) == str(expected)
    # Here, and not in the middle of another test.
    gc.collect()
