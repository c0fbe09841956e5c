"""What a listener does at the moment, for whoever watches it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Stage(StrEnum):
    """Where a listener stands on its way to lead."""

    CONNECTING = "connecting"
    STANDING_BY = "standing by"
    LEADING = "leading"


@dataclass(frozen=True)
class State:
    """A stage, since when in seconds since 1970, and the epoch of a leader's term."""

    stage: Stage
    since: float
    epoch: int | None = None
