"""
The one check that is registered with the first watch, and not by the application: that there is the application.

Without ``pgnotify_gql`` in INSTALLED_APPS the other checks are not registered, and ``install_triggers`` is an unknown
command: a watch would be declared, and nobody would say why nothing is captured.
"""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.core.checks import Error, register

from .registry import registry

APPLICATION = "pgnotify_gql"


@register()
def check_installed(**kwargs: Any) -> list[Error]:
    """E009: models are watched, and the application is not installed."""
    watched = [watch.label for watch in registry]
    if not watched or apps.is_installed(APPLICATION):
        return []
    return [
        Error(
            f"{', '.join(watched)}: watched, but {APPLICATION} is not in INSTALLED_APPS, so that there is neither a "
            "journal nor a command that installs triggers",
            hint=f'Add "{APPLICATION}" to INSTALLED_APPS; then run `manage.py migrate` and `install_triggers`.',
            id="pgnotify_gql.E009",
        )
    ]
