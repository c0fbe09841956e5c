"""
Testing: how an application tests its subscriptions.

Guarantees that what runs is what runs in production, but for where changes come from and in which thread things are
executed: consumer, protocol, hub and relay are the real ones; and that a test waits for events and never for time.

Does not test what lies outside of the process: the listener, leadership, a channel layer that loses messages, and that
a transaction commits.

On failure a test is told what is missing (triggers, a pump, an open communicator).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .communicator import GraphqlCommunicator
    from .errors import (
        GraphqlResultError,
        NotCapturedError,
        NothingSentError,
        NotOpenError,
        NotSettledError,
        ResyncError,
        SocketClosedError,
        SubscriptionTestError,
        UnexpectedResultError,
    )
    from .factories import delete, insert, truncate, update
    from .memory import MemoryJournal
    from .serving import apump, pump
    from .subscription import TestSubscription
    from .triggers import install_triggers

_HOMES = {
    "GraphqlCommunicator": "communicator",
    "GraphqlResultError": "errors",
    "MemoryJournal": "memory",
    "NotCapturedError": "errors",
    "NotOpenError": "errors",
    "NotSettledError": "errors",
    "NothingSentError": "errors",
    "ResyncError": "errors",
    "SocketClosedError": "errors",
    "SubscriptionTestError": "errors",
    "TestSubscription": "subscription",
    "UnexpectedResultError": "errors",
    "apump": "serving",
    "delete": "factories",
    "insert": "factories",
    "install_triggers": "triggers",
    "pump": "serving",
    "truncate": "factories",
    "update": "factories",
}

__all__ = [
    "GraphqlCommunicator",
    "GraphqlResultError",
    "MemoryJournal",
    "NotCapturedError",
    "NotOpenError",
    "NotSettledError",
    "NothingSentError",
    "ResyncError",
    "SocketClosedError",
    "SubscriptionTestError",
    "TestSubscription",
    "UnexpectedResultError",
    "apump",
    "delete",
    "insert",
    "install_triggers",
    "pump",
    "truncate",
    "update",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: pytest imports the plugin before Django is set up."""
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    found = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = found
    return found
