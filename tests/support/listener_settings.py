"""
The example's settings, with the times of `manage.py run_listener` from the environment as a test needs them, and with
a second database where there is an address of one.
"""

import os
from typing import Any

from example.settings import *  # noqa: F403
from example.settings import DATABASES, database

TIMES = ("SESSION_TIMEOUT", "SAFETY_POLL", "RETENTION")

settings: dict[str, Any] = {name: float(os.environ[name]) for name in TIMES if name in os.environ}

if url := os.environ.get("SECOND_DATABASE_URL"):
    DATABASES["second"] = database(url)
    DATABASE_ROUTERS = ["tests.support.routers.ConversationsInSecond"]
    settings["DATABASES"] = ["default", "second"]

PGNOTIFY_GQL = settings
