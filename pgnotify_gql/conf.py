"""
The settings, read from ``PGNOTIFY_GQL`` in Django's settings and nowhere else.

Every key has a default and a type; an unknown key or a wrong value is an error, never ignored.  The layers below take
plain arguments; only what stands between them and Django (commands, consumers, checks) reads settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, get_type_hints

from django.conf import settings as django_settings
from django.core.signals import setting_changed
from django.db import connections
from django.dispatch import receiver
from psycopg import pq
from psycopg.conninfo import make_conninfo

from .errors import ConfigurationError

NAME = "PGNOTIFY_GQL"

WAKES = ("notify", "poll")


@dataclass(frozen=True)
class Settings:
    """Times in seconds, sizes in bytes."""

    DATABASES: Sequence[str] = ("default",)
    """Aliases of the databases that are followed, each with a journal and a listener of its own."""

    LISTENER_CONNINFO: str | Mapping[str, str] = ""
    """A libpq connection string for the listener and the hubs, past a pooler; with several databases a dictionary by
    alias. Empty, or an alias without an entry: the alias' own parameters."""

    CHANNEL_LAYER: str = "default"
    """Alias of the channel layer between listener and hubs."""

    INLINE_LISTENER: bool = False
    """Run the listener inside the server process, from the first socket on: development and single-process sites."""

    WAKE: str = "notify"
    """``notify``: writers ring a sleeping listener. ``poll``: they never do (two-phase commit, poolers)."""

    INSTALL_ON_MIGRATE: bool = False
    """Bring the triggers in step after every ``migrate``, as ``install_triggers`` does."""

    SAFETY_POLL: float = 5.0
    """How long a sleeping listener waits for a bell before it looks by itself."""

    POLL_INTERVAL: float = 0.1
    """How often the journal is read in poll mode."""

    SESSION_TIMEOUT: float = 15.0
    """A leader that neither reads nor pings for so long loses its session, and a standby takes over."""

    RETENTION: float = 3600.0
    """How long changes are kept in the journal at least."""

    WORKERS: int = 4
    """Threads of a server process that run subscriptions; each keeps one database connection."""

    TUNE_GC: bool = True
    """Have a server process look for garbage less often, which thousands of sockets make a long search."""

    OUTBOX_MESSAGES: int = 1_000
    """Messages that may wait for one socket."""

    OUTBOX_BYTES: int = 4_000_000
    """Bytes that may wait for one socket."""

    SLOW_CLIENT_TIMEOUT: float = 60.0
    """How long a client may leave what waits for it unread before its socket is closed; it may come back."""

    TRACE_SECONDS: float = 600.0
    """How long a server process remembers what became of changes, for ``explain_change``."""

    DRAIN_WINDOW: float = 5.0
    """Over how long the sockets of a server process are closed when it is stopped with SIGTERM."""

    MAX_MESSAGE_BYTES: int = 1_000_000
    """The largest message a client may send."""

    MESSAGE_RATE: float = 100.0
    """Messages that a client may send in a second; at once those of ten seconds."""

    MAX_QUERY_TOKENS: int = 5_000
    """Words and signs in the largest document a client may send; GraphiQL's introspection has about 300."""

    MAX_QUERY_DEPTH: int = 15
    """Fields inside of each other in a document; introspection does not count."""

    MAX_QUERY_COMPLEXITY: int = 1_000
    """Fields that a document selects, with its fragments put in wherever they are used."""

    MAX_QUERY_ALIASES: int = 50
    """Fields of a document under a name of the client's own, counted in the same way."""

    INTROSPECTION: bool = False
    """Let clients ask for the schema, as they may with DEBUG."""

    ALLOWED_DOCUMENTS: str = ""
    """A JSON file with the documents that clients may ask, as the tools for persisted queries write it; empty: any."""

    MAX_OPERATIONS: int = 100
    """Operations at the same time on one socket."""

    MAX_SOCKETS_PER_USER: int = 100
    """Sockets and streams of one user at the same time, in each server process."""

    AUTH_INTERVAL: float = 60.0
    """How often it is looked at whether a connected user is still logged in and active."""

    SHOW_ERRORS: bool = False
    """Tell clients the messages of unexpected errors, as is done with DEBUG; otherwise an id that is in the log."""

    INIT_TIMEOUT: float = 10.0
    """How long a client may take to send connection_init."""

    KEEPALIVE: float = 20.0
    """How often a silent socket is sent a ping (graphql-transport-ws) or a ka (graphql-ws)."""

    LISTENER_HTTP: str = ""
    """Where ``run_listener`` serves /healthz, /readyz and /metrics: HOST:PORT, or PORT for this machine alone; empty:
    nowhere. ``--http`` wins."""

    METRICS_TOKEN: str = ""
    """What whoever reads the metrics sends as a bearer token; empty: nothing is asked for."""


def read(values: Mapping[str, Any]) -> Settings:
    """Return the settings of a dictionary.  Raises ConfigurationError with every mistake in it."""
    mistakes = list(find_mistakes(values))
    if mistakes:
        raise ConfigurationError("; ".join(mistakes))
    return Settings(**values)


