"""The example with Django's admin: its monitor has the admin's frame, theme and login."""

from example.settings import *  # noqa: F403
from example.settings import INSTALLED_APPS

INSTALLED_APPS = ["django.contrib.admin", *INSTALLED_APPS]
ROOT_URLCONF = "tests.acceptance.admin_urls"
