"""
Why a change did, or did not, arrive: what can be found out of the last changes of one row, put together.

The journal says what was captured and up to where that was relayed; every hub is asked what became of it there, through
the channel layer.  All of it is bounded: the journal rows that are looked through, the changes that are explained, and
the time for which answers are waited for.

On failure of the channel layer, or of a hub, what is known without it is told, with a note.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from channels.db import database_sync_to_async
from channels.layers import InMemoryChannelLayer
from django.db import router

from ..capture.watch import Watch
from ..conf import NAME, database_conninfo, get_settings
from ..hub.roll_call import AskerLayer, ask_hubs
from ..journal.history import Event, History, read_history
from ..journal.inspection import Inspection, inspect
from ..journal.reader import require_journal
from ..listener import connect
from ..relay.messages import MESSAGE_BYTES
from .row_keys import QuestionError, RowKey, find_watch
from .uncaptured import reasons, trigger_problem

__all__ = ["Explanation", "QuestionError", "explain"]

APPLICATION_NAME = "pgnotify_gql explain"

MOST_CHANGES = 10
"""Changes that are explained, the last ones: each has an operation for everybody who waits for the model."""

ANSWER_TIME = 2.0
"""Seconds that hubs have for their answers: one with 10,000 operations takes half of it."""

MOST_MINUTES = 100_000.0
"""Ten weeks; no journal goes back that far."""


@dataclass(frozen=True)
class Stage:
    """A stage on the way of a change; `ok` is None where it is not known whether it has passed that."""

    stage: str
    ok: bool | None
    at: datetime | None
    text: str


@dataclass(frozen=True)
class OperationReport:
    """What became of a change for one operation, see ``hub.verdict.Outcome``."""

    number: int
    user: str
    field: str
    outcome: str
    at: datetime | None
    why: str


@dataclass(frozen=True)
class HubReport:
    """What became of a change in one process."""

    process: Mapping[str, Any]
    received_at: datetime | None
    text: str
    operations: Sequence[OperationReport]


@dataclass(frozen=True)
class ChangeReport:
    """One change."""

    id: int
    xid: int
    kind: str
    at: datetime
    stages: Sequence[Stage]
    hubs: Sequence[HubReport]


@dataclass(frozen=True)
class Explanation:
    """All that was found out; the last change at the end."""

    label: str
    pk: str
    minutes: float
    notes: Sequence[str]
    changes: Sequence[ChangeReport]

    def as_json(self) -> dict[str, Any]:
        """Return it as an object of JSON, with the names of the fields and times in ISO 8601."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self), default=datetime.isoformat))
        return plain


async def explain(
    label: str,
    pk: Any,
    *,
    database: str,
    minutes: float,
    layer: AskerLayer,
    timeout: float = ANSWER_TIME,  # noqa: ASYNC109  (answers are waited for as long)
) -> Explanation:
    """
    Explain the changes of one row in the last minutes; `pk` is a key, or the text of one (a JSON list if composite).

    Raises QuestionError for what cannot be asked, JournalMissingError, and psycopg's or Django's errors of the
    database.
    """
    watch = find_watch(label)
    key = RowKey.read(watch, pk)
    if not 0 < minutes <= MOST_MINUTES:
        raise QuestionError(f"minutes must be a number above 0, {MOST_MINUTES:,.0f} at most, not {minutes!r}")
    return await _Explaining(watch, key, database, minutes, layer, timeout).run()


