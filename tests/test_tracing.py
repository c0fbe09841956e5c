"""Spans of OpenTelemetry: what they tell, when there are none, and that a tracer that fails harms nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from pgnotify_gql import tracing as tracing_module
from pgnotify_gql.hub.cursor import Cursor
from pgnotify_gql.hub.executor import Executor
from pgnotify_gql.hub.operations import Cohort, Interest, Operation
from pgnotify_gql.hub.payloads import Payloads
from pgnotify_gql.journal.change import JournalRow
from pgnotify_gql.journal.reader import Batch
from pgnotify_gql.journal.snapshot import Snapshot
from pgnotify_gql.journal.state import Era
from pgnotify_gql.relay import Relay
from pgnotify_gql.tracing import EXECUTE, NO_SPAN, RELAY, Tracing, tracing
from tests.support.feed import EVENT_TIMEOUT, Notebook

BEFORE, AFTER = Snapshot(10, 10), Snapshot(20, 20)

NEVER = 3600.0


class Exported:
    """What a tracer provider of the test has been told."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def spans(self, name: str) -> Sequence[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name == name]

    def attributes(self, name: str) -> list[dict[str, Any]]:
        return [dict(span.attributes or {}) for span in self.spans(name)]


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[Exported]:
    """The provider of this process, for the time of a test; OpenTelemetry itself lets one be set only once."""
    exported = Exported()
    monkeypatch.setattr(tracing_module, "get_tracer_provider", lambda: exported.provider)
    monkeypatch.setattr(tracing, "_due", 0.0)
    yield exported
    monkeypatch.undo()
    tracing._due, tracing._tracer = 0.0, None
    exported.provider.shutdown()


class Layer:
    async def group_send(self, group: str, message: dict[str, Any]) -> None: ...


def row(number: int, label: str) -> JournalRow:
    return JournalRow(number, 10 + number, label, "UPDATE", "[[[1]]]", 0)


async def relay_three() -> None:
    relay = Relay(Layer(), database="shop")
    relay.begin(1, Era("7", BEFORE))
    await relay.relay(Batch(BEFORE, AFTER, [row(1, "one.model"), row(2, "other.model"), row(3, "one.model")]))


class Receiver(Notebook):
    """A cohort with one member, whose executions look at the span around them."""

    def __init__(self) -> None:
        super().__init__()
        self.received: list[str] = []
        execution: Any = self.execute
        self.cohort = Cohort(Interest(()), execution, Cursor({}, {}))
        self.cohort.add(Operation(Interest(()), execution, self))
        self.around: list[Any] = []

    def execute(self, due: Any, cursor: Any = None, batch: Any = None) -> str:
        self.around.append(trace.get_current_span())
        return "a result"

    def offer(self, payloads: Payloads) -> int:
        self.received.extend(payloads)
        self.noted()
        return len(payloads)

    async def room(self) -> None: ...


class Due:
    """All that an executor knows of what is due."""

    cursor = Cursor({}, {})

    def executed(self, execution: Any, batch: Any) -> Any:
        return execution(self)


async def execute(count: int) -> Receiver:
    """Have one hop execute so many changes of a cohort."""
    receiver, executor, due = Receiver(), Executor(1), Due()
    found: Any = due
    for _ in range(count):
        executor.submit(receiver.cohort, found)
    await receiver.until(lambda: len(receiver.received) == count)
    async with asyncio.timeout(EVENT_TIMEOUT):
        await executor.close()
    return receiver


class TestWithAProvider:
    async def test_a_batch_is_a_span_that_tells_its_database_rows_and_models(self, exported: Exported) -> None:
        await relay_three()
        (attributes,) = exported.attributes(RELAY)
        assert attributes["database"] == "shop"
        assert attributes["rows"] == 3
        assert list(attributes["models"]) == ["one.model", "other.model"]

    async def test_a_hop_is_a_span_that_tells_its_executions_and_cohorts(
        self, exported: Exported, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("pgnotify_gql.hub.executor.HOP_TIME", 60.0)
        await execute(5)
        assert exported.attributes(EXECUTE) == [{"executions": 5, "cohorts": 1}]

    async def test_spans_of_an_execution_are_inside_of_that_of_its_hop(self, exported: Exported) -> None:
        receiver = await execute(1)
        (hop,) = exported.spans(EXECUTE)
        assert [span.get_span_context() for span in receiver.around] == [hop.get_span_context()]

    async def test_a_tracer_that_fails_costs_its_spans_and_nothing_else(
        self, exported: Exported, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tracing, "_tracer", Failing())
        monkeypatch.setattr(tracing, "_due", float("inf"))
        await relay_three()
        assert len((await execute(2)).received) == 2


class Failing:
    """A tracer whose spans can neither be begun nor ended."""

    def start_as_current_span(self, name: str, attributes: Any) -> Failing:
        return self

    def __enter__(self) -> Any:
        raise RuntimeError("no span for you")

    def __exit__(self, *exception: object) -> None:
        raise RuntimeError("nor an end of it")


class TestWithoutAProvider:
    def test_there_is_no_span(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for provider in (trace.ProxyTracerProvider(), trace.NoOpTracerProvider()):
            monkeypatch.setattr(tracing_module, "get_tracer_provider", lambda provider=provider: provider)
            assert tracing_module._find_tracer() is None

    def test_there_is_no_span_where_opentelemetry_is_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tracing_module, "get_tracer_provider", None)
        assert tracing_module._find_tracer() is None

    def test_there_is_no_span_where_it_cannot_say_which_provider(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail() -> None:
            raise RuntimeError("the environment names a provider that is not installed")

        monkeypatch.setattr(tracing_module, "get_tracer_provider", fail)
        assert tracing_module._find_tracer() is None

    def test_one_object_stands_for_all_spans(self) -> None:
        nothing = Tracing(lambda: None)
        assert nothing.span("a", database="shop") is nothing.span("b") is NO_SPAN
        with nothing.span("a") as span:
            span.set_attribute("rows", 1)

    async def test_everything_is_relayed_and_executed(self) -> None:
        await relay_three()
        assert len((await execute(2)).received) == 2


class TestAskingForTheTracer:
    def test_is_done_once_in_a_while(self) -> None:
        asked = []
        rarely, always = (
            Tracing(lambda: asked.append("rarely"), recheck=NEVER),
            Tracing(lambda: asked.append("always"), recheck=0),
        )
        for _ in range(3):
            rarely.span("a")
            always.span("a")
        assert asked.count("rarely") == 1
        assert asked.count("always") == 3
