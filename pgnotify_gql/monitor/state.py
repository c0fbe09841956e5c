"""
What the page shows beside the changes: triggers and journals of every database, and what the hubs answer.

Each part is asked by itself, all at the same time.  One that fails is ``{"error": sentence}``; the others are there as
ever.  Nothing is locked, and what is asked is bounded, however large the journal.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import psycopg
from asgiref.sync import sync_to_async
from django.db import Error as DatabaseError
from django.db import connections
from psycopg import sql

from .. import names
from ..capture.registry import registry
from ..conf import Settings, database_conninfo, get_settings
from ..errors import PgnotifyGqlError, one_line
from ..hub.roll_call import ask_hubs
from ..journal.inspection import MOST_COUNTED, Inspection, inspect
from ..journal.locks import HELD
from ..journal.reader import Connection, require_journal
from ..listener import connect
from ..listener.session import APPLICATION_NAME as LISTENER
from ..management.installing import make_plan
from ..relay.worker import channel_layer
from .access import Viewer
from .disclosure import shown_to

logger = logging.getLogger("pgnotify_gql.monitor")

Part = dict[str, Any]
"""A value of JSON; with the only key ``error`` where it could not be told."""

PARTS = ("triggers", "journals", "hubs")

PART_TIMEOUT = 5.0
"""Seconds after which a journal, or the channel layer, counts as away."""

ROLL_CALL = 0.5
"""Seconds in which hubs answer; the page asks every two."""

APPLICATION_NAME = "pgnotify_gql monitor"

# Told by the name that listeners give their sessions, which everybody may see; a leader may have two.
STANDBYS = sql.SQL("""
    select a.pid, host(a.client_addr), a.backend_start
    from pg_stat_activity a
    where a.datname = current_database() and a.application_name = %(listener)s
        and not exists (
            select from ({held}) as l
            where l.pid = a.pid and l.classid = %(class)s and l.objid in (%(leader)s, %(backlog)s)
        )
    order by a.backend_start, a.pid
""").format(held=HELD)


async def collect(viewer: Viewer, parts: Collection[str] = PARTS) -> dict[str, Any]:
    """Return the parts that are named, and when they were asked."""
    settings = get_settings()
    asked: dict[str, Callable[[], Awaitable[Any]]] = {
        "triggers": lambda: _by_database(settings, "triggers", _triggers),
        "journals": lambda: _by_database(settings, "journal", _journal),
        "hubs": lambda: _told("what the hubs do", _hubs(settings, viewer)),
    }
    wanted = [part for part in PARTS if part in parts]
    told = await asyncio.gather(*(asked[part]() for part in wanted))
    return {"at": datetime.now(UTC), **dict(zip(wanted, told, strict=True))}


async def _by_database(
    settings: Settings, what: str, ask: Callable[[Settings, str], Awaitable[Part]]
) -> dict[str, Part]:
    aliases = settings.DATABASES
    parts = await asyncio.gather(
        *(_told(f"the {what} of database '{alias}'", ask(settings, alias)) for alias in aliases)
    )
    return dict(zip(aliases, parts, strict=True))


async def _told(what: str, asked: Awaitable[Part]) -> Part:
    """Return a part, or a sentence about why there is none."""
    try:
        return await asked
    except (PgnotifyGqlError, psycopg.Error, DatabaseError) as error:
        return {"error": f"{what} cannot be told: {one_line(error)}"}
    except TimeoutError:
        return {"error": f"{what} cannot be told: there was no answer within {PART_TIMEOUT:g} s"}
    except Exception as error:
        # Nobody knows what its message holds: the log may have it, the page may not.
        logger.warning("%s cannot be told: %r", what, error)
        return {"error": f"{what} cannot be told ({type(error).__name__}): the log says why"}


async def _triggers(settings: Settings, alias: str) -> Part:
    database_conninfo(settings, alias)  # says what is wrong with an alias
    # Without a time-out: the thread would go on, and Django waits for it at the end of the request, in the event loop.
    return await sync_to_async(_planned)(alias)


def _planned(alias: str) -> Part:
    plan = make_plan(connections[alias], registry)
    tables = [
        {"label": step.label, "table": step.table, "status": step.status.value, "detail": step.detail}
        for step in plan.steps
    ]
    return {"tables": tables, "errors": [str(error) for error in plan.errors]}


async def _journal(settings: Settings, alias: str) -> Part:
    dsn = database_conninfo(settings, alias)
    async with asyncio.timeout(PART_TIMEOUT):
        connection = await connect(dsn, session_timeout=0, application_name=APPLICATION_NAME, replica=True)
        async with connection:
            await require_journal(connection, alias)
            inspection = await inspect(connection)
            standbys = await _standbys(connection)
    return _described(inspection, settings) | {"standbys": standbys}


def _described(inspection: Inspection, settings: Settings) -> Part:
    """Return an inspection as JSON; sizes in bytes, times in seconds."""
    leader, writers = inspection.leader, inspection.writers
    return {
        "at": inspection.at,
        "replica": inspection.replica,
        "epoch": inspection.epoch,
        "leader": None if leader is None else asdict(leader),
        # Behind a pooler a leader holds no lock: it is believed to be there for as long as a session may be silent.
        "leased": inspection.is_leased(settings.SESSION_TIMEOUT),
        "stuck": inspection.is_stuck(settings.SESSION_TIMEOUT),
        "relayed_at": inspection.relayed_at,
        "unrelayed": inspection.unrelayed,
        "counted_at_most": MOST_COUNTED,
        "lag": round(inspection.lag, 3),
        "bytes": inspection.bytes,
        "oldest": inspection.oldest,
        "slots": [asdict(slot) for slot in inspection.slots],
        "rotated_at": inspection.rotated_at,
        "retention": settings.RETENTION,
        # How many, and since when; who they are is not the page's to tell: they are of all databases of the server.
        "writers": {"count": len(writers), "since": writers[0].since if writers else None},
    }


async def _standbys(connection: Connection) -> list[Part]:
    result = await connection.execute(
        STANDBYS,
        {
            "listener": LISTENER,
            "class": names.LOCK_CLASS,
            "leader": names.LEADER_LOCK,
            "backlog": names.BACKLOG_LOCK,
        },
    )
    return [{"pid": pid, "host": host, "since": since} for pid, host, since in await result.fetchall()]


async def _hubs(settings: Settings, viewer: Viewer) -> Part:
    layer: Any = channel_layer(settings)
    async with asyncio.timeout(PART_TIMEOUT):
        answers = await ask_hubs(layer, {"ask": "state"}, timeout=ROLL_CALL)
    answers.sort(key=lambda answer: (answer["process"]["host"], answer["process"]["pid"]))
    return {"waited": ROLL_CALL, "answers": [shown_to(viewer, answer) for answer in answers]}
