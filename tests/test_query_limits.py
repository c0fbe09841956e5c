"""What a document may ask for is bounded as if all its fragments were written out, without writing them out."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from graphene.validation import depth_limit_validator
from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    InlineFragmentNode,
    NameNode,
    Node,
    OperationDefinitionNode,
    SelectionSetNode,
    build_schema,
    get_introspection_query,
    parse,
    validate,
)
from hypothesis import given
from hypothesis import strategies as st

from pgnotify_gql.conf import Settings
from pgnotify_gql.transport import query_limits
from pgnotify_gql.transport.documents import Documents
from pgnotify_gql.transport.masking import Masking
from pgnotify_gql.transport.query_limits import COUNTED, INTROSPECTION, QueryLimits, measured

SCHEMA = build_schema("type Query { a: Int b: Int self: Query }")

ROOMY = 1_000


def limits(
    *, depth: int = ROOMY, complexity: int = ROOMY, aliases: int = ROOMY, introspection: bool = False
) -> QueryLimits:
    return QueryLimits(depth, complexity, aliases, introspection)


def errors(query: str, **options: Any) -> list[GraphQLError]:
    return limits(**options).errors(parse(query))


def codes(query: str, **options: Any) -> list[str]:
    return [(error.extensions or {})["code"] for error in errors(query, **options)]


def size(query: str) -> tuple[int, int, int]:
    """Return depth, fields and aliases of a document with one operation."""
    [(found, _)] = measured(parse(query))
    return found[:3]


def bomb(fragments: int) -> str:
    """Return a document of which each fragment uses the next one twice."""
    links = [
        f"fragment F{each} on Query {{ x: self {{ ...F{each + 1} ...F{each + 1} }} }}" for each in range(fragments)
    ]
    return "\n".join(["{ ...F0 }", *links, f"fragment F{fragments} on Query {{ a }}"])


@pytest.mark.parametrize(
    ("query", "depth", "fields", "aliases"),
    [
        ("{ a }", 1, 1, 0),
        ("{ a b }", 1, 2, 0),
        ("{ self { self { a } b } }", 3, 4, 0),
        ("{ x: a y: a a }", 1, 3, 2),
        ("{ self { __typename } }", 2, 2, 0),
        ("{ ... on Query { a ... { self { a } } } }", 2, 3, 0),
        ("{ ...F self { ...F } } fragment F on Query { x: a self { a } }", 3, 7, 2),
        ("{ a @skip(if: true) b @include(if: false) }", 1, 2, 0),
        ("subscription { self { a } }", 2, 2, 0),
        ("mutation { self { a } }", 2, 2, 0),
        ("{ __schema { types { fields { name } } } a }", 1, 5, 0),
        ('{ __type(name: "Query") { ...T } } fragment T on __Type { x: name ofType { name } }', 0, 4, 1),
        ("{ self { ...S } } fragment S on Query { __schema { types { name } } }", 1, 4, 0),
    ],
)
def test_fields_are_counted_wherever_a_fragment_is_used(query: str, depth: int, fields: int, aliases: int) -> None:
    assert size(query) == (depth, fields, aliases)


@pytest.mark.parametrize(
    ("option", "code", "query", "number"),
    [
        ("depth", "QUERY_TOO_DEEP", "{ self { ...F } } fragment F on Query { self { a } }", 3),
        ("complexity", "QUERY_TOO_COMPLEX", "{ self { ...F } ...F } fragment F on Query { a b }", 5),
        ("aliases", "TOO_MANY_ALIASES", "{ self { ...F } ...F } fragment F on Query { x: a }", 2),
    ],
)
def test_a_document_may_have_as_much_as_the_limit_and_no_more(option: str, code: str, query: str, number: int) -> None:
    assert not errors(query, **{option: number})
    [error] = errors(query, **{option: number - 1})
    assert error.extensions == {"code": code}
    assert f"{number} " in error.message
    assert f"{number - 1} is the limit" in error.message


def test_each_limit_that_is_exceeded_is_an_error() -> None:
    query = "{ x: __typename __schema { types { name } } self { self { a } } }"
    assert codes(query, depth=2, complexity=6, aliases=0) == [
        "QUERY_TOO_DEEP",
        "QUERY_TOO_COMPLEX",
        "TOO_MANY_ALIASES",
        "INTROSPECTION_DISABLED",
    ]


def test_of_several_operations_the_largest_counts_and_is_shown() -> None:
    query = "query A { a }\nquery B { self { self { a } } }\nquery C { a b x: a y: a }"
    assert not errors(query, depth=3, complexity=4, aliases=2)
    found = errors(query, depth=2, complexity=3, aliases=1)
    assert [error.locations[0].line for error in found if error.locations] == [2, 3, 3]


def test_what_operations_have_together_is_not_limited() -> None:
    assert not errors("query A { a b } query B { a b }", complexity=2)


@pytest.mark.parametrize(
    "query",
    [
        "{ __schema { types { name } } }",
        '{ __type(name: "Query") { name } }',
        "{ x: __schema { types { name } } }",
        "{ a ... { ... on Query { __schema { types { name } } } } }",
        "{ self { ...F } } fragment F on Query { ...G } fragment G on Query { __schema { types { name } } }",
        "query A { a } query B { __schema { types { name } } }",
        get_introspection_query(),
    ],
)
def test_introspection_is_refused_wherever_it_stands(query: str) -> None:
    [error] = errors(query)
    assert error.extensions == {"code": "INTROSPECTION_DISABLED"}
    assert [type(node) for node in error.nodes or []] == [FieldNode]
    assert not errors(query, introspection=True)


@pytest.mark.parametrize("query", ["{ __typename }", "{ __schema: a }", "{ self { __type: __typename } }"])
def test_what_tells_nothing_of_the_schema_is_not_introspection(query: str) -> None:
    assert not errors(query)


def test_the_introspection_of_tools_is_not_deep_and_has_some_200_fields() -> None:
    depth, fields, aliases = size(get_introspection_query(specified_by_url=True, input_value_deprecation=True))
    assert (depth, aliases) == (0, 0)
    assert 200 < fields < 250


def test_clients_are_told_what_is_wrong_and_no_settings() -> None:
    found = errors("{ x: a y: a __schema { types { name } } }", depth=0, complexity=1, aliases=1)
    assert [told["message"] for told in Masking().told(found)] == [
        "the document nests fields 1 deep: 0 is the limit",
        "the document selects 5 fields, with fragments wherever used: 1 is the limit",
        "the document has 2 aliases, with fragments wherever used: 1 is the limit",
        "the document asks for '__schema': the schema is not told here",
    ]


def test_fragments_that_multiply_are_refused() -> None:
    document = parse(bomb(40))
    assert not validate(SCHEMA, document)
    found = limits().errors(document)
    assert [(error.extensions or {})["code"] for error in found] == ["QUERY_TOO_COMPLEX", "TOO_MANY_ALIASES"]
    assert f"selects {COUNTED} or more fields" in found[0].message


@pytest.mark.parametrize("fragments", [1, 5, 25])
def test_fragments_that_multiply_are_counted_exactly_up_to_a_billion(fragments: int) -> None:
    fields = 2 ** (fragments + 1) - 1
    assert size(bomb(fragments)) == (fragments + 1, fields, fields - 2**fragments)


def lines_run(document: DocumentNode) -> int:
    """Return how many lines of the module run to measure a document."""
    ran = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal ran
        ran += event == "line"
        return trace if frame.f_code.co_filename == query_limits.__file__ else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        limits().errors(document)
    finally:
        sys.settrace(before)
    return ran


def test_fragments_that_multiply_cost_as_much_as_they_are_long() -> None:
    once, twice = lines_run(parse(bomb(20))), lines_run(parse(bomb(40)))
    assert 500 < once < 20 * 100
    assert twice < 2.1 * once


def test_a_fragment_used_often_costs_no_more_than_its_uses_are_long() -> None:
    def used(times: int) -> DocumentNode:
        fields = " ".join(f"f{each}" for each in range(500))
        return parse("{" + "...F " * times + "} fragment F on Query {" + fields + "}")

    assert lines_run(used(200)) - lines_run(used(100)) < 100 * 20


def test_fields_nested_deeper_than_the_stack_of_python_are_counted() -> None:
    # Made by hand: neither the parser nor the end of the test, when Python frees the nodes, may go as deep.
    name, chain = NameNode(value="self"), [SelectionSetNode(selections=(FieldNode(name=NameNode(value="a")),))]
    depth = 10 * sys.getrecursionlimit()
    for _ in range(depth):
        chain.append(SelectionSetNode(selections=(FieldNode(name=name, selection_set=chain[-1]),)))
    [(found, _)] = measured(DocumentNode(definitions=(OperationDefinitionNode(selection_set=chain[-1]),)))
    assert found[:3] == (depth + 1, depth + 1, 0)
    while chain:
        chain.pop()


def test_a_chain_of_fragments_longer_than_the_stack_of_python_is_counted() -> None:
    length = 3 * sys.getrecursionlimit()
    links = [f"fragment F{each} on Query {{ self {{ ...F{each + 1} }} }}" for each in range(length)]
    assert size(" ".join(["{ ...F0 }", *links, f"fragment F{length} on Query {{ a }}"])) == (length + 1, length + 1, 0)


@pytest.mark.parametrize(
    "query",
    [
        "{ a ...F } fragment F on Query { a ...F }",
        "{ a ...F } fragment F on Query { ...G } fragment G on Query { a ...F }",
        "{ a ...Missing }",
        "{ a } fragment F on Query { a ...F }",
        "fragment F on Query { a }",
        "type Query { a: Int }",
    ],
)
def test_a_document_that_is_not_valid_is_measured_as_well(query: str) -> None:
    document = parse(query)
    assert validate(SCHEMA, document)
    assert not limits(complexity=2).errors(document)


def test_the_longest_document_that_is_read_is_measured_without_a_large_number() -> None:
    most = Settings().MAX_QUERY_TOKENS
    links = [f"fragment F{each} on Query {{ {f'...F{each + 1} ' * 4} }}" for each in range((most - 20) // 14)]
    query = " ".join(["{ ...F0 }", *links, f"fragment F{len(links)} on Query {{ a }}"])
    document = Documents(SCHEMA, most_tokens=most).get(query).node
    assert document is not None
    [(found, _)] = measured(document)
    assert found.fields == COUNTED


FIELDS = ("a", "b", "x: a", "y: b", "__typename", "z: __typename")
FRAGMENTS = 3


def selections(first: int, *, introspection: bool) -> st.SearchStrategy[str]:
    """Return selections that use fragments from the first on: each may use those behind it."""
    spreads = [f"...F{each}" for each in range(first, FRAGMENTS)]
    parents = ("self", "x: self", "...", "... on Query", *(("__schema", "y: __type") if introspection else ()))

    def nested(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return st.lists(
            st.builds("{} {}".format, st.sampled_from(parents), inner) | leaves, min_size=1, max_size=4
        ).map(lambda found: "{ " + " ".join(found) + " }")

    leaves = st.sampled_from((*FIELDS, *spreads))
    flat = st.lists(leaves, min_size=1, max_size=4).map(lambda found: "{ " + " ".join(found) + " }")
    return st.recursive(flat, nested, max_leaves=6)


def documents(*, introspection: bool) -> st.SearchStrategy[str]:
    """Return documents of one or two operations, whose fragments are in any order."""
    fragments = [
        selections(each + 1, introspection=introspection).map(f"fragment F{each} on Query ".__add__)
        for each in range(FRAGMENTS)
    ]
    operations = [selections(0, introspection=introspection).map(f"query {name} ".__add__) for name in "AB"]
    return st.tuples(*operations[:1], *fragments).flatmap(st.permutations).map(" ".join) | st.tuples(
        *operations, *fragments
    ).flatmap(st.permutations).map(" ".join)


Path = tuple[FieldNode, ...]


def written_out(node: Node, document: DocumentNode, around: Path = ()) -> list[Path]:
    """Return each field that is selected, together with those around it, the naive way."""
    found: list[Path] = []
    for selection in node.selection_set.selections:  # type: ignore[attr-defined]
        if isinstance(selection, FieldNode):
            path = (*around, selection)
            found.append(path)
            if selection.selection_set:
                found += written_out(selection, document, path)
        elif isinstance(selection, InlineFragmentNode):
            found += written_out(selection, document, around)
        else:
            assert isinstance(selection, FragmentSpreadNode)
            [fragment] = [
                each
                for each in document.definitions
                if isinstance(each, FragmentDefinitionNode) and each.name.value == selection.name.value
            ]
            found += written_out(fragment, document, around)
    return found


def is_introspection(path: Path) -> bool:
    return any(each.name.value in INTROSPECTION for each in path)


@given(documents(introspection=True))
def test_sizes_are_those_of_the_document_written_out(query: str) -> None:
    document = parse(query)
    for found, operation in measured(document):
        paths = written_out(operation, document)
        assert found.depth == max((len(path) for path in paths if not is_introspection(path)), default=0)
        assert found.fields == len(paths)
        assert found.aliases == sum(path[-1].alias is not None for path in paths)
        asks = {id(path[-1]) for path in paths if path[-1].name.value in INTROSPECTION}
        assert id(found.introspection) in asks if asks else found.introspection is None


@given(documents(introspection=False))
def test_the_depth_is_one_more_than_what_graphene_finds(query: str) -> None:
    document = parse(query)
    graphenes: dict[str, int] = {}
    validate(SCHEMA, document, [depth_limit_validator(ROOMY, callback=graphenes.update)])
    ours = {operation.name.value: found.depth for found, operation in measured(document) if operation.name}
    assert ours == {name: depth + 1 for name, depth in graphenes.items()}
