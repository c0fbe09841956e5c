"""
Documents: parsed, measured and validated once, then remembered.

Parsing and validating a small query costs about 0.9 ms, executing it 0.02; thousands of subscribers ask the same.

What a document asks for is limited before it is validated, which for some takes time that grows with the square of what
they select.  Where the site has a list of documents nothing else is read at all.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from graphql import DocumentNode, GraphQLError, GraphQLSchema, parse, validate

from .allowed_documents import AllowedDocuments
from .frames import Request
from .query_limits import QueryLimits

REMEMBERED_CHARACTERS = 20_000
"""A longer document is not remembered, so that one client cannot push out everybody else's with a few."""

REMEMBERED_ALTOGETHER = 500_000
"""Characters of all documents kept, the least recently used are forgotten first.  Each takes 100 to 600 bytes of memory
once parsed: some 75 MB if somebody fills them all with long ones."""


@dataclass(frozen=True)
class Document:
    """A document, or the errors that keep it from being run."""

    node: DocumentNode | None
    errors: Sequence[GraphQLError] = ()


class Documents:
    """The documents of one schema."""

    def __init__(
        self,
        schema: GraphQLSchema,
        *,
        altogether: int = REMEMBERED_ALTOGETHER,
        most_tokens: int | None = None,
        limits: QueryLimits | None = None,
        allowed: AllowedDocuments | None = None,
    ) -> None:
        self._schema = schema
        self._limits = limits
        self._allowed = allowed
        self._most_tokens = most_tokens
        self._altogether = altogether
        self._characters = 0
        self._known: OrderedDict[str, Document] = OrderedDict()

    def resolved(self, request: Request) -> Request:
        """Return a request with the text of what it asks for, which may be in the list only.  Raises GraphQLError."""
        if self._allowed is None:
            return request
        return replace(request, query=self._allowed.text_of(request.query, request.extensions))

    def get(self, query: str) -> Document:
        """Return the document of a query, of a request that was resolved."""
        known = self._known.get(query)
        if known is not None:
            self._known.move_to_end(query)
            return known
        document = self._read(query)
        if document.node is not None and len(query) <= REMEMBERED_CHARACTERS:
            self._remember(query, document)
        return document

    def _remember(self, query: str, document: Document) -> None:
        self._known[query] = document
        self._characters += len(query)
        while self._characters > self._altogether:
            forgotten, _ = self._known.popitem(last=False)
            self._characters -= len(forgotten)

    def _read(self, query: str) -> Document:
        try:
            node = parse(query, max_tokens=self._most_tokens)
            errors = self._limits.errors(node) if self._limits is not None else []
            return Document(node, errors or validate(self._schema, node))
        except GraphQLError as error:
            return Document(None, [error])
        except RecursionError:
            return Document(None, [GraphQLError("the query is nested too deeply")])
