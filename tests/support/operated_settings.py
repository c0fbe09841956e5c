"""The example's settings, with the views for those who operate it, and a token from the environment."""

import os
from typing import Any

from example.settings import *  # noqa: F403
from example.settings import PGNOTIFY_GQL as EXAMPLE

ROOT_URLCONF = "tests.support.operated_urls"

settings: dict[str, Any] = {**EXAMPLE, "METRICS_TOKEN": os.environ.get("METRICS_TOKEN", "")}

PGNOTIFY_GQL = settings
