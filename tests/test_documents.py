"""Documents are read once and remembered, within bounds."""

import graphene
import pytest
from graphql import GraphQLError, GraphQLSchema

from pgnotify_gql.transport import documents as module
from pgnotify_gql.transport.documents import REMEMBERED_ALTOGETHER, REMEMBERED_CHARACTERS, Documents


class Query(graphene.ObjectType):  # type: ignore[misc]
    a = graphene.Int()
    self = graphene.Field(lambda: Query)


@pytest.fixture(scope="module")
def schema() -> GraphQLSchema:
    schema: GraphQLSchema = graphene.Schema(query=Query).graphql_schema
    return schema


@pytest.fixture
def documents(schema: GraphQLSchema) -> Documents:
    return Documents(schema)


def spelled(number: int, length: int) -> str:
    """Return a valid query of its own spelling and of a length."""
    query = f"{{ a }} # {number}"
    return query + "." * (length - len(query))


def test_a_document_is_read_once(documents: Documents) -> None:
    assert documents.get("{ a }") is documents.get("{ a }")


def test_a_valid_document_has_no_errors(documents: Documents) -> None:
    document = documents.get("{ a }")
    assert document.node is not None
    assert not document.errors


@pytest.mark.parametrize("query", ["", " ", "{", "{ a", "nonsense", "\ud800", "\0", "{ a(x: 1", "# only a comment"])
def test_what_does_not_parse_is_a_syntax_error_that_says_where(documents: Documents, query: str) -> None:
    document = documents.get(query)
    assert document.node is None
    [error] = document.errors
    assert error.message.startswith("Syntax Error")
    assert error.formatted["locations"]


def test_what_the_schema_does_not_have_is_a_validation_error(documents: Documents) -> None:
    [error] = documents.get("{ b }").errors
    assert "'b'" in error.message


def test_a_query_of_fragments_alone_is_an_error(documents: Documents) -> None:
    assert documents.get("fragment F on Query { a }").errors


def test_a_query_nested_too_deeply_is_an_error_wherever_the_depth_is_met(documents: Documents) -> None:
    for depth in (10, 50, 100, 150, 200, 500, 5_000):
        document = documents.get("{" + "self {" * depth + "a" + "}" * depth + "}")
        assert document.node is not None or "deeply" in document.errors[0].message


def test_a_depth_that_only_validation_meets_is_an_error_as_well(
    documents: Documents, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_deep(*args: object) -> list[GraphQLError]:
        raise RecursionError

    monkeypatch.setattr(module, "validate", too_deep)
    [error] = documents.get("{ a }").errors
    assert error.message == "the query is nested too deeply"


def test_documents_are_forgotten_when_all_together_are_too_long(schema: GraphQLSchema) -> None:
    documents = Documents(schema, altogether=1_000)
    first = documents.get(spelled(0, 400))
    documents.get(spelled(1, 400))
    assert documents.get(spelled(0, 400)) is first
    documents.get(spelled(2, 400))
    assert documents.get(spelled(0, 400)) is first, "it was used more recently"
    second = documents.get(spelled(1, 400))
    assert documents.get(spelled(1, 400)) is second


def test_a_long_document_is_not_remembered(documents: Documents) -> None:
    remembered, longer = spelled(1, REMEMBERED_CHARACTERS), spelled(1, REMEMBERED_CHARACTERS + 1)
    assert documents.get(remembered) is documents.get(remembered)
    assert documents.get(longer) is not documents.get(longer)
    assert REMEMBERED_CHARACTERS < REMEMBERED_ALTOGETHER


def test_a_syntax_error_is_not_remembered_because_it_keeps_the_whole_parser_alive(documents: Documents) -> None:
    assert documents.get("{") is not documents.get("{")


def test_two_schemas_do_not_share_documents(schema: GraphQLSchema) -> None:
    class Other(graphene.ObjectType):  # type: ignore[misc]
        b = graphene.Int()

    other = Documents(graphene.Schema(query=Other).graphql_schema)
    assert not Documents(schema).get("{ a }").errors
    assert other.get("{ a }").errors
