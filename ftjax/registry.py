"""What methods and tasks are registered as: a name, a module, a dataclass of options."""

import importlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from ftjax.errors import UserError, nearest
from ftjax.options import options

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


def create(section: str, table: Table, settings: Mapping[str, Any]) -> Any:
    """An object from {"name": ..., option: value, ...}.

    Raises:
        UserError: an unknown name or option, or a value out of range.
    """
    values = {
        key: value.to_dict() if isinstance(value, ConfigDict) else value
        for key, value in settings.items()
        if key != "name"
    }
    cls = find(section, table, settings["name"])
    known = options(cls)
    for key in values:
        if key not in known:
            raise UserError(
                f"{section}.{key} is not an option of {settings['name']!r}{nearest(key, known)}"
            )
    return cls(**values)


def as_tuples(value: Any) -> Any:
    """Sequences within sequences as tuples, whatever a file made of them."""
    return tuple(map(as_tuples, value)) if isinstance(value, list | tuple) else value
