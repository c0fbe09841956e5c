"""
Relay: from Python to groups.

Guarantees that messages of a model leave in journal order, numbered without a gap within an epoch, each with the
cursors it lies between, and that a heartbeat tells the last number.

Does not guarantee that a message arrives: the channel layer is a fast path that may lose any of them.

On failure of the layer messages are dropped and logged; the numbers tell the hubs, which read the journal.
"""

from .messages import ChangesMessage, HeartbeatMessage, Message
from .relay import Relay

__all__ = ["ChangesMessage", "HeartbeatMessage", "Message", "Relay"]
