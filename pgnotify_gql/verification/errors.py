"""What keeps a verification from being run."""

from __future__ import annotations

from ..errors import PgnotifyGqlError


class VerificationError(PgnotifyGqlError):
    """Nothing could be verified; the message says why."""
