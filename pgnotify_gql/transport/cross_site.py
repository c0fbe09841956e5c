"""
Which pages may ask: a browser sends the user's cookies along, whatever page makes it ask.

What protects a user who is logged in by a cookie from the pages of other sites:

- They cannot read an answer, because none has a CORS header.
- They cannot change anything: a mutation over GET is refused, and POST has to be ``application/json``, for which a
  browser first asks whether it may, with OPTIONS, which is refused.  So no CSRF token is needed.
- They cannot have anything run: a request from a page that may not ask is refused before it is looked at.

The last is what this module tells, from what browsers add by themselves and pages cannot forge.  ``Origin`` comes with
POST, and with whatever goes to another origin in a way that could let the page read the answer; it has to be one of the
allowed origins, which are those of sockets.  Where there is none, ``Sec-Fetch-Site`` must not speak of another origin:
of an image, say, or a script.  A program that is no browser sends neither, and nobody's cookies but its own.

A cookie with ``SameSite=None`` needs this most; with ``Lax``, which is Django's default, it is the second line.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlparse

from channels.security.websocket import AllowedHostsOriginValidator, OriginValidator

OWN = ("same-origin", "none")
"""Values of Sec-Fetch-Site; "none" is the address bar."""


class Pages:
    """The pages that may ask: patterns as Channels' ``OriginValidator`` takes them, or None for ALLOWED_HOSTS."""

    def __init__(self, allowed_origins: Sequence[str] | None) -> None:
        # Of a validator only the judgement is used: as a middleware it takes WebSockets only, and those have an Origin.
        self._validator = (
            AllowedHostsOriginValidator(None) if allowed_origins is None else OriginValidator(None, allowed_origins)
        )

    def may_ask(self, origin: str | None, fetch_site: str | None) -> bool:
        """Decide from the headers Origin and Sec-Fetch-Site."""
        if origin is None:
            return fetch_site is None or fetch_site in OWN
        try:
            return bool(self._validator.validate_origin(urlparse(origin)))
        except ValueError:  # no address at all
            return False
