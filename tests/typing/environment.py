"""
An environment in which the package is installed as a wheel leaves it.

Type checkers look at an installed package with other eyes than at a checkout: by `py.typed`, without guessing what is
not annotated, and pyright does not find an editable one at all. Its other packages are those of this environment.
"""

import shutil
import sysconfig
import venv
from pathlib import Path

from tests.support.processes import CHECKOUT


def installed(directory: Path) -> Path:
    """Make the environment in a directory and return its Python."""
    venv.create(directory, with_pip=False, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(directory)}))
    ours = sysconfig.get_path("purelib")
    # By a path, whose own .pth files are not read: the checkout, installed as editable, is not found through it.
    (packages / "shared.pth").write_text(f"{ours}\n")
    left = shutil.ignore_patterns("__pycache__")
    package = shutil.copytree(CHECKOUT / "pgnotify_gql", packages / "pgnotify_gql", ignore=left)
    shutil.copytree(CHECKOUT / "migrations_templates", package / "migrations_templates", ignore=left)
    return directory / "bin" / "python"
