"""
Monitor: a page for staff that shows the feed at work, and is itself a client of it.

Guarantees that only active members of the staff see it, on the page and on its socket; that of rows they are told what
they may view the models of (labels, keys, names of changed columns, conditions of topics), and never the values; that
messages of errors, which may hold anything, are told to superusers only, and that only they can install triggers.

Does not guarantee that all of it can be seen: processes without a socket have no hub to answer, and one that is busy
may answer too late.

On failure of one part the page shows a sentence in its place, and the others as ever; on failure of the server it says
so, and goes on from its cursor as soon as there is one.
"""

from .feed import MonitorConsumer

__all__ = ["MonitorConsumer"]
