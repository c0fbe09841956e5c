"""Pages, and GraphQL over HTTP. Sockets are routed in `asgi`."""

from django.contrib.auth.decorators import login_required
from django.contrib.auth.views import LogoutView
from django.templatetags.static import static
from django.urls import include, path
from django.views.generic import RedirectView
from graphene_django.views import GraphQLView
from graphene_django_graphiql_static.views import GraphiQLOfflineView  # type: ignore[import-untyped]

from example.conversations.views import SampleLoginView, chat
from pgnotify_gql.transport import readiness

urlpatterns = [
    path("", chat, name="chat"),
    path("login/", SampleLoginView.as_view(), name="login"),
    path("logout/", LogoutView.as_view(), name="logout"),
    path("readyz/", readiness, name="readiness"),
    path("monitor/", include("pgnotify_gql.monitor.urls")),
    path("graphql/", GraphQLView.as_view(), name="graphql"),
    # Behind the login: an anonymous subscriber is sent nothing, and GraphiQL would not tell why.
    path("graphiql/", login_required(GraphiQLOfflineView.as_view(graphiql=True)), name="graphiql"),
    # GraphiQL's page names no icon, so browsers ask for this one.
    path("favicon.ico", RedirectView.as_view(url=static("conversations/icon.svg"))),
]
