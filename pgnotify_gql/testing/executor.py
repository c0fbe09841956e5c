"""An executor of a hub whose one worker thread is the thread of the test."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from ..hub.executor import Executor
from .calling_thread import CallingThread

R = TypeVar("R")


class CallingThreadExecutor(Executor):
    """
    Has everything called by who waits, who waits for so many seconds at most.

    `calls` counts those of the application that are under way, on the event loop or in the thread.
    """

    def __init__(self, thread: CallingThread, patience: float) -> None:
        super().__init__(1, thread)
        self._thread = thread
        self._patience = patience
        self.calls = 0

    async def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        try:
            return await super().call(function, *args, **kwargs)
        finally:
            self.calls -= 1

    def wait(self, future: Future[R]) -> R:
        # What the event loop makes may need this thread.
        return self._thread.wait(future, self._patience)
