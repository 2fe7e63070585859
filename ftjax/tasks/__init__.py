"""The registry of tasks: a new task is one file and one line here."""

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

from ftjax.errors import UserError, nearest

# name → (module, class, what it is). Imported when used.
TASKS: dict[str, tuple[str, str, str]] = {
    "classification": ("classification", "Classification", "one label for a text or a pair"),
}


def task_class(name: str) -> type:
    """The dataclass of options registered as `name`."""
    if name not in TASKS:
        raise UserError(f"task.name={name!r} is not known{nearest(name, TASKS)}")
    module, cls, _ = TASKS[name]
    return getattr(importlib.import_module(f"ftjax.tasks.{module}"), cls)


def options(name: str) -> dict[str, Any]:
    """Names and defaults of a task's options."""
    return {f.name: f.default for f in dataclasses.fields(task_class(name))}


def create(settings: Mapping[str, Any]) -> Any:
    """A task from {"name": ..., option: value, ...}."""
    values = {key: value for key, value in settings.items() if key != "name"}
    return task_class(settings["name"])(**values)
