"""
What the page subscribes to, and the consumer that serves it.

The page is a client like any other: its changes come out of the same hubs, through the same outboxes, and it resumes
with a cursor.  A schema of its own keeps it apart from the application's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import graphene
from graphql import GraphQLError, MiddlewareManager

from ..capture.kinds import Kind
from ..capture.registry import registry
from ..conf import Settings
from ..hub import Audience, Topic
from ..journal import Change
from ..subscriptions import Subscription
from ..transport import GraphqlSubscriptionConsumer
from ..transport.mounting import Receive, Scope, Send
from .access import may_look, may_view, viewable

NOTHING_TO_SHOW = (
    "there is nothing to show: no model is watched whose database is followed and which you may view "
    "(call notify_on_model_changes(), or ask a superuser for the permission to view a model)"
)


class SeenChange(graphene.ObjectType):  # type: ignore[misc]  # graphene is untyped
    """A change, without any value of the row."""

    label = graphene.String(required=True)
    pk = graphene.String(description="A JSON list for a composite key; null for TRUNCATE.")
    kind = graphene.String(required=True)
    changed = graphene.List(
        graphene.NonNull(graphene.String), required=True, description="Captured columns that an UPDATE changed."
    )
    at = graphene.DateTime(required=True, description="When its statement was run, by the clock of the database.")
    received_at = graphene.DateTime(required=True, description="When it was made ready to be sent to this client.")
    delay = graphene.Float(required=True, description="Milliseconds from `at` to `receivedAt`.")
    xid = graphene.String(required=True)
    journal_id = graphene.String(required=True)


class ChangesSubscription(Subscription):
    """Changes of the watched models that the user may view: of all, or of those that are named."""

    class Meta:
        output = SeenChange

    class Arguments:
        models = graphene.List(graphene.NonNull(graphene.String), description="Labels, such as app.model.")

    audience = Audience.USER

    @classmethod
    def subscribe(cls, info: Any, models: Sequence[str] | None = None) -> list[Topic]:
        watches = viewable(info.context.user)
        labels = list(watches) if models is None else [label.lower() for label in models]
        for label in labels:
            if label not in watches:
                raise GraphQLError(f"{label} is not watched, or its database is not followed, or you may not view it")
        if not labels:
            raise GraphQLError(NOTHING_TO_SHOW)
        return [Topic(watches[label].model) for label in labels]

    @classmethod
    def next(cls, change: Change, info: Any, models: Sequence[str] | None = None) -> dict[str, Any] | None:
        watch = registry.get(change.model_label)
        if watch is None or not may_view(info.context.user, watch.model):
            return None
        now = datetime.now(UTC)
        return {
            "label": change.model_label,
            "pk": key_text(change.pk),
            "kind": change.kind.value,
            # Of a row that came or went they would tell which columns are not null.
            "changed": sorted(change.changed) if change.kind is Kind.UPDATE else [],
            "at": change.at,
            "received_at": now,
            "delay": (now - change.at).total_seconds() * 1000,
            "xid": str(change.xid),
            "journal_id": str(change.journal_id),
        }


class Query(graphene.ObjectType):  # type: ignore[misc]  # graphene is untyped
    """A schema needs one."""

    models = graphene.List(
        graphene.NonNull(graphene.String), required=True, description="Labels of the models that changes are shown of."
    )

    @staticmethod
    def resolve_models(root: Any, info: Any) -> list[str]:
        return list(viewable(info.context.user))


class Subscriptions(graphene.ObjectType):  # type: ignore[misc]  # graphene is untyped
    """What the page subscribes to."""

    changes = ChangesSubscription.Field()


SCHEMA = graphene.Schema(query=Query, subscription=Subscriptions)


def key_text(pk: Any) -> str | None:
    """Return a key as text, which ``explain`` takes; None for TRUNCATE, which has none."""
    if pk is None:
        return None
    return json.dumps(pk, default=str) if isinstance(pk, tuple) else str(pk)


class MonitorConsumer(GraphqlSubscriptionConsumer):
    """
    Serves the page's feed to the staff; mounted at ``feed/`` below the page.

    ::

        path("monitor/feed/", MonitorConsumer.as_asgi())

    A socket is closed with 4403 when its user is no longer on the staff, and when the models that he may view are no
    longer the same; the page comes back and is told what he may see now.
    """

    _told: frozenset[str] | None = None

    @classmethod
    def as_asgi(
        cls, *, schema: Any = SCHEMA, middleware: Iterable[Any] | MiddlewareManager | None = ()
    ) -> Callable[[Scope, Receive, Send], Any]:
        """Return the ASGI application; the schema is the page's own, and the site's middleware not for it."""
        return super().as_asgi(schema=schema, middleware=middleware)

    @classmethod
    def _limits(cls) -> Settings:
        # What the site allows, its list of documents included, is for its own schema and clients.
        return Settings()

    # Plain methods run in a worker thread, where the ORM may be used.
    def on_connect(self, payload: Mapping[str, Any]) -> bool:
        """Refuse whoever is not on the staff."""
        self._told = self._visible()
        return self._told is not None

    def on_recheck(self) -> bool:
        """Return whether the user is on the staff still, and may view the same models."""
        return bool(super().on_recheck()) and self._visible() == self._told

    def _visible(self) -> frozenset[str] | None:
        user = self.scope.get("user")
        return frozenset(viewable(user)) if may_look(user) else None
