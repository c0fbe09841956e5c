"""
The SQL files of ``migrations_templates``, read once.

They lie at the top of the repository and inside the wheel, as the package ``pgnotify_gql.migrations_templates``;
an editable install finds them through the same name.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from psycopg import sql

from ..errors import ConfigurationError

PACKAGE = "pgnotify_gql.migrations_templates"


@cache
def read(name: str) -> str:
    """Return the text of a template.  Raises ConfigurationError when the package was not installed with them."""
    try:
        return files(PACKAGE).joinpath(name).read_text(encoding="utf-8")
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise ConfigurationError(
            f"the SQL template {name} is missing: install the package (`pip install -e .` in a checkout)"
        ) from error


def template(name: str) -> sql.SQL:
    """Return a template without its header, to be filled with ``format``."""
    lines = read(name).splitlines()
    while lines and (lines[0].startswith("--") or not lines[0].strip()):
        lines.pop(0)
    return sql.SQL("\n".join(lines))
