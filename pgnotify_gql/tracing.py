"""
Tracing: spans of OpenTelemetry around what takes time, where an application has set a tracer provider.

Where opentelemetry-api is not installed (it is an extra), or nobody has set a provider, a span is one object that does
nothing, and to be given it costs a look at the clock.  Whether somebody has is asked again now and then: applications
set theirs when they start, which may be after this package is imported.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from types import TracebackType
from typing import Any, Protocol

try:
    from opentelemetry.trace import NoOpTracerProvider, ProxyTracerProvider, get_tracer_provider
except ImportError:
    get_tracer_provider = None  # type: ignore[assignment]

from .version import __version__

logger = logging.getLogger("pgnotify_gql.tracing")

RELAY = "pgnotify_gql.relay"
"""A batch on its way to the channel layer."""

EXECUTE = "pgnotify_gql.execute"
"""A hop of executions in a worker thread; what asynchronous resolvers await comes after it."""

RECHECK = 10.0
"""Seconds after which it is asked again whether somebody records."""

Value = str | int | float | Sequence[str]


class Span(Protocol):
    """What may be said of a span while it lasts."""

    def set_attribute(self, key: str, value: Value, /) -> None: ...


class _NoSpan:
    """A span that nobody records."""

    def __enter__(self) -> _NoSpan:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def set_attribute(self, key: str, value: Value, /) -> None: ...


NO_SPAN = _NoSpan()


class _Recorded:
    """A span of somebody's tracer; what that raises costs the span, and not what it is around."""

    def __init__(self, span: AbstractContextManager[Span]) -> None:
        self._span: AbstractContextManager[Span] = span

    def __enter__(self) -> Span:
        try:
            return self._span.__enter__()
        except Exception as error:
            logger.debug("a span could not be begun: %r", error)
            self._span = NO_SPAN
            return NO_SPAN

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._span.__exit__(kind, error, traceback)
        except Exception as raised:
            logger.debug("a span could not be ended: %r", raised)


class Tracing:
    """Gives spans of the tracer that `find` returns, or none where it returns None."""

    def __init__(self, find: Callable[[], Any | None], *, recheck: float = RECHECK) -> None:
        self._find = find
        self._recheck = recheck
        self._tracer: Any | None = None
        self._due = 0.0

    def span(self, name: str, **attributes: Value) -> AbstractContextManager[Span]:
        """Return a span that lasts as long as a block does, and becomes the parent of spans that begin in it."""
        now = time.monotonic()
        if now >= self._due:
            # Both may be written by several threads at once: they find the same.
            self._due = now + self._recheck
            self._tracer = self._find()
        if self._tracer is None:
            return NO_SPAN
        return _Recorded(self._tracer.start_as_current_span(name, attributes=attributes))


def _find_tracer() -> Any | None:
    """Return a tracer, if somebody has set a provider that may record."""
    if get_tracer_provider is None:
        return None
    # It may load a provider that the environment names, and fail; the feed must not fail with it.
    with suppress(Exception):
        provider = get_tracer_provider()
        if not isinstance(provider, (ProxyTracerProvider, NoOpTracerProvider)):
            return provider.get_tracer("pgnotify_gql", __version__)
    return None


tracing = Tracing(_find_tracer)
"""Of this process."""
