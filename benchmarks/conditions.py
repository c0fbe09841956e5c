"""Under which conditions was measured: what decides how fast anything is here."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import psutil

PACKAGES = (
    "pgnotify_gql", "django", "psycopg", "psycopg-binary", "channels", "channels-redis", "redis", "daphne", "twisted",
    "autobahn", "uvicorn", "uvloop", "httptools", "websockets", "graphene", "graphene-django", "graphql-core",
    "msgspec", "orjson",
)  # fmt: skip
"""Those whose version may make a difference; what is not installed is left out."""


def conditions() -> Mapping[str, str]:
    """Return what the machine is and does, now."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": str(os.cpu_count()),
        "cpu": _cpu_model(),
        "memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": ", ".join(_packages()),
        "revision": _revision(),
        "load before": " ".join(f"{load:.2f}" for load in os.getloadavg()),
    }


def _cpu_model() -> str:
    # platform.processor() is empty on most Linux systems.
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def _revision() -> str:
    if not (git := shutil.which("git")):
        return ""
    command = [git, "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _packages() -> list[str]:
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return found
