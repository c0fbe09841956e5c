"""
Views for an application's urls, for those who operate it.

They tell nothing of users or rows, and ask nobody who he is (but for METRICS_TOKEN): keep them from the public.
"""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.cache import never_cache

from ..conf import get_settings
from ..hub import current_hub
from ..metrics import ADVICE, exposition, may_read
from .draining import is_draining

TEXT = "text/plain; charset=utf-8"


@never_cache
def readiness(request: HttpRequest) -> JsonResponse:
    """
    Tell a load balancer whether to send clients to this process: 200, and 503 from its SIGTERM on.

    Its sockets are being closed then, and new ones would be, too.
    """
    if is_draining():
        return JsonResponse({"status": "draining"}, status=503)
    return JsonResponse({"status": "ready"})


@never_cache
async def health(request: HttpRequest) -> JsonResponse:
    """
    Answer with 200 for as long as the event loop of this process turns, whatever else is wrong.

    For each database that its hub follows it says for how many seconds nothing has come through the channel layer, and
    the epoch of the leader that was heard of last: to look at, and no reason to end a process that reads the journal
    meanwhile.
    """
    return JsonResponse({"status": "alive", "draining": is_draining(), "databases": _databases()})


def _databases() -> dict[str, dict[str, float]]:
    try:
        hub = current_hub()
    except RuntimeError:
        return {}  # nobody is connected
    feeds = {alias: hub.feed(alias) for alias in get_settings().DATABASES}
    return {alias: {"epoch": feed.epoch, "silent_for": round(feed.silent_for, 3)} for alias, feed in feeds.items()}


@never_cache
def metrics(request: HttpRequest) -> HttpResponse:
    """
    Return what this process tells Prometheus; 404 where prometheus-client is not installed.

    With METRICS_TOKEN only for who sends that as a bearer token, and 403 for everybody else.
    """
    if not may_read(request.headers.get("Authorization", ""), get_settings().METRICS_TOKEN):
        return HttpResponse("send METRICS_TOKEN: 'Authorization: Bearer ...'\n", content_type=TEXT, status=403)
    found = exposition()
    if found is None:
        return HttpResponse(f"{ADVICE}\n", content_type=TEXT, status=404)
    media_type, text = found
    return HttpResponse(text, content_type=media_type)
