"""
The engine: runs what a client asks, on a graphene schema.

Queries and mutations run once, in a worker thread, and what they write is attributed to whoever asks.  A subscription
whose field returns an ``Interest`` becomes an operation of the hub; one that returns an ordinary asynchronous stream is
served from that.
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
    Coroutine,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
)
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from hashlib import sha256
from typing import Any

from django.core.exceptions import PermissionDenied
from django.db import InterfaceError, OperationalError
from graphql import (
    DocumentNode,
    ExecutionResult,
    FieldNode,
    GraphQLError,
    GraphQLSchema,
    MiddlewareManager,
    OperationDefinitionNode,
    OperationType,
    create_source_event_stream,
    get_operation_ast,
    print_ast,
)

from ..capture.middleware import attributing
from ..errors import CursorError
from ..hub import Audience, Batch, Current, Event, Interest, Operation
from ..hub.cursor import Cursor
from ..hub.hub import Hub
from ..hub.operations import Description, FailedResult, Outlet
from ..journal.change import Change
from .admission import Admission
from .authentication import current_user
from .context import OperationRequest
from .documents import Documents
from .frames import ENCODER, Request, shown
from .masking import Masking
from .prepared import PreparedRequest
from .protocol import RequestError, Results

logger = logging.getLogger("pgnotify_gql.transport")


NOTHING: Mapping[str, Any] = {}

MASKED = Masking()

OnOperation = Callable[[Request], Any]
"""The application's decision on a request: True or None let it run, GraphQLError refuses it.  May be asynchronous."""

SORTED = json.JSONEncoder(sort_keys=True)
"""The same variables as the same text.  Made once, as frames' own."""

INITIAL: Mapping[str, Any] = {"initial": True}
"""The extensions of a result that is part of the initial state."""


class GraphqlEngine:
    """Runs the requests of one socket."""

    __slots__ = ("_context", "_documents", "_hub", "_masking", "_middleware", "_on_operation", "_schema")

    def __init__(
        self,
        schema: GraphQLSchema,
        documents: Documents,
        hub: Hub,
        context: Callable[[], OperationRequest],
        masking: Masking = MASKED,
        on_operation: OnOperation | None = None,
        middleware: MiddlewareManager | None = None,
    ) -> None:
        self._middleware = middleware
        self._masking = masking
        self._on_operation = on_operation
        self._schema = schema
        self._documents = documents
        self._hub = hub
        self._context = context

    async def run(self, request: Request, results: Results) -> None:
        """Run to the end; see ``protocol.Engine``.  Raises RequestError."""
        request = self._resolved(request)
        if self._on_operation is not None:
            await self._ask(self._on_operation, request)
        document = self._documents.get(request.query)
        if document.node is None or document.errors:
            raise RequestError(self._masking.told(document.errors))
        operation = get_operation_ast(document.node, request.operation_name)
        if operation is None:
            raise RequestError([{"message": _no_operation(request)}])
        execution = _Execution(
            self._schema, document.node, request, self._context(), self._masking, self._hub, self._middleware
        )
        if operation.operation is not OperationType.SUBSCRIPTION:
            results.send(await self._answer(execution))
            return
        source = await execution.subscribe()
        if isinstance(source, Interest):
            # Until cancelled: an operation of the hub has no end of its own.
            await self._fed(source, execution, request, results)
        else:
            await self._follow(source, execution, results)

    async def _answer(self, execution: _Execution) -> str:
        """Return the result of a query or mutation, whose writes are attributed to whoever asks."""
        with attributing(execution.asking):
            # The thread is told as well.
            return await _settled(await self._hub.executor.run(copy_context().run, execution.result, None))

    def _resolved(self, request: Request) -> Request:
        try:
            return self._documents.resolved(request)
        except GraphQLError as error:
            raise RequestError(self._masking.told([error])) from error

    async def _ask(self, on_operation: OnOperation, request: Request) -> None:
        """Ask the application whether a request may run.  Raises RequestError."""
        try:
            allowed = await self._hub.executor.call(on_operation, request)
        except GraphQLError as error:
            raise RequestError(self._masking.told([error])) from error
        except Exception as error:
            raise RequestError(self._masking.told([GraphQLError(str(error), original_error=error)])) from error
        # Whatever else it returns is a mistake that must not let it run: the empty token in `return token and ...`.
        if allowed is not None and allowed is not True:
            refusal = GraphQLError("permission denied", original_error=PermissionDenied())
            raise RequestError(self._masking.told([refusal]))

    async def _follow(self, stream: AsyncIterable[Any], execution: _Execution, results: Results) -> None:
        """Send a result for each event of a stream, to its end."""
        try:
            async for event in stream:
                results.send(await _settled(await self._hub.executor.run(execution.result, event)))
        finally:
            # A generator that waits at its yield would put its things away only when it is collected.
            if isinstance(stream, AsyncGenerator):
                await stream.aclose()

    def _fed(
        self, interest: Interest, execution: _Execution, request: Request, results: Results
    ) -> Coroutine[Any, Any, None]:
        since = _since(request)
        if interest.dependencies:
            return Admission(self._hub, execution, results).serve(interest, since)
        return self._hub.serve(execution.operation(interest, results), since)


