"""
Every watch of the process, by model label.

Declaring happens while models are loaded, in one thread; afterwards the registry is only read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal, TypeVar, overload

from django.db.models import Model

from ..errors import WatchError
from .kinds import ALL_KINDS, Kind
from .watch import Columns, Watch

M = TypeVar("M", bound=type[Model])


class Registry:
    """Watches by label."""

    def __init__(self) -> None:
        self._watches: dict[str, Watch] = {}

    def add(self, watch: Watch) -> None:
        """Register a watch; the same declaration again is harmless, a different one raises WatchError."""
        known = self._watches.get(watch.label)
        if known is not None and (known.columns, known.kinds) != (watch.columns, watch.kinds):
            raise WatchError(f"{watch.label} is watched twice, with different columns or kinds: keep one watch a model")
        self._watches[watch.label] = watch

    def remove(self, label: str) -> None:
        """Forget a watch; for tests."""
        self._watches.pop(label, None)

    def get(self, label: str) -> Watch | None:
        """Return the watch of a label, or None."""
        return self._watches.get(label)

    def __iter__(self) -> Iterator[Watch]:
        return iter(sorted(self._watches.values(), key=lambda watch: watch.label))


registry = Registry()


@overload
def notify_on_model_changes(model: M, *, columns: Columns = None, kinds: Iterable[Kind | str] | None = None) -> M: ...


@overload
def notify_on_model_changes(
    *, columns: Columns = None, kinds: Iterable[Kind | str] | None = None
) -> Callable[[M], M]: ...


def notify_on_model_changes(
    model: M | None = None,
    *,
    columns: Columns = None,
    kinds: Iterable[Kind | str] | None = None,
) -> M | Callable[[M], M]:
    """
    Declare a watch: changes of `model` are captured and may be subscribed to.

    Called with a model, or used as a class decorator with or without arguments; returns the model.  `columns` names
    the fields whose old and new values travel with a change (default: none, only the key), ``"__all__"`` takes every
    one.  `kinds` limits what is captured (default: INSERT, UPDATE, DELETE and TRUNCATE).  The triggers themselves are
    installed by ``manage.py install_triggers``.

    Raises WatchError when `model` is no concrete model, a kind is unknown, or the model is already watched otherwise.
    Unknown columns are found by the system checks, once all models are loaded.
    """
    if model is None:
        return lambda decorated: notify_on_model_changes(decorated, columns=columns, kinds=kinds)
    if not (isinstance(model, type) and issubclass(model, Model)):
        raise WatchError(f"notify_on_model_changes() takes a model class, not {model!r}")
    if model._meta.abstract:
        raise WatchError(f"{model.__name__} is abstract and has no table: watch the models that inherit from it")
    registry.add(Watch(model, _columns(columns, model), _kinds(kinds, model)))
    return model


def _columns(columns: Columns, model: type[Model]) -> tuple[str, ...] | Literal["__all__"]:
    if columns is None:
        return ()
    if columns == "__all__":
        return "__all__"
    if isinstance(columns, str):
        raise WatchError(
            f"the watch of {model._meta.label_lower} has columns='{columns}': give a list of names, or \"__all__\""
        )
    return tuple(columns)


def _kinds(kinds: Iterable[Kind | str] | None, model: type[Model]) -> frozenset[Kind]:
    if kinds is None:
        return ALL_KINDS
    names = [kinds] if isinstance(kinds, str) else list(kinds)
    try:
        chosen = frozenset(Kind(name) for name in names)
    except ValueError as error:
        raise WatchError(
            f"the watch of {model._meta.label_lower} has an unknown kind: {error}; use some of {', '.join(Kind)}"
        ) from error
    if not chosen:
        raise WatchError(f"the watch of {model._meta.label_lower} has no kinds: leave kinds= out to capture all")
    return chosen
