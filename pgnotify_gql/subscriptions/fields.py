"""The graphene field behind ``Subscription.Field()``: it resolves through the subscription, and needs no resolver."""

from __future__ import annotations

from typing import Any

import graphene


class SubscriptionField(graphene.Field):  # type: ignore[misc]  # graphene is untyped
    """A field of the subscription type whose events and values come from a ``Subscription`` class."""

    def __init__(self, subscription: Any, **options: Any) -> None:
        meta = subscription._meta
        options.setdefault("description", meta.description)
        super().__init__(meta.output, args=dict(meta.arguments), **options)
        self._subscription = subscription

    def wrap_resolve(self, parent_resolver: Any) -> Any:
        return self._subscription.resolve_event

    def wrap_subscribe(self, parent_subscribe: Any) -> Any:
        return self._subscription.resolve_interest
