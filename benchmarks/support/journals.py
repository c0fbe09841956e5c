"""The journal filled with what triggers would have written, without writing any table."""

from __future__ import annotations

from benchmarks.support.layers import WATCHED
from tests.support.watched import Connection

ROWS_A_TRANSACTION = 1_000
"""So that ids of transactions differ, as they do in life, and filling takes seconds."""

# Each with one changed row, its key.
FILL = """
do $$ begin
    for number in 1..{transactions} loop
        insert into pgnotify_gql.journal (label, kind, rows)
        select '{label}', 'UPDATE', json_build_array(json_build_array(json_build_array(number * {each} + i)))
        from generate_series(1, {each}) as i;
        commit;
    end loop;
end $$
"""

WRITE = """
    insert into pgnotify_gql.journal (label, kind, rows)
    select '{label}', 'UPDATE', json_build_array(json_build_array(json_build_array(i)))
    from generate_series(1, %s) as i
"""


def fill_journal(session: Connection, rows: int) -> None:
    """Write that many journal rows, in many transactions; `session` is in autocommit."""
    each = min(rows, ROWS_A_TRANSACTION)
    session.execute(FILL.format(transactions=rows // each, each=each, label=WATCHED))


def write_batch(session: Connection, rows: int) -> None:
    """Write so many journal rows in one transaction."""
    session.execute(WRITE.format(label=WATCHED), [rows])
