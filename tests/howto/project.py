"""
A project made of a guide: the files that the index of the guides has, and those of the guide.

What `startproject` would have written, and what differs from one machine to the next, is added here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tests.howto.pages import HOWTO, files, parts
from tests.support.databases import Database
from tests.support.ports import free_port
from tests.support.processes import CHECKOUT, Process, ProjectServer

STARTED = """
import os

from psycopg.conninfo import conninfo_to_dict

SECRET_KEY = "of a test"
DEBUG = False
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "myproject.urls"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
TEMPLATES = []
"""

HERE = """
_url = conninfo_to_dict(os.environ["DATABASE_URL"])
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": _url["dbname"],
        "USER": _url["user"],
        "HOST": _url["host"],
        "PORT": _url["port"],
    }
}
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
PGNOTIFY_GQL = {"DRAIN_WINDOW": 0.2, **PGNOTIFY_GQL}
"""

MIGRATE = """
import json
from io import StringIO
from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import Client

call_command("makemigrations", "chat", verbosity=0)
call_command("migrate", verbosity=0)
call_command("install_triggers", stdout=StringIO())
made = {}
for name in names:
    user = User.objects.create_user(name)
    client = Client()
    client.force_login(user)
    made[name] = [user.pk, "sessionid=" + client.cookies["sessionid"].value]
print(json.dumps(made))
"""

PATIENCE = 120
"""Seconds for a command."""


class User(NamedTuple):
    """Who takes part, and what his browser would send."""

    pk: int
    cookie: str


class Project:
    """A directory with the files of a guide, and a database of its own."""

    def __init__(self, directory: Path, guide: str, database: Database, *paths: Path, redis_url: str = "") -> None:
        self.directory = directory
        self.users: dict[str, User] = {}
        self.environment = {
            "DJANGO_SETTINGS_MODULE": "myproject.settings",
            "DATABASE_URL": database.url,
            "REDIS_URL": redis_url,
            # Twisted looks for plugins wherever Python looks for modules, and writes a cache there.
            "PYTHONPATH": os.pathsep.join(map(str, [directory, CHECKOUT, *paths])),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self.write(HOWTO / "index.rst")
        self.write(HOWTO / f"{guide}.rst")
        settings = directory / "myproject" / "settings.py"
        settings.write_text(STARTED + settings.read_text() + HERE)
        (directory / "chat" / "migrations").mkdir()
        for package in ("myproject", "chat", "chat/migrations"):
            (directory / package / "__init__.py").touch()
        urls = directory / "myproject" / "urls.py"
        if not urls.exists():
            urls.write_text("urlpatterns = []\n")

    def write(self, page: Path) -> None:
        """Add the Python files of a page, and put its parts of files below what there is."""
        for path, text in files(page, "python").items():
            file = self.directory / path
            file.parent.mkdir(parents=True, exist_ok=True)
            before = file.read_text() if path in parts(page) and file.exists() else ""
            file.write_text(f"{before}\n\n{text}")

    def manage(self, *arguments: str, status: int = 0, **environment: str) -> str:
        """Run a command of manage.py; return what it wrote."""
        done = subprocess.run(
            [sys.executable, "-m", "django", *arguments],
            cwd=self.directory,
            env=os.environ | self.environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        assert done.returncode == status, (
            f"manage.py {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}"
        )
        return done.stdout

    def migrate(self, *names: str) -> dict[str, User]:
        """Make its tables, install its triggers, and make users; all in one process, which takes a second to start."""
        return {name: User(*made) for name, made in json.loads(self.shell(f"names = {names!r}\n{MIGRATE}")).items()}

    def shell(self, code: str) -> str:
        """Run Python in the project; return what it printed."""
        return self.manage("shell", "--no-imports", "--verbosity=0", "-c", code).strip()

    def server(self, **environment: str) -> ProjectServer:
        """Daphne, not yet started."""
        port = free_port()
        command = [sys.executable, "-m", "daphne", "-b", "127.0.0.1", "-p", str(port), "myproject.asgi:application"]
        return ProjectServer(command, port=port, environment=self.environment | environment)

    def listener(self) -> Process:
        """`manage.py run_listener`, not yet started."""
        command = [sys.executable, "-m", "django", "run_listener"]
        return Process(command, banner="leading database|standing by", environment=self.environment)
