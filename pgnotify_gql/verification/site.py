"""
The site that a run is for: what of its settings the run needs, and what has to be right before anything is started.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import django
import psycopg
from channels.layers import InMemoryChannelLayer
from django.conf import ENVIRONMENT_VARIABLE
from django.db import connections

from ..conf import NAME, Settings, database_conninfo, get_settings
from ..errors import one_line
from ..relay.worker import channel_layer
from .errors import VerificationError
from .faults import FAULTS
from .options import SERVERS, Options, installed_servers

LAYER_TIMEOUT = 5.0
"""Seconds within which the channel layer must give back a message."""

DEFAULT_COUNT = 2
"""Servers, and listeners: so many that one can take over from the other."""


@dataclass(frozen=True)
class Site:
    """The settings of a site, and one of its databases."""

    settings: Settings
    alias: str

    @classmethod
    def found(cls, alias: str) -> Site:
        """Return the site of the settings in force.  Raises PgnotifyGqlError for what cannot be verified."""
        settings = get_settings()
        if not os.environ.get(ENVIRONMENT_VARIABLE):
            raise VerificationError(
                f"{ENVIRONMENT_VARIABLE} is not set, by which server processes find the settings: set it"
            )
        if alias not in settings.DATABASES:
            raise VerificationError(
                f"--database {alias}: {NAME}['DATABASES'] does not name it, so no hub follows it; it names "
                f"{', '.join(settings.DATABASES)}"
            )
        if connections[alias].vendor != "postgresql":
            raise VerificationError(f"database '{alias}' is {connections[alias].vendor}: the feed needs PostgreSQL")
        return cls(settings, alias)

    @property
    def conninfo(self) -> str:
        """How the application connects."""
        return database_conninfo(replace(self.settings, LISTENER_CONNINFO=""), self.alias)

    @property
    def direct_conninfo(self) -> str:
        """How listeners connect, past any pooler."""
        return database_conninfo(self.settings, self.alias)

    @property
    def one_process(self) -> bool:
        """Whether the channel layer reaches no other process."""
        return isinstance(channel_layer(self.settings), InMemoryChannelLayer)

    def options(
        self, *, servers: int | None, listeners: int | None, server: str | None, faults: Sequence[str] | None,
        **others: Any,
    ) -> Options:  # fmt: skip
        """
        Return what a run is to do, where None leaves it to the site.

        Raises VerificationError for what it cannot do.
        """
        if self.one_process:
            servers, listeners = self._in_one_process(servers, listeners)
        servers = DEFAULT_COUNT if servers is None else servers
        listeners = DEFAULT_COUNT if listeners is None else listeners
        inline = self.one_process or (self.settings.INLINE_LISTENER and not listeners)
        return Options(
            database=self.alias,
            servers=servers,
            listeners=listeners,
            server=_server(server),
            faults=_faults(faults, listeners),
            inline=inline,
            **others,
        )

    async def require_layer(self) -> None:
        """Raise VerificationError unless the channel layer gives back a message."""
        layer: Any = channel_layer(self.settings)
        try:
            async with asyncio.timeout(LAYER_TIMEOUT):
                channel = await layer.new_channel()
                await layer.send(channel, {"type": "pgnotify_gql.verification"})
                await layer.receive(channel)
        except TimeoutError as error:
            raise VerificationError(
                f"the channel layer '{self.settings.CHANNEL_LAYER}' does not answer within {LAYER_TIMEOUT:g} s: start "
                "what it connects to"
            ) from error
        except Exception as error:  # each layer has errors of its own
            raise VerificationError(
                f"the channel layer '{self.settings.CHANNEL_LAYER}' cannot be used ({one_line(error)}): start what it "
                "connects to, or correct CHANNEL_LAYERS"
            ) from error
        finally:
            if hasattr(layer, "close_pools"):
                await layer.close_pools()

    def conditions(self, options: Options) -> dict[str, Any]:
        """Return what a reader of the report needs to compare it with another."""
        with psycopg.connect(self.direct_conninfo) as connection:
            postgresql = connection.info.parameter_status("server_version")
        layer = type(channel_layer(self.settings))
        return {
            "cores": os.cpu_count(),
            "postgresql": postgresql,
            "python": platform.python_version(),
            "django": django.get_version(),
            options.server: importlib.metadata.version(options.server),
            "layer": f"{layer.__module__}.{layer.__qualname__}",
            "servers": options.servers,
            "listeners": "inline" if options.inline else options.listeners,
            "writers": options.writers,
            "subscribers": options.subscribers,
            "rate": options.rate,
        }

    def _in_one_process(self, servers: int | None, listeners: int | None) -> tuple[int, int]:
        if (servers or 1) > 1 or (listeners or 0) > 0:
            raise VerificationError(
                f"the channel layer '{self.settings.CHANNEL_LAYER}' is in-memory and reaches no other process: leave "
                "--servers and --listeners out, for one server with a listener inside, or use channels_redis"
            )
        return 1, 0


def _server(chosen: str | None) -> str:
    installed = installed_servers()
    if chosen is None:
        if not installed:
            raise VerificationError(f"no ASGI server is installed: pip install {' or '.join(SERVERS)}")
        return installed[0]
    if chosen not in installed:
        raise VerificationError(f"--server {chosen} is not installed: pip install {chosen}")
    return chosen


def _faults(chosen: Sequence[str] | None, listeners: int) -> list[str]:
    if chosen is None:
        return [fault.name for fault in FAULTS.values() if listeners or not fault.needs_listeners]
    for name in chosen:
        if FAULTS[name].needs_listeners and not listeners:
            raise VerificationError(f"--fault {name}: there is no process of a listener in this run")
    return list(dict.fromkeys(chosen))
