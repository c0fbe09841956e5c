"""Asynchronous twins of what waits, for asynchronous tests."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from asgiref.sync import sync_to_async

P = ParamSpec("P")
R = TypeVar("R")


def in_test_thread(function: Callable[P, R]) -> Callable[P, Coroutine[Any, Any, R]]:
    """Return the same to be awaited: it runs in the thread in which Django runs queries of this test."""

    @wraps(function)
    async def twin(*args: P.args, **kwargs: P.kwargs) -> R:
        return await sync_to_async(function, thread_sensitive=True)(*args, **kwargs)

    twin.__name__ = f"a{function.__name__}"
    twin.__doc__ = f"Do what ``{function.__name__}`` does, in an asynchronous test."
    return twin
