"""
How often a client may send: a bucket of tokens, without a timer.

A message takes a token, and tokens come back at a steady rate until there are as many as fit.  That need not be
watched: all that is kept is the time at which the bucket will be full again, which each token taken puts off by the
time that one takes to come back.  A message that would put it off further than an empty bucket takes to fill is over
the limit.

In any `t` seconds at most ``burst + per_second * t`` messages pass, give or take half of one.  A client that has sent
nothing for long may send `burst` at once; one that sends no faster than `per_second` is never refused; one that always
sends too fast still gets `per_second` through, since what is refused takes nothing.
"""

from __future__ import annotations

FULL = float("-inf")
"""When a bucket that nothing was taken from has been full: always."""

ROUNDING = 0.5
"""Of a token: what the clock's numbers lose on the way must not cost a message that was promised."""


class Rate:
    """
    What one socket may still send: `per_second` messages, above 0, and `burst` at once, at least 1.

    It is as large as a socket can afford that says nothing: 56 bytes, and a number of 24 once it has said something.
    """

    __slots__ = ("_burst", "_full", "_per_second")

    def __init__(self, per_second: float, burst: int) -> None:
        self._per_second = per_second
        self._burst = burst
        self._full = FULL

    def taken(self, now: float) -> bool:
        """
        Take a token and return True, or False if there is none: the message is over the limit.

        `now` is in seconds, of a clock that does not go backwards, the same for all calls.
        """
        full = max(self._full, now) + 1 / self._per_second
        if (full - now) * self._per_second > self._burst + ROUNDING:
            return False
        self._full = full
        return True
