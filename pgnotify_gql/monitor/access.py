"""
Who may see what on the page.

Staff may look.  What tells about rows is for those who have Django's permission to view the model; what may hold
anything at all, and what changes the database, is for superusers.  Whoever cannot be asked is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.contrib.auth import get_permission_codename
from django.db import router
from django.db.models import Model

from ..capture.registry import registry
from ..capture.watch import Watch
from ..conf import get_settings


@dataclass(frozen=True)
class Viewer:
    """A member of the staff: the watches that he may be told of, by label, and whether he is a superuser."""

    watches: Mapping[str, Watch]
    is_superuser: bool

    @classmethod
    def of(cls, user: Any) -> Viewer:
        """Return what a user may see.  Asks the database for his permissions."""
        return cls(viewable(user), may_install(user))


def may_look(user: Any) -> bool:
    """Return whether a user may look at the page at all."""
    return bool(getattr(user, "is_active", False) and getattr(user, "is_staff", False))


def may_install(user: Any) -> bool:
    """Return whether a user may install triggers, and read messages of errors."""
    return may_look(user) and bool(getattr(user, "is_superuser", False))


def may_view(user: Any, model: type[Model]) -> bool:
    """Return whether a user may be told of a model's rows.  May ask the database."""
    options = model._meta
    has_perm = getattr(user, "has_perm", None)
    permission = f"{options.app_label}.{get_permission_codename('view', options)}"
    return may_look(user) and has_perm is not None and bool(has_perm(permission))


def viewable(user: Any) -> dict[str, Watch]:
    """Return the watches, by label, whose changes a user may be told of and which a listener follows."""
    followed = get_settings().DATABASES
    return {
        watch.label: watch
        for watch in registry
        if router.db_for_write(watch.model) in followed and may_view(user, watch.model)
    }
