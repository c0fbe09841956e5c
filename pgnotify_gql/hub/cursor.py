"""
Cursors of clients: where an operation stands in the journal of each of its models, signed.

A client passes the last one that it was given, and receives what came after it, exactly.  It says nothing about who the
client is or what it may see: whoever brings it is served as himself.  The signature keeps anybody from making one up
that would be expensive to serve.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from django.core import signing

from ..errors import CursorError
from ..journal.position import Position

SALT = "pgnotify_gql.cursor"

Model = tuple[str, str]
"""Alias of a database, and label of a model in it."""


@dataclass(frozen=True, eq=False)
class Cursor:
    """A position for each model, and the ids of the journals that they are positions in, by database."""

    positions: Mapping[Model, Position]
    journals: Mapping[str, str]

    @cached_property
    def token(self) -> str:
        """What a client is given; made when first asked for, since signing takes 30 us."""
        content = [[*model, self.journals[model[0]], str(position)] for model, position in self.positions.items()]
        return signing.dumps(content, salt=SALT)

    @classmethod
    def read(cls, token: Any) -> Cursor:
        """Return what was given to a client.  Raises CursorError for anything that is not signed by this site."""
        try:
            content = signing.loads(token, salt=SALT)
            positions = {(database, label): Position.parse(position) for database, label, _, position in content}
            return cls(positions, {database: journal for database, _, journal, _ in content})
        except (signing.BadSignature, ValueError, TypeError, AttributeError) as error:
            raise CursorError("the cursor is not one of this site: subscribe without it") from error

    def fits(self, models: Iterable[Model], journals: Mapping[str, str]) -> bool:
        """Return whether it says where to go on in all of these models, in the journals that there are now."""
        return set(models) == self.positions.keys() and all(
            journals.get(database) == journal for database, journal in self.journals.items()
        )

    def at(self, model: Model, position: Position) -> Cursor:
        """Return the cursor of one who has gone on in one model."""
        return Cursor({**self.positions, model: position}, self.journals)
