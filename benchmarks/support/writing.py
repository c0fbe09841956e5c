"""
Single-row updates by pgbench, of a table with our triggers, of one without, of one that always notifies, and of floors.

All in one database; our leader runs in every variant, and is awake as long as there are changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.benchmark import Plan
from benchmarks.support.floors import FLOORS, empty_floors, make_floors
from benchmarks.support.layers import WATCHED
from benchmarks.support.pgbench import transactions_per_second, update_script
from benchmarks.support.postgres import ROWS, database, empty_journal, make_table, server, settle, watch_table
from benchmarks.support.postgres import conditions as settings_of
from tests.support.databases import Database
from tests.support.watched import Connection

WATCHED_TABLE = "watched"
PLAIN_TABLE = "plain"
NOTIFYING_TABLE = "notifying"

NOTIFY_CHANNEL = "benchmark"

# What most libraries do: every changed row rings, with its key.
ALWAYS_NOTIFY = f"""
create function benchmark_notify() returns trigger language plpgsql as $$
begin
    perform pg_notify('{NOTIFY_CHANNEL}', new.id::text);
    return null;
end $$;
create trigger benchmark_notify after insert or update on {NOTIFYING_TABLE}
for each row execute function benchmark_notify();
"""


@dataclass(frozen=True)
class Writing:
    """A database with the tables; `session` is for what is done between runs."""

    database: Database
    session: Connection
    seconds: float

    def speed(self, table: str, clients: int) -> float:
        """Return transactions per second, over so many seconds."""
        empty_journal(self.session)
        empty_floors(self.session)
        settle(self.session, table)
        return transactions_per_second(self.database, update_script(table, ROWS), clients, self.seconds)

    @property
    def conditions(self) -> dict[str, str]:
        return {
            **settings_of(self.database.server),
            "load": f"pgbench, prepared, unix socket, {self.seconds:g} s a run; update of one of {ROWS:,} rows",
        }


@contextmanager
def writing(plan: Plan) -> Iterator[Writing]:
    """Start the server and make the tables; no listener runs yet."""
    with server(plan) as postgres, database(postgres) as made:
        session = made.connect()
        plan.tell("making tables")
        for table in (WATCHED_TABLE, PLAIN_TABLE, NOTIFYING_TABLE, *FLOORS.values()):
            make_table(session, table)
        label = watch_table(WATCHED_TABLE)
        assert label == WATCHED
        session.execute(ALWAYS_NOTIFY)
        make_floors(session)
        yield Writing(made, session, plan.pick(10, 1))
