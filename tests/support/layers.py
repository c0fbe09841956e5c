"""The channel layer that `get_channel_layer()` answers, for the time of a test."""

from collections.abc import Iterator
from contextlib import contextmanager

from channels.layers import BaseChannelLayer, InMemoryChannelLayer, channel_layers


@contextmanager
def default_layer(layer: BaseChannelLayer | None = None) -> Iterator[BaseChannelLayer]:
    """Put a layer, an in-memory one if none is given, in the place of the default one."""
    layer = layer or InMemoryChannelLayer()
    backends = channel_layers.backends
    before = dict(backends)
    backends["default"] = layer
    try:
        yield layer
    finally:
        backends.clear()
        backends.update(before)
