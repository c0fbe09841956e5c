"""
What clients are told of errors.

What was raised for them is told as it is: syntax, validation and variables, ``GraphQLError`` of a resolver, and a value
that a topic cannot be conditioned on.  Of anything else a client is told that it happened, under an id by which it is
found in the log: messages of exceptions name tables, files and other people's rows.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from django.core.exceptions import PermissionDenied
from graphql import GraphQLError

from ..errors import PgnotifyGqlError, TopicValueError

logger = logging.getLogger("pgnotify_gql.transport")

INTERNAL_ERROR = "INTERNAL_ERROR"
"""The code of an error that nobody raised for clients; its `id` is in the log."""

FORBIDDEN = "FORBIDDEN"
"""The code of Django's PermissionDenied."""

ID_BYTES = 6


@dataclass(frozen=True)
class Masking:
    """Formats errors for a client; with `show` it is told the messages of all, as developers want it."""

    show: bool = False

    def told(self, errors: Sequence[GraphQLError]) -> list[dict[str, Any]]:
        """Return errors as they are sent, and log those that an operator should see."""
        return [self._told(error) for error in errors]

    def _told(self, error: GraphQLError) -> dict[str, Any]:
        told: dict[str, Any] = dict(error.formatted)
        cause = error.original_error
        if _is_for_clients(error):
            return told
        if isinstance(cause, PermissionDenied):
            return self._masked(told, "permission denied", {"code": FORBIDDEN})
        number = secrets.token_hex(ID_BYTES)
        if isinstance(cause, PgnotifyGqlError):
            logger.warning("%s could not be resolved (error %s): %s", error.path, number, cause)
        else:
            logger.error("%s could not be resolved (error %s)", error.path, number, exc_info=cause)
        return self._masked(told, "internal error", {"code": INTERNAL_ERROR, "id": number})

    def _masked(self, told: dict[str, Any], message: str, extensions: dict[str, Any]) -> dict[str, Any]:
        return {**told, "message": told["message"] if self.show else message, "extensions": extensions}


@cache
def masking(show: bool) -> Masking:
    """Return the one for all sockets and requests that are told as much."""
    return Masking(show)


def _is_for_clients(error: GraphQLError) -> bool:
    cause = error.original_error
    if cause is None or isinstance(cause, (GraphQLError, TopicValueError)):
        return True
    # Of the request itself: a scalar says by any exception that it does not take a value.
    return error.path is None and bool(error.nodes)
