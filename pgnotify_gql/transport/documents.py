"""
Documents: parsed and validated once, then remembered.

Parsing and validating a small query costs about 0.9 ms, executing it 0.02; thousands of subscribers ask the same.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from graphql import DocumentNode, GraphQLError, GraphQLSchema, parse, validate

REMEMBERED = 1_000
"""Documents kept, the least recently used are forgotten first."""

REMEMBERED_CHARACTERS = 20_000
"""A longer document is not remembered: nobody shall fill the memory with them."""


@dataclass(frozen=True)
class Document:
    """A document, or the errors that keep it from being run."""

    node: DocumentNode | None
    errors: Sequence[GraphQLError] = ()


class Documents:
    """The documents of one schema."""

    def __init__(self, schema: GraphQLSchema) -> None:
        self._schema = schema
        self._known: OrderedDict[str, Document] = OrderedDict()

    def get(self, query: str) -> Document:
        """Return the document of a query."""
        known = self._known.get(query)
        if known is not None:
            self._known.move_to_end(query)
            return known
        document = self._read(query)
        if len(query) <= REMEMBERED_CHARACTERS:
            self._known[query] = document
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return document

    def _read(self, query: str) -> Document:
        try:
            node = parse(query)
        except GraphQLError as error:
            return Document(None, [error])
        except RecursionError:
            return Document(None, [GraphQLError("the query is nested too deeply")])
        return Document(node, validate(self._schema, node))
