"""The example's settings where DATABASE_URL leads to a pooler and the listener past it, to LISTENER_CONNINFO."""

import os

from tests.support.listener_settings import *  # noqa: F403
from tests.support.listener_settings import settings

settings["LISTENER_CONNINFO"] = os.environ["LISTENER_CONNINFO"]
