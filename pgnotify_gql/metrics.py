"""
Metrics: what a process tells Prometheus about its part of the way of a change.

They stand in prometheus-client's registry of the process, beside whatever else the application has there.  Where that
package is not installed (it is an extra) each metric is an object that does nothing: whoever measures need not ask.

Whoever measures binds a metric to its labels once.  `database` is an alias and `model` the label of a model that is
captured, so there are few of either.  Nothing is counted once for each subscriber: it is added up, and counted once.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar
from weakref import ref

try:
    import prometheus_client
except ImportError:
    prometheus_client = None  # type: ignore[assignment]

ENABLED = prometheus_client is not None
"""Whether anybody can be told; what costs more than counting is not done otherwise."""

ADVICE = "metrics need prometheus-client: pip install 'pgnotify_gql[metrics]'"

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Seconds, of every histogram."""

T = TypeVar("T")


class Counter(Protocol):
    """Only grows."""

    def labels(self, *values: str) -> Counter: ...

    def inc(self, amount: float = ..., /) -> None: ...


class Gauge(Protocol):
    """Goes up and down; with a function, that is asked whenever somebody looks, in any thread."""

    def labels(self, *values: str) -> Gauge: ...

    def inc(self, amount: float = ..., /) -> None: ...

    def dec(self, amount: float = ..., /) -> None: ...

    def set(self, value: float, /) -> None: ...

    def set_function(self, function: Callable[[], float], /) -> None: ...


class Histogram(Protocol):
    """How often values of what size came."""

    def labels(self, *values: str) -> Histogram: ...

    def observe(self, value: float, /) -> None: ...


class Nothing:
    """Any metric, where prometheus-client is not installed."""

    def labels(self, *values: str) -> Nothing:
        return self

    def inc(self, amount: float = 1, /) -> None: ...

    def dec(self, amount: float = 1, /) -> None: ...

    def set(self, value: float, /) -> None: ...

    def set_function(self, function: Callable[[], float], /) -> None: ...

    def observe(self, value: float, /) -> None: ...


@dataclass(frozen=True)
class Definition:
    """A metric as the documentation has it."""

    kind: str
    labels: tuple[str, ...]


DEFINED: dict[str, Definition] = {}
"""Every metric by its name."""


def _counter(name: str, text: str, *labels: str) -> Counter:
    DEFINED[name] = Definition("counter", labels)
    return prometheus_client.Counter(name, text, labels) if ENABLED else Nothing()


def _gauge(name: str, text: str, *labels: str) -> Gauge:
    DEFINED[name] = Definition("gauge", labels)
    return prometheus_client.Gauge(name, text, labels) if ENABLED else Nothing()


def _histogram(name: str, text: str, *labels: str) -> Histogram:
    DEFINED[name] = Definition("histogram", labels)
    return prometheus_client.Histogram(name, text, labels, buckets=BUCKETS) if ENABLED else Nothing()


# Of the listener.

LEADING = _gauge("pgnotify_gql_leading", "1 while this process leads, 0 while it does not.", "database")

TERMS = _counter("pgnotify_gql_terms_total", "Terms of leadership that this process has begun.", "database")

CAPTURED_ROWS = _counter("pgnotify_gql_captured_rows_total", "Journal rows that the leader has read.", "database")

LAG = _gauge(
    "pgnotify_gql_lag_seconds", "Age of the oldest journal row that the leader has read and not relayed.", "database"
)

QUEUE_USAGE = _gauge(
    "pgnotify_gql_notification_queue_usage_ratio",
    "How full PostgreSQL's queue of notifications is, from 0 to 1; NaN while this process does not lead.",
    "database",
)

OLDEST_WRITER = _gauge(
    "pgnotify_gql_oldest_writer_seconds",
    "For how long the oldest transaction that has written has been open; NaN where that may not be seen.",
    "database",
)

# Of the relay.

RELAYED_ROWS = _counter(
    "pgnotify_gql_relayed_rows_total", "Journal rows handed to the channel layer.", "database", "model"
)

