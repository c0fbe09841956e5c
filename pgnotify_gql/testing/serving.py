"""The server that is open: one at a time, opened with the first communicator and closed with the last."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..journal import Change
from .errors import NotOpenError
from .journal import Source
from .journals import Journals
from .server import InProcessServer, changes_of, require_no_loop
from .twins import in_test_thread

_open: InProcessServer | None = None


@contextmanager
def serving(sources: Callable[[str], Source] | None = None) -> Iterator[InProcessServer]:
    """Hold the server open; the first who does says where rows come from, by default the databases."""
    global _open
    require_no_loop()
    if _open is None:
        server = InProcessServer(Journals.of_databases() if sources is None else Journals.of(sources))
        try:
            server.open()
        except BaseException:
            server.close()
            raise
        _open = server
    server = _open
    server.held += 1
    try:
        yield server
    finally:
        server.held -= 1
        if not server.held:
            _open = None
            server.close()


def pump() -> list[Change]:
    """
    Deliver every change that was made since the last time, in the test's open transaction or committed; return them.

    When it returns, all that follows from them has happened: results are executed and sent.  Raises NotOpenError,
    NotSettledError.
    """
    if _open is not None:
        return _open.pump()
    journals = Journals.remembered()
    if journals is None:
        raise NotOpenError
    # Whoever was connected has left, and may come back.
    return changes_of(journals.deliver())


apump = in_test_thread(pump)


def current_server() -> InProcessServer | None:
    """Return the server that is open."""
    return _open
