"""
Visitors: who is connected to this process as which user, so that a user can be made to leave everywhere.

That a user must leave is said through the channel layer, to every hub.  It may be lost, as whatever goes through a
layer; so it is no way to take a right away, but to have a right that was taken away looked at now, and not at the next
re-check of a socket.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypedDict

DISCONNECT: Literal["pgnotify_gql.disconnect"] = "pgnotify_gql.disconnect"

Leave = Callable[[], None]


class DisconnectMessage(TypedDict):
    """Every socket and stream of a user is to be closed."""

    type: Literal["pgnotify_gql.disconnect"]
    user: str


def user_key(user: Any) -> str:
    """Return what stands for a user in messages, the model as well: an application may have several."""
    return f"{user._meta.label_lower}:{user.pk}"


def disconnect_message(user: Any) -> DisconnectMessage:
    """Return the message that makes a user leave."""
    return {"type": DISCONNECT, "user": user_key(user)}


class Visitors:
    """Those of one event loop, by user."""

    def __init__(self) -> None:
        self._leaving: dict[str, dict[Leave, None]] = {}

    @contextmanager
    def visiting(self, user: str, leave: Leave) -> Iterator[None]:
        """Count a visit of a user meanwhile; `leave` is called when all of them are to end."""
        visits = self._leaving.setdefault(user, {})
        visits[leave] = None
        try:
            yield
        finally:
            visits.pop(leave, None)
            if not visits and self._leaving.get(user) is visits:
                del self._leaving[user]

    def count(self, user: str) -> int:
        """Return how many visits of a user there are."""
        return len(self._leaving.get(user, ()))

    def dismiss(self, user: str) -> None:
        """Let a user leave."""
        for leave in list(self._leaving.get(user, ())):
            leave()
