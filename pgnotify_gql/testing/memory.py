"""A journal that a test fills by hand, so that a whole subscription runs without a database."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from django.db import router

from ..capture.kinds import Kind
from ..capture.registry import registry
from ..capture.watch import Watch
from ..journal import Change
from ..journal.change import JournalRow
from .errors import SubscriptionTestError
from .factories import journal_row
from .serving import current_server, serving


class MemoryJournal:
    """
    What communicators are served from while it is open; a context manager, to be entered before the first of them.

    ``add()`` takes changes that the factories have made (or that ``pump()`` has returned), ``pump()`` delivers them.
    ``change.instance`` then is the instance that a factory was given, where rows would be fetched.
    """

    def __init__(self) -> None:
        self._rows: list[tuple[str, JournalRow]] = []
        self._rows_by_key: dict[str, dict[Any, Any]] = {}
        self._opened = ExitStack()

    def add(self, *changes: Change) -> None:
        """Journal changes, as if each was committed; they wait for ``pump()``."""
        for change in changes:
            watch = registry.get(change.model_label)
            assert watch is not None, "a change of it could not have been made"
            self._rows.append((router.db_for_write(watch.model), journal_row(change, len(self._rows) + 1)))
            gone = change.kind in {Kind.DELETE, Kind.TRUNCATE}
            self._instances(watch)[change.pk] = None if gone else change.instance

    def __enter__(self) -> Self:
        if current_server() is not None:
            raise SubscriptionTestError("enter a MemoryJournal before the first GraphqlCommunicator")
        with ExitStack() as opening:
            opening.callback(self._forget)
            opening.enter_context(serving(lambda alias: _Added(alias, self._rows)))
            self._opened = opening.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()

    def _instances(self, watch: Watch) -> dict[Any, Any]:
        known = self._rows_by_key.get(watch.label)
        if known is None:
            known = self._rows_by_key[watch.label] = {}
            # In place of the query for a row that a watch keeps for each database.
            watch.fetch_by(router.db_for_write(watch.model), known.get)
        return known

    def _forget(self) -> None:
        for label in self._rows_by_key:
            watch = registry.get(label)
            if watch is not None:
                watch.fetch_by(router.db_for_write(watch.model), None)
        self._rows_by_key.clear()


class _Added:
    """The rows of one database; see ``journal.Source``."""

    def __init__(self, alias: str, rows: Sequence[tuple[str, JournalRow]]) -> None:
        self._alias = alias
        self._rows = rows

    def read(self, delivered: Collection[int]) -> Sequence[JournalRow]:
        return [row for alias, row in self._rows if alias == self._alias and row.id not in delivered]

    def is_captured(self, label: str) -> bool:
        return True
