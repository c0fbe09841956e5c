"""
Names of what stands in PostgreSQL and in Channels, and the one rule to shorten them.

PostgreSQL keeps 63 bytes of a name and cuts the rest without a word, Channels allows 100 characters out of
``[a-zA-Z0-9._-]`` for a group; two long names that differ at the end must not become the same.
"""

from __future__ import annotations

import hashlib
import re

SCHEMA = "pgnotify_gql"
"""PostgreSQL schema of the journal and of every trigger function."""

NOTIFY_CHANNEL = "pgnotify_gql"
"""Notify channel of the doorbell; notify channels are per database."""

LOCK_CLASS = 1885826663
"""First key of our advisory locks: the bytes ``pgng`` as an integer, seen as ``classid`` in ``pg_locks``."""

AWAKE_LOCK = 1
"""Held exclusively by a leader that is awake: trigger functions then stay silent."""

LEADER_LOCK = 2
"""Held exclusively by the leader for its term."""

INSTALL_LOCK = 3
"""Held while triggers are installed, so that two deployments do not meet."""

BACKLOG_LOCK = 4
"""Held shared by the session in which a leader reads a backlog."""

TRIGGER_PREFIX = "pgnotify_gql_"

IDENTIFIER_BYTES = 63
"""PostgreSQL's NAMEDATALEN less one."""

GROUP_CHARACTERS = 99
"""Channels: a group name is shorter than 100 characters."""


def shorten(name: str, limit: int) -> str:
    """Return `name` within `limit` bytes of UTF-8; a name that had to be cut ends in a digest of the whole."""
    if len(name.encode()) <= limit:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    kept = name.encode()[: limit - len(digest) - 1].decode(errors="ignore")
    return f"{kept}_{digest}"


def trigger_name(kind: str, label: str = "") -> str:
    """Return the name of a trigger for a kind, unique on its table, where it may be one of a relative's watch."""
    # Names of applications and models may have underscores, and none has a dollar, which needs no quotes in SQL.
    suffix = f"_{label.replace('.', '$')}" if label else ""
    return shorten(f"{TRIGGER_PREFIX}{kind.lower()}{suffix}", IDENTIFIER_BYTES)


def function_name(label: str, digest: str) -> str:
    """Return the name of a watch's trigger function; the digest makes each version a function of its own."""
    stem = shorten(f"capture_{label.replace('.', '_')}", IDENTIFIER_BYTES - 9)
    return f"{stem}_{digest[:8]}"


def model_group(label: str) -> str:
    """Return the group that carries the changes of a model."""
    return _group(f"pgnotify_gql.{label}")


def heartbeat_group() -> str:
    """Return the group every hub joins."""
    return _group("pgnotify_gql-heartbeat")


def _group(name: str) -> str:
    plain = re.sub(r"[^a-zA-Z0-9._-]", "_", name)
    if plain != name:
        plain = f"{plain}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return shorten(plain, GROUP_CHARACTERS)
