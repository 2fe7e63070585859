"""The registry of methods: a new method is one file and one line here."""

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

from ftjax.errors import UserError, nearest

# name → (module, class, what it trains). Imported when used: listing needs no JAX.
METHODS: dict[str, tuple[str, str, str]] = {
    "full": ("selection", "Full", "all parameters"),
    "head": ("selection", "Head", "the task head over a frozen backbone"),
    "top_k": ("selection", "TopK", "the last (k > 0) or first (k < 0) |k| layers and the head"),
    "bitfit": ("selection", "BitFit", "every bias and the head"),
    "houlsby": ("bottleneck", "Houlsby", "adapters after attention and after feed-forward"),
    "pfeiffer": ("bottleneck", "Pfeiffer", "adapters after feed-forward"),
    "lora": ("lora", "Lora", "low-rank updates of chosen projections"),
    "prompting": ("prompting", "Prompting", "nothing: similarity to templates filled with labels"),
}


def method_class(name: str) -> type:
    """The dataclass of hyperparameters registered as `name`.

    Raises:
        UserError: no such method.
    """
    if name not in METHODS:
        raise UserError(f"method.name={name!r} is not known{nearest(name, METHODS)}")
    module, cls, _ = METHODS[name]
    return getattr(importlib.import_module(f"ftjax.methods.{module}"), cls)


def hyperparameters(name: str) -> dict[str, Any]:
    """Names and defaults of a method's hyperparameters."""
    return {f.name: f.default for f in dataclasses.fields(method_class(name))}


def create(settings: Mapping[str, Any]) -> Any:
    """A method from {"name": ..., hyperparameter: value, ...}.

    Raises:
        UserError: an unknown method or hyperparameter, or a value out of range.
    """
    values = dict(settings)
    name = values.pop("name")
    known = hyperparameters(name)
    for key in values:
        if key not in known:
            raise UserError(f"method.{key} is not an option of {name!r}{nearest(key, known)}")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return method_class(name)(**values)
