"""
Why nothing of a row was captured: what is wrong with its triggers, and what else can be the reason.
"""

from __future__ import annotations

from collections.abc import Iterator

from django.db import connections

from ..capture.catalog import Status
from ..capture.installer import plan_install
from ..capture.kinds import ALL_KINDS
from ..capture.watch import Watch
from ..errors import ReadOnlyDatabaseError
from ..journal.inspection import Inspection
from .inspections import duration


def trigger_problem(watch: Watch, alias: str, *, rings: bool) -> str:
    """
    Return what is wrong with the triggers of a watch in a database, and what to do; nothing where all is well.

    Asks the database, as ``install_triggers`` does.  Raises JournalMissingError.
    """
    try:
        plan = plan_install(connections[alias], [watch], rings=rings)
    except ReadOnlyDatabaseError as error:
        return str(error)
    if plan.errors:
        return str(plan.errors[0])
    step, advice = plan.steps[0], f"run `manage.py install_triggers --database {alias}`"
    if step.status is Status.INSTALLED:
        return ""
    if step.status is Status.MISSING:
        return f"{watch.label} has no triggers in database '{alias}', so nothing of it is captured: {advice}"
    return f"the triggers of {watch.label} are not those of its watch ({step.detail}): {advice}"


def reasons(watch: Watch, inspection: Inspection, *, minutes: float) -> Iterator[str]:
    """Yield what can be the reason why no change was found in the last minutes; what is likely comes first."""
    yield _uncommitted(inspection)
    yield _too_old(inspection, minutes)
    excluded = [] if watch.kinds == ALL_KINDS else [f"kinds={', '.join(sorted(watch.kinds))}"]
    excluded += [f"update_of={', '.join(watch.update_of)}"] if watch.update_of else []
    excluded += [] if watch.condition is None else [f"condition={watch.condition}"]
    if excluded:
        yield f"its watch leaves out whatever is not of {', and of '.join(excluded)}"
    yield "an UPDATE that changed nothing is no change, and what is written within suppress_changes() is not captured"
    yield "the key may be mistyped: that there is such a row was not looked at"


def _uncommitted(inspection: Inspection) -> str:
    count = len(inspection.writers)
    if not count:
        return "it is not committed: no transaction is open that has written anything, so it was rolled back"
    since = inspection.writers[0].since
    age = f", the oldest for {duration((inspection.at - since).total_seconds())}" if since is not None else ""
    verb = "one transaction that has written is" if count == 1 else f"{count:,} transactions that have written are"
    return f"it is not committed yet: {verb} open on this server{age}"


def _too_old(inspection: Inspection, minutes: float) -> str:
    if inspection.oldest is None:
        return f"it is older than {minutes:g} min (see --minutes), and has left the journal, which is empty"
    back = duration((inspection.at - inspection.oldest).total_seconds())
    return f"it is older than {minutes:g} min (see --minutes); the journal goes back {back}"
