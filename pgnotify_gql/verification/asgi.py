"""The ASGI application of a server process of a run: the consumer, and nothing else."""

from __future__ import annotations

from .child import prepare

prepare()

from ..transport import GraphqlSubscriptionConsumer  # noqa: E402
from .subscriptions import schema  # noqa: E402

application = GraphqlSubscriptionConsumer.as_asgi(schema=schema)
