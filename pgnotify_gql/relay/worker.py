"""
A listener that relays, put together from the settings: what ``run_listener`` and the inline listener run.
"""

from __future__ import annotations

from functools import partial

from channels.layers import get_channel_layer

from ..conf import Settings, database_conninfo, get_settings
from ..errors import ConfigurationError
from ..listener import Listener, Timing, connect
from .relay import Layer, Relay


def build_listener(alias: str, settings: Settings | None = None) -> Listener:
    """Return a listener for a database and the configured channel layer.  Raises ConfigurationError."""
    settings = settings or get_settings()
    return Listener(
        partial(connect, database_conninfo(settings, alias), session_timeout=settings.SESSION_TIMEOUT),
        Relay(channel_layer(settings), database=alias),
        database=alias,
        polls=settings.WAKE == "poll",
        timing=timing(settings),
    )


def timing(settings: Settings) -> Timing:
    """Return the times by which a listener runs, and on which hubs may count."""
    return Timing(
        safety_poll=settings.SAFETY_POLL,
        poll_interval=settings.POLL_INTERVAL,
        session_timeout=settings.SESSION_TIMEOUT,
        retention=settings.RETENTION,
    )


def channel_layer(settings: Settings) -> Layer:
    """Return the configured channel layer.  Raises ConfigurationError."""
    layer: Layer | None = get_channel_layer(settings.CHANNEL_LAYER)
    if layer is None:
        raise ConfigurationError(f"CHANNEL_LAYERS has no '{settings.CHANNEL_LAYER}': configure a channel layer")
    return layer
