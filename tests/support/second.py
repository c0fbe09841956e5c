"""A second alias of Django's, "annex", with a database and a watched table of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connections

from pgnotify_gql.capture.installer import execute, plan_install
from pgnotify_gql.capture.watch import Watch
from tests.support.databases import forget_connections, migrated_template, new_database
from tests.support.postgres import PostgresServer
from tests.support.watched import ITEM_SQL, Item, WatchedTable

# One object for all tests: the connections of other threads keep it.
_parameters: dict[str, Any] = {}


@contextmanager
def second_alias(postgres: PostgresServer) -> Iterator[WatchedTable]:
    """The table `item` behind the alias "annex", while "default" leads to a database of its own."""
    with new_database(postgres, migrated_template(postgres)) as database:
        _parameters.clear()
        _parameters.update(connections.databases["default"] | {"NAME": database.name})
        connections.databases["annex"] = _parameters
        try:
            table = WatchedTable(database.connect(), Watch(Item, ()))
            table.run(ITEM_SQL)
            plan = plan_install(connections["annex"], [table.watch], rings=True)
            for step in plan.pending:
                execute(connections["annex"], step)
            connections["annex"].close()
            yield table
        finally:
            forget_connections()
            del connections.databases["annex"]
