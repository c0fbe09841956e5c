"""The example's urls, and the views for those who operate it."""

from django.urls import path

from example.urls import urlpatterns as example
from pgnotify_gql.transport import health, metrics

urlpatterns = [path("healthz/", health), path("metrics/", metrics), *example]
