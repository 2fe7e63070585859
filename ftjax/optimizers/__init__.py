"""The registry of optimizers: a new one is a class and one line here.

Or it is nothing here: a class of another package, see `ftjax.registry`.
"""

from collections.abc import Mapping
from typing import Any

from ftjax import registry
from ftjax.options import Option, options

# name → (module, class, what it is)
OPTIMIZERS: registry.Table = {
    "adamw": ("rules", "AdamW", "Adam with decoupled weight decay"),
    "sgd": ("rules", "Sgd", "stochastic gradient descent, with momentum if asked"),
    "adafactor": ("rules", "Adafactor", "factored second moments"),
    "lion": ("rules", "Lion", "sign of an interpolated momentum"),
}
REGISTRY = registry.Registry(
    "optimizer.name={!r}",
    "ftjax.optimizers",
    OPTIMIZERS,
    "ftjax.optimizers",
    "ftjax.optimizers.base:Optimizer",
)


def own_options(name: str) -> Mapping[str, Option]:
    """Those of an optimizer that is not built in; of built-in ones the `optimizer` section has all.

    Raises:
        UserError: no such optimizer; the nearest is named.
    """
    return {} if name in OPTIMIZERS else options(REGISTRY.find(name))


def create(settings: Mapping[str, Any]) -> Any:
    """An optimizer from the `optimizer` section, of which it takes what it has options for."""
    cls = REGISTRY.find(settings["name"])
    return cls(**{name: settings[name] for name in options(cls) if name in settings})
