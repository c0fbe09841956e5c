"""The example's settings, with the times of `manage.py run_listener` from the environment as a test needs them."""

import os

from example.settings import *  # noqa: F403

TIMES = ("SESSION_TIMEOUT", "SAFETY_POLL", "RETENTION")

PGNOTIFY_GQL: dict[str, object] = {name: float(os.environ[name]) for name in TIMES if name in os.environ}  # type: ignore[no-redef]
