"""The example under a strict Content-Security-Policy: browsers load what the site serves, and run nothing inline."""

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse

from example.settings import *  # noqa: F403
from example.settings import MIDDLEWARE


def strict_policy(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Add the policy to every answer."""

    def respond(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        response["Content-Security-Policy"] = "default-src 'self'"
        return response

    return respond


MIDDLEWARE = ["tests.acceptance.strict_settings.strict_policy", *MIDDLEWARE]
