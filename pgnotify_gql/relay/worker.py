"""
A listener that relays, put together from the settings: what ``run_listener`` and the inline listener run.
"""

from __future__ import annotations

from functools import partial

from channels.exceptions import InvalidChannelLayerError
from channels.layers import get_channel_layer

from ..conf import Settings, database_conninfo, get_settings
from ..errors import ConfigurationError
from ..listener import Listener, Timing, connect
from .relay import SEND_TIMEOUT, Layer, Relay


def build_listener(alias: str, settings: Settings | None = None, layer: Layer | None = None) -> Listener:
    """Return a listener for a database and a channel layer, the configured one if none.  Raises ConfigurationError."""
    settings = settings or get_settings()
    times = timing(settings)
    return Listener(
        partial(connect, database_conninfo(settings, alias), session_timeout=settings.SESSION_TIMEOUT),
        # A leader that waits for the layer asks the database nothing meanwhile.
        Relay(layer or channel_layer(settings), database=alias, send_timeout=min(SEND_TIMEOUT, times.longest_silence)),
        database=alias,
        polls=settings.WAKE == "poll",
        timing=times,
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
    try:
        layer: Layer | None = get_channel_layer(settings.CHANNEL_LAYER)
    except InvalidChannelLayerError as error:
        raise ConfigurationError(str(error)) from error
    if layer is None:
        raise ConfigurationError(f"CHANNEL_LAYERS has no '{settings.CHANNEL_LAYER}': configure a channel layer")
    return layer
