"""The process that a script of `drivers` runs in, and what its clients were told."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from tests.support.processes import Process

CLIENTS = 2
"""
How many a driver opens.

More than one, so that a server that drains still runs when the first one that it closed comes back.
"""

QUERY = """
subscription Changes($conversationId: ID!) {
  messageChanges(conversationId: $conversationId) { kind pk message { id text } }
}
"""


class Change(NamedTuple):
    """One change of a message, as a client is told."""

    kind: str
    pk: str
    text: str | None

    @classmethod
    def of(cls, data: Any) -> Change:
        message = data["message"]
        assert message is None or message["id"] == data["pk"], data
        return cls(data["kind"], data["pk"], message and message["text"])


class Driver(Process):
    """Clients of one library, which have been opened when it has started; `name` is what tests call the library."""

    def __init__(
        self, command: list[str], name: str, *, url: str, headers: dict[str, str], conversation: str, library: str = ""
    ) -> None:
        self.name = name
        options = {
            "url": url,
            "headers": headers,
            "query": QUERY,
            "variables": {"conversationId": conversation},
            "clients": CLIENTS,
            "library": library,
        }
        super().__init__([*command, json.dumps(options)], banner='"started"')

    @property
    def received(self) -> dict[str, list[Change]]:
        """What each client has received, in order."""
        lines = [line for line in self._lines if "change" in line]
        return {
            f"{self.name} ({number})": [Change.of(line["change"]) for line in lines if line["client"] == number]
            for number in range(CLIENTS)
        }

    @property
    def complaints(self) -> list[str]:
        """Errors and ends that clients were told of; a library that works tells of none."""
        return [f"{self.name}: {line}" for line in self._lines if "error" in line or "complete" in line]

    @property
    def _lines(self) -> list[dict[str, Any]]:
        complete, _, _ = self.log.rpartition("\n")
        return [json.loads(line) for line in complete.splitlines()]