class _Explaining:
    """One explanation in the making."""

    def __init__(
        self, watch: Watch, key: RowKey, database: str, minutes: float, layer: AskerLayer, patience: float
    ) -> None:
        self._watch = watch
        self._key = key
        self._database = database
        self._minutes = minutes
        self._layer = layer
        self._patience = patience
        self._settings = get_settings()
        self._notes: list[str] = []

    async def run(self) -> Explanation:
        inspection, history = await self._look_into_journal()
        rings = self._settings.WAKE == "notify"
        problem: str = await database_sync_to_async(trigger_problem)(self._watch, self._database, rings=rings)
        self._note_surroundings(problem)
        events = list(history.events)[-MOST_CHANGES:]
        if events:
            self._note_incomplete(history)
            hubs = await self._ask(events)
            changes = [self._report(event, inspection, hubs[place]) for place, event in enumerate(events)]
        else:
            self._note_nothing(history, inspection, problem)
            changes = []
        return Explanation(self._watch.label, self._key.text, self._minutes, self._notes, changes)

    async def _look_into_journal(self) -> tuple[Inspection, History]:
        dsn = database_conninfo(self._settings, self._database)
        connection = await connect(dsn, session_timeout=0, application_name=APPLICATION_NAME, replica=True)
        async with connection:
            await require_journal(connection, self._database)
            inspection = await inspect(connection)
            since = inspection.at - timedelta(minutes=self._minutes)
            history = await read_history(
                connection, self._watch, self._key.is_of, since=since, parts=self._key.journaled_parts
            )
        return inspection, history

    def _note_surroundings(self, problem: str) -> None:
        label, alias = self._watch.label, self._database
        if problem:
            self._notes.append(problem)
        if alias not in self._settings.DATABASES:
            self._notes.append(
                f"{NAME}['DATABASES'] does not name '{alias}': no listener relays its changes to subscribers"
            )
        written = router.db_for_write(self._watch.model)
        if written != alias:
            self._notes.append(f"{label} is written to database '{written}', and its subscribers wait for that one")

    def _note_incomplete(self, history: History) -> None:
        if len(history.events) > MOST_CHANGES or not history.complete:
            self._notes.append(f"there may be more changes than the last {MOST_CHANGES}, which are shown")

    def _note_nothing(self, history: History, inspection: Inspection, problem: str) -> None:
        """Note that nothing was captured, and what can be the reason."""
        self._notes.append(
            f"the journal of database '{self._database}' has no change of it; "
            + ("besides what is said above, the reason can be" if problem else "the reason can be one of these")
        )
        self._notes += reasons(self._watch, inspection, minutes=self._minutes)
        if history.undecoded:
            self._notes.append(
                f"{history.undecoded} changes in which it may be cannot be decoded here: see `manage.py tail_changes`"
            )

    async def _ask(self, events: Sequence[Event]) -> list[list[HubReport] | None]:
        """Return what the hubs say of each change; None of those about which none was asked."""
        # The last ones, as many as a message of the relay would have.
        asked: list[dict[str, Any]] = []
        size = 0
        for event in reversed(events):
            size += len(event.rows)
            if size > MESSAGE_BYTES:
                break
            asked.insert(0, _question(event))
        none: list[list[HubReport] | None] = [None] * (len(events) - len(asked))
        if not asked:
            return none
        question = {"ask": "explain", "database": self._database, "label": self._watch.label, "changes": asked}
        if self._is_alone:
            self._notes.append("the channel layer is in memory: no other process than this one can be asked")
        try:
            answers = await ask_hubs(self._layer, question, timeout=self._patience)
        except Exception as error:  # whatever the layer's client raises
            self._notes.append(f"the channel layer does not work here, so no hub can be asked: {error!r}")
            return [*none, *([None] * len(asked))]
        if busy := sum("busy" in answer for answer in answers):
            self._notes.append(f"{busy} processes answer somebody else at the moment: ask again")
        answers = [answer for answer in answers if len(answer.get("changes", ())) == len(asked)]
        return [*none, *([_hub_report(answer, place) for answer in answers] for place in range(len(asked)))]

    def _report(self, event: Event, inspection: Inspection, hubs: Sequence[HubReport] | None) -> ChangeReport:
        row = event.row
        received = sorted(hub.received_at for hub in hubs or () if hub.received_at is not None)
        stages = [
            Stage("captured", True, row.at, f"journal row {row.id} of transaction {row.xid}"),
            self._relayed(row.xid, inspection, bool(received)),
            _hub_stage(hubs, received, alone=self._is_alone),
        ]
        return ChangeReport(row.id, row.xid, row.kind, row.at, stages, hubs or ())

    @property
    def _is_alone(self) -> bool:
        """Return whether the channel layer reaches no other process."""
        return isinstance(self._layer, InMemoryChannelLayer)

    def _relayed(self, xid: int, inspection: Inspection, received: bool) -> Stage:
        if inspection.relayed.sees(xid):
            return Stage("relayed", True, None, "sent to the channel layer")
        if received:
            return Stage("relayed", True, None, "sent to the channel layer, or read from the journal by a hub")
        if inspection.replica:
            return Stage("relayed", None, None, "this is a replica; who leads is known to its primary")
        if inspection.leader is not None:
            text = f"not yet: a listener leads, backend {inspection.leader.pid}, and has not come to it"
        elif inspection.is_leased(self._settings.SESSION_TIMEOUT):
            text = "not yet: a listener leads through a pooler, or has just gone"
        elif self._settings.INLINE_LISTENER:
            text = "nobody leads: it waits in the journal until somebody subscribes (INLINE_LISTENER)"
        else:
            text = "nobody leads: it waits in the journal until `manage.py run_listener` runs"
        return Stage("relayed", False, None, text)


def _question(event: Event) -> dict[str, Any]:
    row = event.row
    return {
        "id": row.id,
        "xid": row.xid,
        "index": event.change.index,
        "kind": row.kind,
        "rows": event.rows,
        "micros": row.micros,
    }


def _hub_report(answer: Mapping[str, Any], place: int) -> HubReport:
    told = answer["changes"][place]
    operations = [
        OperationReport(
            operation["number"], operation["user"], operation["field"], operation["outcome"],
            _time(operation["at"]), operation["why"],
        )
        for operation in told["operations"]
    ]  # fmt: skip
    return HubReport(answer["process"], _time(told["received_at"]), told["text"], operations)


UNANSWERED = "no process has answered: none has a socket open, or they are on another channel layer, or they are stuck"

UNREACHED = "servers cannot be asked from here, since the channel layer is in memory; the monitor can ask its own"


def _hub_stage(hubs: Sequence[HubReport] | None, received: Sequence[datetime], *, alone: bool) -> Stage:
    if hubs is None:
        return Stage("hub", None, None, "no hub was asked")
    if not hubs:
        return Stage("hub", None, None, UNREACHED if alone else UNANSWERED)
    answered = f"{len(hubs)} processes" if len(hubs) > 1 else "one process"
    text = f"{answered} answered, received by {len(received)}"
    return Stage("hub", bool(received), received[0] if received else None, text)


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
