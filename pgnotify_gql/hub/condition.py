"""What a condition compares a captured column with: a value as an application, or its client, wrote it."""

from __future__ import annotations

from collections.abc import Hashable
from datetime import datetime
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db.models import Field, Model
from django.utils.timezone import get_default_timezone, is_naive, make_aware, make_naive

from ..errors import TopicValueError


def condition_value(field: Field[Any, Any], name: str, value: Any) -> Hashable:
    """
    Return a value as the field of an image has it; a foreign key takes a key or an instance.

    Raises TopicValueError when it is none.
    """
    try:
        converted: Hashable = field.to_python(_key(field, value) if isinstance(value, Model) else value)
        hash(converted)
    except (ValidationError, TypeError, ValueError, ArithmeticError) as error:
        raise TopicValueError(
            f"{name}={value!r} is no value of {field.model._meta.label_lower}.{field.name}"
        ) from error
    # In the zone that the ORM takes it to be in, whatever is activated for a request.
    if isinstance(converted, datetime) and settings.USE_TZ and is_naive(converted):
        return make_aware(converted, get_default_timezone())
    if isinstance(converted, datetime) and not settings.USE_TZ and not is_naive(converted):
        return make_naive(converted, get_default_timezone())
    return converted


def _key(field: Any, instance: Model) -> Any:
    """
    Return what refers to an instance of the model that the field refers to.

    Raises TypeError for another model, and ValueError for one without a key: it is not saved, and not NULL.
    """
    model = (field.related_model or field.model)._meta.concrete_model
    # Asked by its _meta: a user of a request, or of a socket, may be a lazy object that stands for one.
    if not issubclass(instance._meta.concrete_model or instance._meta.model, model):
        raise TypeError(f"not an instance of {model.__name__}")
    key = getattr(instance, field.target_field.attname) if field.is_relation else instance.pk
    if key is None:
        raise ValueError("not saved")
    return key
