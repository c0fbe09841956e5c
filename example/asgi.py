"""
The ASGI application: HTTP by Django, sockets and streams by the consumers of subscriptions.

Static files are served from here in every mode, because the demo runs Daphne
alone. A site would leave them to its web server.
"""

import os
from typing import Any

from channels.auth import AuthMiddlewareStack
from channels.routing import ProtocolTypeRouter, URLRouter
from channels.security.websocket import AllowedHostsOriginValidator
from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.asgi import get_asgi_application
from django.urls import path, re_path

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "example.settings")
django_application = get_asgi_application()

# Models can be imported only now.
from example.schema import schema  # noqa: E402
from pgnotify_gql.monitor import MonitorConsumer  # noqa: E402
from pgnotify_gql.transport import GraphqlSseConsumer, GraphqlSubscriptionConsumer  # noqa: E402

# URLRouter takes ASGI applications, which is more than path() is typed for.
consumer: Any = GraphqlSubscriptionConsumer.as_asgi(schema=schema)
monitor: Any = MonitorConsumer.as_asgi()
sockets = URLRouter([path("graphql/", consumer), path("monitor/feed/", monitor)])
streams: Any = AuthMiddlewareStack(GraphqlSseConsumer.as_asgi(schema=schema))
pages: Any = ASGIStaticFilesHandler(django_application)

application = ProtocolTypeRouter(
    {
        "http": URLRouter([path("graphql/stream/", streams), re_path("", pages)]),
        "websocket": AllowedHostsOriginValidator(AuthMiddlewareStack(sockets)),
    }
)
