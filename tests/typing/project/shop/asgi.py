"""Where the consumers are mounted."""

import os
from typing import Any

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
django_application = get_asgi_application()

from channels.auth import AuthMiddlewareStack  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from channels.security.websocket import AllowedHostsOriginValidator  # noqa: E402
from django.urls import path, re_path  # noqa: E402

from .consumers import Monitor, Sockets, TokenStreams  # noqa: E402
from .schema import schema  # noqa: E402

# Neither Django nor Channels has a type for what is routed to here: path() takes views, and URLRouter what it returned.
pages: Any = django_application
sockets: list[Any] = [
    path("graphql/", Sockets.as_asgi(schema=schema)),
    path("monitor/feed/", Monitor.as_asgi()),
]
requests: list[Any] = [
    path("stream/", TokenStreams.as_asgi(schema=schema)),
    re_path("", pages),
]
application = ProtocolTypeRouter(
    {
        "http": AuthMiddlewareStack(URLRouter(requests)),
        "websocket": AllowedHostsOriginValidator(AuthMiddlewareStack(URLRouter(sockets))),
    }
)