def find_mistakes(values: Any) -> list[str]:
    """Return a sentence for each unknown key and each unusable value."""
    if not isinstance(values, Mapping):
        return [f"{NAME} must be a dictionary, not {values!r}"]
    types = get_type_hints(Settings)
    mistakes, usable = [], {}
    for key, value in values.items():
        if key not in types:
            close = get_close_matches(str(key).upper(), types, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(sorted(types))}"
            mistakes.append(f"{NAME} has an unknown key '{key}': {hint}")
        elif not _fits(value, types[key]):
            mistakes.append(f"{NAME}['{key}'] must be {_wanted(types[key])}, not {value!r}")
        else:
            usable[key] = value
    return mistakes + _mistaken_meanings(Settings(**usable))


def _mistaken_meanings(settings: Settings) -> list[str]:
    """Return a sentence for each value of the right type that makes no sense."""
    mistakes = []
    if settings.WAKE not in WAKES:
        mistakes.append(f"{NAME}['WAKE'] must be one of {', '.join(WAKES)}, not {settings.WAKE!r}")
    aliases, conninfo = settings.DATABASES, settings.LISTENER_CONNINFO
    if twice := sorted({alias for alias in aliases if aliases.count(alias) > 1}):
        mistakes.append(f"{NAME}['DATABASES'] names '{twice[0]}' twice")
    if isinstance(conninfo, Mapping):
        mistakes += [
            f"{NAME}['LISTENER_CONNINFO'] has an entry for '{alias}', which {NAME}['DATABASES'] does not name"
            for alias in conninfo
            if alias not in aliases
        ]
    elif conninfo and len(aliases) > 1:
        mistakes.append(
            f"{NAME}['LISTENER_CONNINFO'] is one connection string for {len(aliases)} databases: "
            f"make it a dictionary, {{'{aliases[0]}': '...'}}"
        )
    return mistakes


def get_settings() -> Settings:
    """Return the settings in force.  Raises ConfigurationError."""
    global _current
    if _current is None:
        _current = read(getattr(django_settings, NAME, {}))
    return _current


def schema() -> Any:
    """Return what graphene_django's settings name as the schema: a path, a schema, or None."""
    return getattr(django_settings, "GRAPHENE", {}).get("SCHEMA")


def shows_errors() -> bool:
    """Return whether clients are told the messages of unexpected errors."""
    return bool(django_settings.DEBUG) or get_settings().SHOW_ERRORS


def allows_introspection() -> bool:
    """Return whether clients may ask for the schema."""
    return bool(django_settings.DEBUG) or get_settings().INTROSPECTION


def database_conninfo(settings: Settings, alias: str) -> str:
    """
    Return the libpq connection string of listener and hubs for a database.

    It is that of LISTENER_CONNINFO, which stands for databases that are followed only, or made from the parameters of
    the Django alias; options of the alias that are Django's or psycopg's and not libpq's are left out.  Raises
    ConfigurationError.
    """
    listed = settings.LISTENER_CONNINFO if alias in settings.DATABASES else ""
    if conninfo := listed.get(alias, "") if isinstance(listed, Mapping) else listed:
        return conninfo
    if alias not in connections:
        raise ConfigurationError(unknown_alias(alias))
    connection = connections[alias]
    if connection.vendor != "postgresql":
        raise ConfigurationError(f"database '{alias}' is {connection.vendor}: the feed needs PostgreSQL")
    configured = connection.settings_dict
    libpq = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
    parameters = {key: value for key, value in configured.get("OPTIONS", {}).items() if key in libpq}
    named = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}
    parameters |= {keyword: configured[key] for key, keyword in named.items() if configured.get(key)}
    return make_conninfo(**parameters)


def unknown_alias(alias: str) -> str:
    """Return the sentence about an alias of DATABASES that Django does not know."""
    known = ", ".join(map(str, connections))
    return f"{NAME}['DATABASES'] names '{alias}', which the project's DATABASES does not have: it has {known}"


_current: Settings | None = None


@receiver(setting_changed)
def _forget(*, setting: str, **kwargs: Any) -> None:
    global _current
    if setting == NAME:
        _current = None


def _fits(value: Any, wanted: Any) -> bool:
    return _TYPES[wanted][1](value)


def _wanted(wanted: Any) -> str:
    return _TYPES[wanted][0]


def _is_above_0(value: int | float) -> bool:
    # True is an int.
    return not isinstance(value, bool) and 0 < value < float("inf")


def _are_texts(values: Any) -> bool:
    return all(isinstance(value, str) for value in values)


_TYPES: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    bool: ("True or False", lambda value: isinstance(value, bool)),
    str: ("a string", lambda value: isinstance(value, str)),
    int: ("a whole number above 0", lambda value: isinstance(value, int) and _is_above_0(value)),
    float: ("a number above 0", lambda value: isinstance(value, (int, float)) and _is_above_0(value)),
    Sequence[str]: (
        "a list of one or more aliases",
        lambda value: isinstance(value, (list, tuple)) and bool(value) and _are_texts(value),
    ),
    str | Mapping[str, str]: (
        "a string, or a dictionary of strings by alias",
        lambda value: (
            isinstance(value, str) or (isinstance(value, Mapping) and _are_texts(value) and _are_texts(value.values()))
        ),
    ),
}
"""What a value of a type must be, and whether it is."""
