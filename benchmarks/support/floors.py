"""
The least that capture by triggers can cost, whoever writes it: tables with triggers that do next to nothing.

Both are called once a statement, and have PostgreSQL keep the changed rows for them, as ours do.  One does nothing with
them.  The other writes their keys, as one row, into a table without an index, a partition or a default.
"""

from __future__ import annotations

from collections.abc import Mapping

from tests.support.watched import Connection

FLOORS: Mapping[str, str] = {"a trigger that does nothing": "idle", "their keys into a bare table": "copying"}
"""What is done, and the table where it is done."""

FUNCTIONS = """
create table benchmark_keys (label text, keys text);

create function benchmark_idle() returns trigger language plpgsql as $$
begin
    return null;
end $$;

create function benchmark_copying() returns trigger language plpgsql as $$
begin
    insert into benchmark_keys select tg_table_name, string_agg(changed.id::text, ',') from changed;
    return null;
end $$;
"""

TRIGGERS = """
create trigger benchmark_update after update on {table} referencing old table as former new table as changed
for each statement execute function benchmark_{table}();
create trigger benchmark_insert after insert on {table} referencing new table as changed
for each statement execute function benchmark_{table}();
"""


def make_floors(session: Connection) -> None:
    """Give the tables, which are there, their triggers."""
    session.execute(FUNCTIONS)
    for table in FLOORS.values():
        session.execute(TRIGGERS.format(table=table))


def empty_floors(session: Connection) -> None:
    """Delete what was written."""
    session.execute("truncate benchmark_keys")
