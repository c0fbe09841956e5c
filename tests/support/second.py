"""A second alias of Django's, "second", with a database and a watched table of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connections

from pgnotify_gql.capture.installer import execute, plan_install
from pgnotify_gql.capture.watch import Watch
from tests.support.databases import forget_connections, migrated_template, new_database
from tests.support.postgres import PostgresServer
from tests.support.watched import ITEM_SQL, Item, WatchedTable


@contextmanager
def second_alias(postgres: PostgresServer) -> Iterator[WatchedTable]:
    """The table `item` behind the alias "second", while "default" leads to a database of its own."""
    with new_database(postgres, migrated_template(postgres)) as database:
        connections.databases["second"] = connections.databases["default"] | {"NAME": database.name}
        try:
            table = WatchedTable(database.connect(), Watch(Item, ()))
            table.run(ITEM_SQL)
            plan = plan_install(connections["second"], [table.watch], rings=True)
            for step in plan.pending:
                execute(connections["second"], step)
            connections["second"].close()
            yield table
        finally:
            forget_connections()
            del connections.databases["second"]
