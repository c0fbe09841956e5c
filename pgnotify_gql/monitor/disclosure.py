"""
What is left out of a hub's answer for a viewer.

Conditions of topics are values of columns, so they are told of models that he may view, and of others the label alone.
Messages of errors may hold anything, and are told to superusers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .access import Viewer

TOPIC = re.compile(r"(?:Topic\()?(?P<label>\w+\.\w+)")
"""How the text of a topic begins."""

HIDDEN = "a model that you may not view"


def shown_to(viewer: Viewer, answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return a hub's answer, as a viewer may see it; one that is busy with another has nothing but its process."""
    if answer.get("busy"):
        return dict(answer)
    operations = [
        {**operation, "topics": [_topic(viewer, topic) for topic in operation["topics"]]}
        for operation in answer["operations"]
    ]
    errors = [error if viewer.is_superuser else {**error, "message": None} for error in answer["errors"]]
    return {**answer, "operations": operations, "errors": errors}


def _topic(viewer: Viewer, topic: str) -> str:
    found = TOPIC.match(topic)
    if viewer.is_superuser or (found is not None and found["label"] in viewer.watches):
        return topic
    return found["label"] if found is not None else HIDDEN
