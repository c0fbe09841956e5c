"""What processes answer over HTTP, and what their metrics say; that of the test's own process too."""

from __future__ import annotations

import json
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from prometheus_client.parser import text_string_to_metric_families

from pgnotify_gql.metrics import exposition

TIMEOUT = 10.0
"""Seconds for an answer."""


def get(url: str, token: str = "", method: str = "GET") -> tuple[int, str]:
    """Status and text of an answer."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urlopen(Request(url, headers=headers, method=method), timeout=TIMEOUT) as response:
            return response.status, response.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


def get_json(url: str) -> tuple[int, Any]:
    """Status and content of an answer in JSON."""
    status, text = get(url)
    return status, json.loads(text)


class Samples:
    """Metrics as they were at one moment, by the names and labels of their samples."""

    def __init__(self, text: str) -> None:
        self._values = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def __str__(self) -> str:
        ours = [f"{name}{dict(labels)} {value}" for (name, labels), value in self._values.items() if "pgnotify" in name]
        return "\n".join(sorted(ours))

    def get(self, name: str, **labels: str) -> float | None:
        return self._values.get((name, frozenset(labels.items())))

    def value(self, name: str, **labels: str) -> float:
        """The value, and 0 where there is none yet."""
        return self.get(name, **labels) or 0.0


def scrape(url: str, token: str = "") -> Samples:
    """The metrics of a process that serves them there."""
    status, text = get(url, token)
    assert status == 200, text
    return Samples(text)


def here() -> Samples:
    """The metrics of this process."""
    found = exposition()
    assert found is not None
    return Samples(found[1].decode())


class Moves:
    """By how much metrics of this process have moved since it was made."""

    def __init__(self) -> None:
        self._before = here()

    def __call__(self, name: str, **labels: str) -> float:
        return here().value(name, **labels) - self._before.value(name, **labels)
