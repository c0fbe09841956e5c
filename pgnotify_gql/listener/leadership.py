"""
Leadership: which listener relays.

The leader holds a session advisory lock on its connection; a leader that crashes, or loses its network or its server,
loses the lock with its session.  Each term has an epoch, by which everybody tells an old leader from the new one.

Standbys try the lock a few times a second.  They do not block on it: a backend that waits inside a statement holds a
snapshot (``backend_xmin`` in pg_stat_activity), so that VACUUM could remove nothing, and keeps the notification queue
of the whole instance from being cleaned, for as long as the leader lives.

Behind a pooler a session is not the listener's own: the lock would stay with a server connection after the listener has
gone, and nobody could lead.  There the leader has a lease instead: the time at which it stored its cursor last.  After
a crash a standby waits until the lease has run out.
"""

from __future__ import annotations

from .. import names
from ..journal.reader import Connection
from ..journal.snapshot import Snapshot
from ..journal.state import begin_epoch, begin_epoch_after, require_own_cluster

STANDBY_INTERVAL = 0.25
"""Seconds between two tries of a standby; it leads within 1 s of a crash."""


async def try_to_lead(connection: Connection, *, direct: bool, lease: float) -> tuple[int, Snapshot] | None:
    """
    Begin a term of leadership if nobody leads; return its epoch and the stored cursor, or None.

    `direct` is False behind a pooler, where a leader that has not stored its cursor for `lease` seconds has gone.
    """
    if not direct:
        await require_own_cluster(connection)
        return await begin_epoch_after(connection, lease)
    result = await connection.execute("select pg_try_advisory_lock(%s, %s)", [names.LOCK_CLASS, names.LEADER_LOCK])
    found = await result.fetchone()
    if found is None or not found[0]:
        return None
    await require_own_cluster(connection)
    return await begin_epoch(connection)
