"""
Cursors of clients: where an operation stands in the journal of each of its models, signed.

A client passes the last one that it was given, and receives what came after it, exactly.  It says nothing about who the
client is or what it may see: whoever brings it is served as himself.  The signature keeps anybody from making one up
that would be expensive to serve.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from django.conf import settings
from django.core import signing

from ..errors import CursorError
from ..journal.position import Position
from ..journal.snapshot import Snapshot
from ..journal.state import Joined

SALT = "pgnotify_gql.cursor"

Model = tuple[str, str]
"""Alias of a database, and label of a model in it."""


@dataclass(frozen=True)
class Journal:
    """
    A journal in an era (see ``journal.state``), which began at the cursor `began`.

    In another era ids of transactions may have been given out again, so that a position from before it is good only
    where it had come no further than that.
    """

    id: str
    era: str = ""
    began: Snapshot = field(default=Snapshot(0, 0), compare=False)

    @classmethod
    def of(cls, joined: Joined) -> Journal:
        """Return the journal that a reader has joined."""
        return cls(joined.journal, joined.era, joined.began)

    def bears(self, position: Position, journal: Journal) -> bool:
        """Return whether a position in a journal as it was is one in this, as it is now."""
        return self == journal or (self.id == journal.id and position.within(self.began))


@dataclass(frozen=True, eq=False)
class Cursor:
    """
    A position for each model, and the journals that they are positions in, by database.

    `subject` tells what was asked for: a client that asks for something else has not seen what came before.
    """

    positions: Mapping[Model, Position]
    journals: Mapping[str, Journal]
    subject: str = ""

    @cached_property
    def token(self) -> str:
        """What a client is given; made when first asked for, since signing takes 8 us, and cold ten times that."""
        journals = {database: [journal.id, journal.era] for database, journal in self.journals.items()}
        positions = [[*model, str(position)] for model, position in self.positions.items()]
        return _signer().sign_object([journals, positions, self.subject])

    def about(self, subject: str) -> Cursor:
        """Return the same of another question; what it is made of is shared."""
        return Cursor(self.positions, self.journals, subject)

    @classmethod
    def read(cls, token: Any) -> Cursor:
        """Return what was given to a client.  Raises CursorError for anything that is not signed by this site."""
        try:
            journals, positions, subject = _signer().unsign_object(token)
            return cls(
                {(database, label): Position.parse(position) for database, label, position in positions},
                {database: Journal(*journal) for database, journal in journals.items()},
                subject,
            )
        except (signing.BadSignature, ValueError, TypeError, AttributeError) as error:
            raise CursorError("the cursor is not one of this site: subscribe without it") from error

    def fits(self, models: Iterable[Model], journals: Mapping[str, Journal]) -> bool:
        """Return whether it says where to go on in all of these models, in the journals that there are now."""
        return set(models) == self.positions.keys() and all(
            journals[database].bears(position, self.journals[database])
            for (database, _), position in self.positions.items()
        )


def _signer() -> signing.Signer:
    return _signer_with(settings.SECRET_KEY, tuple(settings.SECRET_KEY_FALLBACKS))


# Kept, because to make one takes a quarter of the time.  Without the time in it, which nobody asks for: what is too old
# to be served is known from the journal.
@lru_cache(maxsize=2)
def _signer_with(key: str, fallbacks: tuple[str, ...]) -> signing.Signer:
    return signing.Signer(key=key, salt=SALT, fallback_keys=list(fallbacks))
