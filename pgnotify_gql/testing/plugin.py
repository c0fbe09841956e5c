"""
Fixtures for pytest.

pytest imports this before anything else, in every project in whose environment this package is: so it imports nothing
of Django, and does nothing until a fixture is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ..journal import Change
    from .communicator import GraphqlCommunicator
    from .memory import MemoryJournal


@pytest.fixture
def graphql_communicator() -> Iterator[Callable[..., GraphqlCommunicator]]:
    """Open communicators, with the arguments of ``GraphqlCommunicator``; all are closed when the test ends."""
    from .communicator import GraphqlCommunicator

    with ExitStack() as opened:

        def make(application: Any, user: Any = None, session: Any = None, **options: Any) -> GraphqlCommunicator:
            return opened.enter_context(GraphqlCommunicator(application, user, session, **options))

        yield make


@pytest.fixture
def pump() -> Callable[[], list[Change]]:
    """Deliver the changes that were made so far."""
    from .serving import pump

    return pump


@pytest.fixture
def memory_journal() -> Iterator[MemoryJournal]:
    """A journal to be filled by hand; whatever the test opens is served from it."""
    from .memory import MemoryJournal

    with MemoryJournal() as journal:
        yield journal


@pytest.fixture(scope="session")
def subscription_triggers(django_db_setup: None, django_db_blocker: Any) -> None:
    """Install the triggers in the test databases of pytest-django, once a session."""
    from .triggers import install_triggers

    with django_db_blocker.unblock():
        install_triggers()
