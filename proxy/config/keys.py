"""The keys of the schema and of a raw file: looking up one by its path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from proxy.config.errors import MISSING
from proxy.config.schema import Config
from proxy.config.types import Allowed, Secret


def _field(location: tuple[str | int, ...]) -> FieldInfo:
    model: type[BaseModel] = Config
    *parents, last = (part for part in location if isinstance(part, str))
    for parent in parents:
        model = model_below(fields(model)[parent].annotation) or model
    return fields(model)[last]


def what_is_allowed(location: tuple[str | int, ...]) -> str:
    """Say what the key at a path of names and indices may be, in words that follow "must be"."""
    return next(entry.text for entry in _field(location).metadata if isinstance(entry, Allowed))


def is_secret(location: tuple[str | int, ...]) -> bool:
    """Tell whether the value of a key must not be shown, whatever it is."""
    return any(isinstance(entry, Secret) for entry in _field(location).metadata)


def fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The keys of an object as the file writes them."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def model_below(annotation: object) -> type[BaseModel] | None:
    """Find the model in `Model`, `Model | None` or `tuple[Annotated[Model, …], ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(model_below, get_args(annotation))), None)


def dig(raw: Mapping[str, object], key: str) -> object:
    """The value at a dotted path, `MISSING` where there is none."""
    value: object = raw
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return MISSING
        value = value[part]
    return value
