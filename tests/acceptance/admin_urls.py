"""The pages of the example, and Django's admin."""

from django.contrib import admin
from django.urls import path

from example.urls import urlpatterns as of_example

urlpatterns = [path("admin/", admin.site.urls), *of_example]
