"""
Views for an application's urls.
"""

from __future__ import annotations

from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache

from .draining import is_draining


@never_cache
def readiness(request: HttpRequest) -> JsonResponse:
    """
    Tell a load balancer whether to send clients to this process: 200, and 503 from its SIGTERM on.

    Its sockets are being closed then, and new ones would be, too.
    """
    if is_draining():
        return JsonResponse({"status": "draining"}, status=503)
    return JsonResponse({"status": "ready"})
