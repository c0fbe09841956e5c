"""What a run is told, and the names by which its sessions are known."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from secrets import token_hex

SERVERS = {
    "daphne": ("daphne", "-b", "127.0.0.1", "-p"),
    "uvicorn": ("uvicorn", "--host", "127.0.0.1", "--port"),
}
"""Modules to run for each ASGI server, and the arguments before the port."""


@dataclass(frozen=True)
class Options:
    """
    Times in seconds; `rate` is changes of rows a second, of all writers together.

    `faults` names those that may be injected, `inline` says that the one server has a listener inside.
    """

    database: str
    duration: float
    servers: int
    listeners: int
    writers: int
    subscribers: int
    server: str
    faults: Sequence[str]
    fault_every: float
    rate: float
    wait: float
    seed: int
    inline: bool = False
    run: str = field(default_factory=lambda: token_hex(4))

    def session_name(self, whose: str) -> str:
        """Return the application name of sessions of this run: those of hubs, listeners, writers."""
        return f"{SESSION_PREFIX} {whose} {self.run}"


SESSION_PREFIX = "pgnotify_gql verify"
"""With which the application name of every session begins that a run opens."""


def installed_servers() -> list[str]:
    """Return the ASGI servers that are installed, the preferred one first."""
    return [name for name in SERVERS if importlib.util.find_spec(name) is not None]
