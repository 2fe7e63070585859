"""The registry of tasks: a new task is one file and one line here."""

from collections.abc import Mapping
from typing import Any

from ftjax import registry

# name → (module, class, what it is)
TASKS: registry.Table = {
    "classification": ("classification", "Classification", "one label for a text or a pair"),
    "causal_lm": ("causal_lm", "CausalLM", "each token from those before it"),
}


def options(name: str) -> dict[str, Any]:
    """Names and defaults of a task's options."""
    return registry.options(registry.find("task", TASKS, name))


def create(settings: Mapping[str, Any]) -> Any:
    """A task from {"name": ..., option: value, ...}."""
    return registry.create("task", TASKS, settings)
