"""
The page and what it asks for; its changes come through ``feed``.

Every view looks at the user itself.  The page sends visitors to a login; what is JSON says 401 or 403.
"""

from __future__ import annotations

from typing import Any

import psycopg
from asgiref.sync import sync_to_async
from django.apps import apps
from django.conf import settings as django_settings
from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import PermissionDenied
from django.db import Error as DatabaseError
from django.db import router, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render, resolve_url
from django.urls import NoReverseMatch, reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.clickjacking import xframe_options_deny
from django.views.decorators.csrf import csrf_protect
from django.views.decorators.http import require_POST, require_safe

from ..conf import get_settings
from ..errors import PgnotifyGqlError, one_line
from ..management.explaining import explain
from ..management.row_keys import QuestionError
from ..relay.worker import channel_layer
from .access import Viewer, may_install, may_look
from .installing import install_missing
from .state import PARTS, collect

MINUTES = 10.0
"""How far back a change is looked for, unless the page says."""

MOST_MINUTES = 24 * 60.0
"""And at most."""

ANSWER_TIME = 1.0
"""Seconds in which hubs answer what became of a change: somebody is waiting."""


@never_cache
@xframe_options_deny
@csrf_protect
@require_safe
def page(request: HttpRequest) -> HttpResponse:
    """Show the page; what is on it comes over the feed and ``state``."""
    if not request.user.is_authenticated:
        return redirect_to_login(request.get_full_path(), _login_url())
    if not may_look(request.user):
        raise PermissionDenied("the monitor is for members of the staff")
    viewer = Viewer.of(request.user)
    data = {
        "databases": list(get_settings().DATABASES),
        "models": list(viewer.watches),
        "mayInstall": viewer.is_superuser,
    }
    return render(request, "pgnotify_gql/monitor/page.html", {**_frame(request), "monitor": data})


@transaction.non_atomic_requests
@never_cache
@require_safe
async def state(request: HttpRequest) -> HttpResponse:
    """Return what there is to know now: of all parts, or of each that is named by ``part``."""
    user = await request.auser()
    if (refusal := _refusal(user)) is not None:
        return refusal
    viewer = await sync_to_async(Viewer.of)(user)
    return JsonResponse(await collect(viewer, request.GET.getlist("part") or PARTS))


@transaction.non_atomic_requests
@never_cache
@require_safe
async def explain_change(request: HttpRequest) -> HttpResponse:
    """Return what became of the latest changes of a row, for who may view its model."""
    user = await request.auser()
    if (refusal := _refusal(user)) is not None:
        return refusal
    label = request.GET.get("model", "").lower()
    watch = (await sync_to_async(Viewer.of)(user)).watches.get(label)
    if watch is None:
        return _error(404, f"'{label}' is not watched, or you may not view it")
    minutes = _minutes(request.GET.get("minutes", ""))
    if minutes is None:
        return _error(400, f"minutes is a number above 0, {MOST_MINUTES:g} at most")
    try:
        layer: Any = channel_layer(get_settings())
        explanation = await explain(
            watch.label,
            request.GET.get("pk", ""),
            database=router.db_for_write(watch.model),
            minutes=minutes,
            layer=layer,
            timeout=ANSWER_TIME,
        )
    except QuestionError as error:
        return _error(400, str(error))
    except (PgnotifyGqlError, psycopg.Error, DatabaseError) as error:
        return _error(503, f"it cannot be explained: {one_line(error)}")
    return JsonResponse(explanation.as_json())


@transaction.non_atomic_requests
@never_cache
@csrf_protect
@require_POST
def install(request: HttpRequest) -> HttpResponse:
    """Install the triggers that are missing or outdated in a ``database``."""
    if (refusal := _refusal(request.user)) is not None:
        return refusal
    if not may_install(request.user):
        return _error(403, "only superusers may install triggers here: run `manage.py install_triggers`")
    alias = request.POST.get("database", "")
    if alias not in get_settings().DATABASES:
        return _error(400, f"'{alias}' is not one of the databases that are followed")
    try:
        outcome = install_missing(alias, request.user)
    except (PgnotifyGqlError, DatabaseError) as error:
        return _error(503, f"nothing was installed in database '{alias}': {one_line(error)}")
    return JsonResponse({"done": outcome.done, "failures": outcome.failures})


def _refusal(user: Any) -> JsonResponse | None:
    if not user.is_authenticated:
        return _error(401, "you are not logged in: load the page again")
    if not may_look(user):
        return _error(403, "the monitor is for members of the staff")
    return None


def _error(status: int, sentence: str) -> JsonResponse:
    return JsonResponse({"error": sentence}, status=status)


def _minutes(text: str) -> float | None:
    try:
        minutes = float(text or MINUTES)
    except ValueError:
        return None
    return minutes if 0 < minutes <= MOST_MINUTES else None


def _admin_login() -> str | None:
    """Return the address of the admin's login, where the admin is mounted."""
    try:
        return reverse("admin:login") if apps.is_installed("django.contrib.admin") else None
    except NoReverseMatch:
        return None


def _login_url() -> str:
    return _admin_login() or resolve_url(django_settings.LOGIN_URL)


def _frame(request: HttpRequest) -> dict[str, Any]:
    """Return what the template extends, and the context that this needs: the admin's, where it is mounted."""
    frame: dict[str, Any] = {"frame": "pgnotify_gql/monitor/base.html", "title": "Change feed"}
    if _admin_login() is None:
        return frame
    # Importable only where it is installed.
    from django.contrib import admin

    return {**admin.site.each_context(request), **frame, "frame": "admin/base_site.html"}
