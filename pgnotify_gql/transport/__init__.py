"""
Transport: from operations to frames.

Guarantees that nothing runs before a connection is acknowledged, that results of an operation are sent in order and
nothing after its end, and that a violation of a subprotocol is answered exactly as the subprotocol says.

Does not guarantee that a client reads: what waits for it is bounded, and a client that falls behind is closed with a
code on which clients come back, or without the end that a stream has.

On failure of one operation the others of the socket go on; on failure of the socket all of its operations end.
"""

from .consumer import GraphqlSubscriptionConsumer
from .frames import Request
from .presence import adisconnect_user, disconnect_user
from .sse import GraphqlSseConsumer
from .views import health, metrics, readiness

__all__ = [
    "GraphqlSseConsumer",
    "GraphqlSubscriptionConsumer",
    "Request",
    "adisconnect_user",
    "disconnect_user",
    "health",
    "metrics",
    "readiness",
]
