"""Documents of a list may be run, by their text or by their id, and no others."""

from __future__ import annotations

import gc
import json
import tracemalloc
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from graphql import DocumentNode, GraphQLError, parse, print_ast
from hypothesis import given
from hypothesis import strategies as st

from pgnotify_gql.errors import ConfigurationError
from pgnotify_gql.transport import allowed_documents as module
from pgnotify_gql.transport.allowed_documents import LOOSENESS, AllowedDocuments
from pgnotify_gql.transport.masking import Masking

ONE = (
    'subscription One($id: ID!) {\n  changes(of: $id, text: "a, b") {\n    kind\n    ...F\n  }\n}\nfragment F on C {pk}'
)
TWO = "query Two {\n  a\n}"
OTHER = "query Two { a b }"


def hashed(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def by_hash(key: Any) -> dict[str, Any]:
    return {"persistedQuery": {"version": 1, "sha256Hash": key}}


MANIFEST = {
    "format": "apollo-persisted-query-manifest",
    "version": 1,
    "operations": [
        {"id": "1", "body": ONE, "name": "One", "type": "subscription"},
        {"id": "2", "body": TWO, "name": "Two", "type": "query"},
    ],
}

FILES = {"apollo": MANIFEST, "relay": {"1": ONE, "2": TWO}, "list": [ONE, TWO]}


def written(path: Path, content: Any) -> Path:
    file = path / "documents.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


@pytest.fixture(params=FILES)
def allowed(request: pytest.FixtureRequest, tmp_path: Path) -> AllowedDocuments:
    return AllowedDocuments.read(written(tmp_path, FILES[request.param]))


@pytest.fixture
def two() -> AllowedDocuments:
    return AllowedDocuments([("1", ONE), ("2", TWO)])


def refusal(allowed: AllowedDocuments, query: str, extensions: dict[str, Any] | None = None) -> str:
    """Return what a client is told whose document is refused."""
    with pytest.raises(GraphQLError) as caught:
        allowed.text_of(query, extensions)
    [told] = Masking().told([caught.value])
    assert told["extensions"] == {"code": "DOCUMENT_NOT_ALLOWED"}
    return str(told["message"])


def test_a_document_of_each_kind_of_file_may_be_sent_as_its_text(allowed: AllowedDocuments) -> None:
    assert len(allowed) == 2
    for text in (ONE, TWO):
        assert allowed.text_of(text, {}) == text
        assert allowed.text_of(text, None) == text


def test_a_document_of_each_kind_of_file_may_be_asked_for_by_the_hash_of_its_text(allowed: AllowedDocuments) -> None:
    assert allowed.text_of("", by_hash(hashed(ONE))) == ONE
    assert allowed.text_of("", {"documentId": hashed(TWO)}) == TWO
    assert allowed.text_of("", {"documentId": f"sha256:{hashed(TWO)}"}) == TWO


def test_a_document_may_be_asked_for_by_the_id_that_the_file_gives_it(two: AllowedDocuments, tmp_path: Path) -> None:
    for content in (FILES["apollo"], FILES["relay"]):
        allowed = AllowedDocuments.read(written(tmp_path, content))
        assert allowed.text_of("", {"documentId": "1"}) == ONE
        assert allowed.text_of(" \n", by_hash("2")) == TWO


def test_an_id_may_have_a_prefix_in_the_file_as_well() -> None:
    key = f"sha256:{hashed(ONE)}"
    assert AllowedDocuments([(key, ONE)]).text_of("", {"documentId": key}) == ONE


def test_the_id_of_graphql_over_http_comes_before_that_of_apollo(two: AllowedDocuments) -> None:
    assert two.text_of("", {"documentId": "1", **by_hash("2")}) == ONE


@pytest.mark.parametrize(
    "text",
    [
        "query Two{a}",
        "\ufeff query  Two ,{\r\n\t a,,, } # as it is",
        "\n\n" + TWO + "\n",
        print_ast(parse(TWO)),
        "\n" * (len(TWO) * 2) + TWO,
    ],
)
def test_what_graphql_ignores_may_differ(two: AllowedDocuments, text: str) -> None:
    assert two.text_of(text, {}) == TWO


@pytest.mark.parametrize(
    "text",
    [
        OTHER,
        "query two { a }",
        "{ a }",
        "query Two { x: a }",
        "query Two { a } query Three { a }",
        ONE.replace('"a, b"', '"a,b"'),
        ONE.replace("pk", "p k"),
        "nonsense",
        "{",
        '"',
        "\ud800",
        "# \ud800",
        "\0",
        "#",
    ],
)
def test_what_is_not_in_the_list_is_refused(two: AllowedDocuments, text: str) -> None:
    assert refusal(two, text) == "this document is not one of those that may be run here"


def test_a_document_that_is_sent_along_with_an_id_has_to_be_in_the_list_as_well(two: AllowedDocuments) -> None:
    assert refusal(two, OTHER, by_hash(hashed(OTHER)))
    assert refusal(two, OTHER, by_hash("1"))
    assert refusal(two, "", by_hash(hashed(OTHER))), "it was not learnt"
    assert two.text_of(TWO, by_hash("1")) == TWO


def test_an_unknown_id_is_refused_and_shown(two: AllowedDocuments) -> None:
    assert refusal(two, "", {"documentId": "3"}) == "no document that may be run here has the id '3'"
    assert len(refusal(two, "", {"documentId": "3" * 1_000})) < 100


@pytest.mark.parametrize(
    "extensions",
    [
        None,
        {},
        {"documentId": ""},
        {"documentId": None},
        {"documentId": 1},
        {"documentId": ["1"]},
        {"persistedQuery": "1"},
        {"persistedQuery": None},
        {"persistedQuery": {}},
        by_hash(None),
        by_hash({}),
    ],
)
def test_a_request_without_document_and_id_is_told_what_to_send(
    two: AllowedDocuments, extensions: dict[str, Any] | None
) -> None:
    expected = "this server runs documents of a list only: send the text of one, or its id"
    assert refusal(two, "", extensions) == expected


@given(st.text(st.sampled_from("query Two{a}#,\n\t \ufeff"), max_size=30))
def test_a_text_is_accepted_only_if_it_parses_to_the_same(text: str) -> None:
    two = AllowedDocuments([("2", TWO)])
    spelled = f"query Two{{{text}a}}"
    try:
        same = parse(spelled, no_location=True) == parse(TWO, no_location=True)
    except GraphQLError:
        same = False
    try:
        accepted = two.text_of(spelled, {}) == TWO
    except GraphQLError:
        accepted = False
    assert accepted is (same and len(spelled) <= LOOSENESS * len(TWO))


def test_a_text_as_it_stands_in_the_file_is_not_read(two: AllowedDocuments, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "strip_ignored_characters", None)
    assert two.text_of(ONE, {}) is ONE


def test_a_text_that_is_much_longer_than_any_of_the_list_is_not_read(
    two: AllowedDocuments, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = len(ONE) * LOOSENESS
    assert two.text_of(TWO + " " * (longest - len(TWO)), {}) == TWO
    monkeypatch.setattr(module, "strip_ignored_characters", None)
    assert refusal(two, TWO + " " * (longest - len(TWO) + 1))


def test_documents_that_are_the_same_are_kept_once() -> None:
    allowed = AllowedDocuments([("1", TWO), ("2", TWO + "\n"), ("3", "query Two{a}")])
    assert len(allowed) == 1
    for key in ("1", "2", "3"):
        assert allowed.text_of("", {"documentId": key}) is TWO


def test_memory_is_that_of_the_texts_and_some_hashes() -> None:
    count = 200
    texts = [f"query Q{number} {{ {'field ' * 300} }}" for number in range(count)]
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        allowed = AllowedDocuments(("", text) for text in texts)
        # The tokens of graphql-core are linked in both directions.
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(allowed) == count
    assert (after - before) / count < 600, "beside the text, which is of 1,800"


def problem(path: Path, content: Any) -> str:
    """Return the sentence about a file that cannot be used."""
    file = written(path, content)
    with pytest.raises(ConfigurationError) as caught:
        AllowedDocuments.read(file)
    sentence = str(caught.value)
    beginning = f"the allowed documents cannot be read from '{file}': "
    assert sentence.startswith(beginning)
    return sentence.removeprefix(beginning)


@pytest.mark.parametrize(
    ("content", "beginning"),
    [
        ("", "it is not JSON ("),
        ("query Two { a }", "it is not JSON ("),
        ("[" * 100_000, "it is not JSON ("),
        ("1", "it must be a list of documents, an object of documents by their ids"),
        ("null", "it must be a list of documents"),
        ('"{ a }"', "it must be a list of documents"),
        ([1], "entry 1 is not a document; it must be a list of documents"),
        ([TWO, [TWO]], "entry 2 is not a document"),
        ({"1": TWO, "2": {"name": "Two", "source": TWO}}, "entry 2 is not a document"),
        ([TWO, "{"], "entry 2, '{', is not GraphQL (Syntax Error: Expected Name, found <EOF>.); it must be"),
        ([""], "entry 1, '', is not GraphQL (Syntax Error: "),
        ({TWO: "1"}, "entry 1, '1', is not GraphQL (Syntax Error: "),
        (["{a" * 10_000 + "}" * 10_000], "entry 1, '{a{a"),
        ([], "there is no document in it, so that nothing could be run"),
        ({}, "there is no document in it"),
        (MANIFEST | {"operations": []}, "there is no document in it"),
        (MANIFEST | {"version": 2}, "of Apollo's manifests only version 1 with a list of 'operations' is understood"),
        (MANIFEST | {"operations": {"1": TWO}}, "of Apollo's manifests only version 1 with a list of 'operations'"),
        (MANIFEST | {"operations": [TWO]}, "entry 1 is not a document"),
        (MANIFEST | {"operations": [{"id": 1, "body": TWO}]}, "entry 1 is not a document"),
        (MANIFEST | {"operations": [{"id": "1"}]}, "entry 1 is not a document"),
        (
            MANIFEST | {"operations": [{"id": "1", "body": ONE}, {"id": "1", "body": TWO}]},
            "'1' is the id of two documents; give each an id of its own",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_an_error_that_says_what_to_do(
    tmp_path: Path, content: Any, beginning: str
) -> None:
    assert problem(tmp_path, content).startswith(beginning)


def test_a_document_that_an_older_graphql_core_finds_too_deep_is_an_error_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_deep(*args: object, **options: object) -> DocumentNode:
        raise RecursionError("maximum recursion depth exceeded")

    monkeypatch.setattr(module, "parse", too_deep)
    assert problem(tmp_path, [TWO]).startswith("entry 1, 'query Two {\n  a\n}', is not GraphQL (maximum recursion")


def test_a_file_that_is_not_there_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none.json': No such file or directory; have the clients' build"):
        AllowedDocuments.read(tmp_path / "none.json")
    with pytest.raises(ConfigurationError, match="Is a directory; "):
        AllowedDocuments.read(str(tmp_path))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_may_be_in_any_encoding_that_json_has(tmp_path: Path, encoding: str) -> None:
    file, text = tmp_path / "documents.json", '{ a(x: "Grüße") }'
    file.write_text(json.dumps([text], ensure_ascii=False), encoding=encoding)
    assert AllowedDocuments.read(file).text_of("", by_hash(hashed(text))) == text


def test_a_file_in_another_encoding_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "documents.json"
    file.write_bytes('["{ a(x: \\"Grüße\\") }"]'.encode("latin-1"))
    with pytest.raises(ConfigurationError, match="it is not JSON"):
        AllowedDocuments.read(file)
