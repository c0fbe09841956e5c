"""
``runserver`` comes back when a mistake in the schema has been corrected.

Django's autoreloader watches the modules that are imported, and the file in which an import has failed.  Checks import
the schema, and report what is wrong with it: to the autoreloader the file is neither, and nothing that is done to it
would be noticed.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .. import conf


def watch_schema(sender: Any, **kwargs: Any) -> None:
    """Have the autoreloader watch the module that GRAPHENE names for the schema; receives ``autoreload_started``."""
    name = conf.schema()
    if not isinstance(name, str) or "." not in name:
        return
    try:
        found = find_spec(name.rpartition(".")[0])
    except Exception:
        return  # the package around it cannot be imported, which the autoreloader knows
    if found is not None and found.origin is not None:
        path = Path(found.origin)
        sender.watch_dir(path.parent, path.name)
