"""
Authentication over time: whether who has connected is still who he was, and for how long he will be.

A socket outlives what its user had when he connected: he logs out, changes his password, is deactivated, his session
expires.  Django looks at all of that with each request; a socket has one, and so it is looked at again now and then.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from types import SimpleNamespace
from typing import Any

from django.contrib.auth import SESSION_KEY, get_user
from django.contrib.auth.models import AnonymousUser
from django.db import router

from ..capture.registry import registry
from ..conf import get_settings
from ..hub import Topic


def is_authenticated(user: Any) -> bool:
    """Return whether it is a user of a database, who can be looked at again."""
    return bool(getattr(user, "is_authenticated", False)) and getattr(user, "_meta", None) is not None


def current_user(user: Any) -> Any:
    """Return a user as he is in the database now; anonymous, if he is gone or not active.  Asks the database."""
    if not is_authenticated(user):
        return user
    model = user._meta.model
    # Where it is written: a replica may not know yet.
    found = model._default_manager.using(router.db_for_write(model)).filter(pk=user.pk).first()
    return found if found is not None and found.is_active else AnonymousUser()


def own_row(user: Any) -> list[Topic]:
    """Return the topic of a user's own row, if users are watched."""
    watch = registry.get(user._meta.label_lower) if is_authenticated(user) else None
    if watch is None or router.db_for_write(watch.model) not in get_settings().DATABASES:
        return []
    return [Topic(watch.model, **{user._meta.pk.name: user.pk})]


def recheck(scope: Mapping[str, Any]) -> Any:
    """
    Return the user of a socket as he is now, or None where his authentication has ended.  Asks the database.

    With a session of Django's that is the session's user, if it still has one: after a logout, a change of password,
    or when it has expired, it has not.
    """
    user = scope.get("user")
    if not is_authenticated(user):
        return user
    session = scope.get("session")
    if session is None or session.get(SESSION_KEY) is None:
        found = current_user(user)
    else:
        stored = session.__class__(session.session_key)
        # Django would give it a new key where SECRET_KEY has been rotated, of which the browser would not know.
        stored.cycle_key = stored.flush = _leave_alone
        found = get_user(SimpleNamespace(session=stored))  # type: ignore[arg-type]  # all it looks at of a request
    return found if found.is_authenticated and found.pk == user.pk else None  # type: ignore[union-attr]


def _leave_alone() -> None:
    """Do nothing: to look at a session must not change it."""


def session_expiry(scope: Mapping[str, Any]) -> datetime | None:
    """Return when the session ends, where its store knows: those in the database do.  Asks the database."""
    session = scope.get("session")
    model = getattr(session, "model", None)
    if session is None or model is None or session.session_key is None:
        return None
    found: datetime | None = (
        model._default_manager.filter(session_key=session.session_key).values_list("expire_date", flat=True).first()
    )
    return found
