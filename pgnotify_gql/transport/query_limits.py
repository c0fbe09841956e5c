"""
Limits on what one document may ask for.

A few lines can ask for a lot: fragments that use fragments multiply, and a field costs the same each time it is asked
for under another name.  So what is measured is the document as it would be executed, with every fragment put in the
place of every use of it.  Nothing is put anywhere: each definition is gone through once, for what it selects by itself
and for the fragments it uses, how often and how deep; then the sums are made up, of each fragment once, those first
that it uses.  Work and memory grow with the length of the document, whatever it would grow to, and nothing recurses.

Of several operations the largest counts, since any of them may be run.  ``@skip`` and ``@include`` are not looked at:
a field counts even if its variables should leave it out.

A document need not be valid: fragments that are missing, or in a cycle, count as nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    InlineFragmentNode,
    OperationDefinitionNode,
    SelectionSetNode,
)

QUERY_TOO_DEEP = "QUERY_TOO_DEEP"
"""The code of an error: fields are nested more deeply than is allowed."""

QUERY_TOO_COMPLEX = "QUERY_TOO_COMPLEX"
"""The code of an error: more fields are selected than are allowed."""

TOO_MANY_ALIASES = "TOO_MANY_ALIASES"
"""The code of an error: more fields have an alias than may have one."""

INTROSPECTION_DISABLED = "INTROSPECTION_DISABLED"
"""The code of an error: the schema is asked for, and is not told."""

INTROSPECTION = frozenset({"__schema", "__type"})
"""Fields that tell the schema; ``__typename`` is a field like any other."""

COUNTED = 1_000_000_000
"""Larger numbers are not told apart, or a long document could make one of thousands of digits."""

NOWHERE = -COUNTED
"""The depth of what introspection selects, so far below zero that it never adds up to any."""


class Size(NamedTuple):
    """
    How much is asked for, each number COUNTED at most.

    `depth` is that of the most deeply nested field, 1 at the root, without introspection; `fields` are all that are
    selected, and `aliases` those of them that have one; `introspection` is a field that asks for the schema.
    """

    depth: int = 0
    fields: int = 0
    aliases: int = 0
    introspection: FieldNode | None = None


@dataclass(frozen=True)
class QueryLimits:
    """
    How deep fields may be nested, how many may be selected and have aliases, and whether one may ask for the schema.

    graphene's ``depth_limit_validator`` does not count the innermost field: its `max_depth` is one less than `depth`.
    """

    depth: int
    complexity: int
    aliases: int
    introspection: bool

    def errors(self, document: DocumentNode) -> list[GraphQLError]:
        """
        Return an error for each limit that a document exceeds, and none if it may be run.

        Each is for clients, has its code in the extensions and points to the operation, or the field, that is to blame.
        """
        sizes = measured(document)
        depths = [(size.depth, node) for size, node in sizes]
        fields = [(size.fields, node) for size, node in sizes]
        aliases = [(size.aliases, node) for size, node in sizes]
        errors = [
            *_exceeded(depths, self.depth, "nests fields {} deep", QUERY_TOO_DEEP),
            *_exceeded(fields, self.complexity, "selects {} fields, with fragments wherever used", QUERY_TOO_COMPLEX),
            *_exceeded(aliases, self.aliases, "has {} aliases, with fragments wherever used", TOO_MANY_ALIASES),
        ]
        return errors if self.introspection else [*errors, *_introspection(sizes)]


def measured(document: DocumentNode) -> list[tuple[Size, OperationDefinitionNode]]:
    """Return the operations of a document, each with how much it asks for."""
    parts = [_Part(node) for node in document.definitions if isinstance(node, DEFINITIONS)]
    fragments = {part.node.name.value: part for part in parts if isinstance(part.node, FragmentDefinitionNode)}
    sizes: dict[str, Size] = {}
    for name in _innermost_first(fragments):
        sizes[name] = fragments[name].size(sizes)
    return [(part.size(sizes), part.node) for part in parts if isinstance(part.node, OperationDefinitionNode)]


Definition = OperationDefinitionNode | FragmentDefinitionNode

DEFINITIONS = (OperationDefinitionNode, FragmentDefinitionNode)


@dataclass(slots=True)
class _Use:
    """Uses of one fragment in a definition: how many, and how many fields are around the innermost."""

    times: int
    depth: int


@dataclass(slots=True)
class _Part:
    """What a definition selects by itself, and the fragments it uses, by name."""

    node: Definition
    depth: int = 0
    fields: int = 0
    aliases: int = 0
    uses: dict[str, _Use] = field(default_factory=dict)
    introspection: FieldNode | None = None

    def __post_init__(self) -> None:
        below: list[tuple[SelectionSetNode, int]] = [(self.node.selection_set, 0)]
        while below:
            selected, depth = below.pop()
            for node in selected.selections:
                if isinstance(node, FieldNode):
                    around = self._count(node, depth)
                    if node.selection_set is not None:
                        below.append((node.selection_set, around))
                elif isinstance(node, InlineFragmentNode):
                    below.append((node.selection_set, depth))
                else:
                    assert isinstance(node, FragmentSpreadNode), "the third kind of selection"
                    self._use(node.name.value, depth)

    def _count(self, node: FieldNode, depth: int) -> int:
        """Count a field, and return the depth of what it selects."""
        self.fields += 1
        self.aliases += node.alias is not None
        if node.name.value in INTROSPECTION:
            self.introspection = self.introspection or node
            return NOWHERE
        self.depth = max(self.depth, depth + 1)
        return depth + 1

    def _use(self, name: str, depth: int) -> None:
        use = self.uses.setdefault(name, _Use(0, depth))
        use.times += 1
        use.depth = max(use.depth, depth)

    def size(self, fragments: Mapping[str, Size]) -> Size:
        """Return how much is asked for, together with fragments of these sizes."""
        depth, fields, aliases, introspection = self.depth, self.fields, self.aliases, self.introspection
        for name, use in self.uses.items():
            used = fragments.get(name, Size())
            depth = max(depth, use.depth + used.depth)
            fields += use.times * used.fields
            aliases += use.times * used.aliases
            introspection = introspection or used.introspection
        return Size(min(depth, COUNTED), min(fields, COUNTED), min(aliases, COUNTED), introspection)


def _innermost_first(fragments: Mapping[str, _Part]) -> Iterator[str]:
    """Yield the name of each fragment once, behind those of the fragments that it uses."""
    met: set[str] = set()
    for first in fragments:
        # A chain of fragments may be longer than Python's stack.
        path = [] if first in met else [(first, iter(fragments[first].uses))]
        met.add(first)
        while path:
            name, uses = path[-1]
            used = next((used for used in uses if used in fragments and used not in met), None)
            if used is None:
                path.pop()
                yield name
            else:
                met.add(used)
                path.append((used, iter(fragments[used].uses)))


def _exceeded(
    numbers: list[tuple[int, OperationDefinitionNode]], limit: int, what: str, code: str
) -> Iterator[GraphQLError]:
    """Yield an error about the operation with the largest number, if it is above the limit."""
    number, node = max(numbers, key=lambda each: each[0], default=(0, None))
    if number > limit:
        told = what.format(f"{number} or more" if number == COUNTED else number)
        yield GraphQLError(f"the document {told}: {limit} is the limit", node, extensions={"code": code})


def _introspection(sizes: list[tuple[Size, OperationDefinitionNode]]) -> Iterator[GraphQLError]:
    """Yield an error about a field that asks for the schema, if there is one."""
    node = next((size.introspection for size, _ in sizes if size.introspection), None)
    if node is not None:
        message = f"the document asks for '{node.name.value}': the schema is not told here"
        yield GraphQLError(message, node, extensions={"code": INTROSPECTION_DISABLED})
