"""What a test is told: each is a failed assertion, so that runners count it as a failure and not as an error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import PgnotifyGqlError


class SubscriptionTestError(PgnotifyGqlError, AssertionError):
    """Base of what the helpers for tests raise."""


class NothingSentError(SubscriptionTestError):
    """A result was expected, and all that could happen has happened without one."""


class UnexpectedResultError(SubscriptionTestError):
    """A result was sent where none was expected."""


class GraphqlResultError(SubscriptionTestError):
    """
    A request was refused, or a result has errors.

    `errors` are GraphQL errors as they were sent, `result` the whole payload where there is one.
    """

    def __init__(self, errors: Sequence[Mapping[str, Any]], result: Mapping[str, Any] | None = None) -> None:
        super().__init__("; ".join(str(error.get("message")) for error in errors))
        self.errors = errors
        self.result = result

    @property
    def codes(self) -> list[str | None]:
        """Return ``extensions.code`` of each error."""
        return [(error.get("extensions") or {}).get("code") for error in self.errors]


class ResyncError(SubscriptionTestError):
    """The subscriber was told that changes are lost, and that it has to read the state anew."""


class SocketClosedError(SubscriptionTestError):
    """The server has closed the socket, with a `code` and a `reason`."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"the server has closed the socket with {code}: {reason or 'no reason'}")
        self.code = code
        self.reason = reason


class NotCapturedError(SubscriptionTestError):
    """Nothing would arrive, because the test database has no triggers for a model that was subscribed to."""

    def __init__(self, label: str, database: str) -> None:
        super().__init__(
            f"{label} has no triggers in the test database '{database}', so nothing would arrive: call "
            "pgnotify_gql.testing.install_triggers() in setUpTestData(), use the pytest fixture subscription_triggers, "
            'or set PGNOTIFY_GQL["INSTALL_ON_MIGRATE"] in the settings of the tests'
        )


class NotOpenError(SubscriptionTestError):
    """Nobody is connected who could be delivered anything."""

    def __init__(self) -> None:
        super().__init__("pump() delivers to those who are connected: open a GraphqlCommunicator before it")


class NotSettledError(SubscriptionTestError):
    """Something was still under way when the patience of a test was over."""
