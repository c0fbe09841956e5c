"""
Every watch of the process, by model label.

Declaring happens while models are loaded, in one thread; afterwards the registry is only read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from typing import Any, TypeVar, overload

from django.db.models import Model, Q

from ..errors import WatchError
from .kinds import ALL_KINDS, Kind
from .watch import Columns, Watch

M = TypeVar("M", bound=type[Model])

OPTIONS = ("columns", "exclude", "kinds", "update_of", "condition", "replicated")
"""What a watch can be told."""


class Registry:
    """Watches by label."""

    def __init__(self) -> None:
        self._watches: dict[str, Watch] = {}

    def add(self, watch: Watch) -> None:
        """Register a watch; the same declaration again is harmless, a different one raises WatchError."""
        known = self._watches.get(watch.label)
        if known is not None and known != replace(watch, model=known.model):
            raise WatchError(f"{watch.label} is watched twice, with different options: keep one watch a model")
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
def notify_on_model_changes(
    model: M,
    *,
    columns: Columns = None,
    exclude: Iterable[str] = (),
    kinds: Iterable[Kind | str] | None = None,
    update_of: Iterable[str] = (),
    condition: Q | None = None,
    replicated: bool = False,
) -> M: ...


@overload
def notify_on_model_changes(
    *,
    columns: Columns = None,
    exclude: Iterable[str] = (),
    kinds: Iterable[Kind | str] | None = None,
    update_of: Iterable[str] = (),
    condition: Q | None = None,
    replicated: bool = False,
) -> Callable[[M], M]: ...


def notify_on_model_changes(model: M | None = None, **options: Any) -> M | Callable[[M], M]:
    """
    Declare a watch: changes of `model` are captured and may be subscribed to.

    Called with a model, or used as a class decorator with or without arguments; returns the model.  The triggers
    themselves are installed by ``manage.py install_triggers``.

    `columns` names the fields whose old and new values travel with a change (default: none, only the key);
    ``"__all__"`` takes every one but those that `exclude` names.

    `kinds` limits what is captured (default: INSERT, UPDATE, DELETE and TRUNCATE).  With `update_of` an UPDATE is
    captured only when one of these fields changed.  With `condition`, a Q object on fields of the model's own table,
    a change is captured only when the row fulfils it: an INSERT as it is, a DELETE as it was, an UPDATE when it did
    before or does after it, so that rows which cease to fulfil it are heard of.

    `replicated` also captures what logical replication applies and what is written under
    ``session_replication_role = replica``: the triggers are then fired row by row, and ENABLE ALWAYS.

    Raises WatchError when `model` is no concrete model, options contradict each other, or the model is already watched
    otherwise.  Unknown columns are found by the system checks, once all models are loaded, and conditions that
    PostgreSQL cannot evaluate when triggers are installed.
    """
    require_options(options, "notify_on_model_changes()")
    if model is None:
        return partial(_watch, **options)
    return _watch(model, **options)


def _watch(model: M, **options: Any) -> M:
    registry.add(make_watch(model, **options))
    return model


def make_watch(
    model: type[Model],
    *,
    columns: Columns = None,
    exclude: Iterable[str] = (),
    kinds: Iterable[Kind | str] | None = None,
    update_of: Iterable[str] = (),
    condition: Q | None = None,
    replicated: bool = False,
) -> Watch:
    """Return the watch that these options of ``notify_on_model_changes`` declare.  Raises WatchError."""
    if not (isinstance(model, type) and issubclass(model, Model)):
        raise WatchError(f"notify_on_model_changes() takes a model class, not {model!r}")
    if model._meta.abstract:
        raise WatchError(f"{model.__name__} is abstract and has no table: watch the models that inherit from it")
    watch = Watch(
        model,
        columns="__all__" if columns == "__all__" else _names("columns", columns or (), model),
        kinds=_kinds(kinds, model),
        exclude=_names("exclude", exclude, model),
        update_of=_names("update_of", update_of, model),
        condition=condition or None,
        replicated=replicated,
    )
    mistake = _contradiction(watch)
    if mistake:
        raise WatchError(f"the watch of {watch.label} has {mistake}")
    return watch


def require_options(options: Iterable[str], taker: str) -> None:
    """Raise TypeError, with advice, unless these are options of a watch."""
    for option in options:
        if option not in OPTIONS:
            close = get_close_matches(option, OPTIONS, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}=?" if close else f"it takes {', '.join(OPTIONS)}"
            raise TypeError(f"{taker} has no option '{option}': {hint}")


def _contradiction(watch: Watch) -> str:
    if watch.exclude and watch.columns != "__all__":
        return 'exclude= without columns="__all__": leave the columns out of columns= instead'
    if watch.update_of and Kind.UPDATE not in watch.kinds:
        return "update_of= but does not capture UPDATE: add it to kinds=, or leave update_of= out"
    if watch.condition is not None and not isinstance(watch.condition, Q):
        return f"condition={watch.condition!r}: give a Q object"
    return ""


def _names(option: str, names: Iterable[str], model: type[Model]) -> tuple[str, ...]:
    if isinstance(names, str):
        every = ', or "__all__"' if option == "columns" else ""
        raise WatchError(f"the watch of {model._meta.label_lower} has {option}='{names}': give a list of names{every}")
    try:
        return tuple(names)
    except TypeError as error:
        raise WatchError(
            f"the watch of {model._meta.label_lower} has {option}={names!r}: give a list of names"
        ) from error


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
