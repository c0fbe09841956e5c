"""The ASGI servers on which ours and its baselines run, each as one process with its defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from tests.support.processes import ProjectServer, daphne, uvicorn

Start: TypeAlias = Callable[[dict[str, str], str], ProjectServer]
"""Takes the environment and the application."""

SERVERS: Mapping[str, Start] = {"Daphne": daphne, "Uvicorn": uvicorn}