@dataclass(slots=True, eq=False)
class _Execution:
    """
    One request on the schema; called with a change, it is the hub's ``Execution``.

    `asking` is the subscriber's own request, and `context` that of executions, which may be shared.
    """

    schema: GraphQLSchema
    document: DocumentNode
    request: Request
    asking: OperationRequest
    masking: Masking
    hub: Hub
    middleware: MiddlewareManager | None = None
    prepared: PreparedRequest = field(init=False)
    _audience: Audience = field(default=Audience.NOBODY, init=False)
    _context: OperationRequest | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.prepared = PreparedRequest(
            self.schema, self.document, self.request.operation_name, self.request.variables or {}, self.middleware
        )

    def __call__(self, change: Change, cursor: Cursor, batch: Batch) -> str | Awaitable[str | None] | None:
        event = Event(change, cursor)
        result = self._execute(event, batch)
        if not isinstance(result, ExecutionResult):
            return self._later(event, result)
        return None if event.skipped else self._encode(result, {"cursor": cursor.token})

    @property
    def context(self) -> OperationRequest:
        """The request that executions are given copies of."""
        # Made when it is needed: of those who share, one is executed for all.
        if self._context is None:
            keep_user = self._audience is Audience.USER
            shares = _shares(self._audience, self.asking)
            self._context = self.asking.shared(keep_user=keep_user) if shares else self.asking
        return self._context

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
                context_value=self.asking,
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
        return replace(source, subject=self.subject) if isinstance(source, Interest) else source

    @property
    def subject(self) -> str:
        """Return a digest of the field and its arguments, and not of the selection: what is asked for, not how much."""
        asked = f"[{_asked(self.document, self.request.operation_name)}, {json.dumps(self._variables)}]"
        return sha256(asked.encode()).hexdigest()[:16]

    @property
    def _variables(self) -> str:
        return SORTED.encode(self.request.variables or {})

    async def ask_again(self) -> Interest:
        """Ask for the subscription's interest with the user as he is now, see ``admission.Asked``."""
        self.asking = self.asking.of_user(await self.hub.executor.run(current_user, self.asking.user))
        interest = await self.subscribe()
        if not isinstance(interest, Interest):
            raise RequestError([{"message": "the subscription is no longer fed by the hub"}])
        return interest

    def description(self) -> Description:
        """Return whose request it is, and for what; see ``hub.operations.Describable``."""
        node = get_operation_ast(self.document, self.request.operation_name)
        name = self.request.operation_name or (node.name.value if node is not None and node.name is not None else None)
        return Description(_username(self.asking.user), "" if node is None else _field(node), name)

    def operation(self, interest: Interest, outlet: Outlet) -> Operation:
        """Return the hub's operation for an interest; from now on executions are those of its audience."""
        self._share(interest.audience)
        state = None if interest.initial is None else partial(self.state, interest.initial)
        return Operation(interest, self, outlet, self.share_key(interest.audience), state)

    def replace(self, operation: Operation) -> None:
        """Execute with what was last asked with, also for those who share with the operation."""
        self._share(operation.interest.audience)
        if operation.cohort is not None:
            operation.cohort.execution = self

    def _share(self, audience: Audience) -> None:
        self._audience, self._context = audience, None

    def share_key(self, audience: Audience) -> Hashable | None:
        """Return what executions of the audience have in common, whichever socket they are of."""
        if not _shares(audience, self.asking):
            return None
        # The class as well: an application may have users of several models, each with its own keys.
        who = (self.asking.user.__class__, self.asking.user.pk) if audience is Audience.USER else None
        # The schema and what stands around it as well: several consumers share the hub of their process.
        return (
            self.schema,
            self.middleware,
            audience,
            who,
            self.request.query,
            self.request.operation_name,
            self._variables,
        )

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
            encoded = ENCODER.encode(formatted)
            return _failed(encoded, formatted["errors"]) if result.errors else encoded
        except (TypeError, ValueError, RecursionError):
            # What a scalar of the application serialized to.
            logger.exception("a result cannot be sent as JSON")
            unsent: dict[str, Any] = {"data": None, "errors": [{"message": "the result cannot be sent as JSON"}]}
            return _failed(json.dumps(unsent | ({"extensions": extensions} if extensions else {})), unsent["errors"])


# Subscribers of a page ask for the same things; and a document, whose hash is that of an object, is kept by its cache.
@lru_cache(maxsize=1_000)
def _asked(document: DocumentNode, operation_name: str | None) -> str:
    operation = get_operation_ast(document, operation_name)
    assert operation is not None, "it has been subscribed to"
    (first, *_) = operation.selection_set.selections
    if isinstance(first, FieldNode):
        return json.dumps([first.name.value, *sorted(map(print_ast, first.arguments))])
    return json.dumps([print_ast(document)])  # the field is in a fragment, or in one of that


def _field(node: OperationDefinitionNode) -> str:
    """Return the name of the field that is subscribed to, or nothing where it is in a fragment."""
    (first, *_) = node.selection_set.selections
    return first.name.value if isinstance(first, FieldNode) else ""


def _username(user: Any) -> str:
    try:
        return str(user.get_username()) if user.is_authenticated else ""
    except Exception:
        return "?"  # an application's own class: an answer about many is not to fail for one of them


def _failed(encoded: str, errors: Iterable[Mapping[str, Any]]) -> FailedResult:
    result = FailedResult(encoded)
    codes = (error.get("extensions", {}).get("code") for error in errors)
    result.code = str(next(filter(None, codes), "without a code"))
    return result


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
