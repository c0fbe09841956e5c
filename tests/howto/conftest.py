"""Projects made of guides, and servers of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from tests.howto.project import Project
from tests.support.databases import Database
from tests.support.processes import ProjectServer

Make = Callable[..., Project]

Serve = Callable[..., ProjectServer]


@pytest.fixture
def project_of(tmp_path: Path, empty_database: Database) -> Make:
    """The project of a guide, `project_of("filters")`, with tables, triggers, ann and bob; paths go to PYTHONPATH."""

    def make(guide: str, *paths: Path, redis_url: str = "") -> Project:
        project = Project(tmp_path, guide, empty_database, *paths, redis_url=redis_url)
        project.users = project.migrate("ann", "bob")
        return project

    return make


@pytest.fixture
def serve(running: ExitStack) -> Iterator[Serve]:
    """Start Daphne for a project; in the end its log has no traceback."""
    servers = []

    def start(project: Project, **environment: str) -> ProjectServer:
        servers.append(running.enter_context(project.server(**environment)))
        return servers[-1]

    yield start
    for server in servers:
        assert "Traceback" not in server.log, server.log


@pytest.fixture
def sql(empty_database: Database) -> psycopg.Connection:
    """A session of another program, in autocommit."""
    return empty_database.connect()
