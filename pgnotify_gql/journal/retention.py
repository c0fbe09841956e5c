"""
Empty old slots of the journal, in turn, and never one that is still needed.

Writers write into one of three slots, the current one.  The leader moves them on to the next slot when the current one
is older than the retention and the next is empty; it empties a slot (TRUNCATE: no DELETE, so nothing to vacuum) when
all of its rows are relayed and older than the retention.  While no listener runs nothing moves: the journal grows,
and nothing is lost.

Emptying locks the slot first, which waits for every transaction that wrote into it, and only then decides.  A
TRUNCATE that waits makes writers of that slot and readers wait behind it, hence the short lock timeout; a slot that
cannot be locked is tried again later.
"""

from __future__ import annotations

import logging
from typing import LiteralString

from psycopg import errors, sql

from .reader import Connection, unseen_parameters
from .snapshot import Snapshot

logger = logging.getLogger("pgnotify_gql.journal")

SLOTS = 3

LOCK_TIMEOUT = 0.1
"""Seconds that emptying may queue for a slot."""

# Not pg_sequence_last_value(): from PostgreSQL 17 on it tells NULL to whom the sequence is closed, and raises nothing.
CURRENT: LiteralString = "select last_value from pgnotify_gql.journal_slot"

# The age of the row with the highest xid: a probe of the index that spares the scan below most of the time.
NEWEST: LiteralString = """
    select at > clock_timestamp() - make_interval(secs => %s) from {slot} order by xid desc limit 1
"""

# Whether any row is young, looked at without a lock, so that the scan makes nobody wait.
YOUNG: LiteralString = """
    select pg_current_snapshot()::text, max(xid::text::bigint),
           coalesce(bool_or(at > clock_timestamp() - make_interval(secs => %s)), false)
    from {slot}
"""

UNSEEN: LiteralString = """
    select exists (
        select from {slot} where xid >= %(xmax)s::xid8 or xid = any(%(xip)s::text[]::xid8[])
    )
"""

EMPTIED: LiteralString = """
    update pgnotify_gql.journal_state
    set emptied_xid = greatest(emptied_xid, %s::xid8), emptied = pg_current_snapshot()
"""


async def rotate(connection: Connection, relayed: Snapshot, retention: float, database: str = "default") -> None:
    """
    Empty what can be emptied, and move writers on if it is time.

    `relayed` is the leader's stored cursor, `retention` is in seconds, `database` an alias for the log.  Called now and
    then by the leader only.
    """
    current = await current_slot(connection)
    for slot in ((current + 1) % SLOTS, (current + 2) % SLOTS):
        await _empty(connection, slot, relayed, retention, database)
    await _move_on(connection, current, retention, database)


async def current_slot(connection: Connection) -> int:
    """Return the number of the slot that is written now."""
    result = await connection.execute(CURRENT)
    found = await result.fetchone()
    assert found is not None
    return int(found[0]) % SLOTS


async def _empty(connection: Connection, slot: int, relayed: Snapshot, retention: float, database: str) -> None:
    table = slot_table(slot)
    result = await connection.execute(sql.SQL(NEWEST).format(slot=table), [retention])
    newest = await result.fetchone()
    if newest is None or newest[0] or await _unseen(connection, slot, relayed):
        return
    result = await connection.execute(sql.SQL(YOUNG).format(slot=table), [retention])
    found = await result.fetchone()
    assert found is not None
    seen, newest_xid, young = found
    if young:
        return
    try:
        async with connection.transaction():
            await connection.execute("select set_config('lock_timeout', %s, true)", [f"{int(LOCK_TIMEOUT * 1000)}ms"])
            await connection.execute(sql.SQL("lock table {} in access exclusive mode").format(table))
            # Now that every writer of the slot has ended: rows that came since the look without a lock.
            if await _unseen(connection, slot, Snapshot.parse(seen)) or await _unseen(connection, slot, relayed):
                return
            await connection.execute(sql.SQL("truncate {}").format(table))
            await connection.execute(EMPTIED, [str(newest_xid)])
    except errors.LockNotAvailable:
        logger.info("slot %d of the journal of database %s is in use; it is emptied later", slot, database)
    else:
        logger.info("slot %d of the journal of database %s emptied", slot, database)


async def _unseen(connection: Connection, slot: int, cursor: Snapshot) -> bool:
    result = await connection.execute(sql.SQL(UNSEEN).format(slot=slot_table(slot)), unseen_parameters(cursor))
    found = await result.fetchone()
    assert found is not None
    return bool(found[0])


async def _move_on(connection: Connection, current: int, retention: float, database: str) -> None:
    following = (current + 1) % SLOTS
    result = await connection.execute(
        sql.SQL(
            "select clock_timestamp() > rotated_at + make_interval(secs => %s) and not exists (select from {})"
            " and exists (select from {}) from pgnotify_gql.journal_state"
        ).format(slot_table(following), slot_table(current)),
        [retention],
    )
    found = await result.fetchone()
    if found is None or not found[0]:
        return
    await connection.execute("update pgnotify_gql.journal_state set rotated_at = clock_timestamp()")
    await connection.execute("select setval('pgnotify_gql.journal_slot', %s)", [following])
    logger.info("the journal of database %s is written in slot %d", database, following)


def slot_table(slot: int) -> sql.Identifier:
    """Return the name of a slot's table."""
    return sql.Identifier("pgnotify_gql", f"journal_{slot}")
