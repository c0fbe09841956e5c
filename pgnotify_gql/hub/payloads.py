"""
Payloads: the results of a cohort, on their way to its members.

The frame around a result depends on the subprotocol and on the operation's id, which clients tend to choose alike.
It is made once for all members that have the same, so that a member costs a look-up, however many results it is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

Envelope = Callable[[str], str]
"""Makes a frame of the JSON of a result; equal ones make the same frame."""


class Frames(NamedTuple):
    """Frames in order, and their length in characters."""

    frames: Sequence[str]
    size: int


class Payloads:
    """The JSON of results, in order."""

    __slots__ = ("_framed", "_payloads")

    def __init__(self, *payloads: str) -> None:
        self._payloads = payloads
        self._framed: dict[Envelope, Frames] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._payloads)

    def __len__(self) -> int:
        return len(self._payloads)

    def after(self, count: int) -> Payloads:
        """Return what is left behind so many."""
        return Payloads(*self._payloads[count:]) if count else self

    def framed(self, envelope: Envelope) -> Frames:
        """Return them as frames, which others that have the same envelope are given as well."""
        found = self._framed.get(envelope)
        if found is None:
            frames = list(map(envelope, self._payloads))
            found = self._framed[envelope] = Frames(frames, sum(map(len, frames)))
        return found
