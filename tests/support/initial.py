"""Subscriptions with an initial state, declared by a test, and what their subscribers are sent, sorted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import graphene

from example.conversations.models import Message
from pgnotify_gql.hub import Audience
from pgnotify_gql.journal.snapshot import Snapshot
from pgnotify_gql.journal.state import ERA, Era
from pgnotify_gql.subscriptions import Subscription
from tests.support.databases import Database
from tests.support.subscribers import QUERY, Query, Seen, Subscriber, next_change, returns


def every_message(cls: Any, info: Any, **arguments: Any) -> Any:
    return Message.objects.order_by("pk")


def declare_initial(
    state: Callable[..., Any] = every_message,
    subscribe: Callable[..., Any] | None = None,
    next: Callable[..., Any] = next_change,  # noqa: A002  (the method's name)
    *,
    output: Any = Seen,
    audience: Audience = Audience.NOBODY,
    **arguments: Any,
) -> graphene.Schema:
    """Return a schema with one field `changes`, which sends a state first."""
    meta = type("Meta", (), {"output": output, "initial": True})
    methods = {"state": state, "subscribe": subscribe or returns(Message), "next": next}
    body = {name: classmethod(method) for name, method in methods.items()}
    given = {"Meta": meta, "Arguments": type("Arguments", (), arguments), "audience": audience}
    declared: Any = type("Declared", (Subscription,), {**given, **body})

    class Subscriptions(graphene.ObjectType):  # type: ignore[misc]
        changes = declared.Field()

    return graphene.Schema(query=Query, subscription=Subscriptions)


@dataclass
class Told:
    """What an operation was sent, in order: ``state``, ``change``, ``resync`` and ``live``, each with its value."""

    events: list[tuple[str, Any]] = field(default_factory=list)
    cursor: str | None = None

    @property
    def state(self) -> list[Any]:
        return self.all("state")

    @property
    def changes(self) -> list[Any]:
        return self.all("change")

    def all(self, kind: str) -> list[Any]:
        """The values of all events of a kind."""
        return [value for found, value in self.events if found == kind]

    def take(self, result: dict[str, Any]) -> str:
        """Add a result, and return what kind of event it is; one that is none of them is an error of the test's."""
        extensions = result["extensions"]
        if "resync" in extensions or "live" in extensions:
            assert result["data"] is None
            assert extensions.keys() == ({"resync"} if "resync" in extensions else {"live", "cursor"}), extensions
            kind = "resync" if "resync" in extensions else "live"
            value = extensions[kind]["reason"] if kind == "resync" else extensions[kind]
        else:
            assert "errors" not in result, result
            kind = "state" if extensions.get("initial") else "change"
            assert extensions.keys() == ({"initial"} if kind == "state" else {"cursor"}), extensions
            value = result["data"]["changes"]["text"]
        self.cursor = extensions.get("cursor", self.cursor)
        self.events.append((kind, value))
        return kind


async def up_to(subscriber: Subscriber, kind: str, told: Told | None = None) -> Told:
    """Read up to an event of a kind."""
    told = told or Told()
    while told.take(await subscriber.result()) != kind:
        pass
    return told


async def up_to_change(subscriber: Subscriber, text: str, told: Told) -> Told:
    """Read up to a change."""
    while ("change", text) not in told.events:
        told.take(await subscriber.result())
    return told


async def live(subscriber: Subscriber, query: str = QUERY, *, cursor: str | None = None, **payload: Any) -> Told:
    """Subscribe, with a cursor if one is given, and read up to the live marker."""
    if cursor is not None:
        payload["extensions"] = {"cursor": cursor}
    subscriber.socket.subscribe(query, **payload)
    return await up_to(subscriber, "live")


def empty_journal(database: Database) -> None:
    """Let everything leave the journal, as if it were older than the retention."""
    with database.connect() as admin:
        admin.execute("truncate pgnotify_gql.journal")
        admin.execute(
            "update pgnotify_gql.journal_state set emptied = pg_current_snapshot(), emptied_xid = pg_current_xact_id()"
        )


def another_era(database: Database) -> Era:
    """Let the database have forgotten the era, as after a crash, and another begin, as the next leader has it."""
    with database.connect() as admin:
        admin.execute("delete from pgnotify_gql.journal_era")
        found = admin.execute(ERA).fetchone()
    assert found is not None
    return Era(found[0], Snapshot.parse(found[1]))


def open_transactions(database: Database, where: str = "true") -> list[Any]:
    """Sessions of a database with a transaction, but for the one that asks."""
    with database.server.connect() as admin:
        return admin.execute(
            "select pid, application_name, state, query from pg_stat_activity"
            f" where datname = %s and xact_start is not null and {where}",
            [database.name],
        ).fetchall()
