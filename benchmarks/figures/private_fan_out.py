"""
The same for everybody, executed for each: 1,000 sockets that share with nobody, and results from row images.

As in `shared-fan-out`, and every socket has an execution of its own for each change.  The baseline is a Python loop
that executes the same document, parsed and validated once, on the same change of the same schema, for each socket with
its own request, and encodes the result: no sockets, no threads, no database.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from benchmarks.benchmark import AtLeast, Benchmark, Comparison, Plan, Variant, World
from benchmarks.support.fan_out import INLINE, fan_outs
from benchmarks.support.messages import query

TARGET = AtLeast(0.6)

EXECUTIONS = 20_000


def executed(executions: int) -> float:
    """Return executions a second, in one loop."""
    from graphql import execute_sync, parse

    from benchmarks.support.messages_site import schema
    from example.conversations.models import Message
    from pgnotify_gql.capture.registry import registry
    from pgnotify_gql.hub import Batch, Event
    from pgnotify_gql.hub.cursor import Cursor
    from pgnotify_gql.journal import JournalRow
    from pgnotify_gql.transport.context import OperationRequest

    watch = registry.get(Message._meta.label_lower)
    assert watch is not None
    image = {"id": 1, "conversation_id": 1, "author_id": 1, "text": "change 1."}
    row = JournalRow(1, 1, watch.label, "UPDATE", json.dumps([[[1], image, {**image, "text": "change 2."}]]), 0)
    (change,) = row.changes(watch)
    document, variables = parse(query("private")), {"conversation": "1"}
    request = OperationRequest({"type": "websocket", "path": "/", "headers": []})
    begun = time.perf_counter()
    for _ in range(executions):
        result = execute_sync(
            schema.graphql_schema,
            document,
            root_value=Event(change, Cursor({}, {})),
            context_value=request.copy(Batch()),
            variable_values=variables,
        )
        assert result.data is not None
        json.dumps(result.formatted)
    return executions / (time.perf_counter() - begun)


@contextmanager
def world(plan: Plan) -> Iterator[World]:
    changes = plan.pick(50, 5)
    with fan_outs(plan, f"{changes} a run; {INLINE}") as (found, conditions):
        loop = Variant("a loop of executions", partial(executed, plan.pick(EXECUTIONS, 500)))
        comparisons = [
            Comparison(
                f"{fan_out.sockets:,} sockets",
                Variant(f"{name}, private", partial(fan_out.ours, "private", changes)),
                loop,
                "results/s",
                TARGET,
            )
            for name, fan_out in found.items()
        ]
        yield World(comparisons, conditions)


BENCHMARK = Benchmark("private-fan-out", "Private fan-out: an execution for each socket", world)
