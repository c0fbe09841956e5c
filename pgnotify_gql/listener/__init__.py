"""
Listener: from the database to Python.

Guarantees that every change in the journal is handed to the sink at least once, in the order of the journal, by
exactly one leader at a time, within milliseconds of its commit; and that writers are asked to ring only while nobody
reads.

Does not guarantee that a batch is handed over only once: after a crash the last tenth of a second may come again,
under a new epoch.

On failure (connection, server, leader) it begins again by itself, from the stored cursor.
"""

from .listener import Listener
from .session import connect
from .term import Sink, Timing

__all__ = ["Listener", "Sink", "Timing", "connect"]
