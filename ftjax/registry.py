"""What methods and tasks are registered as: a name, a module, a dataclass of options."""

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

from ftjax.errors import UserError, nearest

Table = Mapping[str, tuple[str, str, str]]  # name → (module, class, what it is)


def find(section: str, table: Table, name: str) -> type:
    """The class registered as `name`, imported when asked for: listing needs no JAX.

    Args:
        section: of the configuration, "method" or "task".
        table: whose modules are in the package `ftjax.{section}s`.
        name: of the entry.

    Raises:
        UserError: no such entry; the nearest is named.
    """
    if name not in table:
        raise UserError(f"{section}.name={name!r} is not known{nearest(name, table)}")
    module, cls, _ = table[name]
    return getattr(importlib.import_module(f"ftjax.{section}s.{module}"), cls)


def options(cls: type) -> dict[str, Any]:
    """Names and defaults of an entry's options."""
    return {field.name: field.default for field in dataclasses.fields(cls)}


def coerce(key: str, old: Any, value: Any) -> Any:
    """`value` as the type of the default `old`.

    Sequences may be given as "a,b" where the default is a sequence; `method.targets`,
    `method.feedforward`, `model.segments` and `task.class_weights` take a string or a sequence,
    `method.rank_pattern` and `method.alpha_pattern` pairs or a mapping.
    """
    flexible = key in ("model.segments", "task.class_weights") or (
        key.startswith("method.") and key.endswith((".targets", ".feedforward"))
    )
    if key.endswith("_pattern") and isinstance(value, Mapping):
        value = tuple(value.items())
    if value is None and (flexible or isinstance(old, str)):
        value = "none"  # the name of a choice, as of model.remat
    if flexible or isinstance(old, tuple | list):
        if isinstance(value, str) and "," in value:
            value = [part.strip() for part in value.split(",") if part.strip()]
        elif isinstance(value, str) and flexible:
            return value
        items = value if isinstance(value, tuple | list) else (value,) if value != "" else ()
        return tuple(items)
    if isinstance(old, bool):
        good = isinstance(value, bool)
    elif isinstance(old, int):
        good = isinstance(value, int) and not isinstance(value, bool)
    elif isinstance(old, float):
        good = isinstance(value, int | float) and not isinstance(value, bool)
        value = float(value) if good else value
    elif isinstance(old, str):
        good = isinstance(value, str | int | float)
        value = str(value)
    else:
        good = True
    if not good:
        raise UserError(
            f"{key}={value!r} has the wrong type: {type(old).__name__} expected, as in {old!r}"
        )
    return value


def create(section: str, table: Table, settings: Mapping[str, Any]) -> Any:
    """An object from {"name": ..., option: value, ...}.

    Raises:
        UserError: an unknown name or option, or a value out of range.
    """
    values = {key: value for key, value in settings.items() if key != "name"}
    cls = find(section, table, settings["name"])
    known = options(cls)
    for key in values:
        if key not in known:
            raise UserError(
                f"{section}.{key} is not an option of {settings['name']!r}{nearest(key, known)}"
            )
    return cls(**{key: as_tuples(value) for key, value in values.items()})


def as_tuples(value: Any) -> Any:
    """Sequences within sequences as tuples, whatever a file made of them."""
    return tuple(map(as_tuples, value)) if isinstance(value, list | tuple) else value
