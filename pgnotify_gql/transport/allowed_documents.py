"""
A list of the documents that may be run, written when the clients are built.

Whoever controls the clients knows every document they send, and need not run anybody else's.  The tools that collect
them write a JSON file, which is read once, when a server starts:

- Apollo's ``generate-persisted-query-manifest``: ``{"format": "apollo-persisted-query-manifest", "version": 1,
  "operations": [{"id": ..., "body": ..., "name": ..., "type": ...}, ...]}``
- Relay's compiler and GraphQL Code Generator (``persistedDocuments``): ``{id: document, ...}``
- whoever writes it by hand: ``[document, ...]``

A client sends the document, or in its place its id: the one in the file, or the SHA-256 of the document's text, which
is what Apollo's clients and the specification's ``sha256:`` mean by an id.  Nothing is ever added to the list: a
document that comes along with an id has to be in it as well.

Documents are the same if their tokens are: what GraphQL ignores (white space, commas, comments) may differ, since
clients print what they send anew.  That they mean the same follows from the specification and not from a printer of
ours; and it takes a quarter of the time of parsing and printing them, without recursion.  A text as it stands in the
file is found without even that.

On failure: a file that cannot be used is a ConfigurationError, so that a server that should be closed does not start
open.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from os import PathLike
from pathlib import Path
from typing import Any

from graphql import GraphQLError, parse
from graphql.utilities import strip_ignored_characters

from ..errors import ConfigurationError
from .frames import shown

DOCUMENT_NOT_ALLOWED = "DOCUMENT_NOT_ALLOWED"
"""The code of an error: the document is not in the list."""

APOLLO = "apollo-persisted-query-manifest"
"""The format that a manifest of Apollo's says it has."""

APOLLO_VERSION = 1

SHA256 = "sha256:"
"""Before an id in GraphQL over HTTP; files and Apollo's clients leave it out."""

LOOSENESS = 10
"""A text so many times as long as the longest in the list is not read: no printer indents as much, and a client could
have a megabyte of nothing read."""

FORMS = (
    "it must be a list of documents, an object of documents by their ids as Relay's compiler and "
    "GraphQL Code Generator write it, or a manifest of Apollo's"
)


class AllowedDocuments:
    """
    The documents that may be run; for all sockets of a process, it does not change.

    Made of pairs of an id, which may be empty, and a document; raises ConfigurationError when two have the same id.  In
    memory are each document's text, once, and its hashes; looking one up takes the same time however many there are.
    """

    __slots__ = ("_by_form", "_by_id", "_longest", "_texts")

    def __init__(self, documents: Iterable[tuple[str, str]]) -> None:
        self._by_form: dict[bytes, str] = {}
        self._by_id: dict[str, str] = {}
        for key, text in documents:
            kept = self._by_form.setdefault(_form(text), text)
            if self._by_id.setdefault(key or _hash(text), kept) is not kept:
                raise ConfigurationError(f"'{key}' is the id of two documents; give each an id of its own")
        for text in self._by_form.values():
            self._by_id.setdefault(_hash(text), text)
        self._texts = frozenset(self._by_form.values())
        self._longest = max(map(len, self._texts), default=0)

    @classmethod
    def read(cls, path: str | PathLike[str]) -> AllowedDocuments:
        """Return the documents of a file.  Raises ConfigurationError if it is not one, or has none."""
        try:
            return cls(_documents(_content(Path(path))))
        except ConfigurationError as error:
            raise ConfigurationError(f"the allowed documents cannot be read from '{path}': {error}") from error

    def __len__(self) -> int:
        """Return how many documents there are, none twice."""
        return len(self._texts)

    def text_of(self, query: str, extensions: Mapping[str, Any] | None) -> str:
        """
        Return the text, as it is in the list, of the document that a request asks for.

        It is the `query`, or if that is empty what has the id ``extensions.documentId`` or
        ``extensions.persistedQuery.sha256Hash``.  Raises GraphQLError, for clients, if the list does not have it.
        """
        if query in self._texts:
            return query
        if query.strip():
            return self._same_as(query)
        key = _id(extensions or {})
        if key is None:
            raise _refusal("this server runs documents of a list only: send the text of one, or its id")
        text = self._by_id.get(key) or self._by_id.get(key.removeprefix(SHA256))
        if text is None:
            raise _refusal(f"no document that may be run here has the id '{shown(key)}'")
        return text

    def _same_as(self, query: str) -> str:
        try:
            text = self._by_form.get(_form(query)) if len(query) <= self._longest * LOOSENESS else None
        except GraphQLError:
            text = None
        if text is None:
            raise _refusal("this document is not one of those that may be run here")
        return text


def _form(text: str) -> bytes:
    """Return a digest, the same of documents with the same tokens.  Raises GraphQLError of what has no tokens."""
    return sha256(strip_ignored_characters(text).encode(errors="surrogatepass")).digest()


def _hash(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def _id(extensions: Mapping[str, Any]) -> str | None:
    persisted = extensions.get("persistedQuery")
    hashed = persisted.get("sha256Hash") if isinstance(persisted, Mapping) else None
    return next((key for key in (extensions.get("documentId"), hashed) if isinstance(key, str) and key), None)


def _refusal(message: str) -> GraphQLError:
    return GraphQLError(message, extensions={"code": DOCUMENT_NOT_ALLOWED})


def _content(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(
            f"{error.strerror}; have the clients' build write it, or name the file that it writes"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"it is not JSON ({error}); {FORMS}") from error


def _documents(content: Any) -> Iterator[tuple[str, str]]:
    """Yield the pairs of id and document that a file has.  Raises ConfigurationError, also if it has none."""
    pairs = list(_pairs(content))
    if not pairs:
        raise ConfigurationError("there is no document in it, so that nothing could be run; let the build collect them")
    for number, (key, text) in enumerate(pairs, 1):
        if not isinstance(key, str) or not isinstance(text, str):
            raise ConfigurationError(f"entry {number} is not a document; {FORMS}")
        try:
            parse(text, no_location=True)
        except (GraphQLError, RecursionError) as error:
            problem = getattr(error, "message", error)
            raise ConfigurationError(f"entry {number}, '{shown(text)}', is not GraphQL ({problem}); {FORMS}") from None
        yield key, text


def _pairs(content: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(content, list):
        return [("", text) for text in content]
    if not isinstance(content, dict):
        raise ConfigurationError(FORMS)
    if content.get("format") != APOLLO:
        return content.items()
    operations = content.get("operations")
    if content.get("version") != APOLLO_VERSION or not isinstance(operations, list):
        raise ConfigurationError(
            f"of Apollo's manifests only version {APOLLO_VERSION} with a list of 'operations' is understood; "
            "have @apollo/generate-persisted-query-manifest write that"
        )
    return [(each.get("id"), each.get("body")) if isinstance(each, dict) else (None, None) for each in operations]
