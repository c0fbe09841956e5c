"""One subscription of a test, and what it was sent."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .errors import GraphqlResultError, NothingSentError, ResyncError, UnexpectedResultError
from .twins import in_test_thread

if TYPE_CHECKING:
    from .communicator import GraphqlCommunicator

Payload = Mapping[str, Any]


class TestSubscription:
    """
    What ``GraphqlCommunicator.subscribe`` returns.

    `cursor` is that of the last result that was read here, which is where a client would go on; `is_completed` says
    whether the server has ended it.
    """

    __test__ = False  # for pytest, which looks for classes of this name

    def __init__(self, communicator: GraphqlCommunicator, operation_id: str) -> None:
        self._communicator = communicator
        self._results: deque[Payload] = deque()
        self._errors: list[Mapping[str, Any]] = []
        self.id = operation_id
        self.cursor: str | None = None
        self.is_completed = False

    def next(self) -> Any:
        """
        Return the data of the next result, once all that was pumped has been delivered.

        What only says that the state is complete is passed over.  Raises NothingSentError, GraphqlResultError,
        ResyncError, SocketClosedError.
        """
        result = self.result()
        while _is_marker(result):
            result = self.result()
        if resync := (result.get("extensions") or {}).get("resync"):
            raise ResyncError(f"changes are lost: {resync.get('reason')}")
        if result.get("errors"):
            raise GraphqlResultError(result["errors"], result)
        return result["data"]

    def result(self) -> Payload:
        """Return the whole next result, with its ``errors`` and ``extensions``; see ``next`` where there is none."""
        if not self._results:
            self._communicator._settle()
        if not self._results:
            self._raise_missing()
        result = self._results.popleft()
        self.cursor = (result.get("extensions") or {}).get("cursor", self.cursor)
        return result

    def nothing(self) -> None:
        """Raise UnexpectedResultError if something was sent and not read, other than that the state is complete."""
        self._settle()
        if self._results:
            raise UnexpectedResultError(f"{len(self._results)} were sent: {list(self._results)}")
        if self._errors:
            raise GraphqlResultError(self._errors)

    def complete(self) -> None:
        """End it, as a client does; nothing more is sent."""
        self._communicator._complete(self)

    def __iter__(self) -> Iterator[Any]:
        """Yield the data of each result that is there."""
        self._settle()
        while self._results:
            yield self.next()
            self._settle()

    anext = in_test_thread(next)  # noqa: A003  (the method)
    aresult = in_test_thread(result)
    anothing = in_test_thread(nothing)
    acomplete = in_test_thread(complete)

    async def __aiter__(self) -> AsyncIterator[Any]:
        for data in await in_test_thread(list)(self):
            yield data

    def _settle(self) -> None:
        self._communicator._settle()
        while self._results and _is_marker(self._results[0]):
            self.result()

    def _take(self, kind: str, payload: Any) -> None:
        """Note a message; called on the event loop of the server."""
        if kind == "next":
            self._results.append(payload)
        elif kind == "error":
            self._errors += payload if isinstance(payload, list) else [payload]
            self.is_completed = True
        elif kind == "complete":
            self.is_completed = True

    def _raise_missing(self) -> None:
        if self._errors:
            raise GraphqlResultError(self._errors)
        self._communicator._require_open()
        if self.is_completed:
            raise NothingSentError("nothing was sent: the subscription is over")
        if waiting := self._communicator._server.journals.refresh():
            rows = "row waits" if waiting == 1 else "rows wait"
            raise NothingSentError(f"nothing was sent: {waiting} journal {rows} to be delivered, call pump() before")
        raise NothingSentError(
            "nothing was sent: no change that was pumped is one of its topics, or next() has returned None for each"
        )


def _is_marker(result: Payload) -> bool:
    """Return whether it only says that the state is complete."""
    return bool((result.get("extensions") or {}).get("live"))
