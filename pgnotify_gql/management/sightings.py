"""
What ``tail_changes`` prints of a change: a line for people, or an object of JSON for programs.

A line never holds what a terminal would obey, whatever is in the row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, time
from typing import Any

from django.core.management.color import Style
from django.core.serializers.json import DjangoJSONEncoder
from django.utils import timezone

from ..capture.kinds import Kind
from ..journal.change import Change
from ..journal.sighting import Sighting

ROLES: dict[str, str] = {Kind.INSERT: "SUCCESS", Kind.UPDATE: "WARNING", Kind.DELETE: "ERROR", Kind.TRUNCATE: "ERROR"}
"""The roles of Django's palettes in which kinds are shown, so that DJANGO_COLORS changes them."""

UNKNOWN = "NOTICE"
"""The role of a kind that this version does not know."""

WIDTH = max(map(len, Kind))


class ValueEncoder(DjangoJSONEncoder):
    """Writes bytes as PostgreSQL does, and as text what no encoder knows."""

    def default(self, o: Any) -> Any:
        if isinstance(o, (bytes, memoryview)):
            return f"\\x{bytes(o).hex()}"
        if isinstance(o, datetime | time):
            return o.isoformat()  # Django's encoder leaves out the microseconds
        try:
            return super().default(o)
        except TypeError:
            return str(o)


def as_json(sighting: Sighting, *, values: bool) -> str:
    """
    Return one line of JSON.

    Keys: ``at`` (of the statement, ISO 8601), ``kind``, ``model``, ``pk`` (a list when composite, null for TRUNCATE),
    ``changed`` (names of columns; null unless it is an UPDATE whose images were captured), ``xid``, ``context``
    (null without one), ``delay_ms``, ``cursor``.  With `values` also ``old`` and ``new``, by field name or null.  What
    cannot be decoded has ``error``, and with `values` ``raw``, and null for what is in the row.
    """
    row, change = sighting.row, sighting.change
    described = {
        "at": row.at.isoformat(),
        "kind": row.kind,
        "model": row.label,
        "pk": sighting.key,
        "changed": change and changed_columns(change),
        "xid": row.xid,
        "context": (change.context if change else None) or None,
        "delay_ms": round(sighting.delay * 1000, 1),
        "cursor": str(sighting.position),
    }
    if values:
        described |= {"old": change and change.old, "new": change and change.new}
    if change is None:
        described |= {"error": sighting.problem} | ({"raw": row.rows} if values else {})
    return _dumps(described)


def as_text(sighting: Sighting, style: Style, *, values: bool) -> str:
    """Return a line, with `values` followed by one for each captured column (of an UPDATE, each changed one)."""
    row, change = sighting.row, sighting.change
    time = timezone.localtime(row.at).isoformat(" ", "milliseconds")[:23]
    kind = getattr(style, ROLES.get(row.kind, UNKNOWN))(f"{printable(row.kind):<{WIDTH}}")
    words = [row.label]
    if change is None:
        words += [f"cannot be decoded ({sighting.problem})"]
    else:
        words += [] if row.kind == Kind.TRUNCATE else [_shown(sighting.key)]
        names = changed_columns(change)
        words += [] if names is None else [f"[{', '.join(names)}]"]
    words += [] if sighting.known else ["(not watched here)"]
    words += [f"xid {row.xid}", f"{sighting.delay * 1000:.0f} ms"]
    if change is not None and change.context:
        words.append(json.dumps(change.context, ensure_ascii=False))
    lines = [f"{time} {kind} {printable('  '.join(words))}"]
    if values:
        lines += [f"    {printable(line)}" for line in _values(sighting)]
    return "\n".join(lines)


def changed_columns(change: Change) -> list[str] | None:
    """Return the changed columns of an UPDATE, in the order they were captured; None where no images were."""
    if change.kind is not Kind.UPDATE or change.old is None or change.new is None:
        return None
    return [name for name in {**change.old, **change.new} if name in change.changed]


def _values(sighting: Sighting) -> list[str]:
    change = sighting.change
    if change is None:
        return [sighting.row.rows]
    old, new = change.old, change.new
    if old is None or new is None:
        return [f"{name}: {_shown(value)}" for name, value in (new or old or {}).items()]
    names = changed_columns(change) or ()
    return [f"{name}: {_of(old, name)} -> {_of(new, name)}" for name in names]


def _of(image: Mapping[str, Any], name: str) -> str:
    return _shown(image[name]) if name in image else "?"


def _shown(value: Any) -> str:
    # Texts in quotes, so that '1' and 1 and 'None' and None look different; what has a text of its own without.
    return repr(value) if value is None or isinstance(value, (str, bytes, list, tuple, dict)) else str(value)


def printable(text: str) -> str:
    """Return a text without anything that a terminal would obey."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _dumps(value: Any) -> str:
    try:
        return json.dumps(value, cls=ValueEncoder, allow_nan=False)
    except ValueError:
        # NaN and the infinities of a float column, which JSON does not have: as PostgreSQL writes them, as text.
        return json.dumps(json.loads(json.dumps(value, cls=ValueEncoder), parse_constant=str))
