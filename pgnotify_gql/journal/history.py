"""
The history of one row: its changes that the journal has from a time on, found at a bounded cost.

The journal has no index of keys, nor of time.  So its newest rows are looked through in the order of its only index,
and no further than so many.  PostgreSQL lets those pass in which the key may be; they are decoded and compared here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString

from ..capture.kinds import Kind
from .change import Change, JournalRow, Source
from .reader import COLUMNS, Connection
from .sighting import decoded

MOST_EXAMINED = 200_000
"""Journal rows that are looked through, the newest; it takes a second, or less."""

LONGEST = 10.0
"""Seconds that the database may take for it."""

MOST_ROWS = 100
"""Journal rows that are decoded, the newest in which the key may be; one of a bulk write has 100 kB."""

HISTORY: LiteralString = f"""
    select {COLUMNS} from (
        select * from pgnotify_gql.journal order by xid desc, id desc limit %(examined)s
    ) as newest
    where label = %(label)s and at >= %(since)s and (kind = 'TRUNCATE' or not exists (
        select from unnest(%(parts)s::text[]) as part where strpos(rows::text, part) = 0
    ))
    order by id desc limit %(most)s
"""  # noqa: S608  (made of constants)

BEYOND: LiteralString = "select at from pgnotify_gql.journal order by xid desc, id desc offset %s limit 1"

BETWEEN = re.compile(r"[\s,]*")
"""What stands between two values of a list."""

PLACES = json.JSONDecoder(parse_int=str, parse_float=str)
"""Finds out where a value ends; numbers may have more digits than Python takes."""


@dataclass(frozen=True)
class Event:
    """A change in the journal, and the row that it is in."""

    row: JournalRow
    change: Change

    @property
    def rows(self) -> str:
        """Return what the row would have if it were of this change alone, as PostgreSQL wrote it."""
        text, begin, end = self.row.rows, 0, 1
        for _ in range(self.change.index + 1):
            between = BETWEEN.match(text, end)
            assert between is not None, "it matches nothing as well"
            begin = between.end()
            _, end = PLACES.raw_decode(text, begin)
        return f"[{text[begin:end]}]"


@dataclass(frozen=True)
class History:
    """
    What happened to a row, the last of it at the end.

    `complete` is False where there may have been more.  `undecoded` counts journal rows that this process cannot
    decode, and in which the key may be.
    """

    events: Sequence[Event]
    complete: bool
    undecoded: int


async def read_history(
    connection: Connection,
    source: Source,
    is_meant: Callable[[Change], bool],
    *,
    since: datetime,
    parts: Sequence[str] = (),
    examined: int = MOST_EXAMINED,
) -> History:
    """
    Return the changes that are meant, from a time on; TRUNCATE is one of every row.

    `parts` are texts that each journal row with such a change has in it, where they are known for certain.  Raises
    psycopg.Error.
    """
    parameters = {"label": source.label, "since": since, "parts": list(parts), "examined": examined, "most": MOST_ROWS}
    # A setting of the transaction: one of the session would stay with a pooler.
    async with connection.transaction():
        await connection.execute("select set_config('statement_timeout', %s, true)", [f"{LONGEST:g}s"])
        result = await connection.execute(HISTORY, parameters)
        newest = await result.fetchall()
        result = await connection.execute(BEYOND, [examined])
        beyond = await result.fetchone()
    rows = [JournalRow(*columns) for columns in reversed(newest)]
    found = [(row, change) for row in rows for change, _ in decoded(row, source)]
    return History(
        events=[
            Event(row, change)
            for row, change in found
            if change is not None and (change.kind is Kind.TRUNCATE or is_meant(change))
        ],
        complete=len(rows) < MOST_ROWS and (beyond is None or beyond[0] < since),
        undecoded=sum(change is None for _, change in found),
    )
