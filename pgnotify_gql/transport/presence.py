"""
Presence: for how long the user of a socket or stream may stay.

He is looked at again every AUTH_INTERVAL, at the moment at which his session expires, and when his row changes in the
database, where the model of users is watched.  ``expires_at``, which the application says, holds without asking.
Whoever may not stay is closed with 4403, on which clients come back and are asked who they are.  ``disconnect_user``
closes all that a user has, in every process.

On failure of the database nobody is sent away, since the whole site would leave, and come back, for one restart; he is
looked at again soon.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from datetime import datetime
from typing import Any

from asgiref.sync import async_to_sync

from .. import names
from ..conf import get_settings
from ..hub import Topic
from ..hub.hub import Hub
from ..hub.visitors import disconnect_message, user_key
from ..relay.worker import channel_layer
from .authentication import is_authenticated
from .close_codes import CloseCode
from .protocol import RefusedConnectionError

logger = logging.getLogger("pgnotify_gql.transport")

RETRY = 5.0
"""Seconds after which a user is looked at again of whom the database did not tell."""

SPREAD = (0.8, 1.0)
"""Of AUTH_INTERVAL, until the next look."""

LONGEST = 86_400.0
"""Seconds that a timer is set for, at most: event loops refuse what is decades away."""


Leave = Callable[[CloseCode, str], None]
"""Ends a visit, for a reason."""


class Presence:
    """
    One visitor; `leave` is called with a close code and a reason when he may not stay.

    `recheck` returns whether he may, and may be asynchronous; `expiry` returns when his session ends, if that is known.
    Nothing is kept for visitors without an authentication that could end.
    """

    __slots__ = ("_again", "_expiry", "_held", "_hub", "_leave", "_recheck", "_task", "_timers")

    def __init__(
        self,
        hub: Hub,
        leave: Leave,
        recheck: Callable[[], Any],
        expiry: Callable[[], datetime | None],
    ) -> None:
        self._hub = hub
        self._leave = leave
        self._recheck = recheck
        self._expiry = expiry
        self._held: AsyncExitStack | None = None
        # By what they wait for.
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._task: asyncio.Task[None] | None = None
        self._again = False

    async def begin(self, user: Any, topics: Iterable[Topic], expires_at: datetime | float | None) -> None:
        """
        Let a user stay; he is looked at when one of the topics changes.

        `expires_at` is an aware datetime, or seconds since 1970.  Raises RefusedConnectionError when the user has as
        many connections to this process as he may.
        """
        if expires_at is not None:
            self._call_at("end", expires_at, self._end_visit)
        if not is_authenticated(user):
            return
        key = user_key(user)
        if self._hub.visitors.count(key) >= get_settings().MAX_SOCKETS_PER_USER:
            raise RefusedConnectionError(CloseCode.TOO_MANY_REQUESTS, "Too many connections of this user")
        self._held = AsyncExitStack()
        self._held.enter_context(self._hub.visitors.visiting(key, self._end_visit))
        await self._held.enter_async_context(self._hub.depending(topics, self.look))
        # He may have changed before that was followed; and it is not known yet when his session ends.
        self.look()

    def look(self) -> None:
        """Look at him, now; when he is being looked at, once more."""
        self._again = True
        if self._task is None:
            self._task = asyncio.create_task(self._look(), name="pgnotify_gql re-check")

    async def end(self) -> None:
        """He has left."""
        try:
            if self._held is not None:
                await asyncio.shield(self._held.aclose())
        finally:
            # Now nothing sets them again.
            for timer in self._timers.values():
                timer.cancel()
            if self._task is not None:
                self._task.cancel()
                await asyncio.gather(self._task, return_exceptions=True)

    async def _look(self) -> None:
        try:
            while self._again:
                self._again = False
                async with self._hub.questions:
                    allowed = await self._hub.executor.call(self._recheck)
                    expiry = await self._hub.executor.run(self._expiry)
            if not allowed:
                self._end_visit()
                return
            # Not all at once, who came at once after a restart.
            self._call_later("look", get_settings().AUTH_INTERVAL * random.uniform(*SPREAD), self.look)  # noqa: S311
            # Over, and he may stay all the same: the interval is enough.
            if expiry is not None and _seconds_until(expiry) > 0:
                self._call_at("expiry", expiry, self.look)
        except Exception as error:
            logger.warning("a connected user could not be looked at again (%r); trying again", error)
            self._call_later("look", RETRY, self.look)
        finally:
            self._task = None

    def _end_visit(self) -> None:
        self._leave(CloseCode.FORBIDDEN, "Forbidden")

    def _call_at(self, what: str, moment: datetime | float, call: Callable[[], None]) -> None:
        seconds = _seconds_until(moment)
        if seconds > LONGEST:
            self._call_later(what, LONGEST, lambda: self._call_at(what, moment, call))
        else:
            self._call_later(what, max(0.0, seconds), call)

    def _call_later(self, what: str, seconds: float, call: Callable[[], None]) -> None:
        if (earlier := self._timers.get(what)) is not None:
            earlier.cancel()
        self._timers[what] = asyncio.get_running_loop().call_later(seconds, call)


def _seconds_until(moment: datetime | float) -> float:
    return (moment.timestamp() if isinstance(moment, datetime) else moment) - time.time()


async def adisconnect_user(user: Any) -> None:
    """
    Close every socket and stream of a user, in all processes, with 4403.

    They come back and are asked who they are: end his sessions first.  It goes through the channel layer, which may
    lose it; the next re-check would find out.  Raises what the layer raises when it is away.
    """
    layer: Any = channel_layer(get_settings())
    await layer.group_send(names.heartbeat_group(), disconnect_message(user))


def disconnect_user(user: Any) -> None:
    """Do what ``adisconnect_user`` does, outside of an event loop."""
    async_to_sync(adisconnect_user)(user)
