"""
The listener's connection: its own, in autocommit, with deadlines on both ends.

A frozen or cut-off leader must lose its session, and with it the leader lock, by itself: the server ends a session
that is idle for too long and a TCP connection that does not acknowledge; the client does the latter as well.

Statements are not prepared by themselves: behind a pooler in transaction mode the next statement may meet another
server, which does not know them, or one that knows them from somebody else.  Whoever has found out that no pooler
stands in between may set ``prepare_threshold``.  For the same reason nothing is set for the session there: it would
stay with a server that the application is given next, ``synchronous_commit`` with it.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from psycopg import AsyncConnection, Error, OperationalError, conninfo
from psycopg.rows import tuple_row

from ..journal.reader import Connection

APPLICATION_NAME = "pgnotify_gql listener"

CONNECT_TIMEOUT = 5
"""Seconds to wait for a server that does not answer."""


TCP_TIMEOUT = 15.0
"""Seconds without an acknowledgement after which a connection counts as lost, for sessions without a time-out."""


async def connect(
    dsn: str, *, session_timeout: float, application_name: str = APPLICATION_NAME, replica: bool = False
) -> Connection:
    """
    Return a connection whose session ends when it is silent for `session_timeout` seconds (0: however long).

    Raises psycopg.OperationalError when there is no server, or a replica where that does not do, and
    psycopg.ProgrammingError when `dsn` is malformed.
    """
    seconds = max(1, int(session_timeout or TCP_TIMEOUT))
    parameters: dict[str, Any] = {
        "application_name": application_name,
        "connect_timeout": CONNECT_TIMEOUT,
        "keepalives_idle": max(1, seconds // 3),
        "keepalives_interval": max(1, seconds // 6),
        "keepalives_count": 3,
        "tcp_user_timeout": seconds * 1000,
        **conninfo.conninfo_to_dict(dsn),
    }
    connection = await _opened(conninfo.make_conninfo(**parameters))
    try:
        if not replica:
            await _require_primary(connection)
        if await is_direct(connection):
            for name, value in _session_settings(session_timeout).items():
                await connection.execute("select set_config(%s, %s, false)", [name, value])
    except BaseException:
        # Cancelled, above all: with the last socket of a process its listener ends, maybe before it has begun.
        await connection.close()
        raise
    return connection


async def _opened(dsn: str) -> Connection:
    opening = asyncio.create_task(
        AsyncConnection.connect(dsn, autocommit=True, row_factory=tuple_row, prepare_threshold=None),
        name="pgnotify_gql connecting",
    )
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        # What psycopg has half opened only the garbage collector would close, and clients that come and go could take
        # every connection of the server: opened to the end (CONNECT_TIMEOUT bounds it), and closed.
        with suppress(Error):
            await (await opening).close()
        raise


async def _require_primary(connection: Connection) -> None:
    # A snapshot of a replica lists nothing as in progress, so that as a cursor it loses what commits later.
    result = await connection.execute("select pg_is_in_recovery()")
    if await result.fetchone() == (True,):
        raise OperationalError(
            "it is a replica: name the primary, or every server with target_session_attrs=read-write"
        )


async def is_direct(connection: Connection) -> bool:
    """Return whether the session is ours alone, with no pooler in between."""
    # A pooler tells a process id of its own making, with which it recognises who wants to cancel.
    result = await connection.execute("select pg_backend_pid()")
    return await result.fetchone() == (connection.info.backend_pid,)


def _session_settings(session_timeout: float) -> dict[str, str]:
    milliseconds = str(int(session_timeout * 1000))
    tcp_timeout = session_timeout or TCP_TIMEOUT
    return {
        "idle_session_timeout": milliseconds,
        "idle_in_transaction_session_timeout": milliseconds,
        "tcp_keepalives_idle": str(max(1, int(tcp_timeout / 3))),
        "tcp_keepalives_interval": str(max(1, int(tcp_timeout / 6))),
        "tcp_keepalives_count": "3",
        "tcp_user_timeout": str(int(tcp_timeout * 1000)),
        # What a role or a database may have set for applications must not end a long read of a backlog.
        "statement_timeout": "0",
        "lock_timeout": "0",
        # The stored cursor may be lost in a crash: what was relayed twice is dropped by the hubs.
        "synchronous_commit": "off",
        # Reading what is new is a probe of the index whatever the journal's size, but the planner believes a slot that
        # was just filled, or emptied, to be small until it is analyzed: 20 ms instead of 0.3 with 400,000 rows.
        "enable_seqscan": "off",
        "enable_bitmapscan": "off",
        "max_parallel_workers_per_gather": "0",
        "jit": "off",
        "plan_cache_mode": "force_generic_plan",
        "timezone": "UTC",
    }
