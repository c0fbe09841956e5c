"""
The page's addresses: ``path("monitor/", include("pgnotify_gql.monitor.urls"))``.

The page finds the others, and its feed, relative to itself, so it is mounted under an address that ends with a slash.
"""

from django.urls import path

from . import views

app_name = "pgnotify_gql_monitor"

urlpatterns = [
    path("", views.page, name="page"),
    path("state.json", views.state, name="state"),
    path("explain.json", views.explain_change, name="explain"),
    path("install/", views.install, name="install"),
]
