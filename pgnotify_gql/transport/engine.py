"""
The engine: runs what a client asks, on a graphene schema.

Queries and mutations run once, in a worker thread.  A subscription whose field returns an ``Interest`` becomes an
operation of the hub; one that returns an ordinary asynchronous stream is served from that.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Awaitable,
    Callable,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
)
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from typing import Any

from django.db import InterfaceError, OperationalError
from graphql import (
    DocumentNode,
    ExecutionResult,
    FieldNode,
    GraphQLError,
    GraphQLSchema,
    OperationType,
    create_source_event_stream,
    get_operation_ast,
    print_ast,
)

from ..errors import CursorError
from ..hub import Audience, Batch, Current, Event, Interest, Operation
from ..hub.cursor import Cursor
from ..hub.hub import Hub
from ..journal.change import Change
from .context import OperationRequest
from .documents import Documents
from .frames import Request, shown
from .masking import Masking
from .prepared import PreparedRequest
from .protocol import RequestError, Results

logger = logging.getLogger("pgnotify_gql.transport")


NOTHING: Mapping[str, Any] = {}

MASKED = Masking()

ENCODER = json.JSONEncoder(allow_nan=False)
"""Made once: ``json.dumps`` makes one each time, which takes a third of its time."""

INITIAL: Mapping[str, Any] = {"initial": True}
"""The extensions of a result that is part of the initial state."""


class GraphqlEngine:
    """Runs the requests of one socket."""

    def __init__(
        self,
        schema: GraphQLSchema,
        documents: Documents,
        hub: Hub,
        context: Callable[[], OperationRequest],
        masking: Masking = MASKED,
    ) -> None:
        self._masking = masking
        self._schema = schema
        self._documents = documents
        self._hub = hub
        self._context = context

    async def run(self, request: Request, results: Results) -> None:
        """Run to the end; see ``protocol.Engine``.  Raises RequestError."""
        document = self._documents.get(request.query)
        if document.node is None or document.errors:
            raise RequestError(self._masking.told(document.errors))
        operation = get_operation_ast(document.node, request.operation_name)
        if operation is None:
            raise RequestError([{"message": _no_operation(request)}])
        execution = _Execution(self._schema, document.node, request, self._context(), self._masking)
        if operation.operation is not OperationType.SUBSCRIPTION:
            results.send(await _settled(await self._hub.executor.run(execution.result, None)))
            return
        source = await execution.subscribe()
        if isinstance(source, Interest):
            await self._feed(source, execution, request, results)
            return
        try:
            async for event in source:
                results.send(await _settled(await self._hub.executor.run(execution.result, event)))
        finally:
            # A generator that waits at its yield would put its things away only when it is collected.
            if isinstance(source, AsyncGenerator):
                await source.aclose()

    async def _feed(self, interest: Interest, execution: _Execution, request: Request, results: Results) -> None:
        since = _since(request)
        interest = replace(interest, subject=execution.subject)
        execution.share(interest.audience)
        # Until cancelled: an operation of the hub has no end of its own.
        share = execution.share_key(interest.audience)
        state = None if interest.initial is None else partial(execution.state, interest.initial)
        await self._hub.serve(Operation(interest, execution, results, share, state), since)


@dataclass
class _Execution:
    """One request on the schema; called with a change, it is the hub's ``Execution``."""

    schema: GraphQLSchema
    document: DocumentNode
    request: Request
    context: OperationRequest
    masking: Masking
    prepared: PreparedRequest = field(init=False)

    def __post_init__(self) -> None:
        self.prepared = PreparedRequest(
            self.schema, self.document, self.request.operation_name, self.request.variables or {}
        )

    def __call__(self, change: Change, cursor: Cursor, batch: Batch) -> str | Awaitable[str | None] | None:
        event = Event(change, cursor)
        result = self._execute(event, batch)
        if not isinstance(result, ExecutionResult):
            return self._later(event, result)
        return None if event.skipped else self._encode(result, {"cursor": cursor.token})

    def state(self, values: Callable[[Any], Iterable[Any]]) -> Iterator[str | Awaitable[str]]:
        """Yield the result for each value of the current state, see ``hub.operations.State``.  Raises RequestError."""
        batch = Batch()
        try:
            for value in values(self.context.copy(batch)):
                if value is not None:
                    result = self._execute(Current(value), batch)
                    yield self._encoded(result, INITIAL)
        except (OperationalError, InterfaceError):
            raise  # tried again
        except GraphQLError as error:
            raise RequestError(self.masking.told([error])) from error
        except Exception as error:
            raise RequestError(self.masking.told([GraphQLError(str(error), original_error=error)])) from error

    def result(self, root: Any) -> str | Awaitable[str]:
        """Return the JSON of the result for a root value, or an awaitable of it."""
        return self._encoded(self._execute(root, Batch()))

    async def subscribe(self) -> Interest | AsyncIterable[Any]:
        """Return what the subscription's field is fed by.  Raises RequestError."""
        try:
            source = await create_source_event_stream(
                self.schema,
                self.document,
                context_value=self.context,
                variable_values=dict(self.request.variables or {}),
                operation_name=self.request.operation_name,
            )
        except RuntimeError as error:
            if not isinstance(error.__cause__, StopIteration):
                raise
            # graphql-core takes the first field without asking whether @skip or @include have left one.
            raise RequestError([{"message": "the subscription selects no field"}]) from error
        if isinstance(source, ExecutionResult):
            raise RequestError(self.masking.told(source.errors or []))
        return source

    @property
    def subject(self) -> str:
        """Return a digest of the field and its arguments, and not of the selection: what is asked for, not how much."""
        operation = get_operation_ast(self.document, self.request.operation_name)
        assert operation is not None, "it has been subscribed to"
        variables = json.dumps(self.request.variables or {}, sort_keys=True)
        (first, *_) = operation.selection_set.selections
        if isinstance(first, FieldNode):
            asked = [first.name.value, *sorted(map(print_ast, first.arguments))]
        else:
            asked = [print_ast(self.document)]  # the field is in a fragment, or in one of that
        return sha256(json.dumps([asked, variables]).encode()).hexdigest()[:16]

    def share(self, audience: Audience) -> None:
        """From now on execute as everybody of the audience."""
        if _shares(audience, self.context):
            self.context = self.context.shared(keep_user=audience is Audience.USER)

    def share_key(self, audience: Audience) -> Hashable | None:
        """Return what executions of the audience have in common, whichever socket they are of."""
        if not _shares(audience, self.context):
            return None
        # The class as well: an application may have users of several models, each with its own keys.
        who = (self.context.user.__class__, self.context.user.pk) if audience is Audience.USER else None
        variables = json.dumps(self.request.variables or {}, sort_keys=True)
        # The schema as well: several consumers share the hub of their process.
        return self.schema, audience, who, self.request.query, self.request.operation_name, variables

    async def _later(self, event: Event, result: Awaitable[ExecutionResult]) -> str | None:
        awaited = await result
        return None if event.skipped else self._encode(awaited, {"cursor": event.cursor.token})

    def _execute(self, root: Any, batch: Batch) -> ExecutionResult | Awaitable[ExecutionResult]:
        return self.prepared.execute(root, self.context.copy(batch))

    def _encoded(
        self, result: ExecutionResult | Awaitable[ExecutionResult], extensions: Mapping[str, Any] = NOTHING
    ) -> str | Awaitable[str]:
        return (
            self._encode_later(result, extensions) if inspect.isawaitable(result) else self._encode(result, extensions)
        )

    async def _encode_later(self, result: Awaitable[ExecutionResult], extensions: Mapping[str, Any]) -> str:
        return self._encode(await result, extensions)

    def _encode(self, result: ExecutionResult, extensions: Mapping[str, Any]) -> str:
        formatted: dict[str, Any] = {"data": result.data}
        if result.errors:
            formatted["errors"] = self.masking.told(result.errors)
        if extensions or result.extensions:
            formatted["extensions"] = {**(result.extensions or {}), **extensions}
        try:
            return ENCODER.encode(formatted)
        except (TypeError, ValueError, RecursionError):
            # What a scalar of the application serialized to.
            logger.exception("a result cannot be sent as JSON")
            unsent: dict[str, Any] = {"data": None, "errors": [{"message": "the result cannot be sent as JSON"}]}
            return json.dumps(unsent | ({"extensions": extensions} if extensions else {}))


def _shares(audience: Audience, context: OperationRequest) -> bool:
    # Visitors without a login may differ by session: they share only what everybody shares.
    return audience is Audience.EVERYBODY or (audience is Audience.USER and context.user.is_authenticated)


def _since(request: Request) -> Cursor | None:
    """Return where a client wants to go on.  Raises RequestError."""
    token = (request.extensions or {}).get("cursor")
    if token is None:
        return None
    try:
        return Cursor.read(token)
    except CursorError as error:
        raise RequestError([{"message": str(error), "extensions": {"code": "INVALID_CURSOR"}}]) from error


async def _settled(outcome: str | Awaitable[str]) -> str:
    return await outcome if inspect.isawaitable(outcome) else outcome


def _no_operation(request: Request) -> str:
    if request.operation_name is not None:
        return f"the document has no operation '{shown(request.operation_name)}'"
    return "the document has several operations: say which with operationName"
