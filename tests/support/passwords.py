"""Passwords of users that tests make: a hash takes most of a second on purpose, so each is made once."""

from __future__ import annotations

from functools import lru_cache

from django.contrib.auth.hashers import PBKDF2PasswordHasher

SALT = "of-test-users-22-signs"
"""As long as Django's own: a shorter one would have the password hashed again at the next login."""


def remember_hashes() -> None:
    """Make equal hashes of equal passwords in this process; they are as good as any to a server that checks them."""
    PBKDF2PasswordHasher.salt = lambda self: SALT  # type: ignore[method-assign]
    PBKDF2PasswordHasher.encode = lru_cache(maxsize=None)(PBKDF2PasswordHasher.encode)  # type: ignore[method-assign]
