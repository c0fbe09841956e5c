"""
Where the acceptance tests find their rows: in the demo, or in a database for servers that a test starts by itself.

The demo is started once for the tests that only use it; those that stop it or break it start their own.
"""

from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import psycopg
import pytest
from django.core.management import call_command

from tests.acceptance.demo import Demo, empty_directory
from tests.acceptance.room import Room
from tests.support.databases import Database


@pytest.fixture
def room(database_triggers: Database) -> Room:
    """A conversation of alice and bob; `room.connection` is a raw connection to the database."""
    call_command("sample_data", stdout=StringIO())
    return Room(database_triggers.connect())


@pytest.fixture
def directory() -> Iterator[Path]:
    """Where a demo finds nothing yet."""
    with empty_directory() as path:
        yield path


@pytest.fixture(scope="session")
def demo() -> Iterator[Demo]:
    with empty_directory() as path, Demo(path) as demo:
        yield demo


@pytest.fixture
def demo_room(demo: Demo) -> Iterator[Room]:
    """A conversation of alice and bob in the demo, over a connection made from the printed psql command."""
    with psycopg.connect(demo.conninfo, autocommit=True) as connection:
        yield Room(connection)
