"""
What users install: the wheel, the source distribution and an editable checkout, in a clean environment.

The templates are the delicate part. They lie at the top of the repository and must appear as a package inside
`pgnotify_gql`.
"""

import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.support.databases import Database
from tests.support.processes import CHECKOUT
from tests.support.programs import run

# Environments are made and packages are downloaded: 15 seconds in all where pip's cache is warm.
pytestmark = [pytest.mark.timeout(400), pytest.mark.postgres("18")]

TEMPLATES = {path.name for path in (CHECKOUT / "migrations_templates").glob("*.sql")}

LIST_TEMPLATES = """
from importlib.resources import files
import pgnotify_gql.version
print(pgnotify_gql.version.__file__)
for file in files("pgnotify_gql.migrations_templates").iterdir():
    print(file.name)
"""

SETTINGS = """
import os
from psycopg.conninfo import conninfo_to_dict

url = conninfo_to_dict(os.environ["DATABASE_URL"])
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": url["dbname"],
        "USER": url["user"],
        "HOST": url["host"],
        "PORT": url["port"],
    }
}
SECRET_KEY = "of a test"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["pgnotify_gql", "shop"]
CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
"""

MODELS = """
from django.db import models

from pgnotify_gql.capture import notify_on_model_changes


class Product(models.Model):
    name = models.CharField(max_length=100)


notify_on_model_changes(Product, columns=["name"])
"""


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy: building leaves files behind."""
    made = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "node_modules")
    return shutil.copytree(CHECKOUT, tmp_path_factory.mktemp("checkout") / "project", ignore=made)


@pytest.fixture(scope="session")
def distributions(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the source distribution, and the wheel that was built from it."""
    directory = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", directory, ".", cwd=checkout)
    return directory


@pytest.fixture(scope="session")
def wheel(distributions: Path) -> Path:
    (wheel,) = distributions.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with what the package requires; each test installs the package itself."""
    directory = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", directory, cwd=directory)
    python = directory / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", f"{wheel}[binary]", cwd=directory)
    return python


def install(python: Path, *what: str | Path) -> None:
    arguments = ["--quiet", "--no-deps", "--force-reinstall", *what]
    run(python, "-m", "pip", "install", *arguments, cwd=python.parent)


def test_the_wheel_contains_types_migrations_commands_and_templates(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {f"pgnotify_gql/migrations_templates/{name}" for name in TEMPLATES} <= names
    assert "pgnotify_gql/py.typed" in names
    assert "pgnotify_gql/migrations/0001_journal.py" in names
    assert "pgnotify_gql/management/commands/install_triggers.py" in names


def test_the_wheel_contains_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    expected = {
        path.relative_to(CHECKOUT).as_posix()
        for path in (CHECKOUT / "pgnotify_gql").rglob("*")
        if path.is_file() and path.suffix != ".pyc" and not path.name.startswith(".")
    }
    expected |= {
        f"pgnotify_gql/migrations_templates/{path.name}"
        for path in (CHECKOUT / "migrations_templates").iterdir()
        if path.is_file() and not path.name.startswith(".")
    }
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == expected


def test_a_checkout_and_its_source_distribution_build_the_same_wheel(
    checkout: Path, distributions: Path, wheel: Path, tmp_path: Path
) -> None:
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        assert any(name.endswith("/migrations_templates/journal_v1.sql") for name in archive.getnames())
    run(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ".", cwd=checkout)
    (other,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as from_sdist, zipfile.ZipFile(other) as from_checkout:
        assert _contents(from_sdist) == _contents(from_checkout)


def _contents(archive: zipfile.ZipFile) -> dict[str, bytes]:
    return {name: archive.read(name) for name in archive.namelist()}


def test_an_installed_wheel_captures_the_changes_of_a_project(
    python: Path, wheel: Path, empty_database: Database, tmp_path: Path
) -> None:
    install(python, wheel)
    app = tmp_path / "shop"
    (app / "migrations").mkdir(parents=True)
    for module in (app / "__init__.py", app / "migrations" / "__init__.py"):
        module.touch()
    (tmp_path / "settings.py").write_text(SETTINGS)
    (app / "models.py").write_text(MODELS)

    def manage(*arguments: str) -> str:
        environment = {"DJANGO_SETTINGS_MODULE": "settings", "DATABASE_URL": empty_database.url}
        return run(python, "-m", "django", *arguments, cwd=tmp_path, **environment)

    manage("makemigrations", "shop")
    manage("migrate")
    manage("install_triggers")
    manage("shell", "-c", "from shop.models import Product; Product.objects.create(name='tea')")

    journal = empty_database.connect().execute("select label, kind from pgnotify_gql.journal")
    assert journal.fetchall() == [("shop.product", "INSERT")]
    found = run(python, "-c", LIST_TEMPLATES, cwd=tmp_path).splitlines()
    assert Path(found[0]).is_relative_to(python.parents[1])
    assert set(found[1:]) >= TEMPLATES


def test_an_editable_install_finds_the_templates_from_the_checkout_and_from_elsewhere(
    python: Path, checkout: Path, tmp_path: Path
) -> None:
    install(python, "--editable", checkout)
    for directory in (checkout, tmp_path):
        found = run(python, "-c", LIST_TEMPLATES, cwd=directory).splitlines()
        assert Path(found[0]).is_relative_to(checkout)
        assert set(found[1:]) >= TEMPLATES
