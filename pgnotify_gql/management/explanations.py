"""
What ``explain_change`` prints of an explanation: lines for people.

A line never holds what a terminal would obey, whatever a user is called.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from django.utils import timezone

from .explaining import ChangeReport, Explanation, HubReport, Stage
from .sightings import printable

MARKS = {True: "yes", False: "NO", None: "?"}

WIDTH = 14
"""Characters of the longest outcome."""


def as_text(explanation: Explanation) -> str:
    """Return the lines."""
    return "\n".join(printable(line) for line in _lines(explanation))


def _lines(explanation: Explanation) -> Iterator[str]:
    yield f"{explanation.label} {explanation.pk}, the last {explanation.minutes:g} min"
    for note in explanation.notes:
        yield f"  - {note}"
    for change in explanation.changes:
        yield ""
        yield from _change(change)


def _change(change: ChangeReport) -> Iterator[str]:
    yield f"{change.kind} at {_local(change.at, 'milliseconds')}"
    for stage in change.stages:
        yield _stage(stage)
    for hub in change.hubs:
        yield from _hub(hub)


def _stage(stage: Stage) -> str:
    return f"  {stage.stage:<9} {MARKS[stage.ok]:<4}{_clock(stage.at)}  {stage.text}"


def _hub(hub: HubReport) -> Iterator[str]:
    host, pid = hub.process.get("host"), hub.process.get("pid")
    yield f"    {_clock(hub.received_at)}  {host}, process {pid}: {hub.text}"
    for operation in hub.operations:
        who = operation.user or "(nobody)"
        why = f": {operation.why}" if operation.why else ""
        what = f"{operation.outcome:<{WIDTH}}  {operation.field or '?'} of {who}, operation {operation.number}{why}"
        yield f"      {_clock(operation.at)}  {what}"


def _clock(moment: datetime | None) -> str:
    return " " * 12 if moment is None else _local(moment, "milliseconds")[11:23]


def _local(moment: datetime, precision: str) -> str:
    return timezone.localtime(moment).isoformat(" ", precision)[:23]
