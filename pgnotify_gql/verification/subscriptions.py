"""The subscriptions that are verified: on the model of the verification, and served by its server processes only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import graphene
from django.db import connections, router

from ..subscriptions import Audience, Change, Subscription, Topic
from .row import VerificationRow


class Seen(graphene.ObjectType):  # type: ignore[misc]  # graphene is untyped
    """
    A change as a subscriber sees it.  As the first value of a state it has the snapshot instead, and nothing else.
    """

    key = graphene.String()
    version = graphene.String()
    deleted = graphene.Boolean()
    xid = graphene.String()
    snapshot = graphene.String()
    filler = graphene.String(size=graphene.Int(required=True))

    @staticmethod
    def resolve_filler(seen: Mapping[str, Any], info: Any, size: int) -> str:
        """Return so many bytes: what fills the socket of a client that does not read."""
        return "x" * size


def seen(change: Change) -> dict[str, Any]:
    """Return what is told of a change; a DELETE has the version that the row had."""
    image = change.new or change.old or {}
    return {"key": change.pk, "version": image["version"], "deleted": change.new is None, "xid": change.xid}


class _Changes(Subscription):
    """Every change, for one subscriber."""

    class Meta:
        output = Seen

    @classmethod
    def subscribe(cls, info: Any, **arguments: Any) -> Any:
        return [VerificationRow]

    @classmethod
    def next(cls, change: Change, info: Any, **arguments: Any) -> dict[str, Any]:
        return seen(change)


class PrivateChanges(_Changes):
    class Meta:
        output = Seen


class SharedChanges(_Changes):
    class Meta:
        output = Seen

    audience = Audience.EVERYBODY


class TopicChanges(_Changes):
    """Changes of rows in one bucket, before or after."""

    class Meta:
        output = Seen

    class Arguments:
        bucket = graphene.Int(required=True)

    @classmethod
    def subscribe(cls, info: Any, **arguments: Any) -> Any:
        return Topic(VerificationRow, **arguments)


class InitialChanges(_Changes):
    """The snapshot of the state, the state, and every change that is not in it."""

    class Meta:
        output = Seen
        initial = True

    @classmethod
    def state(cls, info: Any) -> Iterator[dict[str, Any]]:
        alias = router.db_for_read(VerificationRow)
        with connections[alias].cursor() as cursor:
            cursor.execute("select pg_current_snapshot()::text")
            yield {"snapshot": cursor.fetchone()[0]}
        for key, version in VerificationRow._base_manager.using(alias).values_list("key", "version").iterator():
            yield {"key": key, "version": version, "deleted": False}


class Subscriptions(graphene.ObjectType):  # type: ignore[misc]
    """One field for each kind of subscriber."""

    private = PrivateChanges.Field()
    shared = SharedChanges.Field()
    topic = TopicChanges.Field()
    initial = InitialChanges.Field()


class Query(graphene.ObjectType):  # type: ignore[misc]
    """A schema needs one."""

    nothing = graphene.Int()


schema = graphene.Schema(query=Query, subscription=Subscriptions)
