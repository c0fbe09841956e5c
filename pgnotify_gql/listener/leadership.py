"""
Leadership: which listener relays.

The leader holds a session advisory lock on its connection; a leader that crashes, or loses its network or its server,
loses the lock with its session.  Each term has an epoch, by which everybody tells an old leader from the new one.

Standbys try the lock a few times a second.  They do not block on it: a backend that waits inside a statement holds a
snapshot (``backend_xmin`` in pg_stat_activity), so that VACUUM could remove nothing, and keeps the notification queue
of the whole instance from being cleaned, for as long as the leader lives.

Some leaders keep their session and do nothing: a process that was frozen while the server sends it a large batch over a
unix socket, or over a proxy that goes on reading, leaves the server's backend waiting, where no time-out for idle
sessions or silent networks counts.  So a standby looks at the time at which the leader stored its cursor last, which a
leader does every few seconds even if there is nothing to relay, and ends the session of one that no longer does.

Behind a pooler a session is not the listener's own: the lock would stay with a server connection after the listener has
gone, and nobody could lead.  There the leader has a lease instead: the time at which it stored its cursor last.  After
a crash a standby waits until the lease has run out.
"""

from __future__ import annotations

import asyncio
import logging

import psycopg
from psycopg import sql

from .. import names
from ..journal.locks import HELD
from ..journal.reader import Connection
from ..journal.snapshot import Snapshot
from ..journal.state import begin_epoch, begin_epoch_after, require_own_cluster
from .deadline import answered_within

logger = logging.getLogger("pgnotify_gql.listener")

STANDBY_INTERVAL = 0.25
"""Seconds between two tries of a standby; it leads within 1 s of a crash."""

LOOK_INTERVAL = 1.0
"""Seconds between two looks of a standby at its leader, at most."""

# A backend that works, waits for a lock, or was asked something meanwhile
# (as where a backlog is read over its connection) is not stuck for want of its client; what it does is hidden (state is
# null) from other roles.
STUCK = sql.SQL("""
    select l.pid
    from pgnotify_gql.journal_state s, ({held}) as l
    join pg_stat_activity a on a.pid = l.pid
    where l.classid = %s and l.objid = %s
        and s.relayed_at < clock_timestamp() - make_interval(secs => %s)
        and (a.wait_event_type = 'Client' and a.state_change < clock_timestamp() - make_interval(secs => %s)
             or a.state is null)
""").format(held=HELD)


async def try_to_lead(
    connection: Connection, *, direct: bool, lease: float, database: str = "default"
) -> tuple[int, Snapshot] | None:
    """
    Begin a term of leadership if nobody leads; return its epoch and the stored cursor, or None.

    `direct` is False behind a pooler, where a leader that has not stored its cursor for `lease` seconds has gone.
    """
    if not direct:
        await require_own_cluster(connection, database)
        return await begin_epoch_after(connection, lease)
    with answered_within(connection, lease):
        result = await connection.execute("select pg_try_advisory_lock(%s, %s)", [names.LOCK_CLASS, names.LEADER_LOCK])
    found = await result.fetchone()
    if found is None or not found[0]:
        return None
    await require_own_cluster(connection, database)
    return await begin_epoch(connection)


# A leader that was frozen while it read a backlog leaves the session behind in which it did so.
END_LEFT_OVER = sql.SQL("""
    select pg_terminate_backend(l.pid) from ({held}) as l where l.classid = %s and l.objid = %s
""").format(held=HELD)


async def mark_backlog(connection: Connection) -> None:
    """Make a session known as one in which a leader reads a backlog."""
    await connection.execute("select pg_try_advisory_lock_shared(%s, %s)", [names.LOCK_CLASS, names.BACKLOG_LOCK])


async def end_left_over(connection: Connection) -> None:
    """End the sessions in which earlier leaders read backlogs; called by a new one, before it reads any."""
    try:
        await connection.execute(END_LEFT_OVER, [names.LOCK_CLASS, names.BACKLOG_LOCK])
    except psycopg.errors.InsufficientPrivilege as error:
        logger.warning("a session of an earlier leader could not be ended: %s", error)


class Guard:
    """
    A standby's eye on the leader of a database: ends its session before it has been stuck for `timeout` seconds.

    A leader stores its cursor every third of that, however little there is to do; without it for two thirds it is
    suspect.  Two looks must find the same session: one that has just won the lock has stored nothing yet.
    """

    def __init__(self, timeout: float, database: str) -> None:
        self._patience = timeout * 2 / 3
        self._interval = min(LOOK_INTERVAL, timeout / 4)
        self._database = database
        self._looked_at = 0.0
        self._suspect: int | None = None
        self._refused: int | None = None

    async def look(self, connection: Connection) -> None:
        """Look, if it is time to.  Raises psycopg.Error."""
        now = asyncio.get_running_loop().time()
        if now - self._looked_at < self._interval:
            return
        self._looked_at = now
        result = await connection.execute(STUCK, [names.LOCK_CLASS, names.LEADER_LOCK, self._patience, self._patience])
        found = await result.fetchone()
        stuck = None if found is None else int(found[0])
        if stuck is not None and stuck == self._suspect:
            await self._end(connection, stuck)
        self._suspect = stuck

    async def _end(self, connection: Connection, pid: int) -> None:
        try:
            await connection.execute("select pg_terminate_backend(%s)", [pid])
        except psycopg.errors.InsufficientPrivilege as error:
            if self._refused == pid:
                return
            self._refused = pid
            logger.error(
                "the leader of database %s (backend %d) has stored nothing for more than %g s, and may not be ended by "
                "this standby (%s): call pg_terminate_backend(), and let all listeners connect as one role",
                self._database, pid, self._patience, error,
            )  # fmt: skip
        else:
            logger.warning(
                "the leader of database %s (backend %d) has stored nothing for more than %g s: its session was ended",
                self._database, pid, self._patience,
            )  # fmt: skip