RELAYED_MESSAGES = _counter(
    "pgnotify_gql_relayed_messages_total", "Messages of changes handed to the channel layer.", "database", "model"
)

LOST_MESSAGES = _counter(
    "pgnotify_gql_lost_messages_total", "Messages that the channel layer did not take from the leader.", "database"
)

RELAY_DELAY = _histogram(
    "pgnotify_gql_relay_delay_seconds",
    "From when the statement of a batch's last row was run to when the batch had been handed to the channel layer.",
    "database",
)

# Of the hub.

RECEIVED_MESSAGES = _counter(
    "pgnotify_gql_received_messages_total",
    "Messages that a hub has received, through the channel layer or from a listener in its process.",
    "database",
)

DROPPED_MESSAGES = _counter(
    "pgnotify_gql_dropped_messages_total", "Messages that a hub received and had no room for.", "database"
)

RECEIVED_ROWS = _counter(
    "pgnotify_gql_received_rows_total", "Journal rows in the messages that a hub has taken.", "database", "model"
)

HEALED_GAPS = _counter(
    "pgnotify_gql_healed_gaps_total", "Gaps that a hub has filled from the journal.", "database", "model"
)

RESYNCS = _counter(
    "pgnotify_gql_resyncs_total", "Operations that were told that changes are lost.", "database", "model"
)

WAITING_MESSAGES = _gauge(
    "pgnotify_gql_waiting_messages", "Messages that a hub has received and not handled.", "database"
)

SILENCE = _gauge(
    "pgnotify_gql_silence_seconds", "Since when nothing of a database has come through the channel layer.", "database"
)

PENDING_CHANGES = _gauge("pgnotify_gql_pending_changes", "Changes that wait for execution, of all cohorts.")

EXECUTIONS = _counter("pgnotify_gql_executions_total", "Executions of cohorts, each for one change.")

HOP_SECONDS = _histogram("pgnotify_gql_hop_seconds", "For how long a worker thread executed what it was given at once.")

RESULTS = _counter("pgnotify_gql_results_total", "Results of changes that were put into outboxes.")

DELIVERY_DELAY = _histogram(
    "pgnotify_gql_delivery_delay_seconds",
    "From when the statement of a hop's first change was run to when the hop's results were in the outboxes.",
)

OVERFLOWS = _counter("pgnotify_gql_overflows_total", "Operations that fell behind, because their outbox was full.")

OPERATIONS = _gauge("pgnotify_gql_operations", "Operations that a hub serves.")

# Of the transport.

SOCKETS = _gauge("pgnotify_gql_sockets", "Sockets that are open.")

STREAMS = _gauge("pgnotify_gql_streams", "Event streams that are open.")

SLOW_CLIENTS = _counter(
    "pgnotify_gql_slow_clients_total", "Sockets and streams that were closed because their client did not read."
)


class ByModel(dict[str, Counter]):
    """A counter for each model of one database, bound when it is first asked for."""

    def __init__(self, counter: Counter, database: str) -> None:
        super().__init__()
        self._counter = counter
        self._database = database

    def __missing__(self, model: str) -> Counter:
        bound = self[model] = self._counter.labels(self._database, model)
        return bound


def show(gauge: Gauge, owner: T, size: Callable[[T], float]) -> None:
    """Let a gauge tell a size of `owner`, and 0 when that is gone; of two owners it tells that of the later."""
    seen = ref(owner)

    def value() -> float:
        found = seen()
        return 0.0 if found is None else size(found)

    gauge.set_function(value)


def exposition() -> tuple[str, bytes] | None:
    """Return media type and text of all metrics of this process; None where prometheus-client is not installed."""
    if not ENABLED:
        return None
    return prometheus_client.CONTENT_TYPE_LATEST, prometheus_client.generate_latest(prometheus_client.REGISTRY)


def may_read(authorization: str, token: str) -> bool:
    """Return whether a request with this ``Authorization`` may read the metrics; without a token every one may."""
    expected = f"Bearer {token}".encode()
    return not token or hmac.compare_digest(authorization.encode(errors="replace"), expected)
