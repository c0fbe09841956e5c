"""
The doorbell: the NOTIFY that wakes a sleeping listener, and the lock that keeps writers from ringing.

NOTIFY takes one lock of the whole instance from before the commit until after the WAL flush, so that writers who all
notify commit one after the other.  So they ring only if the listener sleeps: it holds the awake lock exclusively while
it reads, and a trigger function tests that lock within one expression, after it has inserted its journal row.

Not holding the awake lock is always safe, it only makes writers ring.  Holding it while nobody reads is what must not
happen; a lock of the session ends with the session.

Some poolers accept LISTEN and deliver nothing, so the listener rings once to find out whether it can hear.  It rings
from a second connection: a backend sends its own bell with the answer to the statement that rang it, which even a
pooler in transaction mode passes on.
"""

from __future__ import annotations

import asyncio
import logging
import secrets

from .. import names
from ..journal.reader import Connection

logger = logging.getLogger("pgnotify_gql.listener")

LOOPBACK_TIMEOUT = 2.0
"""Seconds within which our own bell must come back; it takes a millisecond where LISTEN works."""


class Doorbell:
    """Bells of one connection; `notifies()` of that connection is used here and nowhere else."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._awake = False

    async def listen(self) -> None:
        """Listen from now on; committed at once, the connection is in autocommit."""
        await self._connection.execute(f"listen {names.NOTIFY_CHANNEL}")

    async def hears(self, other: Connection, timeout: float = LOOPBACK_TIMEOUT) -> bool:  # noqa: ASYNC109  (psycopg's own)
        """Ring once on another connection and return whether the bell was heard on this one."""
        nonce = secrets.token_hex(8)
        await other.execute("select pg_notify(%s, %s)", [names.NOTIFY_CHANNEL, nonce])
        deadline = asyncio.get_running_loop().time() + timeout
        while True:
            # A last look behind the deadline: of a process that stood still, the bell may be there since long.
            remaining = max(0.0, deadline - asyncio.get_running_loop().time())
            async for bell in self._connection.notifies(timeout=remaining, stop_after=1):
                if bell.payload == nonce:
                    return True
            if not remaining:
                return False

    async def wait(self, timeout: float) -> bool:  # noqa: ASYNC109
        """Wait for a bell, also one that rang since the last wait; return whether there was one."""
        rung = False
        async for _ in self._connection.notifies(timeout=timeout, stop_after=1):
            rung = True
        return rung

    async def silence(self) -> None:
        """
        Take the awake lock, if it is to be had: writers then stay silent.

        A writer holds it shared for a moment while it tests it.  Trying and not waiting, because a writer frozen in
        that moment must not freeze the listener.
        """
        if not self._awake:
            result = await self._connection.execute(
                "select pg_try_advisory_lock(%s, %s)", [names.LOCK_CLASS, names.AWAKE_LOCK]
            )
            found = await result.fetchone()
            self._awake = found is not None and bool(found[0])

    async def unsilence(self) -> None:
        """Release the awake lock: writers who come from now on ring."""
        if self._awake:
            await self._connection.execute("select pg_advisory_unlock(%s, %s)", [names.LOCK_CLASS, names.AWAKE_LOCK])
            self._awake = False


class PolledDoorbell(Doorbell):
    """No bells: waiting is sleeping, for `interval` seconds at most."""

    def __init__(self, connection: Connection, interval: float) -> None:
        super().__init__(connection)
        self._interval = interval

    async def wait(self, timeout: float) -> bool:  # noqa: ASYNC109
        await asyncio.sleep(min(timeout, self._interval))
        return False

    async def silence(self) -> None:
        """Do nothing: nobody rings."""

    async def unsilence(self) -> None:
        """Do nothing: nobody rings."""
