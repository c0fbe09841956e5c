"""The journals of a test, one for each database that is followed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any
from weakref import ref

from django.db import connections

from ..conf import get_settings
from ..errors import JournalMissingError
from ..journal.reader import Batch
from .database_source import DatabaseSource
from .journal import Journal, Source


class Journals(list[Journal]):
    """All of them; used in the thread of the test.  `names` are those of the databases."""

    names: Sequence[Any] = ()

    @classmethod
    def of(cls, sources: Callable[[str], Source]) -> Journals:
        """Return new ones, each with its source."""
        return cls(Journal(alias, sources(alias)) for alias in get_settings().DATABASES)

    @classmethod
    def of_databases(cls) -> Journals:
        """
        Return those of the databases, from here on.

        They are the ones from before as long as somebody has a client of theirs, who may come back with its cursor.
        """
        global _last
        journals = cls.remembered()
        if journals is None:
            journals = cls.of(DatabaseSource)
            journals.names = _names()
            _last = ref(journals)
        # What was changed so far is for nobody but those who come back. A database that the test has not used yet may
        # be one that it may not use; of which pytest-django says RuntimeError.
        for journal in journals:
            if connections[journal.database].connection is not None:
                with suppress(JournalMissingError, RuntimeError):
                    journal.refresh()
                    journal.deliver()
        return journals

    @staticmethod
    def remembered() -> Journals | None:
        """Return the last ones of databases, if these are the same and there is still a client of theirs."""
        journals = None if _last is None else _last()
        return journals if journals is not None and journals.names == _names() else None

    def refresh(self) -> int:
        """Look what has been changed; return how many rows wait to be delivered."""
        return sum([journal.refresh() for journal in self])

    def deliver(self) -> dict[str, Sequence[Batch]]:
        """Look what has been changed, and count it as delivered; return it by database."""
        self.refresh()
        return {journal.database: journal.deliver() for journal in self}


def _names() -> list[Any]:
    aliases = get_settings().DATABASES
    return [
        [alias, *(connections[alias].settings_dict.get(key) for key in ("HOST", "PORT", "NAME"))] for alias in aliases
    ]


_last: ref[Journals] | None = None
