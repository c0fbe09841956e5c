"""
A deadline for the answer of a server that may hang: frozen, or behind a network that lost it without a word.

Cancelling would not do: psycopg then asks that same server to cancel, and waits for its answer.  So the socket is shut
down, and whoever waits is told that the connection is lost.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psycopg

from ..journal.reader import Connection

logger = logging.getLogger("pgnotify_gql.listener")


@contextmanager
def answered_within(connection: Connection, seconds: float) -> Iterator[None]:
    """Give up a connection that has not answered by then; what waits for it raises psycopg.OperationalError."""
    handle = asyncio.get_running_loop().call_later(seconds, _cut, connection, seconds)
    try:
        yield
    finally:
        handle.cancel()


def _cut(connection: Connection, seconds: float) -> None:
    logger.warning("the server has not answered for %g s; the connection is given up", seconds)
    # The descriptor stays psycopg's own to close.
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as line:
        line.shutdown(socket.SHUT_RDWR)
