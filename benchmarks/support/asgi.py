"""
The ASGI servers on which ours and its baselines run, each as one process.

With their defaults, but for their own pings: the usual design is busy for longer than its server waits for an answer,
and would lose the sockets that it is measured with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from tests.support.processes import ProjectServer, daphne, uvicorn

Start: TypeAlias = Callable[[dict[str, str], str], ProjectServer]
"""Takes the environment and the application."""

PINGS = "600"
"""Seconds between the pings of a server."""


def _daphne(environment: dict[str, str], application: str) -> ProjectServer:
    return daphne(environment, application, "--ping-interval", PINGS)


def _uvicorn(environment: dict[str, str], application: str) -> ProjectServer:
    return uvicorn(environment, application, "--ws-ping-interval", PINGS)


SERVERS: Mapping[str, Start] = {"Daphne": _daphne, "Uvicorn": _uvicorn}
