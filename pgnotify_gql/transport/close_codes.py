"""
Close codes, one list for every subprotocol.

Clients of graphql-transport-ws never retry 4400, 4401, 4406, 4409, 4429 and 4500; they do retry 4403, 4408, 1001,
1012, 1013 and abnormal closes.
"""

from __future__ import annotations

from enum import IntEnum

REASON_BYTES = 123
"""RFC 6455: a control frame carries 125 bytes, two of which are the code."""


class CloseCode(IntEnum):
    """Why a socket is closed by the server."""

    NORMAL = 1000
    GOING_AWAY = 1001
    MESSAGE_TOO_BIG = 1009
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013
    BAD_REQUEST = 4400
    UNAUTHORIZED = 4401
    FORBIDDEN = 4403
    SUBPROTOCOL_NOT_ACCEPTABLE = 4406
    INITIALISATION_TIMEOUT = 4408
    SUBSCRIBER_EXISTS = 4409
    TOO_MANY_REQUESTS = 4429
    INTERNAL_SERVER_ERROR = 4500


PRIVATE_CODES = {
    CloseCode.GOING_AWAY: 4001,
    CloseCode.MESSAGE_TOO_BIG: int(CloseCode.BAD_REQUEST),
    CloseCode.SERVICE_RESTART: 4012,
    CloseCode.TRY_AGAIN_LATER: 4013,
}
"""For servers that send none of these.  Clients retry as with the code itself: 4001, 4012 and 4013 yes, 4400 never."""


def reason(text: str) -> str:
    """Return a reason that fits into a close frame; half a surrogate pair, which UTF-8 cannot have, becomes a ``?``."""
    return text.encode(errors="replace")[:REASON_BYTES].decode(errors="ignore")
