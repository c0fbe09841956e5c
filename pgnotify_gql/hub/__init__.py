"""
Hub: from groups to operations.

Guarantees that an operation is given every change of its topics that commits after it has joined, once, in the order
of the journal, whatever the channel layer loses, doubles or reorders; and that operations share an execution only
within their audience.

Does not guarantee it past what the journal still holds: then every operation on the model is sent a resync.

On failure of layer or database it goes on from its position as soon as they are back.  What waits is bounded: it reads
no further while too much is pending, and a socket whose outbox overflows is told so.
"""

from .operations import Audience, Batch, Current, Event, Interest, Operation
from .process import current_hub, open_hub
from .topics import Topic

__all__ = ["Audience", "Batch", "Current", "Event", "Interest", "Operation", "Topic", "current_hub", "open_hub"]
