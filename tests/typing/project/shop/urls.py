"""Views for those who operate the project."""

from django.urls import include, path

from pgnotify_gql.transport import health, metrics, readiness

urlpatterns = [
    path("ready/", readiness),
    path("health/", health),
    path("metrics/", metrics),
    path("monitor/", include("pgnotify_gql.monitor.urls")),
]
