"""The example's settings, and those of the package as JSON from the environment."""

import json
import os

from example.settings import *  # noqa: F403
from example.settings import PGNOTIFY_GQL

PGNOTIFY_GQL.update(json.loads(os.environ["SLOW_CLIENTS"]))
